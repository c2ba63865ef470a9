//! Tests of the extent map: every operation against an array with one entry per block, and the
//! shapes that matter by hand.

use super::layout::CHUNK;
use super::*;
use proptest::prelude::*;

const W: ExtentState = ExtentState::Written;
const U: ExtentState = ExtentState::Unwritten;

fn r(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

fn mapped(extents: &[(u64, u64, u64)]) -> Layout {
    let extents: Vec<Extent> = extents.iter().map(|(at, block, len)| Extent::new(*at, *block, *len, W)).collect();
    Layout::default().with_mapped(&extents)
}

/// What one file block is: the device block, its state, whether it is shared.
type Cell = Option<(u64, ExtentState, bool)>;

/// The model: one entry per block, and an extent for each run of entries that go on.
#[derive(Clone, Debug, PartialEq)]
struct Model(Vec<Cell>);

impl Model {
    fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (at, cell) in self.0.iter().enumerate() {
            let Some((block, state, shared)) = *cell else { continue };
            match extents.last_mut() {
                Some(last)
                    if last.end() == at as u64
                        && last.block + u64::from(last.len) == block
                        && (last.state, last.shared) == (state, shared) =>
                {
                    last.len += 1;
                }
                _ => extents.push(Extent { shared, ..Extent::new(at as u64, block, 1, state) }),
            }
        }
        extents
    }

    fn window(&mut self, range: BlockRange) -> &mut [Cell] {
        let end = (range.end as usize).min(self.0.len());
        &mut self.0[(range.start as usize).min(end)..end]
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Fill the holes of the range, with device blocks that go on from the seed or jump.
    Map {
        range: BlockRange,
        block: u64,
        jump: bool,
        state: ExtentState,
    },
    Without(BlockRange),
    State(BlockRange, ExtentState),
    Shared(BlockRange, bool),
    Collapse(BlockRange),
    Insert(u64, u64),
    Size(u64),
}

fn op(blocks: u64, longest: u64) -> impl Strategy<Value = Op> {
    let range = move || (0..blocks, 0..longest).prop_map(|(start, len)| r(start, start + len));
    let state = || prop_oneof![Just(W), Just(U)];
    prop_oneof![
        4 => (range(), 0u64..4, any::<bool>(), state())
            .prop_map(|(range, far, jump, state)| Op::Map { range, block: range.start + far * 1000, jump, state }),
        2 => range().prop_map(Op::Without),
        1 => (0..blocks).prop_map(|start| Op::Without(BlockRange::from(start))),
        3 => (range(), state()).prop_map(|(range, state)| Op::State(range, state)),
        2 => (range(), any::<bool>()).prop_map(|(range, shared)| Op::Shared(range, shared)),
        1 => range().prop_map(Op::Collapse),
        1 => (0..blocks, 0..longest).prop_map(|(at, len)| Op::Insert(at, len)),
        1 => any::<u64>().prop_map(Op::Size),
    ]
}

/// Does `op` to both; returns the layout after it.
fn apply(op: &Op, layout: &Layout, model: &mut Model) -> Result<Layout, TestCaseError> {
    let taken = |model: &mut Model, range: BlockRange| {
        let taken = Model(
            model.0.iter().enumerate().map(|(n, c)| c.filter(|_| range.contains(r(n as u64, n as u64 + 1)))).collect(),
        );
        taken.extents()
    };
    Ok(match *op {
        Op::Map { range, block, jump, state } => {
            let mut added = Vec::new();
            for piece in layout.pieces(range.start, range.len()) {
                if let Piece::Hole { file_block, len } = piece {
                    let block = block + (file_block - range.start) * if jump { 2 } else { 1 };
                    added.push(Extent::new(file_block, block, len, state));
                    for (n, cell) in model.window(r(file_block, file_block + len)).iter_mut().enumerate() {
                        *cell = Some((block + n as u64, state, false));
                    }
                }
            }
            layout.with_mapped(&added)
        }
        Op::Without(range) => {
            let expected = taken(model, range);
            model.window(range).fill(None);
            let (layout, removed) = layout.without(range);
            prop_assert_eq!(removed, expected);
            layout
        }
        Op::State(range, state) => {
            model.window(range).iter_mut().flatten().for_each(|cell| cell.1 = state);
            layout.with_state(range, state)
        }
        Op::Shared(range, shared) => {
            model.window(range).iter_mut().flatten().for_each(|cell| cell.2 = shared);
            layout.with_shared(range, shared)
        }
        Op::Collapse(range) => {
            let expected = taken(model, range);
            let len = model.0.len();
            model.0.drain(range.start as usize..(range.end as usize).min(len));
            model.0.resize(len, None);
            let (layout, removed) = layout.collapsed(range);
            prop_assert_eq!(removed, expected);
            layout
        }
        Op::Insert(at, len) => {
            // The model has an end, so what would be pushed over it goes first.
            let keep = (model.0.len() as u64 - len).max(at);
            model.window(BlockRange::from(keep)).fill(None);
            let layout = layout.without(BlockRange::from(keep)).0;
            let mut moved = model.0.split_off(at as usize);
            let by = (len as usize).min(moved.len());
            moved.rotate_right(by);
            model.0.extend(moved);
            layout.inserted(at, len).expect("far from the largest file")
        }
        Op::Size(size) => layout.with_size(size),
    })
}

fn compare(layout: &Layout, model: &Model, size: u64) -> Result<(), TestCaseError> {
    prop_assert_eq!(layout.check(), Ok(()));
    let expected = model.extents();
    prop_assert_eq!(layout.extents().collect::<Vec<_>>(), expected.clone());
    prop_assert_eq!(layout.extent_count(), expected.len());
    prop_assert_eq!(layout.mapped_blocks(), model.0.iter().flatten().count() as u64);
    prop_assert_eq!(layout.size(), size);
    Ok(())
}

/// Look-ups and pieces at `start`, of `len` blocks, say what the model says.
fn compare_looks(layout: &Layout, model: &Model, start: u64, len: u64) -> Result<(), TestCaseError> {
    let found = layout.lookup(start);
    prop_assert_eq!(found, model.extents().into_iter().find(|e| e.range().contains(r(start, start + 1))));
    let mut at = start;
    let mut cells = Vec::new();
    for piece in layout.pieces(start, len) {
        prop_assert_eq!(piece.range().start, at, "a gap between pieces");
        prop_assert!(!piece.range().is_empty());
        at = piece.range().end;
        for n in 0..piece.range().len() {
            cells.push(match piece {
                Piece::Mapped(extent) => Some((extent.block + n, extent.state, extent.shared)),
                Piece::Hole { .. } => None,
            });
        }
    }
    prop_assert_eq!(at, start + len);
    let mut expected = model.0.clone();
    expected.resize(at as usize, None);
    prop_assert_eq!(&cells, &expected[start as usize..]);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Few blocks, so that everything meets everything: all operations, all results, all looks.
    #[test]
    fn agrees_with_one_entry_per_block(ops in prop::collection::vec(op(24, 10), 1..24), start in 0u64..30, len in 0u64..30) {
        let (mut layout, mut model, mut size) = (Layout::default(), Model(vec![None; 40]), 0);
        for op in &ops {
            let before = layout.clone();
            let kept: Vec<Extent> = before.extents().collect();
            layout = apply(op, &before, &mut model)?;
            prop_assert!(before.extents().eq(kept), "the old layout changed");
            if let Op::Size(to) = op { size = *to }
            compare(&layout, &model, size)?;
        }
        compare_looks(&layout, &model, start, len)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Many extents, so that chunks are cut, shared and taken in.
    #[test]
    fn agrees_over_many_chunks(
        ops in prop::collection::vec(prop_oneof![3 => op(3000, 8), 1 => op(3000, 1200)], 1..16),
        start in 0u64..3000,
    ) {
        // Every other block its own extent: 1500 extents in 6 chunks.
        let cells: Vec<Cell> = (0..4500).map(|n| (n < 3000 && n % 2 == 0).then_some((n * 3, W, false))).collect();
        let mut model = Model(cells);
        let mut layout = Layout::default().with_mapped(&model.extents());
        let mut size = 0;
        for op in &ops {
            layout = apply(op, &layout, &mut model)?;
            if let Op::Size(to) = op { size = *to }
            compare(&layout, &model, size)?;
        }
        compare_looks(&layout, &model, start, 700)?;
    }
}

#[test]
fn neighbours_that_go_on_become_one_extent() {
    let layout = mapped(&[(0, 100, 4), (8, 108, 4)]);
    assert_eq!(layout.extent_count(), 2);
    let layout = layout.with_mapped(&[Extent::new(4, 104, 4, W)]);
    assert_eq!(layout.extents().collect::<Vec<_>>(), [Extent::new(0, 100, 12, W)]);
    let layout = layout.with_state(r(4, 8), U);
    assert_eq!(layout.extent_count(), 3);
    assert_eq!(layout.with_state(BlockRange::ALL, W), mapped(&[(0, 100, 12)]));
    assert_eq!(layout.with_shared(r(2, 6), true).extent_count(), 5);
}

#[test]
fn pieces_of_a_range_to_infinity() {
    let layout = mapped(&[(2, 50, 2)]);
    let pieces: Vec<Piece> = layout.pieces(0, u64::MAX).collect();
    let hole = |file_block, len| Piece::Hole { file_block, len };
    assert_eq!(pieces, [hole(0, 2), Piece::Mapped(Extent::new(2, 50, 2, W)), hole(4, u64::MAX - 4)]);
    assert_eq!(layout.pieces(3, u64::MAX).next(), Some(Piece::Mapped(Extent::new(3, 51, 1, W))));
    assert_eq!(layout.pieces(u64::MAX, 7).next(), None);
    assert_eq!(layout.pieces(3, 0).next(), None);
    assert_eq!(Layout::default().pieces(7, 1).collect::<Vec<_>>(), [hole(7, 1)]);
    assert_eq!(layout.lookup(u64::MAX), None);
}

#[test]
fn truncate_takes_out_what_lies_behind() {
    let layout = mapped(&[(0, 10, 4), (6, 20, 4)]).with_size(10 * BLOCK);
    let (shorter, removed) = layout.without(BlockRange::from(3));
    assert_eq!(removed, [Extent::new(3, 13, 1, W), Extent::new(6, 20, 4, W)]);
    assert_eq!((shorter.mapped_blocks(), shorter.size()), (3, 10 * BLOCK));
    assert_eq!(layout.without(r(5, 5)).0, layout, "nothing, out of nothing");
    assert_eq!(layout.without(r(2, 2)), (layout.clone(), vec![]), "nothing, in the middle of an extent");
}

#[test]
fn inserting_beyond_the_largest_file_is_refused() {
    let layout = mapped(&[(FILE_BLOCKS_MAX - 8, 1, 4)]);
    assert!(layout.inserted(0, 4).is_some());
    assert_eq!(layout.inserted(0, 5), None);
    assert_eq!(layout.inserted(0, u64::MAX), None);
    assert_eq!(layout.inserted(FILE_BLOCKS_MAX, u64::MAX), Some(layout.clone()), "nothing lies behind");
}

#[test]
fn fiemap_shows_whole_extents_and_marks_the_last() {
    let layout = mapped(&[(0, 8, 2), (4, 16, 4)]).with_state(r(6, 8), U).with_shared(r(0, 2), true);
    let shown: Vec<_> = layout
        .fiemap(r(1, 7))
        .iter()
        .map(|e| (e.logical / BLOCK, e.physical / BLOCK, e.length / BLOCK, e.last, e.unwritten, e.shared))
        .collect();
    assert_eq!(shown, [(0, 8, 2, false, false, true), (4, 16, 2, false, false, false), (6, 18, 2, true, true, false)]);
    assert_eq!(layout.fiemap(r(2, 4)), []);
    assert_eq!(layout.fiemap(BlockRange::ALL).len(), 3);
}

/// A small change to a large file leaves nearly all chunks to both.
#[test]
fn layouts_share_what_a_change_leaves_alone() {
    let extents: Vec<Extent> = (0..100_000).map(|n| Extent::new(n * 2, n * 5, 1, W)).collect();
    let layout = Layout::default().with_mapped(&extents);
    let (punched, removed) = layout.without(r(70_000, 70_001));
    assert_eq!(removed.len(), 1);
    let (common, all) = punched.chunks_in_common(&layout);
    assert!(all >= 100_000 / CHUNK && common >= all - 1, "{common} of {all} chunks shared");
    assert_eq!(layout.extent_count(), 100_000, "the old one is as it was");
    // Emptied block by block it never crumbles into many small chunks.
    let mut left = layout;
    for n in (0..100_000).filter(|n| n % 100 != 0) {
        left = left.without(r(n * 2, n * 2 + 1)).0;
    }
    assert_eq!(left.extent_count(), 1000);
    assert_eq!(left.check(), Ok(()));
    let (_, chunks) = left.chunks_in_common(&left);
    assert!(chunks <= 1000 / (CHUNK / 8), "{chunks} chunks for 1000 extents");
}

#[test]
fn byte_ranges_to_blocks() {
    let max = i64::MAX as u64;
    assert_eq!(blocks_of(4095, 2), Some(r(0, 2)));
    assert_eq!(blocks_of(4096, 4096), Some(r(1, 2)));
    assert_eq!(blocks_of(5000, 0), Some(r(1, 1)), "no bytes touch no block");
    assert_eq!(blocks_of(max, 1), None);
    assert_eq!(blocks_of(u64::MAX, u64::MAX), None);
    assert_eq!(blocks_of(0, max), Some(r(0, FILE_BLOCKS_MAX + 1)));
    assert_eq!(whole_blocks_of(1, 4096), Some(r(1, 1)));
    assert_eq!(whole_blocks_of(4095, 4098), Some(r(1, 2)));
    assert_eq!(whole_blocks_of(4097, 10), Some(r(2, 2)), "none, and not backwards");
    assert_eq!(whole_blocks_of(0, max), Some(r(0, FILE_BLOCKS_MAX)));
    assert_eq!(whole_blocks_of(1, max), None);
}
