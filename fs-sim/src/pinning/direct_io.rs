//! The end of a direct I/O request, or of pages in a pipe: the transfer, and the drop of the pins.
//!
//! It owns that step, for completion and for a process's exit. Invariants: the pins are dropped
//! exactly once; the request is on its process's list until they are gone. Kernel counterpart: `aio_complete` (fs/aio.c), `pipe_buf_release`
//! (include/linux/pipe_fs_i.h).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{InFlightRequest, InFlightRequests, Transfer, io_ended};
use crate::pinning::dma::{read_short, write_short};
use crate::pinning::gup::unpin_short;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::process::Process;

impl InFlightRequest {
    /// Transfers, unpins, takes it off the list, drops the reference on the open file if there is
    /// one. Without a buffer (its process has exited) a read transfers nothing.
    pub(crate) fn finish(
        self,
        kernel: &Arc<Kernel>,
        list: &InFlightRequests,
        into: Option<&mut [u8]>,
        deferred: &mut Deferred,
    ) -> Result<usize, Errno> {
        let len = self.len as usize;
        let mut result = Ok(());
        let pinned = self.pins.is_some();
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
        }
        list.remove(self.id);
        if pinned {
            io_ended(kernel);
        }
        if let Some(description) = self.description {
            description.put(deferred);
        }
        result.map(|()| len)
    }
}

/// Ends all I/O in flight and all pages in pipes of a process that is at its end: no buffer is left
/// to copy a read into, and no caller to report an error to.
pub(crate) fn end_io_in_flight(kernel: &Arc<Kernel>, process: &Process, deferred: &mut Deferred) {
    let in_flight = process.attached::<InFlightRequests>();
    while let Some(request) = in_flight.take_any() {
        let _unreported = request.finish(kernel, in_flight, None, deferred);
    }
}
