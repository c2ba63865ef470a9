//! The ledger under loom: no DMA into a block that has changed hands goes unnoticed.
//!
//! Run: `RUSTFLAGS="--cfg daxlab_loom" cargo test -p emulator --test loom_ledger --release`.
#![cfg(daxlab_loom)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use emulator::ledger::{Ledger, Ownership, OwnershipCheck, Stamp};
use emulator::pin::PageRange;
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, thread};

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A block that leaves its file while a registration of it still exists, and its next owner;
/// against a DMA.
///
/// The next owner writes 2 into it. If the DMA's 1 lands after that (the owner finds it, or it is
/// there in the end), the DMA was stale, and its second look must say so.
fn dma_and_change(check_of: impl Fn(&Ledger, PageRange) -> OwnershipCheck + Send + Sync + Copy + 'static) {
    const BLOCK: PageRange = PageRange::new(0, 1);
    check(move || {
        let ledger = Arc::new(Ledger::new(1).unwrap());
        let block = Arc::new(AtomicU64::new(0));
        let change = {
            let (ledger, block) = (Arc::clone(&ledger), Arc::clone(&block));
            thread::spawn(move || {
                ledger.stamp(BLOCK, Ownership::Changed);
                // The next owner's write reads what it replaces, as a model's way to see the order
                // of the two writes.
                block.swap(2, Ordering::Relaxed)
            })
        };
        block.store(1, Ordering::Relaxed);
        let seen = check_of(&ledger, BLOCK);
        let replaced = change.join().unwrap();
        if replaced == 0 {
            assert_ne!(seen, OwnershipCheck::Current, "a DMA that landed in the next owner's block went unnoticed");
        }
    });
}

#[test]
fn no_dma_into_the_next_owners_block_goes_unnoticed() {
    dma_and_change(|ledger, block| ledger.check_after_copy(block, Stamp::default()));
}

/// The fence of the second look is what the model above is about.
#[test]
fn without_the_fence_after_the_copy_the_model_fails() {
    let model = || dma_and_change(|ledger, block| ledger.check(block, Stamp::default()));
    let panic = catch_unwind(AssertUnwindSafe(model)).expect_err("the model did not notice");
    let message = panic.downcast_ref::<&str>().map(|m| m.to_string()).or(panic.downcast_ref::<String>().cloned());
    assert!(message.unwrap_or_default().contains("went unnoticed"));
}

/// A registration takes its number between the generation and the map: what it then holds is never
/// stale by an event that was over before, and always by one that comes later.
#[test]
fn the_read_point_lies_before_the_map() {
    const BLOCK: PageRange = PageRange::new(0, 1);
    check(|| {
        let ledger = Arc::new(Ledger::new(1).unwrap());
        let mapped = Arc::new(AtomicU64::new(1));
        let change = {
            let (ledger, mapped) = (Arc::clone(&ledger), Arc::clone(&mapped));
            thread::spawn(move || {
                mapped.store(0, Ordering::Relaxed);
                ledger.stamp(BLOCK, Ownership::Changed);
            })
        };
        let since = ledger.read_point();
        let registered = mapped.load(Ordering::Relaxed) == 1;
        change.join().unwrap();
        if registered {
            assert_ne!(
                ledger.check(BLOCK, since),
                OwnershipCheck::Current,
                "the change is older than the registration"
            );
        }
    });
}
