//! The oracle of the race: payloads in which every word says where it belongs.
//!
//! It owns the format of what race actors write, and the check of what is read. Invariant 7 of
//! `docs/semantics.md`: every byte of every file was written by a writer entitled to that file at
//! that offset. Kernel counterpart: none; the nearest relative is fio's `verify=`, with its header
//! in every block.
//!
//! Reading order: [`payload`] (the format and the check), `moves` (the record of moved blocks),
//! `payloads` (the payload of all files, also of moved ones), `readback` (all files at the end of a
//! run).

mod moves;
pub mod payload;
mod payloads;
mod readback;
#[cfg(test)]
mod tests;

pub(crate) use moves::{BlockMove, MOVED_BLOCKS_MAX};
pub use payload::{FILE_BYTES_MAX, ForeignWord, LINE, WORD, WordOrigin, check, fill, sequence_word, sequence_word_at};
pub(crate) use payloads::{ForeignPayload, PayloadFile, Payloads};
pub(crate) use readback::{RaceFile, read_back};
