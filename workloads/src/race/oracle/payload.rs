//! The format of the payload, and the check of what is read.
//!
//! # The line
//! Files are written in lines of 64 bytes, 8 words each:
//!
//! ```text
//! words 0 to 6   magic:7  inode:22  word number in the file:27  writer:8
//! word 7         tag of (inode, line):24  sequence:40
//! ```
//!
//! Each of the words 0 to 6 proves by itself for which file and offset it was written, and by which
//! writer. So the words of one line may come from different writers: a line torn between two
//! entitled writers is correct, and the check needs no lock. Word 7 is the only one that RDMA
//! atomics touch; additions reach its low 40 bits only. A word of zeros is always correct: it is a
//! hole, an unwritten block, or the rest of a block behind a truncation.
//!
//! The files among which a job moves blocks have other words: see `payloads`.
//!
//! Inode numbers are never reused within a run. Numbers above 2^22 are told apart by their low bits
//! only.

use std::fmt;

/// Bytes of a line.
pub const LINE: u64 = 64;
/// Bytes of a word, the unit in which everything is written and checked.
pub const WORD: u64 = 8;
/// The largest file whose offsets payloads can tell apart: 1 GiB.
pub const FILE_BYTES_MAX: u64 = 1 << (NUMBER_BITS + 3);

const WRITER_BITS: u32 = 8;
const NUMBER_BITS: u32 = 27;
const INODE_BITS: u32 = 22;
const MAGIC: u64 = 0b101_1010;
const SEQUENCE_BITS: u32 = 40;
const WORDS_IN_LINE: u64 = LINE / WORD;
/// The index of the word that atomics touch.
const SEQUENCE_WORD: u64 = WORDS_IN_LINE - 1;

const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// The contents of a word 0 to 6, without the writer.
fn seal(ino: u64, number: u64) -> u64 {
    ((MAGIC << INODE_BITS | ino & low(INODE_BITS)) << NUMBER_BITS | number & low(NUMBER_BITS)) << WRITER_BITS
}

/// 24 bits, never 0, that differ for nearly every pair of inode and line.
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

/// The byte offset of the sequence word of the line that holds byte `offset`: the target of an
/// atomic.
pub fn sequence_word_at(offset: u64) -> u64 {
    offset / LINE * LINE + SEQUENCE_WORD * WORD
}

/// The sequence word of the line at `offset` of `ino`, with `sequence` in it: the value that a
/// compare-and-swap may store there.
pub fn sequence_word(ino: u64, offset: u64, sequence: u64) -> u64 {
    word(ino, sequence_word_at(offset), 0, sequence)
}

/// Fills `into` with the payload that `writer` may write at byte `offset` of `ino`. Offset and
/// length are multiples of 8.
pub fn fill(into: &mut [u8], ino: u64, offset: u64, writer: u8, sequence: u64) {
    debug_assert!(offset.is_multiple_of(WORD) && into.len().is_multiple_of(WORD as usize), "whole words only");
    for (at, chunk) in (offset..).step_by(WORD as usize).zip(into.chunks_exact_mut(WORD as usize)) {
        chunk.copy_from_slice(&word(ino, at, writer, sequence).to_ne_bytes());
    }
}

/// A word that no entitled writer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignWord {
    /// The inode in which the word was found.
    pub ino: u64,
    /// The byte offset at which the word was found.
    pub offset: u64,
    /// What the word says about itself.
    pub found: WordOrigin,
}

/// What a foreign word says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordOrigin {
    /// It was written for another file or offset.
    Line {
        /// The inode that it was written for (low 22 bits).
        ino: u64,
        /// The byte offset that it was written for.
        offset: u64,
        /// The writer's number.
        writer: u8,
    },
    /// It is not a payload of the race, or it is a sequence word of another line.
    Unknown(u64),
}

impl fmt::Display for ForeignWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} byte {}: {}", self.ino, self.offset, self.found)
    }
}

impl fmt::Display for WordOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WordOrigin::Line { ino, offset, writer } => {
                write!(f, "bytes that actor {writer} wrote for inode {ino} byte {offset}")
            }
            WordOrigin::Unknown(word) => write!(f, "{word:#018x}, which no actor wrote for this place"),
        }
    }
}

/// Checks bytes that were read from byte `offset` of `ino`, word by word. A tail of less than a
/// word is not checked.
///
/// # Errors
/// The first word that no entitled writer wrote.
pub fn check(bytes: &[u8], ino: u64, offset: u64) -> Result<(), ForeignWord> {
    debug_assert!(offset.is_multiple_of(WORD), "whole words only");
    let first = offset / WORD;
    for (number, chunk) in (first..).zip(bytes.chunks_exact(WORD as usize)) {
        let found = u64::from_ne_bytes(chunk.try_into().expect("chunks of 8 bytes"));
        if found == 0 {
            continue;
        }
        let fine = match number % WORDS_IN_LINE {
            // An addition to a word of zeros leaves no tag.
            SEQUENCE_WORD => matches!(found >> SEQUENCE_BITS, top if top == 0 || top == tag(ino, number)),
            _ => found >> WRITER_BITS == seal(ino, number) >> WRITER_BITS,
        };
        if !fine {
            return Err(ForeignWord { ino, offset: number * WORD, found: identify(found) });
        }
    }
    Ok(())
}

/// What a word says about itself, for people.
pub(super) fn describe(found: u64) -> String {
    identify(found).to_string()
}

fn identify(found: u64) -> WordOrigin {
    let number = found >> WRITER_BITS & low(NUMBER_BITS);
    let is_payload =
        found >> (WRITER_BITS + NUMBER_BITS + INODE_BITS) == MAGIC && number % WORDS_IN_LINE != SEQUENCE_WORD;
    match is_payload {
        true => WordOrigin::Line {
            ino: found >> (WRITER_BITS + NUMBER_BITS) & low(INODE_BITS),
            offset: number * WORD,
            writer: (found & low(WRITER_BITS)) as u8,
        },
        false => WordOrigin::Unknown(found),
    }
}
