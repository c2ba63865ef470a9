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
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::pinning::dma::store_short;
use crate::pinning::gup::{FileBehind, pin_short, pin_short_for_reading, unpin_short};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::Description;
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::task::Task;

/// The pages of `len` bytes at `offset` of a file, for reading from them. Holes and unwritten
/// blocks have no page to pin, and read as zeros.
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
    hold_pages(task, inode, (offset, len), held_for, pin_short_for_reading)
}

/// How pages are pinned for one access.
type PinShort = fn(&Arc<Kernel>, &Inode, BlockRange, Option<&Task>) -> Result<ShortPins, Errno>;

fn hold_pages(
    task: &Task,
    inode: &Arc<Inode>,
    (offset, len): (u64, u64),
    held_for: HeldFor,
    pin: PinShort,
) -> Result<HeldRun, Errno> {
    let kernel = task.kernel();
    kernel.device_there().map_err(|_| Errno::EFAULT)?;
    let pins = pin(kernel, inode, BlockRange::of_bytes(offset, len), Some(task))?;
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
        if let HeldPlace::File { pins, .. } = &run.place
            && pins.pieces.iter().all(is_writable)
        {
            // The fault of a pin for writing.
            drop(store_short(task.kernel(), pins));
            return Ok(run);
        }
        // A truncate or a punch came in between.
        run.release(task.kernel());
    }
}

/// The pages of `len` bytes of the volume's device from byte `offset` on, by a mapping of it, given
/// to `keep`.
///
/// # Errors
/// EFAULT (they are not one range of one file, or are shared **\[chosen\]**), and those of
/// [`hold_file`] and `keep`.
pub(crate) fn hold_device(
    task: &Task,
    (offset, len): (u64, u64),
    held_for: HeldFor,
    keep: &mut dyn FnMut(HeldRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    loop {
        let file = FileBehind::find(task, offset).map_err(|_| Errno::EFAULT)?;
        // A mapping of the device shows the block, written or not.
        let run = hold_pages(task, &file.inode, (file.at, len), held_for, pin_short)?;
        let range = BlockRange::of_bytes(file.at, len);
        let page = offset / BLOCK;
        if matches!(&run.place, HeldPlace::File { pins, .. } if FileBehind::is_alone_on(&pins.pieces, range, page)) {
            // Listed before the file can be evicted.
            return keep(run);
        }
        run.release(task.kernel());
        if file.is_behind(offset) {
            return Err(Errno::EFAULT);
        }
    }
}

/// As [`hold_file`], of the open file of a private mapping.
fn hold_open(
    task: &Task,
    description: &Description,
    offset: u64,
    len: u64,
    held_for: HeldFor,
) -> Result<HeldRun, Errno> {
    match (description.file(), MemoryFile::of(description)) {
        (Some((inode, _)), _) => hold_file(task, inode, offset, len, held_for),
        (None, Some(file)) => match file.fault(offset, len) {
            Ok(pages) => Ok(HeldRun { place: HeldPlace::Pages(pages), len }),
            Err(_) => Err(Errno::EFAULT),
        },
        (None, None) => Err(Errno::EFAULT),
    }
}

/// The pages of a private mapping for reading, given to `keep` as soon as they are held: runs of
/// copies, and of the file's pages where there is none. `offset` counts in the mapping.
///
/// # Errors
/// As for [`hold_file`], and those of `keep`.
pub(crate) fn hold_private(
    task: &Task,
    description: &Description,
    pages: &PrivatePages,
    (offset, len): (u64, u64),
    held_for: HeldFor,
    keep: &mut dyn FnMut(HeldRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let copied = pages.is_copied(at);
        let mut to = (at / BLOCK + 1) * BLOCK;
        while to < end && pages.is_copied(to) == copied {
            to += BLOCK;
        }
        let here = to.min(end) - at;
        keep(match copied.then(|| pages.copies(at, here)) {
            Some(Some(copies)) => HeldRun { place: HeldPlace::Pages(copies), len: here },
            // A truncate has taken one meanwhile.
            Some(None) => continue,
            None => hold_open(task, description, pages.in_file(at), here, held_for)?,
        })?;
        at += here;
    }
    Ok(())
}
