//! Leases that a rule `revoke` has cut in parts: each part has a gate of its own, which counts the
//! pins in its range; and what becomes of the parts at the last close.
#![cfg(not(any(daxlab_loom, daxlab_shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::stops::stops_at;
use common::{Actor, Lab, Nic, preset};
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, LastCloseRule, LeaseLost, UnlockRule};
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::{BLOCK, BlockRange, Errno, Task};

const ALL: BlockRange = BlockRange::ALL;

fn r(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

fn punch(task: &Task, fd: Fd, block: u64) -> Result<(), Errno> {
    task.fallocate(fd, FallocateMode::PunchHole, block * BLOCK, BLOCK)
}

/// Range and number of pins of each lease, by range.
fn parts(actor: &Actor, fd: Fd) -> Vec<(BlockRange, u64)> {
    let mut parts: Vec<_> = actor.leases(fd).iter().map(|lease| (lease.range, lease.pins)).collect();
    parts.sort_unstable_by_key(|(range, _)| (range.start, range.end));
    parts
}

/// The gauge falls once for each zombie that it rose for.
#[test]
fn a_zombie_is_cut() {
    let axes = Axes { last_close_while_pinned: Some(LastCloseRule::Zombie), ..preset("revoke") };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 8, 1);
    let fb = b.opens("data");
    a.lease(f, LeaseKind::READ_U, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let (one, two) = (nic.pins(&a, f, 0..1).unwrap(), nic.pins(&a, f, 6..7).unwrap());
    a.close(f).unwrap();
    assert_eq!(parts(&b, fb), [(ALL, 2)]);
    punch(&b, fb, 3).unwrap();
    assert_eq!(parts(&b, fb), [(r(0, 3), 1), (r(4, u64::MAX), 1)]);
    assert_eq!(lab.kernel.counters.zombie_leases.now(), 2);
    // Of a part that is cut again, what no pin keeps ends.
    punch(&b, fb, 2).unwrap();
    punch(&b, fb, 7).unwrap();
    assert_eq!(parts(&b, fb), [(r(0, 2), 1), (r(4, 7), 1)]);
    assert_eq!(lab.kernel.counters.zombie_leases.now(), 2);
    one.dereg(&a);
    assert_eq!((parts(&b, fb), lab.kernel.counters.zombie_leases.now()), (vec![(r(4, 7), 1)], 1));
    two.dereg(&a);
    assert_eq!((parts(&b, fb), lab.kernel.counters.zombie_leases.now()), (vec![], 0));
    assert_eq!(b.lease(fb, LeaseKind::WRITE_U, ALL), Ok(()));
    lab.end([&a, &b]);
}

/// What a revoke has taken from a lease, its zombie does not take back. A part without pins leaves
/// no zombie.
#[test]
fn a_lease_that_was_cut_is_closed() {
    let axes = Axes { last_close_while_pinned: Some(LastCloseRule::Zombie), ..preset("revoke") };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 8, 1);
    let fb = b.opens("data");
    a.lease(f, LeaseKind::READ_U, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let one = nic.pins(&a, f, 0..1).unwrap();
    punch(&b, fb, 3).unwrap();
    assert_eq!(parts(&b, fb), [(r(0, 3), 1), (r(4, u64::MAX), 0)]);
    a.close(f).unwrap();
    assert!(b.leases(fb).iter().all(|lease| lease.state == LeaseStatus::Zombie));
    assert_eq!(parts(&b, fb), [(r(0, 3), 1)]);
    assert_eq!(lab.kernel.counters.zombie_leases.now(), 1);
    assert_eq!(b.lease(fb, LeaseKind::WRITE_U, r(3, 4)), Ok(()), "it was taken from the lease");
    one.dereg(&a);
    assert_eq!((lab.kernel.counters.zombie_leases.now(), lab.kernel.counters.zombie_leases.peak()), (0, 1));
    lab.end([&a, &b]);
}

/// A holder is asked once to release its pins, however many leases admitted them.
#[test]
fn a_holder_under_two_leases_is_revoked_once() {
    for rule in [LastCloseRule::Revoke, LastCloseRule::Release] {
        let axes = Axes { last_close_while_pinned: Some(rule), ..preset("revoke") };
        assert_eq!(axes.on_lease_lost, Some(LeaseLost::Abort));
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.writes_file("data", 8, 1);
        let fb = b.opens("data");
        a.lease(f, LeaseKind::READ_U, r(0, 2)).unwrap();
        a.lease(f, LeaseKind::READ_U, r(2, 8)).unwrap();
        let (_, nic) = Nic::open(&a);
        let region = nic.pins(&a, f, 1..3).unwrap();
        // Cut in two parts, of which one has the pins.
        punch(&b, fb, 5).unwrap();
        assert_eq!(parts(&b, fb), [(r(0, 2), 1), (r(2, 5), 1), (r(6, 8), 0)]);
        // A revoked holder is listed until its DMA has drained.
        region.dma_in_flight.store(true, Ordering::SeqCst);
        a.close(f).unwrap();
        assert!(region.revoked.load(Ordering::SeqCst));
        assert_eq!(lab.kernel.counters.revocations.get(), 1, "{rule:?}");
        region.release(&lab.kernel);
        lab.end([&a, &b]);
    }
}

/// A pin that has passed the gate of a lease and is not listed yet counts in the part that it lies
/// in, if the lease is cut meanwhile.
#[test]
fn a_registration_under_way_while_its_lease_is_cut() {
    let axes = Axes { unlock_while_pinned: Some(UnlockRule::Busy), ..preset("revoke") };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 8, 1);
    let fb = b.opens("data");
    a.lease(f, LeaseKind::READ_U, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let pinning = {
        let nic = Arc::clone(&nic);
        stops_at("gup: rechecked, not committed", &a, move |a| nic.pins(a, f, 0..1))
    };
    punch(&b, fb, 3).unwrap();
    assert_eq!(parts(&b, fb), [(r(0, 3), 1), (r(4, u64::MAX), 0)]);
    let other = a.another_thread();
    assert_eq!(other.unlock(f, r(4, 8)), Ok(()), "no pin lies there");
    assert_eq!(other.unlock(f, r(0, 3)), Err(Errno::EBUSY));
    let region = pinning.finish().unwrap();
    assert_eq!(other.unlock(f, r(0, 3)), Err(Errno::EBUSY));
    region.dereg(&a);
    assert_eq!(other.unlock(f, r(0, 3)), Ok(()));
    lab.end([&a, &b]);
}

/// A close that waits for the pins of a lease goes on waiting for those of the parts.
#[test]
fn a_lease_is_cut_while_its_close_waits() {
    let axes = Axes { last_close_while_pinned: Some(LastCloseRule::WaitKillable), ..preset("revoke") };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 8, 1);
    let fb = b.opens("data");
    a.lease(f, LeaseKind::READ_U, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let (one, two) = (nic.pins(&a, f, 0..1).unwrap(), nic.pins(&a, f, 6..7).unwrap());
    let closing = a.blocks("close while pinned", move |a| a.close(f));
    punch(&b, fb, 3).unwrap();
    let other = a.another_thread();
    one.dereg(&other);
    closing.expect_blocked("close while pinned");
    two.dereg(&other);
    assert_eq!(closing.finish(), Ok(()));
    assert_eq!(parts(&b, fb), []);
    lab.end([&a, &b]);
}
