//! What an administrator does to a volume from outside: defragment, look at runs, watch guests,
//! switch the machine off.
//!
//! It owns the entry points; the work is done in the layers below. Invariant: none of them acts
//! for a process. Kernel counterpart: xfs_fsr(8), filefrag(8).

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::extent_map::lookup::runs;
use crate::holders::holder::{RevokeReason, revoke_holder};
use crate::holders::list::pin_holders;
use crate::holders::stale_watch::{StaleWatch, changed_lines};
use crate::layout_change::defragment::{Defragmented, defragment_inode};
use crate::pinning::direct_io::end_io_in_flight;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::{drop_open, lookup};
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

impl Kernel {
    /// As [`Task::defragment`], but breaks no lease, and never waits: blocks under any lease are
    /// skipped.
    ///
    /// # Errors
    /// As for [`Task::defragment`], but never EINTR.
    pub fn defragment_politely(self: &Arc<Self>, name: &str) -> Result<Defragmented, Errno> {
        let inode = lookup(self, name, LastReference::Kernel)?;
        let done = defragment_inode(self, &inode, None);
        drop_open(self, &inode, LastReference::Kernel);
        done
    }

    /// Takes away the pins that tasks wait for in waits which nothing ends (see
    /// [`Participant::uninterruptible`]): all I/O in flight completes, all holders are revoked.
    /// For the end of a run only: it stands for switching the machine off. False: no task is
    /// stuck.
    ///
    /// [`Participant::uninterruptible`]: crate::deadlock::need::Participant::uninterruptible
    pub fn tear_down_stuck(self: &Arc<Self>) -> bool {
        if !self.stuck().iter().any(|task| task.uninterruptible) {
            return false;
        }
        let mut deferred = Deferred::default();
        for (_, process) in self.processes.snapshot() {
            end_io_in_flight(self, &process, &mut deferred);
        }
        for inode in self.all_inodes() {
            pin_holders(&inode).all().iter().for_each(|holder| {
                revoke_holder(self, holder, RevokeReason::DeviceRemoved);
            });
        }
        self.run_deferred(deferred);
        true
    }

    /// In how many runs the file called `name` lies on the device, however many extents its map
    /// has: extents that continue both in the file and on the device count as one run.
    ///
    /// # Errors
    /// ENOENT.
    pub fn runs_of(&self, name: &str) -> Result<u64, Errno> {
        Ok(self.named(name).ok_or(Errno::ENOENT)?.layout(runs))
    }

    /// Switches on the watch over what guests store into blocks that were freed while they could
    /// reach them; it stays on. It costs a fill and a comparison of such blocks, and guests find
    /// their contents gone.
    pub fn watch_stale_guests(&self) {
        self.attached::<StaleWatch>().on.store(true, Ordering::Relaxed);
    }

    /// How many 64-byte lines of freed blocks differ from their fill: a guest, or another device
    /// that still had them, stored to at least so many lines that it no longer owned. 0 while the
    /// watch is off.
    pub fn stale_guest_changed_lines(&self) -> u64 {
        let (settled, filled) = {
            let state = self.attached::<StaleWatch>().state.lock();
            (state.settled, state.filled.pages())
        };
        settled + filled.iter().map(|pages| changed_lines(self, *pages)).sum::<u64>()
    }
}

impl Task {
    /// Copies the blocks of the file called `name` into one run of the device, except those that
    /// may not be moved, for the system: whatever leases this task's process has, it is a
    /// stranger's change. Breaks breakable leases and waits for them interruptibly; where breaks
    /// never time out it skips them after one break time. A file that lies in one run already is
    /// left alone.
    ///
    /// # Errors
    /// ENOENT; ENOSPC if no run of free blocks is long enough, EIO if a block turned unreadable
    /// meanwhile or the device is gone, EINTR: nothing was moved.
    pub fn defragment(&self, name: &str) -> Result<Defragmented, Errno> {
        self.syscall(|| {
            let inode = lookup(self.kernel(), name, LastReference::Call(self))?;
            let done = defragment_inode(self.kernel(), &inode, Some(self));
            drop_open(self.kernel(), &inode, LastReference::Call(self));
            done
        })
    }
}
