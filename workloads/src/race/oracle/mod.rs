//! The oracle's second half: payloads that say where they belong, in every word (DESIGN section 3).
//!
//! It owns the form of what race actors write, and the judgement of what is read. Invariant 7 of SEMANTICS: every byte of
//! every file was written by someone entitled to that file at that offset. Kernel counterpart: none; fio's `verify=` with
//! its header in every block is the nearest relative.
//!
//! # The line
//! Files are written in lines of 64 bytes, 8 words each:
//!
//! ```text
//! words 0 to 6   magic:7  inode:22  word number in the file:27  writer:8
//! word 7         tag of (inode, line):24  sequence:40
//! ```
//!
//! Each of the words 0 to 6 proves by itself which file and which offset it was written for, and by whom. So words of one
//! line may come from different writers: a line torn between two who were both entitled is fine, and nobody needs a lock to
//! check it. Word 7 is the only one that RDMA atomics touch; additions reach its low 40 bits only. A word of zeros is
//! always fine: a hole, an unwritten block, the rest of a block behind a truncation.
//!
//! Inode numbers are never reused within a run; above 2^22 they are told apart by their low bits only.

mod readback;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use readback::read_back;

/// Bytes in a line.
pub const LINE: u64 = 64;
/// Bytes in a word, the unit in which everything is written and checked.
pub const WORD: u64 = 8;
/// The largest file that payloads can tell the offsets of: 1 GiB.
pub const FILE_BYTES_MAX: u64 = 1 << (NUMBER_BITS + 3);

const WRITER_BITS: u32 = 8;
const NUMBER_BITS: u32 = 27;
const INODE_BITS: u32 = 22;
const MAGIC: u64 = 0b101_1010;
const SEQUENCE_BITS: u32 = 40;
const WORDS_IN_LINE: u64 = LINE / WORD;
/// The word of a line that atomics touch.
const SEQUENCE_WORD: u64 = WORDS_IN_LINE - 1;

const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// What words 0 to 6 hold, but for the writer.
fn seal(ino: u64, number: u64) -> u64 {
    ((MAGIC << INODE_BITS | ino & low(INODE_BITS)) << NUMBER_BITS | number & low(NUMBER_BITS)) << WRITER_BITS
}

/// 24 bits, never 0, that differ for nearly every (inode, line).
fn tag(ino: u64, number: u64) -> u64 {
    let line = ((ino & low(INODE_BITS)) << NUMBER_BITS) | (number / WORDS_IN_LINE);
    (line.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SEQUENCE_BITS) | 1
}

/// The word that belongs at byte `offset` (a multiple of 8) of inode `ino`, as `writer` writes it.
fn word(ino: u64, offset: u64, writer: u8, sequence: u64) -> u64 {
    let number = offset / WORD;
    match number % WORDS_IN_LINE {
        SEQUENCE_WORD => tag(ino, number) << SEQUENCE_BITS | sequence & low(SEQUENCE_BITS),
        _ => seal(ino, number) | u64::from(writer),
    }
}

/// The byte offset of the sequence word of the line that holds byte `offset`: where atomics may go.
pub fn sequence_word_at(offset: u64) -> u64 {
    offset / LINE * LINE + SEQUENCE_WORD * WORD
}

/// The sequence word of the line at `offset` of `ino`, with `sequence` in it: what a compare-and-swap may put there.
pub fn sequence_word(ino: u64, offset: u64, sequence: u64) -> u64 {
    word(ino, sequence_word_at(offset), 0, sequence)
}

/// Fills `into` with what `writer` may write at byte `offset` of `ino`. Offset and length are multiples of 8.
pub fn fill(into: &mut [u8], ino: u64, offset: u64, writer: u8, sequence: u64) {
    debug_assert!(offset.is_multiple_of(WORD) && into.len().is_multiple_of(WORD as usize), "whole words only");
    for (at, chunk) in (offset..).step_by(WORD as usize).zip(into.chunks_exact_mut(WORD as usize)) {
        chunk.copy_from_slice(&word(ino, at, writer, sequence).to_ne_bytes());
    }
}

/// A word that nobody entitled wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignWord {
    /// The inode it was found in.
    pub ino: u64,
    /// The byte offset it was found at.
    pub offset: u64,
    /// What was found.
    pub found: Found,
}

/// What a foreign word says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was written for another place.
    Line {
        /// The inode it was meant for (its low 22 bits).
        ino: u64,
        /// The byte offset it was meant for.
        offset: u64,
        /// Who wrote it.
        writer: u8,
    },
    /// It is no payload of the race, or a sequence word of another line.
    Unknown(u64),
}

impl fmt::Display for ForeignWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} byte {}: ", self.ino, self.offset)?;
        match self.found {
            Found::Line { ino, offset, writer } => {
                write!(f, "bytes that actor {writer} wrote for inode {ino} byte {offset}")
            }
            Found::Unknown(word) => write!(f, "{word:#018x}, which nobody wrote for this place"),
        }
    }
}

/// Checks bytes read from byte `offset` of `ino`, word by word; a tail of less than a word is not looked at.
///
/// # Errors
/// The first word that nobody entitled wrote.
pub fn check(bytes: &[u8], ino: u64, offset: u64) -> Result<(), ForeignWord> {
    debug_assert!(offset.is_multiple_of(WORD), "whole words only");
    let first = offset / WORD;
    for (number, chunk) in (first..).zip(bytes.chunks_exact(WORD as usize)) {
        let found = u64::from_ne_bytes(chunk.try_into().expect("chunks of 8 bytes"));
        if found == 0 {
            continue;
        }
        let fine = match number % WORDS_IN_LINE {
            // An addition on a word of zeros leaves no tag.
            SEQUENCE_WORD => matches!(found >> SEQUENCE_BITS, top if top == 0 || top == tag(ino, number)),
            _ => found >> WRITER_BITS == seal(ino, number) >> WRITER_BITS,
        };
        if !fine {
            return Err(ForeignWord { ino, offset: number * WORD, found: identify(found) });
        }
    }
    Ok(())
}

fn identify(found: u64) -> Found {
    let number = found >> WRITER_BITS & low(NUMBER_BITS);
    let is_payload =
        found >> (WRITER_BITS + NUMBER_BITS + INODE_BITS) == MAGIC && number % WORDS_IN_LINE != SEQUENCE_WORD;
    match is_payload {
        true => Found::Line {
            ino: found >> (WRITER_BITS + NUMBER_BITS) & low(INODE_BITS),
            offset: number * WORD,
            writer: (found & low(WRITER_BITS)) as u8,
        },
        false => Found::Unknown(found),
    }
}
