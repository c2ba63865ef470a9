//! Who comes before a fault where a change holds the inode.

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;

use super::*;
use crate::design::preset;
use crate::vfs::kernel::KernelConfig;

fn kernel() -> Arc<Kernel> {
    let axes = preset("mainline").expect("a preset").axes;
    Kernel::new(Arc::new(World::manual(1)), Device::memory(2 << 20).expect("a device"), KernelConfig::new(axes))
        .expect("a kernel")
}

/// A fault passes the change that waits for pins, and what queues behind it. While that change has
/// its turn between two waits, a fault waits for its end, and is not refused.
#[test]
fn a_fault_is_never_refused_by_the_change_that_holds_the_inode() {
    let kernel = kernel();
    let (turn, range) = (LayoutTurn::default(), BlockRanges::from(BlockRange::new(0, 8)));
    let [holder, queued, fault] = [(); 3].map(|()| kernel.spawn());
    let [by_holder, by_queued, by_fault] =
        [&holder, &queued, &fault].map(|task| turn.change(&kernel, task.waiter().id()));
    by_holder.take(&holder, &range, true).unwrap();
    by_queued.queue_for(&range);
    by_fault.queue_for(&range);

    assert!(by_holder.hold_and_wait(range.clone(), MetPins::default()));
    let seen = by_fault.ahead(&turn.places.lock(), &[], true);
    assert!(seen.is_empty(), "{:?} {:?}", seen.with_turn, seen.without);
    assert!(!by_queued.ahead(&turn.places.lock(), &[], false).is_empty(), "another change does not pass");

    by_holder.take(&holder, &range, true).unwrap();
    let seen = by_fault.ahead(&turn.places.lock(), &[], true);
    assert_eq!(seen.with_turn, [holder.waiter().id()]);
    assert!(!seen.waits, "it is about to finish");

    // A change that waits for leases holds no inode: it refuses the fault.
    by_holder.set_waiting(range.clone(), MetPins::default());
    assert!(by_fault.ahead(&turn.places.lock(), &[], true).waits);
}
