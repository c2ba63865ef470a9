//! Page pins: a lock-free table of the pins of each page, and the closing of pages against new
//! pins.
//!
//! It owns one word per 4 KiB page, per 2 MiB folio and per 1 GiB ("giant") folio of a device.
//! Invariants: **nothing is frozen while it is pinned, at whatever level** ([`Frozen`] tokens made
//! by [`Closing::freeze`]); each pin is counted once; no pin and no unpin ever waits. Kernel
//! counterpart: `mm/gup.c`, and the DAX layout checks of `fs/dax.c`, which find busy pages but
//! cannot refuse new pins. The module also owns [`gate::Gate`], the same idea for one object
//! instead of pages, and `words::WordStore`, the sparse array of words that the ledger uses too.
//!
//! # Pins look up, closes mark up
//! A range is pinned in the largest aligned units that it covers whole: one add for a folio,
//! whatever its size. So the same page can be pinned through three words. A change of a page must
//! see all three. A change of a folio must see the 512 words below it. Counting every pin in the
//! folio's word as well would be simple, but all pinners would then share the folio's cache line.
//! Instead a pin writes its own word and only *reads* its parents. A close is rare, so it does the
//! extra work:
//!
//! - **pin**: add to the unit's word. The pin is refused if the old value shows the unit closed, or
//!   a part of it being closed (`closes_below`). Then load each parent: the pin is refused if the
//!   parent is closed. If `BELOW` is missing in the parent, the pin sets it and checks `CLOSED`
//!   again in the same access. A refused pin takes back its count, as a full unpin.
//! - **close**: from the top, add to `closes_below` of each parent, which keeps pins of the parent
//!   out; then set `CLOSED` on each unit. The scan that follows reads the parents, the units, and
//!   the words below the units that have `BELOW`.
//! - **reopen**: clear `CLOSED` and take the parents' marks away.
//!
//! ## Why a pin and a close can't miss each other
//! *In one word* (pin and close of the same unit; pin of a folio and close of a page in it, which
//! meet in the folio's word) both are read-modify-writes, and one comes first. Either the closer's
//! later scan finds the count, or the pin's old value shows the mark.
//!
//! *In two words* (pin of a page, close of its folio) the pin adds to the page, then loads the
//! folio; the closer marks the folio, then loads the page. All four are SeqCst, so at least one
//! load sees the other side's write. With weaker loads both could miss. (loom takes SeqCst accesses
//! as AcqRel: [`fence_after_rmw`](crate::runtime::sync::fence_after_rmw) makes up for it there.)
//!
//! `BELOW` spares a closer the 512 loads. A pin that finds it set came after the pin that set it. A
//! pin that sets it after the closer's mark sees the mark in the same access. `BELOW` is cleared
//! only when the unit itself is reopened after a scan found everything zero. A pin of a part that
//! settled before the mark was in that scan, and a pin that looks up after the reopening sets
//! `BELOW` anew. (So the close of a giant folio leaves `BELOW` of its folios alone: a pin between
//! its look at the folio and its look at the giant would miss that clearing.)
//!
//! ## Pins of a parent don't refuse a close
//! A close of a page whose folio is pinned keeps its `closes_below` there and counts the folio's
//! pins among those present. No new pin of the folio gets in, so the drain can't be starved. Two
//! closes are contended only if one contains the other.
//!
//! ## Wake-ups
//! A closer that wants to sleep sets `WAITERS` on one busy word and checks that access's old value.
//! If the word is still busy, the unpin that empties it comes later and sees the flag. The flag is
//! set only while the unit is closed, and reopening clears it; on a parent, which closers share,
//! the last of them clears it. A wake-up only means "check the condition again".
//!
//! ## Orphans
//! Blocks that leave their file while pinned are freed by the last unpinner. [`Closing::orphan`]
//! sets `ORPHAN` on every word that holds pins of the range. An unpin that empties such a word
//! returns `orphan_seen`, and its caller tries to close, freeze and free. Several orphaned ranges
//! can share a folio's word, so these rules hold:
//!
//! - `ORPHAN` is *cleared* only by an access that finds no pins in the word (the compare-exchange
//!   of a freeze). Hence the mark stays from its setting on a pinned word until the word is next
//!   empty, and the unpin that empties the word sees it. A mark that outlives its reason is a hint:
//!   it causes one useless search.
//! - A caller that gives up on a range without an owner leaves through `orphan` and
//!   [`Orphaned::reopen`]. That looks once more *after* the pages are open. If a marked word is
//!   empty by then (the thread that unpinned it may have found the pages closed), `reopen` reports
//!   it to its caller. So at every moment a pin that will report, or a report in progress, exists.
//!
//! # What the pinner of a file range adds
//! The table knows no files. A pinner reads the file's generation, then its map, pins, and compares
//! the generation again. A changer freezes, publishes its map, advances the generation, and frees
//! before it reopens. If the pin came first, the freeze fails. If the pin came after the reopening,
//! the pinner also sees the new generation (release and acquire through the reopened word) and
//! undoes the pin. `tests/loom_pin.rs` has this pair in all combinations of levels, and each line
//! of the protocol left out in turn; `docs/pin-engine.md` lists which model notices which.

mod close;
pub mod gate;
mod levels;
mod mutation;
mod table;
mod word;
pub(crate) mod words;

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

pub use crate::runtime::pages::PageRange;
pub use close::{Closing, Contended, Frozen, Orphaned};
pub use levels::Unit;
#[cfg(daxlab_loom)]
pub use mutation::Mutation;
pub use table::{Census, Pin, PinError, PinTable, Unpinned};
pub use word::{PinKind, Word};
