//! Pages of mapped memory that are held by address.
//!
//! It owns the step from an address to pins that refer neither to the mapping nor to the open file:
//! both can go while the pins last. Invariant: an address that can't be held leaves nothing pinned.
//! Kernel counterpart: `iov_iter_extract_pages` (lib/iov_iter.c), `pin_user_pages_fast`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::Layout;
use crate::extent_map::lookup::is_writable;
use crate::holders::in_flight_io::{HeldFor, HeldPlace, HeldRun};
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::pinning::gup::{pin_short, unpin_short};
use crate::vfs::anon::AnonMemory;
use crate::vfs::inode::Inode;
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::task::Task;

/// The pages of `len` bytes at `offset` of a file, for reading from them. Holes have no page to
/// pin, and read as zeros.
///
/// # Errors
/// EFAULT beyond the page that holds the last byte of the file, or if the device is gone; ENOMEM,
/// EINTR, EDEADLK.
pub(crate) fn hold_file(
    task: &Task,
    inode: &Arc<Inode>,
    offset: u64,
    len: u64,
    held_for: HeldFor,
) -> Result<HeldRun, Errno> {
    let kernel = task.kernel();
    kernel.device_there().map_err(|_| Errno::EFAULT)?;
    let pins = pin_short(kernel, inode, BlockRange::of_bytes(offset, len), Some(task))?;
    if offset + len > pins.size.next_multiple_of(BLOCK) {
        unpin_short(kernel, pins);
        return Err(Errno::EFAULT);
    }
    Ok(HeldRun { place: HeldPlace::File { inode: Arc::clone(inode), pins, offset, held_for }, len })
}

/// As [`hold_file`], for writing into them: holes are allocated and shared blocks unshared first,
/// as a store would.
///
/// # Errors
/// As for [`hold_file`]; EFAULT too where a store would get SIGBUS.
pub(crate) fn hold_file_for_writing(
    task: &Task,
    inode: &Arc<Inode>,
    offset: u64,
    len: u64,
    held_for: HeldFor,
) -> Result<HeldRun, Errno> {
    let range = BlockRange::of_bytes(offset, len);
    loop {
        if range.end * BLOCK > inode.layout(Layout::size).next_multiple_of(BLOCK) {
            return Err(Errno::EFAULT);
        }
        fault_in(task, inode, range, AllocationCause::Fault).map_err(|_| Errno::EFAULT)?;
        clean_unwritten(task.kernel(), inode, range);
        let run = hold_file(task, inode, offset, len, held_for)?;
        let there = matches!(&run.place, HeldPlace::File { pins, .. } if pins.pieces.iter().all(is_writable));
        if there {
            return Ok(run);
        }
        // A truncate or a punch came in between.
        run.release(task.kernel());
    }
}

/// The pages of a private mapping for reading, given to `keep` as soon as they are held: copies,
/// and runs of the file's pages where there is none. `offset` counts from the first page.
///
/// # Errors
/// As for [`hold_file`], and those of `keep`.
pub(crate) fn hold_private(
    task: &Task,
    inode: &Arc<Inode>,
    pages: &PrivatePages,
    (offset, len): (u64, u64),
    held_for: HeldFor,
    keep: &mut dyn FnMut(HeldRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let copy = pages.copy(at);
        let mut to = (at / BLOCK + 1) * BLOCK;
        while copy.is_none() && to < end && !pages.is_copied(to) {
            to += BLOCK;
        }
        let here = to.min(end) - at;
        match copy {
            Some(copy) => keep_copies(&[copy], at, here, keep)?,
            None => keep(hold_file(task, inode, pages.in_file(at), here, held_for)?)?,
        }
        at += here;
    }
    Ok(())
}

/// Gives `len` bytes of the copies of neighbouring pages to `keep`, from the place of `offset` in
/// the first page on.
///
/// # Errors
/// Those of `keep`.
pub(crate) fn keep_copies(
    copies: &[Arc<AnonMemory>],
    offset: u64,
    len: u64,
    keep: &mut dyn FnMut(HeldRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (mut at, end) = (offset % BLOCK, offset % BLOCK + len);
    for copy in copies {
        let len = (BLOCK - at % BLOCK).min(end - at);
        keep(HeldRun { place: HeldPlace::Memory { memory: Arc::clone(copy), offset: at % BLOCK }, len })?;
        at += len;
    }
    Ok(())
}
