//! Text that users write for daxlab: TOML with positions, values with units, design files, and
//! errors that point at the text.
//!
//! Designs, jobs, scenarios and the list after `--design` are each a [`Source`]. Every error in one
//! becomes an [`InputError`]: what was found, where (source, line, column, the line itself), and
//! what to do. The layer also owns the suggestion of a near word ([`nearest`]), times and sizes
//! with units ([`Duration`], [`Size`]) and the reading of designs ([`designs`]).
//!
//! Invariants: an error can be built from any text and any span without a panic. Its rendering
//! shows one line of the source, never the whole text. No value is guessed: a value that isn't
//! understood exactly is an error. There is no kernel counterpart.

pub mod designs;
mod from_toml;
mod snippet;
mod source;
#[cfg(test)]
mod tests;
mod units;
mod words;

pub use source::{InputError, Source, TEXT_BYTES_MAX};
pub use units::{Duration, Size, UnitError};
pub use words::{nearest, or_list, shown};
