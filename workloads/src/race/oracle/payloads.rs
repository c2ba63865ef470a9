//! The payload of all files of a race: that of [`super::payload`], and that of the moved files.
//!
//! It owns the words of moved files:
//!
//! ```text
//! words 0 to 6   magic:7  word number in the moved files:20  epoch:29  writer:8
//! word 7         tag of the line in its block:24  sequence:40
//! ```
//!
//! Words 0 to 6 say for which place they were written, and after how many moves; the record of
//! moves ([`super::moves`]) says where they may be. Atomics reach word 7 only, which therefore has
//! no room for an epoch: it belongs to its line in any block of the moved files.

use std::fmt;

use fs_sim::BLOCK;

use super::moves::{CELLS_MAX, MovedFiles};
use super::payload::{self, ForeignWord, LINE, WORD, WordOrigin};

const WRITER_BITS: u32 = 8;
const EPOCH_BITS: u32 = 29;
const PLACE_BITS: u32 = 20;
/// Differs from that of the words of other files.
const MAGIC: u64 = 0b011_0101;
const WORDS_IN_BLOCK: u64 = BLOCK / WORD;
/// The inode number in the tags of moved files. No file has it.
const MOVED_INODE: u64 = 0;

const _: () = assert!(CELLS_MAX * WORDS_IN_BLOCK <= 1 << PLACE_BITS, "every word of the moved files has a number");

const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// A file, as its payload names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadFile {
    /// An inode, by its number: a word belongs to one offset of it.
    Inode(u64),
    /// A moved file, by its index: a word belongs where moves have brought it.
    Moved(u64),
}

/// What a word of a moved file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MovedWord {
    cell: u64,
    /// Its byte in the block.
    byte: u64,
    epoch: u32,
    writer: u8,
}

impl MovedWord {
    fn encode(self) -> u64 {
        let number = self.cell * WORDS_IN_BLOCK + self.byte / WORD;
        let epoch = u64::from(self.epoch).min(low(EPOCH_BITS));
        ((MAGIC << PLACE_BITS | number) << EPOCH_BITS | epoch) << WRITER_BITS | u64::from(self.writer)
    }

    /// None: it is no word of a moved file.
    fn decode(word: u64) -> Option<MovedWord> {
        if word >> (WRITER_BITS + EPOCH_BITS + PLACE_BITS) != MAGIC {
            return None;
        }
        let number = word >> (WRITER_BITS + EPOCH_BITS) & low(PLACE_BITS);
        Some(MovedWord {
            cell: number / WORDS_IN_BLOCK,
            byte: number % WORDS_IN_BLOCK * WORD,
            epoch: (word >> WRITER_BITS & low(EPOCH_BITS)) as u32,
            writer: (word & low(WRITER_BITS)) as u8,
        })
    }
}

/// A word that no entitled writer wrote, or that moves did not bring where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForeignPayload {
    /// In a file whose blocks are not moved.
    Word(ForeignWord),
    /// A word of a moved file, in a file whose blocks are not moved or at a byte of a moved file
    /// where no move brought it.
    Moved { at: String, found: String },
}

impl fmt::Display for ForeignPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForeignPayload::Word(word) => word.fmt(f),
            ForeignPayload::Moved { at, found } => write!(f, "{at}: {found}"),
        }
    }
}

/// Makes and checks the payload of all files; see the module.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// The record of moves.
    pub(crate) moves: MovedFiles,
}

impl Payloads {
    /// Of a race with so many moved files, of up to `bytes` bytes each.
    pub(crate) fn new(moved_files: u64, bytes: u64) -> Payloads {
        Payloads { moves: MovedFiles::new(moved_files, bytes) }
    }

    /// Fills `into` with the payload that `writer` may write at byte `offset` of `file` now. Offset
    /// and length are multiples of 8.
    pub(crate) fn fill(&self, into: &mut [u8], file: PayloadFile, offset: u64, writer: u8, sequence: u64) {
        let file = match file {
            PayloadFile::Inode(ino) => return payload::fill(into, ino, offset, writer, sequence),
            PayloadFile::Moved(file) => file,
        };
        let epoch = self.moves.epoch();
        for (at, chunk) in (offset..).step_by(WORD as usize).zip(into.chunks_exact_mut(WORD as usize)) {
            let byte = at % BLOCK;
            let word = match payload::sequence_word_at(at) == at {
                true => payload::sequence_word(MOVED_INODE, byte, sequence),
                false => MovedWord { cell: self.moves.cell((file, at / BLOCK)), byte, epoch, writer }.encode(),
            };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// The sequence word of the line at `offset` of `file`, with `sequence` in it.
    pub(crate) fn sequence_word(&self, file: PayloadFile, offset: u64, sequence: u64) -> u64 {
        match file {
            PayloadFile::Inode(ino) => payload::sequence_word(ino, offset, sequence),
            PayloadFile::Moved(_) => payload::sequence_word(MOVED_INODE, offset % BLOCK, sequence),
        }
    }

    /// Checks bytes that were read from byte `offset` of `file`, word by word. A tail of less than
    /// a word is not checked.
    ///
    /// # Errors
    /// The first word that no entitled writer wrote, or that does not belong there.
    pub(crate) fn check(&self, bytes: &[u8], file: PayloadFile, offset: u64) -> Result<(), ForeignPayload> {
        match file {
            PayloadFile::Inode(ino) => payload::check(bytes, ino, offset).map_err(|word| self.told(word)),
            PayloadFile::Moved(file) => self.check_moved(bytes, file, offset),
        }
    }

    /// The same finding; if the word is of a moved file, with what it says.
    fn told(&self, word: ForeignWord) -> ForeignPayload {
        let WordOrigin::Unknown(found) = word.found else { return ForeignPayload::Word(word) };
        match MovedWord::decode(found) {
            Some(moved) => {
                let at = format!("inode {} byte {}", word.ino, word.offset);
                ForeignPayload::Moved { at, found: self.describe(moved) }
            }
            None => ForeignPayload::Word(word),
        }
    }

    fn describe(&self, MovedWord { cell, byte, epoch, writer }: MovedWord) -> String {
        let (file, block) = self.moves.place(cell);
        let at = block * BLOCK + byte;
        format!("bytes that actor {writer} wrote for moved file {file} byte {at}, after move {epoch}")
    }

    fn check_moved(&self, bytes: &[u8], file: u64, offset: u64) -> Result<(), ForeignPayload> {
        // What was explained last: most words of a block have one origin.
        let mut known = None;
        for (at, chunk) in (offset..).step_by(WORD as usize).zip(bytes.chunks_exact(WORD as usize)) {
            let word = u64::from_ne_bytes(chunk.try_into().expect("chunks of 8 bytes"));
            if word == 0 {
                continue;
            }
            let foreign = |found| Err(ForeignPayload::Moved { at: format!("moved file {file} byte {at}"), found });
            if payload::sequence_word_at(at) == at {
                let line = at % BLOCK / LINE * LINE;
                if payload::check(&bytes_of_line(word), MOVED_INODE, line).is_err() {
                    return foreign(format!("{word:#018x}, which no actor wrote for this line"));
                }
                continue;
            }
            let here = self.moves.cell((file, at / BLOCK));
            let Some(found) = MovedWord::decode(word).filter(|found| found.byte == at % BLOCK) else {
                return foreign(match MovedWord::decode(word) {
                    Some(found) => self.describe(found),
                    None => payload::describe(word),
                });
            };
            let explained = (found.cell, here, found.epoch);
            if found.cell != here && known != Some(explained) {
                if !self.moves.explain(found.cell, here, found.epoch) {
                    return foreign(format!("{}; no move since then brings them here", self.describe(found)));
                }
                known = Some(explained);
            }
        }
        Ok(())
    }
}

/// A line that is empty but for its sequence word.
fn bytes_of_line(sequence: u64) -> [u8; LINE as usize] {
    let mut line = [0; LINE as usize];
    line[(LINE - WORD) as usize..].copy_from_slice(&sequence.to_ne_bytes());
    line
}
