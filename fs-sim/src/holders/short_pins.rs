//! The record of short-term pins: one access to a file range.
//!
//! It owns no pin; [`crate::pinning::gup`] takes and drops them. Invariant: the pieces are the
//! file's as long as the generation is. Kernel counterpart: the `struct page **` of one
//! `pin_user_pages_fast`.

use emulator::ledger::Stamp;
use emulator::pin::Pin;

use crate::extent_map::Piece;

/// The pieces of a file range, pinned for the time of one access.
#[derive(Debug)]
pub(crate) struct ShortPins {
    pub(crate) pins: Vec<Pin>,
    /// The file's pieces, mapped or holes, in file order.
    pub(crate) pieces: Vec<Piece>,
    /// The file's size in bytes when the pieces were read.
    pub(crate) size: u64,
    /// Drawn before the map was read.
    pub(crate) read_point: Stamp,
    /// The inode's generation while the pieces held.
    pub(crate) generation: u64,
}
