//! Pinning a range of a file: the only way to its pages.
//!
//! It owns the protocol between a pinner and a changer of the file's layout. Kernel counterpart:
//! `pin_user_pages_fast` with its recheck (mm/gup.c), and the 2019 RFC's lease check in
//! `FOLL_LONGTERM`.
//!
//! # The recheck, and why it suffices
//! A pinner reads the inode's generation, then draws its read point R from the ledger, then reads
//! the map, pins what the map says, and reads the generation again. If it is the same *number* (it
//! never takes a value twice), no block left, moved or joined the file in between, so the pages
//! pinned are the file's. If it is not, another part of the file may have changed: the pages are
//! still the file's if the map says the same of the range, and no stamp on them is newer than R.
//! The map alone does not suffice: a block may have left and come back. So changes elsewhere in
//! the file never keep a pinner from its pages. A changer closes the pages that leave before it
//! publishes the new map, and publishes before it reopens them: it sees a pin that comes too
//! early, and a pin that comes too late is refused by the closed page or undone by the recheck. R
//! is drawn after the first read of the generation, so a stamp newer than R can only mean that the
//! page left after the map was read; a page that merely arrived never looks stale.
//!
//! A long-term pin is *committed* (listed in [`crate::holders`]) before its registration returns.
//! It counts in the gates of the leases that admitted it from before its first page is pinned
//! until after its last page is unpinned.

use emulator::ledger::{ReadMoment, Stamp};
use emulator::pin::{Pin, PinError, PinKind};
use emulator::race_point;
use emulator::sync::{Arc, thread};
use emulator::wait::{WaitFor, WaitQueue};

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::deadlock::graph::{WaitEnd, WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::extent_map::lookup::{pages_of, pieces_in};
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in, unshare};
use crate::layout_change::departure::reap_orphans;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::names::drop_open;
use crate::vfs::task::Task;

/// Why an attempt to pin failed.
enum PinAttempt {
    /// A page was closed: the pinner waits for it, and tries again.
    Closed,
    /// The map changed: the pinner tries again at once.
    Moved,
    /// The pages can't be pinned.
    Errno(Errno),
}

/// What a pinner saw of a file before it pinned.
struct MapSeen {
    moment: ReadMoment,
    /// The blocks that were looked up.
    range: BlockRange,
    pieces: Vec<Piece>,
    size: u64,
}

impl MapSeen {
    fn now(kernel: &Kernel, inode: &Inode, range: BlockRange) -> MapSeen {
        let look = |layout: &Layout| (pieces_in(layout, range), layout.size());
        let (moment, (pieces, size)) = inode.published().look(&kernel.ledger, look);
        MapSeen { moment, range, pieces, size }
    }

    /// Whether the pages are still the file's, after they were pinned.
    fn holds(&self, kernel: &Kernel, inode: &Inode) -> bool {
        let pages = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Mapped(extent) => Some(pages_of(extent)),
            Piece::Hole { .. } => None,
        });
        let same = |layout: &Layout| pieces_in(layout, self.range) == self.pieces;
        inode.published().holds(&kernel.ledger, self.moment, pages, same)
    }
}

fn pin_pieces(
    kernel: &Arc<Kernel>,
    pieces: &[Piece],
    kind: PinKind,
    holds: impl FnOnce() -> bool,
) -> Result<Vec<Pin>, PinAttempt> {
    let mut pins = Vec::with_capacity(pieces.len());
    let mut refused = None;
    for piece in pieces {
        let Piece::Mapped(extent) = piece else { continue };
        match kernel.pins.pin(pages_of(extent), kind) {
            Ok(pin) => pins.push(pin),
            Err(error) => {
                refused = Some((error, pages_of(extent)));
                break;
            }
        }
    }
    race_point!("gup: pinned, not rechecked");
    if let Some((error, pages)) = refused {
        unpin_all(kernel, pins);
        if error.orphan_seen() {
            reap_orphans(kernel, pages);
        }
        return Err(match error {
            PinError::Closed(_) => PinAttempt::Closed,
            PinError::CountFull(_) => PinAttempt::Errno(Errno::ENOMEM),
            PinError::OutOfRange => PinAttempt::Errno(Errno::EIO),
        });
    }
    if !kernel.sabotage.no_recheck && !holds() {
        unpin_all(kernel, pins);
        return Err(PinAttempt::Moved);
    }
    Ok(pins)
}

/// Drops pins; frees orphaned blocks whose last pin this was.
pub(crate) fn unpin_all(kernel: &Arc<Kernel>, pins: Vec<Pin>) {
    for pin in pins {
        let pages = pin.range();
        if kernel.pins.unpin(pin).orphan_seen {
            reap_orphans(kernel, pages);
        }
    }
}

/// Pins the pieces of a file range for one access. It is never refused: it waits until closed
/// pages are reopened.
pub(crate) fn pin_short(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    range: BlockRange,
    task: Option<&Task>,
) -> Result<ShortPins, Errno> {
    pin_short_as(kernel, inode, range, task, |piece| piece)
}

/// As [`pin_short`], of what a mapping shows to who only reads: an unwritten block counts as a
/// hole. There a read fault of Linux maps the page of zeros (`dax_load_hole`), not the device's.
pub(crate) fn pin_short_for_reading(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    range: BlockRange,
    task: Option<&Task>,
) -> Result<ShortPins, Errno> {
    pin_short_as(kernel, inode, range, task, |piece| match piece {
        Piece::Mapped(extent) if extent.state == ExtentState::Unwritten => {
            let BlockRange { start, end } = extent.range();
            Piece::Hole { file_block: start, len: end - start }
        }
        piece => piece,
    })
}

fn pin_short_as(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    range: BlockRange,
    task: Option<&Task>,
    seen_as: fn(Piece) -> Piece,
) -> Result<ShortPins, Errno> {
    loop {
        let reopenings = inode.turn.reopenings();
        let mut seen = MapSeen::now(kernel, inode, range);
        for piece in &mut seen.pieces {
            *piece = seen_as(*piece);
        }
        race_point!("gup: map read, not pinned");
        match pin_pieces(kernel, &seen.pieces, PinKind::Short, || seen.holds(kernel, inode)) {
            Ok(pins) => {
                let MapSeen { moment: ReadMoment { generation, read_point }, pieces, size, .. } = seen;
                return Ok(ShortPins { pins, pieces, size, read_point, generation });
            }
            Err(PinAttempt::Errno(errno)) => return Err(errno),
            Err(PinAttempt::Closed) => wait_for_closed_pages(kernel, inode, range, reopenings, task)?,
            Err(PinAttempt::Moved) => try_again(kernel),
        }
    }
}

/// Pins pieces that were the file's at `generation`, for one access. `None` if the map has changed
/// since, or is about to: the caller reads it again.
pub(crate) fn pin_translated(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    generation: u64,
    pieces: &[Piece],
) -> Result<Option<Vec<Pin>>, Errno> {
    match pin_pieces(kernel, pieces, PinKind::Short, || inode.generation() == generation) {
        Ok(pins) => Ok(Some(pins)),
        Err(PinAttempt::Closed | PinAttempt::Moved) => Ok(None),
        Err(PinAttempt::Errno(errno)) => Err(errno),
    }
}

/// Ends an access.
pub(crate) fn unpin_short(kernel: &Arc<Kernel>, pins: ShortPins) {
    unpin_all(kernel, pins.pins);
}

/// Another change of the file was published since the pinner read the map.
fn try_again(kernel: &Kernel) {
    kernel.counters.pin_retries.add(1);
    thread::yield_now();
}

/// A pin of `range` met a closed page: waits until pages that were closed there are open again, or
/// were reopened since the file had `reopenings`. A changer keeps pages closed only while pins
/// drain that their holders are about to drop. Direct I/O in flight drains when its process
/// completes it: a task of that process must not wait here.
///
/// # Errors
/// EINTR: a fatal signal has ended the wait. EDEADLK: only this task could end it.
fn wait_for_closed_pages(
    kernel: &Kernel,
    inode: &Inode,
    range: BlockRange,
    reopenings: u64,
    task: Option<&Task>,
) -> Result<(), Errno> {
    kernel.counters.pin_retries.add(1);
    let queue = inode.turn.reopened();
    let closers = || match inode.turn.reopenings() == reopenings {
        true => inode.turn.closed_in(range),
        false => Vec::new(),
    };
    let shut = || !closers().is_empty();
    // Pages are mostly closed for less time than a sleep and a wake-up take.
    for _ in 0..CLOSED_PAGE_SPINS {
        thread::yield_now();
        if !shut() {
            return Ok(());
        }
    }
    let Some(task) = task else {
        let ready = || match shut() {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        };
        // The NIC's own access: it can only end by its condition.
        let how = WaitFor::uninterruptible(CLOSED_PAGES);
        let _ended = WaitQueue::wait(queue, &kernel.world, &kernel.new_waiter(), how, ready);
        return Ok(());
    };
    let how = WaitFor::killable(CLOSED_PAGES);
    let outcome = task.block_until(queue, how, WaitEnd::Refusable, || match closers() {
        closers if closers.is_empty() => WaitPoll::Ready(()),
        closers => WaitPoll::Blocked(closers.into_iter().map(|task| Need::task(task).into()).collect()),
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
    }
}

/// The reason of a pinner that waits at closed pages.
const CLOSED_PAGES: &str = "pages of a layout change";

/// How often a pinner yields before it sleeps at a closed page.
const CLOSED_PAGE_SPINS: u32 = 32;

/// Long-term pins of a file range: allocates, unshares and cleans what it must, then pins and
/// rechecks.
pub(crate) fn pin_long(
    task: &Task,
    inode: &Arc<Inode>,
    range: BlockRange,
    write: bool,
) -> Result<(Vec<Pin>, Stamp), Errno> {
    let kernel = task.kernel();
    loop {
        let reopenings = inode.turn.reopenings();
        let seen = MapSeen::now(kernel, inode, range);
        let pieces = &seen.pieces;
        if range.end > seen.size.div_ceil(BLOCK) {
            return Err(Errno::EFAULT);
        }
        if pieces.iter().any(|piece| matches!(piece, Piece::Hole { .. })) {
            if !write {
                return Err(Errno::EFAULT);
            }
            fault_in(task, inode, range, AllocationCause::LongTermPin)?;
            continue;
        }
        if pieces.iter().any(|piece| matches!(piece, Piece::Mapped(e) if e.shared)) {
            // Not only for writing: a device that reads a shared block would not follow a copy on
            // write.
            unshare(task, inode, range)?;
            continue;
        }
        if pieces.iter().any(|piece| matches!(piece, Piece::Mapped(e) if e.state == ExtentState::Unwritten)) {
            clean_unwritten(kernel, inode, range);
            continue;
        }
        race_point!("gup: map read, not pinned");
        match pin_pieces(kernel, pieces, PinKind::Long, || seen.holds(kernel, inode)) {
            Ok(pins) => return Ok((pins, seen.moment.read_point)),
            Err(PinAttempt::Errno(errno)) => return Err(errno),
            Err(PinAttempt::Moved) => try_again(kernel),
            Err(PinAttempt::Closed) => {
                wait_for_closed_pages(kernel, inode, range, reopenings, Some(task))?;
                if inode.turn.refuses_in(range) {
                    return Err(Errno::EAGAIN);
                }
            }
        }
    }
}

/// The file that has a byte of the device, counted as open until this is dropped: meanwhile it is
/// not evicted. A file whose last descriptor and name go meanwhile is evicted by the drop.
pub(crate) struct FileBehind<'t> {
    task: &'t Task,
    pub(crate) inode: Arc<Inode>,
    /// The byte's offset in the file.
    pub(crate) at: u64,
}

impl<'t> FileBehind<'t> {
    /// # Errors
    /// EIO (the device is gone), EFAULT (no file has the byte).
    pub(crate) fn find(task: &'t Task, offset: u64) -> Result<FileBehind<'t>, Errno> {
        let kernel = task.kernel();
        kernel.device_there()?;
        let (ino, block) = kernel.owner_of(offset / BLOCK).ok_or(Errno::EFAULT)?;
        let inode = kernel.inodes.get(ino).filter(|inode| inode.count_open()).ok_or(Errno::EFAULT)?;
        let found = FileBehind { task, inode, at: block * BLOCK + offset % BLOCK };
        // Checked once it is counted: see `Mount::check`.
        kernel.mount.check().map_err(|_| Errno::EFAULT)?;
        Ok(found)
    }

    /// Whether it still is the file that has byte `offset`, at the same place.
    pub(crate) fn is_behind(&self, offset: u64) -> bool {
        let place = (self.inode.ino(), self.at / BLOCK);
        self.task.kernel().owner_of(offset / BLOCK) == Some(place)
    }

    /// Whether the pieces of `range` are the device's pages from `page` on, one after the other,
    /// and no other file's too.
    pub(crate) fn is_alone_on(pieces: &[Piece], range: BlockRange, page: u64) -> bool {
        is_run(pieces, range, page) && !pieces.iter().any(|piece| matches!(piece, Piece::Mapped(e) if e.shared))
    }
}

impl Drop for FileBehind<'_> {
    fn drop(&mut self) {
        drop_open(self.task.kernel(), &self.inode, LastReference::Call(self.task));
    }
}

/// Long-term pins of `len` bytes of the device from byte `offset` on, with the file that has them.
/// The caller lists the pins before it drops that. Nothing is allocated, unshared or cleaned for a
/// mapping of the device.
///
/// # Errors
/// EFAULT (the pages are not one range of one file, or are shared), EAGAIN (a layout change waits),
/// ENOMEM (a pin count at its bound), EIO; EINTR and EDEADLK while a layout change has the pages
/// closed.
pub(crate) fn pin_long_of_device(
    task: &Task,
    offset: u64,
    len: u64,
) -> Result<(FileBehind<'_>, Vec<Pin>, Stamp), Errno> {
    let kernel = task.kernel();
    loop {
        let file = FileBehind::find(task, offset)?;
        let inode = &file.inode;
        let range = BlockRange::of_bytes(file.at, len);
        let reopenings = inode.turn.reopenings();
        if inode.turn.refuses_in(range) {
            return Err(Errno::EAGAIN);
        }
        let seen = MapSeen::now(kernel, inode, range);
        if !FileBehind::is_alone_on(&seen.pieces, range, offset / BLOCK) {
            match file.is_behind(offset) {
                true => return Err(Errno::EFAULT),
                false => continue,
            }
        }
        match pin_pieces(kernel, &seen.pieces, PinKind::Long, || seen.holds(kernel, inode)) {
            Ok(pins) => return Ok((file, pins, seen.moment.read_point)),
            Err(PinAttempt::Errno(errno)) => return Err(errno),
            Err(PinAttempt::Moved) => try_again(kernel),
            Err(PinAttempt::Closed) => wait_for_closed_pages(kernel, inode, range, reopenings, Some(task))?,
        }
    }
}

/// Whether the pieces of `range` are the device's pages from `page` on, one after the other.
pub(crate) fn is_run(pieces: &[Piece], range: BlockRange, page: u64) -> bool {
    pieces
        .iter()
        .all(|piece| matches!(piece, Piece::Mapped(extent) if extent.block == page + (extent.file_block - range.start)))
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
