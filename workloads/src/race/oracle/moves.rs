//! The moved files: a record of the moves of blocks, and payload that the record explains.
//!
//! Collapse, insert, clone and exchange-range move blocks, with their contents, to other offsets
//! and files. A word of a moved file says for which block of which file it was written, and how
//! many moves had been made by then (its *epoch*). A word is at home in its own place. Anywhere
//! else it must have been brought there by moves that were made after it was written. So a write
//! through a mapping that a move has left behind is found: its words lie where no later move
//! brings them.
//!
//! # The record
//! For each source and destination block it keeps one number. Each path of moves from the source
//! to the destination has an earliest move; the number is that of the latest of these. A word of
//! epoch `e` is explained if it is above `e`: then a path exists whose moves were all made after
//! the word was written. A move raises the numbers of the blocks that it fills.
//!
//! Invariants: a move is on the record, as one in flight, before its call begins. It is counted
//! when its call has returned: only then can a write have an epoch that excludes it. Moves in
//! flight at one moment count as made in every order, since their calls don't say which came
//! first. So every word that a correct kernel moved is explained. A move that failed was never
//! made. What the record cannot tell: the order of moves in flight together, and an overwrite: a
//! path that a later move has cut still explains.
//!
//! Blocks beyond twice the largest size of a file count as one block, which any of them may be.

use std::collections::VecDeque;

use emulator::sync::Mutex;
use emulator::sync::atomic::{AtomicU32, Ordering};
use fs_sim::BLOCK;

/// The most blocks that the moved files of a job have together.
pub(crate) const MOVED_BLOCKS_MAX: u64 = 512;
/// The largest number of a block of a moved file, over all files: see [`MovedFiles::cell`].
pub(super) const CELLS_MAX: u64 = 3 * MOVED_BLOCKS_MAX;

/// A place: a moved file's index and a block in it.
pub(crate) type BlockPlace = (u64, u64);

/// A move of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockMove {
    /// Removes so many blocks; those behind move forward.
    Collapse { at: BlockPlace, blocks: u64 },
    /// Inserts so many blocks; those at the place and behind move back.
    Insert { at: BlockPlace, blocks: u64 },
    /// Shares so many blocks of the first place with the second.
    Clone { from: BlockPlace, to: BlockPlace, blocks: u64 },
    /// Swaps so many blocks.
    Exchange { a: BlockPlace, b: BlockPlace, blocks: u64 },
}

/// A move whose call has begun.
#[derive(Debug)]
pub(crate) struct MoveInFlight {
    id: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MovedFiles {
    /// Blocks of a file that are told apart; one more stands for all behind them.
    blocks: u64,
    /// How many moves were made: the epoch of a word that is written now.
    made: AtomicU32,
    record: Mutex<MoveRecord>,
}

#[derive(Debug)]
struct MoveRecord {
    /// By destination, then source. The diagonal is never below another number.
    explains: Paths,
    /// The same with the moves in flight; none if it is to be computed.
    with_in_flight: Option<Paths>,
    in_flight: Vec<(u64, BlockMove, u32)>,
    next_id: u64,
    /// The latest moves, those during which a move in flight began, with their numbers.
    made: VecDeque<(u32, BlockMove)>,
}

/// For each destination and source: words of a smaller epoch are explained.
#[derive(Clone, Debug)]
struct Paths {
    cells: usize,
    upto: Vec<u32>,
}

impl Paths {
    fn new(cells: usize) -> Paths {
        let mut upto = vec![0; cells * cells];
        (0..cells).for_each(|own| upto[own * cells + own] = u32::MAX);
        Paths { cells, upto }
    }

    fn row(&self, cell: usize) -> &[u32] {
        &self.upto[cell * self.cells..(cell + 1) * self.cells]
    }

    /// Move number `number` brings what `source` holds to `destination`. True if that is new.
    fn raise(&mut self, destination: usize, source: &[u32], number: u32) -> bool {
        let row = &mut self.upto[destination * self.cells..(destination + 1) * self.cells];
        let mut raised = false;
        for (to, from) in row.iter_mut().zip(source) {
            let upto = (*from).min(number);
            raised |= upto > *to;
            *to = upto.max(*to);
        }
        raised
    }
}

impl MovedFiles {
    /// `files` files of up to `bytes` bytes each.
    pub(crate) fn new(files: u64, bytes: u64) -> MovedFiles {
        let blocks = 2 * bytes.div_ceil(BLOCK);
        let cells = (files * (blocks + 1)) as usize;
        let record = MoveRecord {
            explains: Paths::new(cells),
            with_in_flight: None,
            in_flight: Vec::new(),
            next_id: 0,
            made: VecDeque::new(),
        };
        MovedFiles { blocks, made: AtomicU32::new(0), record: Mutex::new(record) }
    }

    /// The number of a block among those of all files.
    pub(super) fn cell(&self, (file, block): BlockPlace) -> u64 {
        file * (self.blocks + 1) + block.min(self.blocks)
    }

    /// The place of a cell.
    pub(super) fn place(&self, cell: u64) -> BlockPlace {
        (cell / (self.blocks + 1), cell % (self.blocks + 1))
    }

    /// The epoch of a word that is written from now on.
    pub(super) fn epoch(&self) -> u32 {
        // ORDERING: SeqCst: a write whose payload has this epoch comes after the moves that it
        // counts.
        self.made.load(Ordering::SeqCst)
    }

    /// A move is about to be made.
    pub(crate) fn begin(&self, moved: BlockMove) -> MoveInFlight {
        let mut record = self.record.lock();
        let id = record.next_id;
        record.next_id += 1;
        record.in_flight.push((id, moved, self.made.load(Ordering::SeqCst)));
        record.with_in_flight = None;
        MoveInFlight { id }
    }

    /// The call of a move has returned.
    pub(crate) fn end(&self, moved: MoveInFlight, succeeded: bool) {
        let mut record = self.record.lock();
        let Some(at) = record.in_flight.iter().position(|(id, ..)| *id == moved.id) else { return };
        let (_, moved, begun) = record.in_flight.swap_remove(at);
        record.with_in_flight = None;
        if succeeded {
            let number = self.made.load(Ordering::SeqCst).saturating_add(1);
            let since: Vec<(u32, BlockMove)> = record.made.iter().filter(|(made, _)| *made > begun).copied().collect();
            self.apply(&mut record.explains, moved, number);
            self.apply_in_any_order(&mut record.explains, &since);
            record.made.push_back((number, moved));
            self.made.store(number, Ordering::SeqCst);
        }
        let oldest = record.in_flight.iter().map(|(_, _, begun)| *begun).min().unwrap_or(u32::MAX);
        record.made.retain(|(number, _)| *number > oldest);
    }

    /// Whether moves explain that a word of `epoch`, written for the cell `from`, is found in the
    /// cell `to`.
    pub(super) fn explain(&self, from: u64, to: u64, epoch: u32) -> bool {
        let mut record = self.record.lock();
        let cells = record.explains.cells;
        let (from, to) = (from as usize, to as usize);
        if from >= cells || to >= cells {
            return false;
        }
        if record.explains.row(to)[from] > epoch {
            return true;
        }
        if record.in_flight.is_empty() {
            return false;
        }
        if record.with_in_flight.is_none() {
            let all = self.with_in_flight(&record);
            record.with_in_flight = Some(all);
        }
        record.with_in_flight.as_ref().is_some_and(|paths| paths.row(to)[from] > epoch)
    }

    /// The paths if every move in flight were made, in whichever order with those made since.
    fn with_in_flight(&self, record: &MoveRecord) -> Paths {
        let next = self.made.load(Ordering::SeqCst).saturating_add(1);
        let oldest = record.in_flight.iter().map(|(_, _, begun)| *begun).min().unwrap_or(next);
        let since = record.made.iter().filter(|(number, _)| *number > oldest).copied();
        let all: Vec<_> = since.chain(record.in_flight.iter().map(|(_, moved, _)| (next, *moved))).collect();
        let mut paths = record.explains.clone();
        self.apply_in_any_order(&mut paths, &all);
        paths
    }

    /// Applies moves again and again until they explain nothing new, as often as there are moves at
    /// most.
    fn apply_in_any_order(&self, paths: &mut Paths, moves: &[(u32, BlockMove)]) {
        for _ in 0..moves.len() {
            let mut raised = false;
            for (number, moved) in moves {
                raised |= self.apply(paths, *moved, *number);
            }
            if !raised {
                return;
            }
        }
    }

    /// Applies one move. True if it explains something new.
    fn apply(&self, paths: &mut Paths, moved: BlockMove, number: u32) -> bool {
        let end = self.blocks;
        let cell = |file: u64, block: u64| self.cell((file, block)) as usize;
        let carry = |paths: &mut Paths, from: usize, to: usize| {
            let source = paths.row(from).to_vec();
            paths.raise(to, &source, number)
        };
        let mut raised = false;
        match moved {
            // Forward, so that each block is read before it is filled.
            BlockMove::Collapse { at: (file, first), blocks } => {
                for block in first..end {
                    raised |= carry(paths, cell(file, block.saturating_add(blocks)), cell(file, block));
                }
            }
            BlockMove::Insert { at: (file, first), blocks } => {
                for block in (first..end).rev() {
                    raised |= carry(paths, cell(file, block), cell(file, block.saturating_add(blocks)));
                }
            }
            BlockMove::Clone { from, to, blocks } => {
                for block in 0..blocks {
                    raised |= carry(paths, cell(from.0, from.1 + block), cell(to.0, to.1 + block));
                }
            }
            BlockMove::Exchange { a, b, blocks } => {
                for block in 0..blocks {
                    let (a, b) = (cell(a.0, a.1 + block), cell(b.0, b.1 + block));
                    let (of_a, of_b) = (paths.row(a).to_vec(), paths.row(b).to_vec());
                    raised |= paths.raise(a, &of_b, number);
                    raised |= paths.raise(b, &of_a, number);
                }
            }
        }
        raised
    }
}
