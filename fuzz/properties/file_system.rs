//! What the fuzzer `file_system` runs: any bytes as calls on the simulated kernel, each compared
//! with the plain model of `fs-sim/tests/file_model`.
//!
//! It owns the way from bytes to calls. The first byte chooses the preset; each call is a byte for
//! its kind and a few for its arguments. The fuzzer and `fs-sim/tests/fuzz_corpus.rs` include this
//! file; both have the modules `common` and `file_model` of fs-sim's tests at their root.

use fs_sim::BLOCK;
use fs_sim::design::presets;

use crate::file_model::{ModelRun, NAMES, Op, SLOTS};

/// The most calls of one input.
const CALLS_MAX: usize = 64;
/// The kinds of calls.
const KINDS: u8 = 22;

/// Takes bytes off the front of an input; zeros where it has ended.
struct CallBytes<'a>(&'a [u8]);

impl CallBytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `most`.
    fn below(&mut self, most: usize) -> usize {
        usize::from(self.byte()) % most
    }

    fn slot(&mut self) -> usize {
        self.below(SLOTS)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A byte to write: never 0, which holes read as.
    fn content(&mut self) -> u8 {
        self.byte().max(1)
    }

    /// An offset or a length in bytes: a byte of whole blocks; with its highest bit set, another
    /// byte moves it off the boundary. Two values in 256 reach as far as the device has blocks.
    fn bytes(&mut self) -> u64 {
        let byte = self.byte();
        let blocks = match byte & 0x7f {
            0x7e => 300,
            0x7f => 500,
            small => u64::from(small % 12),
        };
        match byte & 0x80 {
            0 => blocks * BLOCK,
            _ => blocks * BLOCK + u64::from(self.byte()) * 16 + 1,
        }
    }

    fn place(&mut self) -> (usize, u64) {
        (self.slot(), self.bytes())
    }

    fn call(&mut self) -> Op {
        match self.byte() % KINDS {
            0 => {
                let (name, flags) = (self.below(NAMES.len()), self.byte());
                let (create, exclusive) = (flags & 1 == 1, flags & 2 == 2);
                Op::Open { name, create, exclusive: exclusive && create, truncate: flags & 4 == 4 && !exclusive }
            }
            1 => Op::Close(self.slot()),
            2 => Op::Unlink(self.below(NAMES.len())),
            3 => Op::Read(self.slot(), self.bytes(), self.bytes()),
            4 => Op::Write(self.slot(), self.bytes(), self.bytes(), self.content()),
            5 => Op::Ftruncate(self.slot(), self.bytes()),
            6 => Op::Truncate(self.below(NAMES.len()), self.bytes()),
            7 => Op::Punch(self.slot(), self.bytes(), self.bytes()),
            8 => Op::Zero(self.slot(), self.flag(), self.bytes(), self.bytes()),
            9 => Op::Allocate(self.slot(), self.flag(), self.bytes(), self.bytes()),
            10 => Op::Map(self.slot(), self.below(8) as u64 * BLOCK, (self.below(32) as u64 + 1) * BLOCK),
            11 => Op::Unmap(self.slot()),
            12 => Op::Load(self.slot(), self.bytes(), self.bytes() % (3 * BLOCK) + 1),
            13 => Op::Store(self.slot(), self.bytes(), self.bytes() % (3 * BLOCK) + 1, self.content()),
            14 => Op::Dma(self.slot(), self.content()),
            15 => Op::StoreTail(self.slot(), self.content()),
            16 => Op::Grow(self.slot(), self.byte() % 4, self.bytes() % BLOCK, self.bytes() % (2 * BLOCK) + 1),
            17 => Op::Unshare(self.slot(), self.flag(), self.bytes(), self.bytes()),
            18 => Op::Collapse(self.slot(), self.bytes(), self.bytes()),
            19 => Op::Insert(self.slot(), self.bytes(), self.bytes()),
            20 => Op::Defragment(self.below(NAMES.len())),
            _ => {
                let (kind, from, to, len, end) =
                    (self.byte() % 3, self.place(), self.place(), self.bytes(), self.flag());
                match kind {
                    0 => Op::Reflink(from, to, len, end),
                    1 => Op::Dedupe(from, to, len, end),
                    _ => Op::Exchange(from, to, len, end),
                }
            }
        }
    }
}

/// An input as a preset and calls.
///
/// # Panics
/// Kernel and model differ.
pub(crate) fn file_system(data: &[u8]) {
    let mut input = CallBytes(data);
    let preset = &presets()[input.below(presets().len())];
    let mut calls = Vec::new();
    while !input.0.is_empty() && calls.len() < CALLS_MAX {
        calls.push(input.call());
    }
    ModelRun::start(preset.axes).check_all(&calls);
}
