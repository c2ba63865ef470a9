//! The word: what one page, folio or giant folio says about itself in 64 bits.
//!
//! It owns the bit layout and nothing that changes. Invariant: a count never spills into its
//! neighbour, because a pin that finds its count at half the field takes itself back
//! ([`Word::is_full`]) and far fewer than half a field of threads exist. Kernel counterpart:
//! `_refcount` with `GUP_PIN_COUNTING_BIAS`, and `_pincount` of a large folio.
//!
//! ```text
//!  63     62      61    60     59            44 43                          16 15             0
//! +------+-------+-----+------+----------------+------------------------------+----------------+
//! |ORPHAN|WAITERS|BELOW|CLOSED| closes_below 16|           long 28            |    short 16    |
//! +------+-------+-----+------+----------------+------------------------------+----------------+
//! ```

use std::fmt;

/// What a pin is for: decides how long it may last, and so which changes wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PinKind {
    /// One I/O's reference; finite, waited for by every layout change. Kernel: `FOLL_PIN`.
    Short,
    /// A registration's reference; as long as its holder likes. Kernel: `FOLL_PIN | FOLL_LONGTERM`.
    Long,
}

const SHORT_BITS: u32 = 16;
const LONG_BITS: u32 = 28;
const CLOSES_BITS: u32 = 16;
const LONG_SHIFT: u32 = SHORT_BITS;
const CLOSES_SHIFT: u32 = LONG_SHIFT + LONG_BITS;
const FLAGS_SHIFT: u32 = CLOSES_SHIFT + CLOSES_BITS;
const _: () = assert!(FLAGS_SHIFT + 4 == u64::BITS, "three counts and four flags fill the word");

const SHORT: u64 = (1 << SHORT_BITS) - 1;
const LONG: u64 = ((1 << LONG_BITS) - 1) << LONG_SHIFT;
const CLOSES_BELOW: u64 = ((1 << CLOSES_BITS) - 1) << CLOSES_SHIFT;
const SHORT_HALF: u64 = 1 << (SHORT_BITS - 1);
const LONG_HALF: u64 = 1 << (LONG_SHIFT + LONG_BITS - 1);
const CLOSES_HALF: u64 = 1 << (CLOSES_SHIFT + CLOSES_BITS - 1);

/// What a close adds to each parent of what it closes.
pub(super) const CLOSE_BELOW: u64 = 1 << CLOSES_SHIFT;
/// The unit is closed: every new pin is refused.
pub(super) const CLOSED: u64 = 1 << FLAGS_SHIFT;
/// Something below this word may be pinned.
pub(super) const BELOW: u64 = 1 << (FLAGS_SHIFT + 1);
/// A closer waits for a count of this word to reach zero.
pub(super) const WAITERS: u64 = 1 << (FLAGS_SHIFT + 2);
/// Blocks without a file may be waiting for this word to have no pins.
pub(super) const ORPHAN: u64 = 1 << (FLAGS_SHIFT + 3);

/// The refused pin looks closer only if one of these is set: one test on the way of every pin.
const MAY_REFUSE: u64 = CLOSED | CLOSES_BELOW | SHORT_HALF | LONG_HALF;

impl PinKind {
    /// One pin of this kind, as added to a word.
    #[inline]
    pub(super) const fn one(self) -> u64 {
        match self {
            PinKind::Short => 1,
            PinKind::Long => 1 << LONG_SHIFT,
        }
    }
}

/// A word as it was at one moment; see [`crate::pin::PinTable::word`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Word(pub(super) u64);

impl Word {
    /// Short-term pins of exactly this unit.
    pub const fn short(self) -> u64 {
        self.0 & SHORT
    }

    /// Long-term pins of exactly this unit.
    pub const fn long(self) -> u64 {
        (self.0 & LONG) >> LONG_SHIFT
    }

    /// Closes in progress of parts of this unit; 0 for a page.
    pub const fn closes_below(self) -> u64 {
        (self.0 & CLOSES_BELOW) >> CLOSES_SHIFT
    }

    /// Whether a close of this unit is in progress.
    pub const fn is_closed(self) -> bool {
        self.has(CLOSED)
    }

    /// Whether something below may be pinned: exact in a "no" as long as this unit is closed, a
    /// hint otherwise.
    pub const fn has_below(self) -> bool {
        self.has(BELOW)
    }

    /// Whether a closer waits here.
    pub const fn has_waiters(self) -> bool {
        self.has(WAITERS)
    }

    /// Whether orphaned blocks may be waiting for this word; a hint that can outlive its reason.
    pub const fn has_orphan(self) -> bool {
        self.has(ORPHAN)
    }

    /// Whether exactly this unit is pinned.
    #[inline]
    pub const fn is_pinned(self) -> bool {
        self.0 & (SHORT | LONG) != 0
    }

    /// Whether a pin or a close is in progress here: the hints (`BELOW`, `ORPHAN`, `WAITERS`) left
    /// aside.
    pub const fn is_busy(self) -> bool {
        self.0 & (SHORT | LONG | CLOSES_BELOW | CLOSED) != 0
    }

    /// Pins of `kind`.
    #[inline]
    pub const fn count(self, kind: PinKind) -> u64 {
        match kind {
            PinKind::Short => self.short(),
            PinKind::Long => self.long(),
        }
    }

    #[inline]
    pub(super) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    #[inline]
    pub(super) const fn may_refuse(self) -> bool {
        self.0 & MAY_REFUSE != 0
    }

    /// Whether a pin of this unit is refused: it is closed, or a part of it is.
    pub(super) const fn is_shut(self) -> bool {
        self.0 & (CLOSED | CLOSES_BELOW) != 0
    }

    /// Whether the count of `kind` has reached half its field.
    pub(super) const fn is_full(self, kind: PinKind) -> bool {
        self.has(match kind {
            PinKind::Short => SHORT_HALF,
            PinKind::Long => LONG_HALF,
        })
    }

    /// Whether `closes_below` has reached half its field.
    pub(super) const fn closes_full(self) -> bool {
        self.has(CLOSES_HALF)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "short {} long {} closes_below {}", self.short(), self.long(), self.closes_below())?;
        for (flag, name) in [(CLOSED, " CLOSED"), (BELOW, " BELOW"), (WAITERS, " WAITERS"), (ORPHAN, " ORPHAN")] {
            if self.has(flag) {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}
