//! The end of a direct I/O request, or of pages in a pipe: the transfer, and the drop of the pins.
//!
//! It owns that step, for completion and for a process's exit. Invariant: the pins are dropped
//! exactly once. Kernel counterpart: `aio_complete` (fs/aio.c), `pipe_buf_release`
//! (include/linux/pipe_fs_i.h).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{InFlightRequest, Transfer};
use crate::holders::list::pin_holders;
use crate::pinning::dma::{read_short, write_short};
use crate::pinning::gup::unpin_short;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;

impl InFlightRequest {
    /// Transfers, unpins, drops the reference on the open file if there is one. Without a buffer
    /// (its process has exited) a read transfers nothing.
    pub(crate) fn finish(
        self,
        kernel: &Arc<Kernel>,
        into: Option<&mut [u8]>,
        deferred: &mut Deferred,
    ) -> Result<usize, Errno> {
        let len = self.len as usize;
        let mut result = Ok(());
        if let Some(pins) = self.pins {
            let inode = &self.inode;
            result = match (self.transfer, into) {
                (Transfer::Write(byte), _) => write_short(kernel, inode, &pins, self.offset, &vec![byte; len]),
                (Transfer::Read, Some(into)) if into.len() >= len => {
                    read_short(kernel, inode, &pins, self.offset, &mut into[..len])
                }
                (Transfer::Read, Some(_)) => Err(Errno::EFAULT),
                (Transfer::Read, None) => Ok(()),
            };
            unpin_short(kernel, pins);
            // A change or an eviction may wait for this I/O with all pages open.
            pin_holders(inode).changed.wake_all();
        }
        if let Some(description) = self.description {
            description.put(deferred);
        }
        result.map(|()| len)
    }
}
