//! The file system against a plain model: thousands of random calls on a device that is small
//! enough to be full at times. The model and what it compares is in `file_model`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;
mod file_model;

use file_model::{ModelRun, NAMES, Op, SLOTS};
use fs_sim::BLOCK;
use fs_sim::design::{Platform, presets};
use proptest::prelude::*;

/// Mostly block aligned, mostly small.
fn blocks(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0..=12u64).prop_map(|n| n * BLOCK), 2 => (0..=most).prop_map(|n| n * BLOCK), 1 => bytes(most)]
}

fn place() -> impl Strategy<Value = (usize, u64)> {
    (0..SLOTS, blocks(60))
}

/// Mostly small and at odd places, sometimes block aligned, sometimes large.
fn bytes(blocks: u64) -> impl Strategy<Value = u64> {
    let small = 24 * BLOCK;
    prop_oneof![4 => 0..small, 3 => (0..=24u64).prop_map(|n| n * BLOCK), 1 => 0..blocks * BLOCK]
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let name = || 0..NAMES.len();
    let len = || bytes(220);
    prop_oneof![
        6 => (name(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(name, create, exclusive, truncate)| {
            Op::Open { name, create, exclusive: exclusive && create, truncate: truncate && exclusive }
        }),
        2 => slot().prop_map(Op::Close),
        1 => name().prop_map(Op::Unlink),
        4 => (slot(), bytes(300), len()).prop_map(|(s, at, len)| Op::Read(s, at, len)),
        8 => (slot(), bytes(300), len(), 1..=255u8).prop_map(|(s, at, len, byte)| Op::Write(s, at, len, byte)),
        2 => (slot(), bytes(300)).prop_map(|(s, size)| Op::Ftruncate(s, size)),
        1 => (name(), bytes(300)).prop_map(|(n, size)| Op::Truncate(n, size)),
        3 => (slot(), bytes(300), len()).prop_map(|(s, at, len)| Op::Punch(s, at, len)),
        3 => (slot(), any::<bool>(), bytes(300), len()).prop_map(|(s, keep, at, len)| Op::Zero(s, keep, at, len)),
        3 => (slot(), any::<bool>(), bytes(300), len()).prop_map(|(s, keep, at, len)| Op::Allocate(s, keep, at, len)),
        2 => (slot(), 0..8u64, 1..32u64).prop_map(|(s, block, blocks)| Op::Map(s, block * BLOCK, blocks * BLOCK)),
        1 => slot().prop_map(Op::Unmap),
        4 => (slot(), bytes(32), 1..3 * BLOCK).prop_map(|(s, at, len)| Op::Load(s, at, len)),
        5 => (slot(), bytes(32), 1..3 * BLOCK, 1..=255u8).prop_map(|(s, at, len, byte)| Op::Store(s, at, len, byte)),
        2 => (slot(), 1..=255u8).prop_map(|(s, byte)| Op::Dma(s, byte)),
        3 => (slot(), 1..=255u8).prop_map(|(s, byte)| Op::StoreTail(s, byte)),
        3 => (slot(), 0..4u8, 0..BLOCK, 1..2 * BLOCK).prop_map(|(s, call, gap, len)| Op::Grow(s, call, gap, len)),
        2 => (slot(), any::<bool>(), bytes(300), len()).prop_map(|(s, keep, at, len)| Op::Unshare(s, keep, at, len)),
        3 => (slot(), blocks(60), blocks(60)).prop_map(|(s, at, len)| Op::Collapse(s, at, len)),
        3 => (slot(), blocks(60), blocks(30)).prop_map(|(s, at, len)| Op::Insert(s, at, len)),
        1 => name().prop_map(Op::Defragment),
        8 => (place(), place(), blocks(60), any::<bool>()).prop_map(|(a, b, len, end)| Op::Reflink(a, b, len, end)),
        4 => (place(), place(), blocks(60), any::<bool>()).prop_map(|(a, b, len, end)| Op::Dedupe(a, b, len, end)),
        4 => (place(), place(), blocks(60), any::<bool>()).prop_map(|(a, b, len, end)| Op::Exchange(a, b, len, end)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_are_byte_vectors(design in 0..presets().len(), ops in prop::collection::vec(op(), 40..160)) {
        ModelRun::start(presets()[design].axes).check_all(&ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Calls store past the CPU caches, and `fsync` reaches every store through a mapping and every
    /// write of a device since its registration.
    #[test]
    fn synced_files_survive_a_power_cut(design in 0..presets().len(), ops in prop::collection::vec(op(), 10..80)) {
        ModelRun::start_on(Platform::Adr, presets()[design].axes).check_power_cut(&ops);
    }
}
