//! Page pins: a lock-free table of who holds memory in place, and the door that a layout change shuts on it.
//!
//! It owns one word per 4 KiB page, per 2 MiB folio and per 1 GiB ("giant") folio of a device. Invariant: **nothing is frozen
//! while it is pinned, at whatever level** ([`Frozen`] tokens made by [`Closing::freeze`]); nothing is pinned twice out of
//! one count; and no pin or unpin ever waits for anybody. Kernel counterpart: `mm/gup.c`, and the DAX layout checks of
//! `fs/dax.c`, which find busy pages without being able to keep new pins out.
//!
//! # Pins look up, closes mark up
//! A range is pinned in the largest aligned units that it covers whole: one add for a folio, whatever its size. So the same
//! page can be pinned through three words, and a change of the page must see all of them; a change of a folio must see the
//! 512 words below. Counting every pin into the folio's word would do, and would cost every pinner the folio's cache line.
//! Instead a pin writes its own word and only *reads* its parents, and a close, which is rare, does the work:
//!
//! - **pin**: add to the unit's word; refused if the old value shows the unit closed, or a part of it being closed
//!   (`closes_below`). Then load each parent: refused if closed; `BELOW` is set if it is missing, and the access that sets
//!   it looks for `CLOSED` again. A refused pin takes back what it counted, as a full unpin.
//! - **close**: from the top, add to `closes_below` of each parent, which keeps pins of the parent out; then set `CLOSED` on
//!   each unit. The scan that follows reads the parents, the units, and what is below the units that have `BELOW`.
//! - **reopen**: take `CLOSED` and the parents' marks away again.
//!
//! ## Why a pin and a close can't miss each other
//! *In one word* (pin and close of the same unit; pin of a folio and close of a page in it, which meet in the folio's
//! word) both are read-modify-writes, and one comes first: either the closer's later scan finds the count, or the pin's old
//! value shows the mark.
//!
//! *In two words* (pin of a page, close of its folio): the pin adds to the page, then loads the folio; the closer marks the
//! folio, then loads the page. All four are SeqCst, so at least one load sees the other's write. Weaker loads would let both
//! miss. (loom takes SeqCst accesses as AcqRel: [`fence_after_rmw`](crate::runtime::sync::fence_after_rmw) makes up for it there.)
//!
//! `BELOW` spares a closer the 512 loads: a pin that finds it set was preceded by the one that set it; a pin that sets it
//! after the closer's mark sees the mark in the same access. It is cleared only by the reopening of the unit itself after a
//! scan found everything zero: a pin of a part that settled before the mark was in that scan, and one that looks up after
//! the reopening sets `BELOW` anew. (So a giant folio's close leaves its folios' `BELOW` alone: between a pin's look at the folio
//! and its look at the giant, that clearing would be missed.)
//!
//! ## Pins of a parent don't refuse a close
//! A close of a page whose folio is pinned keeps its `closes_below` there and counts the folio's pins among those present:
//! no new one gets in, so the drain can't be starved. Contended are only two closes of which one contains the other.
//!
//! ## Wake-ups
//! A closer that wants to sleep sets `WAITERS` on one busy word and looks at that access's old value: still busy means that
//! the unpin which empties the word comes later and sees the flag. It is set only under a shut door and goes with it; on a
//! parent, which closers share, with the last of them. Every wake-up only means "look again".
//!
//! ## Orphans
//! Blocks that left their file while pinned are freed by whoever unpins last. [`Closing::orphan`] sets `ORPHAN` on every
//! word with pins of the range; an unpin that empties such a word says `orphan_seen`, and its caller tries to close, freeze
//! and free. Several orphaned ranges can share a folio's word, so the rule is:
//!
//! - `ORPHAN` is *cleared* only by an access that finds no pins in the word (a freeze's compare-exchange). Hence nobody clears
//!   it between its setting on a pinned word and the word's next emptying: the unpin that empties it sees it. A mark that
//!   outlives its reason is a hint that makes somebody look in vain.
//! - Whoever gives up on a range without an owner leaves through `orphan` and [`Orphaned::reopen`], which looks once more
//!   *after* the door is open: a marked word that is empty by then (its unpin may have met the shut door) is reported to the
//!   one who reopened. So at every moment somebody is still to report, or is being told.
//!
//! # What the pinner of a file range adds
//! The table knows no files. A pinner reads the file's generation, then its map, pins, and compares the generation again;
//! a change freezes, publishes its map, advances the generation, and frees before it reopens. If the pin came first, the
//! freeze fails. If it came after the reopening, it also sees the new generation (release and acquire through the word that
//! was reopened), and the pinner undoes. `tests/loom_pin.rs` has this pair in all combinations of levels, and each line of
//! the protocol left out in turn; `docs/pin-engine.md` tells which model notices.

mod close;
pub mod gate;
mod levels;
mod mutation;
mod table;
mod word;
pub mod words;

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

pub use crate::runtime::pages::PageRange;
pub use close::{Closing, Contended, Frozen, Orphaned};
pub use levels::Unit;
#[cfg(daxlab_loom)]
pub use mutation::Mutation;
pub use table::{Census, Pin, PinError, PinTable, Unpinned};
pub use word::{PinKind, Word};
