//! A process that spins in the kernel: it waits for another one without sleeping.
//!
//! It owns the proof. Between two looks of a proof the process has used processor time in the
//! kernel and none of its own, and at each look it is found in the one function that takes the
//! locks of two files, which a call that does not spin passes once. Invariant: what can't be seen
//! proves nothing; on a machine with one processor, such as a guest, the stack of a process that is
//! not the driver's is always that of a process that does not run at this moment. Kernel
//! counterpart: `xfs_mmaplock_two_inodes_and_break_dax_layout` in fs/xfs/xfs_inode.c, which starts
//! anew while a page of the second inode is held, whatever signals are pending.

/// The functions between whose turns a process can spin.
const SPINNING: [&str; 2] = ["xfs_mmaplock_two_inodes_and_break_dax_layout+", "xfs_ilock2_io_mmap+"];
/// How many looks with new processor time prove it. A turn of the loop takes microseconds, a unit
/// of processor time 10 ms.
const LOOKS: u32 = 5;

/// Processor time that a process has used, in the units of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessorTime {
    pub(super) user: u64,
    pub(super) kernel: u64,
}

/// Whether a stack as /proc/PID/stack tells it is that of a process that may spin.
pub(super) fn may_spin(stack: &str) -> bool {
    SPINNING.iter().any(|function| stack.contains(function))
}

/// What looks at a process have shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpinProof {
    last: Option<ProcessorTime>,
    looks: u32,
}

impl SpinProof {
    /// Adds a look; none: the process was not where it could spin. True once it is proven.
    pub(super) fn add(&mut self, seen: Option<ProcessorTime>) -> bool {
        match (self.last, seen) {
            (Some(last), Some(now)) if now.user == last.user => {
                if now.kernel > last.kernel {
                    self.looks += 1;
                    self.last = seen;
                }
            }
            _ => *self = SpinProof { last: seen, looks: 0 },
        }
        self.is_proven()
    }

    /// Whether the process spins.
    pub(super) fn is_proven(self) -> bool {
        self.looks >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_time_at_one_place_proves_a_spin() {
        let time = |user, kernel| Some(ProcessorTime { user, kernel });
        let proven = |looks: &[Option<ProcessorTime>]| {
            let mut proof = SpinProof::default();
            looks.iter().fold(false, |_, look| proof.add(*look))
        };
        assert!(proven(&[time(1, 1), time(1, 2), time(1, 3), time(1, 3), time(1, 4), time(1, 5), time(1, 6)]));
        assert!(!proven(&[time(1, 1); 20]), "no time was used");
        assert!(!proven(&[time(1, 1), time(1, 2), time(1, 3), time(2, 4), time(2, 5), time(2, 6), time(2, 7)]));
        assert!(!proven(&[time(1, 1), time(1, 2), time(1, 3), None, time(1, 4), time(1, 5), time(1, 6)]));
    }

    #[test]
    fn the_function_of_the_loop_is_found_in_a_stack() {
        let stack = "[<0>] down_write+0x1f/0x70\n[<0>] xfs_ilock+0x5a/0x110 [xfs]\n\
            [<0>] xfs_ilock2_io_mmap+0xd4/0x200 [xfs]\n[<0>] xfs_reflink_remap_prep+0x54/0x2b0 [xfs]\n";
        assert!(may_spin(stack));
        assert!(!may_spin("[<0>] xfs_ilock+0x5a/0x110 [xfs]\n"));
    }
}
