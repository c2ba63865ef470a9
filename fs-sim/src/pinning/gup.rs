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
//! pinned are the file's. A changer closes the pages that leave before it publishes the new map,
//! and publishes before it reopens them: it sees a pin that comes too early, and a pin that comes
//! too late is refused by the closed page or undone by the recheck. R is drawn after the first
//! read of the generation, so a stamp newer than R can only mean that the page left after the map
//! was read; a page that merely arrived never looks stale.
//!
//! A long-term pin is *committed* (listed in [`crate::holders`]) before its registration returns.
//! It counts in the gates of the leases that admitted it from before its first page is pinned
//! until after its last page is unpinned.

use emulator::ledger::Stamp;
use emulator::pin::{Pin, PinError, PinKind};
use emulator::race_point;
use emulator::sync::{Arc, thread};
use emulator::wait::{WaitFor, WaitQueue, Waiter};

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{pages_of, pieces_in};
use crate::extent_map::{ExtentState, Piece};
use crate::holders::short_pins::ShortPins;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in, unshare};
use crate::layout_change::departure::reap_orphans;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::task::Task;

/// Why an attempt to pin failed.
enum PinAttempt {
    /// A page was closed, or the map changed: the pinner tries again.
    Again,
    /// The pages can't be pinned.
    Errno(Errno),
}

fn pin_pieces(
    kernel: &Arc<Kernel>,
    inode: &Inode,
    generation: u64,
    pieces: &[Piece],
    kind: PinKind,
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
            PinError::Closed(_) => PinAttempt::Again,
            PinError::CountFull(_) => PinAttempt::Errno(Errno::ENOMEM),
            PinError::OutOfRange => PinAttempt::Errno(Errno::EIO),
        });
    }
    if inode.generation() != generation && !kernel.sabotage.no_recheck {
        unpin_all(kernel, pins);
        return Err(PinAttempt::Again);
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
    loop {
        let generation = inode.generation();
        let read_point = kernel.ledger.read_point();
        let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
        race_point!("gup: map read, not pinned");
        match pin_pieces(kernel, inode, generation, &pieces, PinKind::Short) {
            Ok(pins) => return Ok(ShortPins { pins, pieces, size, read_point, generation }),
            Err(PinAttempt::Errno(errno)) => return Err(errno),
            Err(PinAttempt::Again) => wait_for_closed_pages(kernel, inode, task),
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
    match pin_pieces(kernel, inode, generation, pieces, PinKind::Short) {
        Ok(pins) => Ok(Some(pins)),
        Err(PinAttempt::Again) => Ok(None),
        Err(PinAttempt::Errno(errno)) => Err(errno),
    }
}

/// Ends an access.
pub(crate) fn unpin_short(kernel: &Arc<Kernel>, pins: ShortPins) {
    unpin_all(kernel, pins.pins);
}

/// A pin met a closed page or a changed map: waits until the pages that it met are reopened. A
/// changer keeps pages closed only while pins drain that their holders are about to drop, so this
/// wait is not interruptible.
fn wait_for_closed_pages(kernel: &Kernel, inode: &Inode, task: Option<&Task>) {
    kernel.counters.pin_retries.add(1);
    let (reopenings, (_, queue)) = (inode.turn.reopenings(), inode.turn.closed_pages());
    let shut = || inode.turn.closed_pages().0 && inode.turn.reopenings() == reopenings;
    // Pages are mostly closed for less time than a sleep and a wake-up take.
    for _ in 0..CLOSED_PAGE_SPINS {
        thread::yield_now();
        if !shut() {
            return;
        }
    }
    let ready = || match shut() {
        true => std::task::Poll::Pending,
        false => std::task::Poll::Ready(()),
    };
    let how = WaitFor::uninterruptible("pages of a layout change");
    let own;
    let waiter: &Arc<Waiter> = match task {
        Some(task) => {
            task.note_waited();
            task.waiter()
        }
        None => {
            own = kernel.new_waiter();
            &own
        }
    };
    // Uninterruptible and without a deadline: it can only end by its condition.
    let _ended = WaitQueue::wait(queue, &kernel.world, waiter, how, ready);
}

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
        let generation = inode.generation();
        let read_point = kernel.ledger.read_point();
        let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
        if range.end > size.div_ceil(BLOCK) {
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
        match pin_pieces(kernel, inode, generation, &pieces, PinKind::Long) {
            Ok(pins) => return Ok((pins, read_point)),
            Err(PinAttempt::Errno(errno)) => return Err(errno),
            Err(PinAttempt::Again) => {
                wait_for_closed_pages(kernel, inode, Some(task));
                if inode.turn.waiting_on().is_some_and(|waited| waited.overlaps(range)) {
                    return Err(Errno::EAGAIN);
                }
            }
        }
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
