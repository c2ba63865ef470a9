//! Dialogues about long-term pins: gates, unlock and close under pins, orphans, locked memory.
//! `docs/semantics.md`, sections 1, 3, 5 and the scenarios S09, S12, S13, S17 to S19, S27 to S29,
//! S36, S39 to S41.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::watchdog::soon;
use common::{Actor, BREAK_TIME, Lab, Nic, can_pin, every_preset, every_preset_where, exclusive, needs_lease, preset};
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, GateScope, LastCloseRule, LeaseLost, LeaseRules, PinGate, UnlockRule};
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::PinRequest;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno};

const ALL: BlockRange = BlockRange::ALL;

fn r(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

/// S12 and section 5: what each gate requires, for every kind of lease.
#[test]
fn s12_gates() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let (_, nic) = Nic::open(&a);
        let bare = match axes.pin_gate {
            PinGate::Open | PinGate::Fault => None,
            PinGate::Refuse => Some(Errno::EOPNOTSUPP),
            PinGate::Lease | PinGate::Reference | PinGate::Unbreakable => Some(Errno::EPERM),
        };
        assert_eq!(nic.pins(&a, f, 0..4).err(), bare, "without a lease");
        for kind in [LeaseKind::READ, LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::WRITE_U] {
            if a.lease(f, kind, ALL).is_err() {
                continue;
            }
            let enough = match axes.pin_gate {
                PinGate::Unbreakable => kind.is_exclusive(axes.lease_rules),
                PinGate::Open | PinGate::Fault | PinGate::Lease | PinGate::Reference => true,
                PinGate::Refuse => false,
            };
            let region = nic.pins(&a, f, 0..4);
            assert_eq!(region.as_ref().err().copied(), (!enough).then_some(bare.unwrap_or(Errno::EPERM)), "{kind}");
            if let Ok(region) = region {
                assert_eq!(region.is_pinned(), axes.pin_gate != PinGate::Fault);
                // The mapping is gone by now. Pins do not need it; an on-demand region does.
                let mut bytes = [0; 8];
                let expected = if region.is_pinned() { (Ok(()), [4; 8]) } else { (Err(Errno::EFAULT), [0; 8]) };
                assert_eq!((region.dma_read(&lab.kernel, 3 * BLOCK, &mut bytes), bytes), expected);
                region.dereg(&a);
            }
            a.unlock(f, ALL).unwrap();
        }
        lab.end([&a]);
    });
}

/// The gate checks ranges: the leases of the caller, from any open file, must together cover the
/// range. S40: an unlocked lease does not count.
#[test]
fn s40_union_of_the_callers_leases_must_cover() {
    every_preset_where(needs_lease, |axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let (f, again) = (a.writes_file("data", 8, 1), a.opens("data"));
        let fb = b.opens("data");
        let (_, nic) = Nic::open(&a);
        a.lease(f, exclusive(axes), r(0, 3)).unwrap();
        a.lease(again, exclusive(axes), r(4, 8)).unwrap();
        assert_eq!(nic.pins(&a, f, 0..4).err(), Some(Errno::EPERM), "block 3 is uncovered");
        if axes.lease_rules == LeaseRules::ManPage {
            b.lease(fb, exclusive(axes), r(3, 4)).unwrap();
            assert_eq!(nic.pins(&a, f, 0..4).err(), Some(Errno::EPERM), "another process's lease is no help");
            b.unlock(fb, ALL).unwrap();
        }
        a.lease(again, exclusive(axes), r(3, 4)).unwrap();
        let region = nic.pins(&a, f, 0..8).unwrap();
        assert_eq!(a.leases(f).iter().map(|lease| lease.pins).collect::<Vec<_>>(), [1, 1, 1], "counted in each");
        region.dereg(&a);
        a.unlock(f, ALL).unwrap();
        assert_eq!(nic.pins(&a, f, 0..1).err(), Some(Errno::EPERM), "S40");
        assert_eq!(a.process().locked_pages(), 0);
        lab.end([&a, &b]);
    });
}

/// S13: the fork child is a stranger, also through the inherited descriptor; with its own lease it
/// is not.
#[test]
fn s13_fork_child_is_a_stranger() {
    every_preset_where(can_pin, |axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        let kind = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::READ } else { LeaseKind::READ_U };
        a.lease(f, kind, ALL).unwrap();
        let child = a.child();
        let (_, nic) = Nic::open(&child);
        let expected = needs_lease(axes).then_some(Errno::EPERM);
        assert_eq!(nic.pins(&child, f, 0..1).err(), expected);
        let own = child.opens("data");
        child.lease(own, kind, ALL).unwrap();
        let region = nic.pins(&child, f, 0..1);
        assert!(region.is_ok(), "{:?}", region.err());
        lab.end([&a, &child]);
    });
}

/// S09: two holders, the same pages.
#[test]
fn s09_two_read_holders_pin_the_same_pages() {
    every_preset_where(can_pin, |axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = a.writes_file("data", 4, 1);
        let fb = b.opens("data");
        let kind = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::READ } else { LeaseKind::READ_U };
        let mut regions = Vec::new();
        for (actor, fd) in [(&a, fa), (&b, fb)] {
            actor.lease(fd, kind, ALL).unwrap();
            let (_, nic) = Nic::open(actor);
            regions.push(nic.pins(actor, fd, 0..4).unwrap());
        }
        assert_eq!(regions[0].dma_write(&lab.kernel, 0, &[9; 4096]), Ok(()));
        let mut byte = [0];
        assert_eq!((regions[1].dma_read(&lab.kernel, 0, &mut byte), byte), (Ok(()), [9]));
        lab.end([&a, &b]);
    });
}

/// S36: users that can't fault and are not RDMA: `gate_scope`, and the fault gate.
#[test]
fn s36_other_long_term_users() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        if axes.lease_rules != LeaseRules::None {
            a.lease(f, exclusive(axes), ALL).unwrap();
        }
        let (_, nic) = Nic::open(&a);
        let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
        let want = PinRequest { va, len: 4 * BLOCK, write: true, user: LongTermUser::Other };
        let refused = axes.gate_scope == GateScope::RdmaOnly || !can_pin(axes);
        assert_eq!(nic.register(&a, want).err(), refused.then_some(Errno::EOPNOTSUPP));
        lab.end([&a]);
    });
}

/// Requests that are refused for their own arguments.
#[test]
fn bad_requests() {
    let (lab, [a]) = Lab::cast(preset("unsafe"));
    let f = a.writes_file("data", 4, 1);
    let (_, nic) = Nic::open(&a);
    let va = a.mmap(f, 0, 4 * BLOCK, false).unwrap();
    let want = |va, len, write| PinRequest { va, len, write, user: LongTermUser::Rdma };
    assert_eq!(nic.register(&a, want(va, 0, false)).err(), Some(Errno::EINVAL), "length 0");
    assert_eq!(nic.register(&a, want(va, 4 * BLOCK + 1, false)).err(), Some(Errno::EINVAL), "beyond the mapping");
    assert_eq!(nic.register(&a, want(va - 1, 1, false)).err(), Some(Errno::EINVAL));
    assert_eq!(nic.register(&a, want(u64::MAX, 2, false)).err(), Some(Errno::EINVAL));
    assert_eq!(nic.register(&a, want(va, 1, true)).err(), Some(Errno::EFAULT), "read-only mapping");
    let region = nic.register(&a, want(va + 100, BLOCK, false)).unwrap();
    assert_eq!(a.process().locked_pages(), 2, "it touches two pages");
    let mut bytes = [0; 2];
    assert_eq!((region.dma_read(&lab.kernel, BLOCK - 101, &mut bytes), bytes), (Ok(()), [1, 2]));
    assert_eq!(region.dma_read(&lab.kernel, BLOCK - 1, &mut bytes), Err(Errno::EFAULT), "outside the region");
    lab.end([&a]);
}

/// A writable pin first allocates, zeroes and marks written what it covers; a read-only one over a
/// hole is EFAULT.
#[test]
fn pins_meet_holes_and_unwritten_blocks() {
    every_preset_where(can_pin, |axes| {
        let lab = Lab::on(2 << 20, axes, |_| {});
        let a = lab.actor();
        // Old contents everywhere on the device.
        let old = a.creates("old");
        assert_eq!(a.write(old, 0, &vec![0xaa; 512 * BLOCK as usize]), Ok(512 * BLOCK as usize));
        a.close(old).unwrap();
        a.unlink("old").unwrap();

        let f = a.creates("data");
        a.ftruncate(f, 6 * BLOCK).unwrap();
        a.fallocate(f, FallocateMode::Allocate { keep_size: true }, BLOCK, BLOCK).unwrap();
        a.fallocate(f, FallocateMode::Allocate { keep_size: true }, 3 * BLOCK, BLOCK).unwrap();
        if needs_lease(axes) {
            a.lease(f, exclusive(axes), ALL).unwrap();
        }
        let (_, nic) = Nic::open(&a);
        let before = a.state_report(f);
        assert_eq!(nic.pins_for_reading(&a, f, 0..2).err(), Some(Errno::EFAULT), "over a hole");
        let past_the_end = nic.pins(&a, f, 4..7).err();
        assert_eq!(past_the_end, Some(Errno::EFAULT), "past the end");
        assert_eq!(a.state_report(f), before, "refused, nothing was allocated");
        assert_eq!(a.process().locked_pages(), 0);

        let reading = nic.pins_for_reading(&a, f, 3..4).unwrap();
        let mut block = [1; BLOCK as usize];
        assert_eq!(reading.dma_read(&lab.kernel, 0, &mut block), Ok(()));
        assert_eq!(block, [0; BLOCK as usize], "an unwritten block was cleaned before the pin");
        let region = nic.pins(&a, f, 0..6).unwrap();
        let mut bytes = vec![1; 6 * BLOCK as usize];
        assert_eq!(region.dma_read(&lab.kernel, 0, &mut bytes), Ok(()));
        assert!(bytes.iter().all(|byte| *byte == 0), "allocated as zeros");
        assert_eq!(a.stat(f).unwrap().blocks, 6);
        assert!(a.fiemap(f, ALL).unwrap().iter().all(|extent| !extent.unwritten), "marked written");
        assert_eq!(region.dma_write(&lab.kernel, 2 * BLOCK, &[5; BLOCK as usize]), Ok(()));
        assert_eq!(a.bytes_of(f), [0, 0, 5, 0, 0, 0]);
        assert_eq!(a.signals(), [], "an own lease doesn't forbid what its own pin needs");
        assert_eq!(a.held(f).len(), usize::from(needs_lease(axes)));
        lab.end([&a]);
    });
}

/// Section 4: a fault or a pin that must allocate under a foreign lease never waits: SIGBUS, in
/// `reg_mr` ETXTBSY.
#[test]
fn allocation_under_a_foreign_lease_is_refused() {
    for axes in [preset("man-page"), preset("chinner-2019"), preset("chinner-2025"), preset("revoke")] {
        let kinds: &[LeaseKind] = match axes.lease_rules {
            LeaseRules::Chinner => &[LeaseKind::READ],
            _ => &[LeaseKind::READ, LeaseKind::READ_U],
        };
        for foreign in kinds {
            let (lab, [a, b]) = Lab::cast(axes);
            let fa = a.writes_file("data", 2, 1);
            a.ftruncate(fa, 4 * BLOCK).unwrap();
            let fb = b.opens("data");
            let own = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::READ } else { LeaseKind::READ_U };
            a.lease(fa, own, ALL).unwrap();
            b.lease(fb, *foreign, ALL).unwrap();
            let (_, nic) = Nic::open(&a);
            let before = a.state_report(fa);
            assert_eq!(nic.pins(&a, fa, 0..4).err(), Some(Errno::ETXTBSY), "{foreign}");
            let va = a.mmap(fa, 0, 4 * BLOCK, true).unwrap();
            assert_eq!(a.store(va + 3 * BLOCK, &[1]), Err(Errno::SIGBUS));
            assert_eq!((a.state_report(fa), b.signals()), (before, vec![]), "and no process is signalled");
            assert_eq!(a.leases(fa).iter().map(|lease| lease.pins).sum::<u64>(), 0, "nothing stays counted");
            assert!(nic.pins(&a, fa, 0..2).is_ok(), "what is there needs no allocation");
            b.unlock(fb, ALL).unwrap();
            assert!(nic.pins(&a, fa, 2..3).is_ok(), "the own lease does not forbid what the own pin needs");
            let forbidden = axes.lease_rules == LeaseRules::ManPage && axes.holder_change == ChangeRule::Fail;
            let stored = if forbidden { Err(Errno::SIGBUS) } else { Ok(()) };
            assert_eq!(a.store(va + 3 * BLOCK, &[1]), stored, "judged as the holder's write");
            lab.end([&a, &b]);
        }
    }
}

/// S17: unlock with live pins, by axis; `kara` by the pinning process itself: EDEADLK.
#[test]
fn s17_unlock_with_live_pins() {
    every_preset_where(needs_lease, |axes| {
        let (lab, a) = Lab::pinned(axes, 4, 0..2).unwrap();
        let refused = match axes.unlock_while_pinned.unwrap() {
            UnlockRule::Release => None,
            UnlockRule::Busy => Some(Errno::EBUSY),
            UnlockRule::Wait => Some(Errno::EDEADLK),
        };
        let held = a.who.held(a.fd);
        for range in [ALL, r(1, 2)] {
            if refused.is_some() {
                assert_eq!(a.who.unlock(a.fd, range).err(), refused);
                assert_eq!(a.who.held(a.fd), held, "a failed unlock has changed nothing");
            }
        }
        if refused.is_some() {
            let more = a.nic.pins(&a.who, a.fd, 2..3).unwrap();
            more.dereg(&a.who);
            a.region.dereg(&a.who);
        }
        assert_eq!(a.who.unlock(a.fd, ALL), Ok(()));
        let aborted = axes.on_lease_lost == Some(LeaseLost::Abort);
        assert_eq!(a.region.is_pinned(), refused.is_none() && !aborted, "S27");
        assert_eq!(a.region.revoked.load(Ordering::SeqCst), refused.is_none() && aborted, "S27");
        assert_eq!(a.nic.pins(&a.who, a.fd, 0..1).err(), Some(Errno::EPERM), "S40");
        lab.end([&a.who]);
    });
}

/// `unlock_while_pinned = wait`, by another process that shares the open file: the unlock waits and
/// admits no new pin. If it is interrupted, the lease admits pins again.
#[test]
fn s17_unlock_by_another_process_waits_for_the_pins() {
    let (lab, a) = Lab::pinned(preset("kara"), 4, 0..2).unwrap();
    let child = a.who.child();
    let fd = a.fd;
    let unlocking = child.blocks("unlock while pinned", move |child| child.unlock(fd, ALL));
    assert_eq!(a.nic.pins(&a.who, a.fd, 2..3).err(), Some(Errno::EPERM), "the gate is closed");
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(unlocking.finish(), Err(Errno::EINTR));
    let _usr1 = child.signals();
    let more = a.nic.pins(&a.who, a.fd, 2..3).unwrap();
    // Two unlocks at once: the one that gives up does not block the other.
    let second = child.another_thread();
    let unlocking = child.blocks("unlock while pinned", move |child| child.unlock(fd, ALL));
    let other = second.blocks("unlock while pinned", move |second| second.unlock(fd, ALL));
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(unlocking.finish(), Err(Errno::EINTR), "the main thread is to run the handler");
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(other.finish(), Err(Errno::EINTR), "the other is, while the main thread has one pending");
    let _usr1 = child.signals();
    let patient = a.who.child();
    let unlocking = child.blocks("unlock while pinned", move |child| child.unlock(fd, ALL));
    let other = patient.blocks("unlock while pinned", move |patient| patient.unlock(fd, ALL));
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(unlocking.finish(), Err(Errno::EINTR));
    more.dereg(&a.who);
    a.region.dereg(&a.who);
    assert_eq!(other.finish(), Ok(()), "the pins are gone");
    assert_eq!(a.who.held(a.fd), []);
    lab.end([&a.who, &child, &patient]);
}

/// `unlock_while_pinned = wait`: the lease for which an unlock waits is revoked. Then it is
/// released, and the unlock has succeeded.
#[test]
fn an_unlock_that_waits_succeeds_when_its_lease_is_revoked() {
    let axes = Axes { stranger_change: ChangeRule::Revoke, ..preset("kara") };
    let (lab, a) = Lab::pinned(axes, 4, 0..2).unwrap();
    let (child, b) = (a.who.child(), lab.actor());
    let fd = a.fd;
    let unlocking = child.blocks("unlock while pinned", move |child| child.unlock(fd, ALL));
    assert_eq!(b.truncate("data", 0), Ok(()));
    assert_eq!(unlocking.finish(), Ok(()));
    assert_eq!(a.who.held(a.fd), []);
    lab.end([&a.who, &child, &b]);
}

/// Section 3: a conversion from +U to breakable, or to a smaller range, follows
/// `unlock_while_pinned`. A conversion that loses nothing is granted at once.
#[test]
fn s17_conversions_with_live_pins() {
    every_preset(|axes| {
        if axes.lease_rules != LeaseRules::ManPage || !needs_lease(axes) {
            return;
        }
        let (lab, a) = Lab::pinned(axes, 4, 0..2).unwrap();
        let weaker = [(LeaseKind::READ, ALL), (LeaseKind::WRITE, ALL), (LeaseKind::WRITE_U, r(0, 1))];
        let refused = match axes.unlock_while_pinned.unwrap() {
            UnlockRule::Release => None,
            UnlockRule::Busy => Some(Errno::EBUSY),
            UnlockRule::Wait => Some(Errno::EDEADLK),
        };
        assert_eq!(a.who.lease(a.fd, LeaseKind::WRITE_U, ALL), Ok(()), "another exclusive kind");
        assert_eq!(a.who.lease(a.fd, LeaseKind::WRITE_U, r(1, 3)), Ok(()), "held already");
        assert_eq!(a.who.downgrade_lease(a.fd, ALL), Ok(()));
        assert!(a.region.is_pinned() && !a.region.revoked.load(Ordering::SeqCst));
        assert_eq!(a.who.held(a.fd), [(LeaseKind::READ_U, ALL)]);
        for (kind, range) in weaker {
            if refused.is_some() {
                assert_eq!(a.who.lease(a.fd, kind, range).err(), refused, "{kind} on {range:?}");
                assert_eq!(a.who.held(a.fd), [(LeaseKind::READ_U, ALL)]);
            }
        }
        if refused.is_none() {
            assert_eq!(a.who.lease(a.fd, LeaseKind::READ, ALL), Ok(()));
            let aborted = axes.on_lease_lost == Some(LeaseLost::Abort);
            assert_eq!(a.region.revoked.load(Ordering::SeqCst), aborted, "S27");
        }
        lab.end([&a.who]);
    });
}

/// The last references to an open file: a descriptor, a mapping.
fn close_all(a: &Actor, fd: Fd) -> Result<(), Errno> {
    a.close(fd)
}

/// S18, S28, S29: munmap and close with live pins, by axis, and which requests other processes are
/// granted afterwards.
#[test]
fn s18_last_close_with_live_pins() {
    every_preset_where(needs_lease, |axes| {
        let (lab, a) = Lab::pinned(axes, 4, 0..2).unwrap();
        let c = lab.actor();
        let fc = c.opens("data");
        let asked = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::WRITE } else { LeaseKind::WRITE_U };
        if axes.mr_holds_lease == Some(true) {
            assert_eq!(close_all(&a.who, a.fd), Ok(()));
            assert_eq!(c.leases(fc)[0].state, LeaseStatus::Held, "S28: alive until dereg");
            assert_eq!(c.lease(fc, asked, ALL), Err(Errno::ETXTBSY));
            a.region.dereg(&a.who);
            assert_eq!(c.lease(fc, asked, ALL), Ok(()));
            lab.end([&a.who, &c]);
            return;
        }
        match axes.last_close_while_pinned.unwrap() {
            LastCloseRule::Release => {
                assert_eq!(close_all(&a.who, a.fd), Ok(()));
                assert!(a.region.is_pinned());
                assert_eq!(c.lease(fc, asked, ALL), Ok(()), "S29: granted,");
                assert_eq!(lab.kernel.counters.broken_exclusivity.get(), 1, "and reported");
            }
            LastCloseRule::Zombie => {
                assert_eq!(close_all(&a.who, a.fd), Ok(()));
                let zombie = &c.leases(fc)[0];
                assert_eq!((zombie.state, zombie.pid, zombie.pins), (LeaseStatus::Zombie, a.who.pid(), 1));
                assert_eq!(lab.kernel.counters.zombie_leases.now(), 1);
                assert_eq!(c.lease(fc, asked, ALL), Err(Errno::ETXTBSY), "S29");
                let again = a.who.opens("data");
                assert_eq!(a.nic.pins(&a.who, again, 0..1).err(), Some(Errno::EPERM), "a zombie never suffices");
                assert!(a.region.is_pinned());
            }
            LastCloseRule::WaitKillable => {
                let fd = a.fd;
                let closing = a.who.blocks("close while pinned", move |a| a.close(fd));
                assert_eq!(c.lease(fc, asked, ALL), Err(Errno::ETXTBSY), "S29: the close still blocks");
                a.region.dereg(&a.who.another_thread());
                assert_eq!(closing.finish(), Ok(()));
                assert_eq!(c.lease(fc, asked, ALL), Ok(()));
            }
            LastCloseRule::Revoke => {
                assert_eq!(close_all(&a.who, a.fd), Ok(()));
                assert!(a.region.revoked.load(Ordering::SeqCst) && !a.region.is_pinned());
                assert_eq!(c.lease(fc, asked, ALL), Ok(()));
            }
        }
        lab.end([&a.who, &c]);
    });
}

/// S29 under `release` with a gate that requires a lease, which no preset combines: see `s18`.
/// Under `odp` there are no pins here.
#[test]
fn s29_release_reports_broken_exclusivity() {
    let axes = Axes { last_close_while_pinned: Some(LastCloseRule::Release), ..preset("rfc-v2") };
    let (lab, a) = Lab::pinned(axes, 4, 0..2).unwrap();
    let c = lab.actor();
    let fc = c.opens("data");
    a.who.close(a.fd).unwrap();
    assert_eq!(c.lease(fc, LeaseKind::READ, ALL), Ok(()));
    assert_eq!(lab.kernel.counters.broken_exclusivity.get(), 0, "not an exclusive lease");
    assert_eq!(c.lease(fc, LeaseKind::WRITE_U, ALL), Ok(()));
    assert_eq!(lab.kernel.counters.broken_exclusivity.get(), 1);
    assert_eq!(c.truncate("data", 0), Err(Errno::ETXTBSY), "and the pins still count");
    lab.end([&a.who, &c]);
}

/// A zombie lease covers the whole file. It ends with the last pin taken under it and with the
/// death of its context.
#[test]
fn a_zombie_lease_ends_with_its_last_pin() {
    for end in ["dereg", "context close", "kill"] {
        let (lab, [a, b]) = Lab::cast(preset("rfc-v2"));
        let f = a.writes_file("data", 8, 1);
        let fb = b.opens("data");
        a.lease(f, LeaseKind::READ_U, r(0, 2)).unwrap();
        let (nic_fd, nic) = Nic::open(&a);
        let (one, two) = (nic.pins(&a, f, 0..1).unwrap(), nic.pins(&a, f, 1..2).unwrap());
        assert_eq!(b.fallocate(fb, FallocateMode::PunchHole, 6 * BLOCK, BLOCK), Ok(()), "behind the lease");
        a.close(f).unwrap();
        assert_eq!(b.held(fb), [(LeaseKind::READ_U, ALL)]);
        assert_eq!(b.fallocate(fb, FallocateMode::PunchHole, 5 * BLOCK, BLOCK), Err(Errno::ETXTBSY), "the whole file");
        assert_eq!(b.unlock(fb, ALL), Err(Errno::EAGAIN), "no process can unlock it");
        one.dereg(&a);
        assert_eq!(b.leases(fb)[0].pins, 1);
        match end {
            "dereg" => two.dereg(&a),
            "context close" => a.close(nic_fd).unwrap(),
            _ => b.kill(a.pid(), Signal::Sigkill).unwrap(),
        }
        assert_eq!(b.held(fb), [], "{end}");
        assert_eq!((lab.kernel.counters.zombie_leases.now(), lab.kernel.counters.zombie_leases.peak()), (0, 1));
        assert_eq!(b.truncate("data", 0), Ok(()));
        lab.end([&a, &b]);
    }
}

/// S19: signals during a blocked close: only a fatal signal ends it, and the pins live until the
/// context is released.
#[test]
fn s19_only_a_fatal_signal_ends_a_blocked_close() {
    for dup2 in [false, true] {
        let (lab, a) = Lab::pinned(preset("chinner-2019"), 4, 0..2).unwrap();
        let c = lab.actor();
        let fc = c.opens("data");
        // The context outlives the process: another process has it.
        a.who.send_fd(c.pid(), a.nic_fd).unwrap();
        let other = a.who.creates("other");
        let fd = a.fd;
        let closing = a.who.blocks("close while pinned", move |a| match dup2 {
            true => a.dup2(other, fd).map(|_| ()),
            false => a.close(fd),
        });
        c.kill(a.who.pid(), Signal::Sigusr1).unwrap();
        c.kill(a.who.pid(), Signal::Sigterm).unwrap();
        closing.expect_blocked("close while pinned");
        c.kill(a.who.pid(), Signal::Sigkill).unwrap();
        assert_eq!(closing.finish(), Err(Errno::EINTR));
        soon("its exit", || lab.kernel.process(a.who.pid()).is_none().then_some(()));
        assert!(a.region.is_pinned(), "the context lives on");
        let left = &c.leases(fc)[0];
        assert_eq!((left.state, left.range), (LeaseStatus::Zombie, ALL));
        assert_eq!(c.truncate("data", 0), Err(Errno::ETXTBSY));
        let received = c.recv_fd();
        let Ok(fs_sim::syscalls::descriptors::Received::Fd(context)) = received else { panic!("{received:?}") };
        assert_eq!(c.close(context), Ok(()));
        assert!(!a.region.is_pinned());
        assert_eq!(c.truncate("data", 0), Ok(()));
        lab.end([&a.who, &c]);
    }
}

/// `wait-killable`: munmap, exit and the collection of a queue never wait; they make a zombie. S34.
#[test]
fn only_close_and_dup2_wait() {
    for way in ["munmap", "exit", "queue"] {
        let (lab, [a, b, keeper]) = Lab::cast(preset("chinner-2019"));
        let f = a.writes_file("data", 4, 1);
        a.lease(f, LeaseKind::WRITE, ALL).unwrap();
        let (nic_fd, nic) = Nic::open(&a);
        let region = nic.pins(&a, f, 0..2).unwrap();
        a.send_fd(keeper.pid(), nic_fd).unwrap();
        match way {
            "munmap" => {
                let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
                assert_eq!(a.close(f), Ok(()), "the mapping keeps it: not the last reference");
                assert_eq!(a.munmap(va, 4 * BLOCK), Ok(()), "S34");
            }
            "exit" => a.exit(),
            _ => {
                a.send_fd(b.pid(), f).unwrap();
                assert_eq!(a.close(f), Ok(()), "the queue keeps it");
                b.exit();
            }
        }
        let looker = lab.actor();
        let fl = looker.opens("data");
        assert_eq!(looker.leases(fl)[0].state, LeaseStatus::Zombie, "{way}");
        assert!(region.is_pinned());
        keeper.exit();
        a.exit();
        assert!(!region.is_pinned(), "both holders of the context are gone");
        assert_eq!(looker.held(fl), []);
        lab.end([&a, &b, &keeper, &looker]);
    }
}

/// `stranger_change = revoke` cuts its range out of an exclusive lease with pins: `on_lease_lost`
/// does not fire, and the pins are judged one by one. A lease without pins is removed.
#[test]
fn a_revocation_cuts_its_range_out_of_a_pinned_lease() {
    for abort in [LeaseLost::Abort, LeaseLost::Nothing] {
        let (lab, [a, b]) = Lab::cast(Axes { on_lease_lost: Some(abort), ..preset("revoke") });
        let f = a.writes_file("data", 4, 1);
        a.lease(f, LeaseKind::READ_U, ALL).unwrap();
        let (_, nic) = Nic::open(&a);
        let (hit, elsewhere) = (nic.pins(&a, f, 3..4).unwrap(), nic.pins(&a, f, 0..1).unwrap());
        assert_eq!(b.truncate("data", 3 * BLOCK), Ok(()));
        assert!(!hit.is_pinned() && elsewhere.is_pinned());
        assert_eq!(a.signals(), [Signal::Sigio]);
        let ranges = |actor: &Actor, fd| actor.held(fd).iter().map(|(_, range)| *range).collect::<Vec<_>>();
        assert_eq!(ranges(&a, f), [r(0, 3)]);

        // A hole in the middle: both parts are the lease still, and admit pins.
        let more = nic.pins(&a, f, 2..3).unwrap();
        let g = b.opens("data");
        b.fallocate(g, FallocateMode::PunchHole, BLOCK, BLOCK).unwrap();
        assert_eq!(ranges(&a, f), [r(0, 1), r(2, 3)]);
        assert!(elsewhere.is_pinned() && more.is_pinned());
        let again = nic.pins(&a, f, 2..3).unwrap();
        // The unlock of one part loses the pins of that part.
        a.unlock(f, r(0, 1)).unwrap();
        assert_eq!(elsewhere.is_pinned(), abort == LeaseLost::Nothing);
        assert!(more.is_pinned() && again.is_pinned());
        assert_eq!(ranges(&a, f), [r(2, 3)]);
        nic.pins(&a, f, 2..3).unwrap().dereg(&a);
        // Without pins it is removed as a whole.
        for region in [elsewhere, more, again] {
            region.dereg(&a);
        }
        assert_eq!(b.truncate("data", 2 * BLOCK), Ok(()));
        assert_eq!(a.signals(), [Signal::Sigio, Signal::Sigio]);
        assert_eq!(ranges(&a, f), []);
        lab.end([&a, &b]);
    }
}

/// S27 by timeout (`chinner` rules with `force`, a design of a user): a forced break is a lost
/// lease for its pins.
#[test]
fn s27_lease_lost_by_force() {
    let axes = Axes {
        break_timeout: fs_sim::design::BreakTimeout::Force,
        on_lease_lost: Some(LeaseLost::Abort),
        ..preset("chinner-2019")
    };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 4, 1);
    a.lease(f, LeaseKind::READ, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let region = nic.pins(&a, f, 0..4).unwrap();
    let changing = b.blocks("lease break", |b| b.truncate("data", 0));
    lab.advance(BREAK_TIME);
    assert_eq!(changing.finish(), Ok(()));
    assert!(region.revoked.load(Ordering::SeqCst) && !region.is_pinned());
    lab.end([&a, &b]);
}

/// Locked memory is charged to the registrant. Above the limit the registration is refused and
/// leaves no pin. The charge is given back at release, also by another process that holds the
/// context.
#[test]
fn locked_memory_is_charged_to_the_registrant() {
    every_preset_where(needs_lease, |axes| {
        let lab = Lab::with(axes, |config| config.memlock_pages = 3);
        let (a, b) = (lab.actor(), lab.actor());
        let f = a.writes_file("data", 4, 1);
        a.lease(f, exclusive(axes), ALL).unwrap();
        let (nic_fd, nic) = Nic::open(&a);
        assert_eq!(nic.pins(&a, f, 0..4).err(), Some(Errno::ENOMEM));
        let region = nic.pins(&a, f, 0..2).unwrap();
        assert_eq!(nic.pins(&a, f, 2..4).err(), Some(Errno::ENOMEM));
        assert_eq!(a.process().locked_pages(), 2);
        assert_eq!(a.leases(f)[0].pins, 1, "the refused ones left no trace");
        let more = nic.pins(&a, f, 2..3).unwrap();
        more.dereg(&a);
        a.send_fd(b.pid(), nic_fd).unwrap();
        a.close(nic_fd).unwrap();
        assert_eq!(a.process().locked_pages(), 2, "stays charged after passing");
        b.exit();
        assert_eq!(a.process().locked_pages(), 0);
        assert!(!region.is_pinned());
        assert_eq!(a.unlock(f, ALL), Ok(()));
        lab.end([&a, &b]);
    });
}

/// S41: unlink and last close with live pins never fail and never wait. The blocks are orphaned in
/// every design but `unsafe`, and freed at the last unpin.
#[test]
fn s41_eviction_never_waits() {
    every_preset(|axes| {
        let axes = Axes { last_close_while_pinned: Some(LastCloseRule::Zombie), mr_holds_lease: Some(false), ..axes };
        let Some((lab, a)) = Lab::pinned(axes, 6, 1..3) else { return };
        let second = a.nic.pins(&a.who, a.fd, 2..4).unwrap();
        a.who.unlink("data").unwrap();
        assert_eq!(lab.kernel.usage().allocated, 6, "open: it lives on");
        assert_eq!(a.who.bytes_of(a.fd), [1, 2, 3, 4, 5, 6]);
        assert_eq!(a.who.close(a.fd), Ok(()));
        assert_eq!(lab.kernel.inodes().len(), 0);
        let usage = lab.kernel.usage();
        if axes.stranger_change == ChangeRule::Proceed {
            assert_eq!((usage.allocated, usage.orphaned), (0, 0));
            assert_eq!(a.region.dma_write(&lab.kernel, 0, &[1]), Ok(()));
            assert_eq!(lab.stale(), 1);
            a.who.exit();
            return;
        }
        assert_eq!((usage.allocated, usage.orphaned), (3, 3), "the unpinned ones are free");
        assert_eq!(a.region.dma_write(&lab.kernel, 0, &[1]), Ok(()));
        assert_eq!((lab.stale(), lab.kernel.counters.orphan_dma.get()), (0, 1));
        a.region.dereg(&a.who);
        assert_eq!(lab.kernel.usage().orphaned, 2, "page 2 has another pin");
        second.dereg(&a.who);
        let usage = lab.kernel.usage();
        assert_eq!((usage.allocated, usage.orphaned, usage.free), (0, 0, common::DEVICE / BLOCK));
        lab.end([&a.who]);
    });
}

/// S41 in one step: a process dies with the last reference to a file without a name and to the
/// context.
#[test]
fn s41_death_frees_everything() {
    every_preset(|axes| {
        let Some((lab, a)) = Lab::pinned(axes, 6, 0..6) else { return };
        let b = lab.actor();
        a.who.unlink("data").unwrap();
        b.kill(a.who.pid(), Signal::Sigkill).unwrap();
        let usage = lab.kernel.usage();
        assert_eq!((usage.allocated, usage.orphaned), (0, 0));
        lab.end([&a.who, &b]);
    });
}

/// Orphans under `holder_change = orphan`: two regions over the same blocks. No file reuses them
/// before the last unpin, and they are freed exactly once.
#[test]
fn orphans_are_freed_once_at_the_last_unpin() {
    let lab = Lab::on(2 << 20, preset("chinner-2019"), |_| {});
    let a = lab.actor();
    let f = a.writes_file("data", 4, 1);
    a.lease(f, LeaseKind::WRITE, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let (one, two) = (nic.pins(&a, f, 0..4).unwrap(), nic.pins(&a, f, 2..4).unwrap());
    a.ftruncate(f, 0).unwrap();
    assert_eq!(lab.kernel.usage().orphaned, 4);
    // The rest of the device is filled: none of the orphaned blocks may be allocated.
    let fill = a.creates("fill");
    let free = lab.kernel.usage().free;
    assert_eq!(a.write(fill, 0, &vec![0x55; (free * BLOCK) as usize]), Ok((free * BLOCK) as usize));
    assert_eq!(a.fills(fill, free, 1), Err(Errno::ENOSPC));
    assert_eq!(one.dma_write(&lab.kernel, 0, &vec![0x66; 4 * BLOCK as usize]), Ok(()));
    assert!(a.bytes_of(fill).iter().all(|byte| *byte == 0x55));
    one.dereg(&a);
    assert_eq!((lab.kernel.usage().orphaned, lab.kernel.usage().free), (2, 2));
    assert_eq!(a.fills(fill, free + 1, 2).and(a.fills(fill, free, 1)), Ok(BLOCK as usize));
    assert_eq!(two.dma_write(&lab.kernel, 0, &[0x66; 64]), Ok(()));
    two.dereg(&a);
    assert_eq!((lab.kernel.usage().orphaned, lab.kernel.usage().free, lab.kernel.usage().orphaned_peak), (0, 2, 4));
    assert_eq!(a.bytes_of(fill).last(), Some(&2));
    lab.end([&a]);
}

/// S39: an on-demand region over a truncated range: the truncate succeeds, the next access fails,
/// and no access is stale.
#[test]
fn s39_on_demand_region_follows_the_file() {
    let (lab, [a, b]) = Lab::cast(preset("odp"));
    let f = a.writes_file("data", 4, 1);
    let (_, nic) = Nic::open(&a);
    let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
    let region = nic.register(&a, PinRequest { va, len: 4 * BLOCK, write: true, user: LongTermUser::Rdma }).unwrap();
    assert_eq!(a.process().locked_pages(), 0, "nothing is pinned");
    assert_eq!(region.dma_write(&lab.kernel, 3 * BLOCK, &[8; 4096]), Ok(()));
    assert_eq!(a.bytes_of(f), [1, 2, 3, 8]);
    assert_eq!(b.truncate("data", 2 * BLOCK), Ok(()));
    assert_eq!(region.dma_write(&lab.kernel, 3 * BLOCK, &[9; 8]), Err(Errno::EFAULT));
    assert_eq!(region.dma_write(&lab.kernel, BLOCK, &[9; 4096]), Ok(()));
    assert_eq!(b.truncate("data", 4 * BLOCK), Ok(()));
    let mut bytes = [1; 8];
    assert_eq!((region.dma_read(&lab.kernel, 3 * BLOCK, &mut bytes), bytes), (Ok(()), [0; 8]), "a hole");
    assert_eq!(a.stat(f).unwrap().blocks, 2, "a read allocates nothing");
    assert_eq!(region.dma_write(&lab.kernel, 3 * BLOCK, &[9; 4096]), Ok(()), "a write does");
    assert_eq!(a.stat(f).unwrap().blocks, 3);
    a.fallocate(f, FallocateMode::Allocate { keep_size: true }, 2 * BLOCK, BLOCK).unwrap();
    assert_eq!(region.dma_write(&lab.kernel, 2 * BLOCK, &[7; 4096]), Ok(()), "unwritten blocks can be had");
    assert_eq!(a.bytes_of(f), [1, 9, 7, 9]);
    a.munmap(va, 4 * BLOCK).unwrap();
    assert_eq!(region.dma_write(&lab.kernel, 0, &[9; 8]), Err(Errno::EFAULT), "unmapped");
    lab.end([&a, &b]);
}

/// A pin for reading through a read-only mapping succeeds, and its accesses need no descriptor
/// afterwards.
#[test]
fn pins_outlive_mapping_and_descriptor() {
    let (lab, [a]) = Lab::cast(preset("unsafe"));
    let _f = a.writes_file("data", 2, 1);
    let reader = a.open("data", OpenFlags::open(AccessMode::READ)).unwrap();
    let (_, nic) = Nic::open(&a);
    let region = nic.pins_for_reading(&a, reader, 0..2).unwrap();
    a.close(reader).unwrap();
    let mut byte = [0];
    assert_eq!((region.dma_read(&lab.kernel, BLOCK, &mut byte), byte), (Ok(()), [2]));
    assert_eq!(nic.pins(&a, reader, 0..1).err(), Some(Errno::EBADF));
    lab.end([&a]);
}

/// The gate `reference`: a descriptor of the open file that has the lease lets a process pin; its
/// mapping does not. Under the gate `lease` neither does.
#[test]
fn a_descriptor_of_the_leased_file_is_enough_by_reference_alone() {
    for gate in [PinGate::Lease, PinGate::Reference] {
        let (lab, [a]) = Lab::cast(Axes { pin_gate: gate, ..preset("man-page") });
        let f = a.writes_file("data", 4, 1);
        a.lease(f, exclusive(*lab.kernel.axes()), r(0, 2)).unwrap();
        let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
        let child = a.child();
        let (_, nic) = Nic::open(&child);
        let by_descriptor = nic.pins(&child, f, 0..2);
        assert_eq!(by_descriptor.as_ref().err().copied(), (gate == PinGate::Lease).then_some(Errno::EPERM));
        assert_eq!(nic.pins(&child, f, 1..3).err(), Some(Errno::EPERM), "the lease does not cover it");
        if let Ok(region) = by_descriptor {
            region.dereg(&child);
        }
        child.close(f).unwrap();
        let want = PinRequest { va, len: 2 * BLOCK, write: true, user: LongTermUser::Rdma };
        assert_eq!(nic.register(&child, want).err(), Some(Errno::EPERM), "a mapping alone");
        lab.end([&a, &child]);
    }
}
