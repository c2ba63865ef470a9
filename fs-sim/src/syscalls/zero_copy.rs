//! Sending mapped memory over a network without a copy.
//!
//! It owns the call and the acknowledgement. The pages are short-term pins by address that no
//! process ends: the network stack holds them until the peer has acknowledged the bytes, also after
//! munmap, after the last close, and after the sender's exit. Invariant: they are dropped exactly
//! once. Kernel counterpart: `MSG_ZEROCOPY` (`msg_zerocopy_realloc`, `__zerocopy_sg_from_iter`).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{HeldFor, TransferEnd, TransferSide, ownerless};
use crate::pinning::direct_io::RequestDraft;
use crate::syscalls::held_memory::hold_mapped;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

/// The most bytes of one send **\[chosen\]**.
pub const SEND_MAX: u64 = 1 << 20;

/// How many sends may wait for their acknowledgement on one machine. Linux: `net.core.optmem_max`
/// bounds them for each socket.
pub const SENDS_MAX: usize = 1024;

/// Bytes that were sent without a copy, and that the peer has not acknowledged.
#[derive(Debug)]
#[must_use = "it holds pins until the peer acknowledges it"]
pub struct SentPages {
    id: u64,
    len: u64,
}

impl Task {
    /// Sends `va..va+len` without a copy. The pages of a file are pinned short-term, in every
    /// design.
    ///
    /// # Errors
    /// EINVAL (length 0, or more than [`SEND_MAX`]), EFAULT (not mapped, or beyond the end of the
    /// file), ENOBUFS (more than [`SENDS_MAX`] sends), ENOMEM (a pin count at its bound); EINTR and
    /// EDEADLK while a layout change has the pages closed.
    pub fn send_zero_copy(&self, va: u64, len: u64) -> Result<SentPages, Errno> {
        self.syscall(|| {
            if len == 0 || len > SEND_MAX {
                return Err(Errno::EINVAL);
            }
            let sends = ownerless(self.kernel());
            // Only threads that send at one moment can exceed the bound, by their number.
            if sends.sends() >= SENDS_MAX {
                return Err(Errno::ENOBUFS);
            }
            let draft = RequestDraft::begin(self, sends);
            let mut keep = |run| draft.hold(TransferSide::From, run);
            hold_mapped(self, (va, len), false, HeldFor::Send, &mut keep)?;
            let (id, _) = draft.make(|pages| (pages.to, pages.len) = (TransferEnd::Caller, len))?;
            Ok(SentPages { id, len })
        })
    }
}

impl SentPages {
    /// The peer acknowledges the bytes: the pins go. Returns what the pages hold now, which is what
    /// a last transmission carries.
    ///
    /// # Errors
    /// EIO: the device failed. The pins are gone.
    pub fn acknowledge(self, kernel: &Arc<Kernel>) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; self.len as usize];
        let sends = ownerless(kernel);
        let request = sends.take(self.id).ok_or(Errno::Dead)?;
        // A send refers to no open file.
        request.finish(kernel, sends, Some(&mut bytes), &mut Deferred::default()).map(|_| bytes)
    }
}
