//! Holding mapped memory by address, whatever is mapped there.
//!
//! It owns the lookup of an address for calls whose buffer stays in use after they return. Kernel
//! counterpart: `iov_iter_extract_pages` (lib/iov_iter.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{HeldFor, Place, Run};
use crate::pinning::held_memory::{hold_file, hold_file_for_writing, hold_private};
use crate::syscalls::memory::copy_private;
use crate::vfs::address_space::Backing;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

/// Holds the pages of `va..va+len`, to be read from or, with `write`, written to. The pages of a
/// file are pinned short-term, in every design; pages of a private mapping are copied before they
/// are written to.
///
/// # Errors
/// EFAULT (not mapped, read-only where `write` is asked, beyond the end of the file), ENOMEM (a pin
/// count at its bound); EINTR and EDEADLK while a layout change has the pages closed.
pub(super) fn hold_mapped(task: &Task, va: u64, len: u64, write: bool, held_for: HeldFor) -> Result<Vec<Run>, Errno> {
    let target = task.process().target(va, len, write).map_err(|_| Errno::EFAULT)?;
    let memory =
        |memory: &Arc<_>, offset| vec![Run { place: Place::Memory { memory: Arc::clone(memory), offset }, len }];
    let held = match &target {
        Backing::Anon { memory: there, offset } => Ok(memory(there, *offset)),
        Backing::File { description, offset } => {
            let inode = description.file().map(|(inode, _)| inode).ok_or(Errno::EFAULT);
            inode
                .and_then(|inode| match write {
                    true => hold_file_for_writing(task, inode, *offset, len, held_for),
                    false => hold_file(task, inode, *offset, len, held_for),
                })
                .map(|run| vec![run])
        }
        Backing::Private { description, pages, offset } => {
            let inode = description.file().map(|(inode, _)| inode).ok_or(Errno::EFAULT);
            inode.and_then(|inode| match write {
                true => copy_private(task, inode, pages, *offset, len)
                    .map(|()| memory(pages.memory(), *offset))
                    .map_err(|errno| if errno == Errno::SIGBUS { Errno::EFAULT } else { errno }),
                false => hold_private(task, inode, pages, *offset, len, held_for),
            })
        }
    };
    let mut deferred = Deferred::default();
    target.put(&mut deferred);
    task.run_deferred(deferred);
    held
}
