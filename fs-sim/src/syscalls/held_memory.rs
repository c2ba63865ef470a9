//! Holding mapped memory by address, whatever is mapped there.
//!
//! It owns the lookup of an address for calls whose buffer stays in use after they return. Kernel
//! counterpart: `iov_iter_extract_pages` (lib/iov_iter.c).

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::holders::in_flight_io::{HeldFor, HeldPlace, HeldRun};
use crate::pinning::held_memory::{hold_device, hold_file, hold_file_for_writing, hold_private};
use crate::syscalls::memory::copy_private;
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::open_file::Deferred;
use crate::vfs::task::Task;

/// Holds the pages of `va..va+len`, to be read from or, with `write`, written to, and gives each
/// run to `keep` as soon as it is held. The pages of a file are pinned short-term, in every design;
/// pages of a private mapping are copied before they are written to.
///
/// # Errors
/// EFAULT (not mapped, read-only where `write` is asked, beyond the end of the file, a page of a
/// private mapping that can't be copied), ENOMEM (a pin count at its bound); EINTR and EDEADLK
/// while a layout change has the pages closed; those of `keep`.
pub(super) fn hold_mapped(
    task: &Task,
    (va, len): (u64, u64),
    write: bool,
    held_for: HeldFor,
    keep: &mut dyn FnMut(HeldRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let target = task.process().target(va, len, write).map_err(|_| Errno::EFAULT)?;
    let in_memory = |memory: &Arc<AnonMemory>, offset| {
        let place = HeldPlace::Memory { memory: Arc::clone(memory), offset };
        HeldRun { place, len }
    };
    let inode = |description: &Arc<crate::vfs::open_file::Description>| {
        description.file().map(|(inode, _)| Arc::clone(inode)).ok_or(Errno::EFAULT)
    };
    let held = match &target {
        Backing::Anon { memory, offset } => keep(in_memory(memory, *offset)),
        Backing::Device { offset } => hold_device(task, (*offset, len), held_for, keep),
        Backing::Memory { file, offset } => match file.fault(*offset, len) {
            Ok(pages) => keep(HeldRun { place: HeldPlace::Pages(pages), len }),
            Err(_) => Err(Errno::EFAULT),
        },
        Backing::File { description, offset } => inode(description).and_then(|inode| {
            keep(match write {
                true => hold_file_for_writing(task, &inode, *offset, len, held_for)?,
                false => hold_file(task, &inode, *offset, len, held_for)?,
            })
        }),
        Backing::Private { description, pages, offset } => match write {
            true => match copy_private(task, description, pages, *offset, len) {
                Ok(pages) => keep(HeldRun { place: HeldPlace::Pages(pages), len }),
                // What a store would get as a signal.
                Err(Errno::SIGBUS | Errno::EIO) => Err(Errno::EFAULT),
                Err(errno) => Err(errno),
            },
            false => hold_private(task, description, pages, (*offset, len), held_for, keep),
        },
    };
    // By now the pages are listed: if this is the last reference to their file, its eviction finds
    // them.
    let mut deferred = Deferred::default();
    target.put(&mut deferred);
    task.run_deferred(deferred);
    held
}
