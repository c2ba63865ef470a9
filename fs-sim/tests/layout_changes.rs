//! Dialogues about layout changes: `docs/semantics.md`, section 4, and the scenarios of section 6
//! in which one process changes a file that another process (or it itself) leases or pins. Outcomes
//! are stated per axis value, so they hold for every preset.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::changes::{ALL, CHANGES, Call, DEPARTURES, KEEP, NO_CHANGES, canvas, write};
use common::watchdog::soon;
use common::{
    BREAK_TIME, Lab, Nic, can_pin, every_preset, every_preset_where, every_preset_with, exclusive, needs_lease,
    patient, preset,
};
use emulator::sync::atomic::Ordering;
use fs_sim::design::{Axes, BreakTimeout, ChangeRule, LeaseRules, UnlockRule, WriteBreak};
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno};

/// S06, S05 (`chinner`), S31: an exclusive lease of another process, nothing pinned:
/// `stranger_change` decides about every change.
#[test]
fn s06_stranger_meets_an_exclusive_lease() {
    every_preset(|axes| {
        let kinds: &[LeaseKind] = match axes.lease_rules {
            LeaseRules::None => return,
            LeaseRules::ManPage => &[LeaseKind::READ_U, LeaseKind::WRITE_U],
            LeaseRules::Chinner => &[LeaseKind::WRITE],
        };
        for kind in kinds {
            for (what, change) in CHANGES {
                let (lab, [a, b]) = Lab::cast(axes);
                let fa = canvas(&a);
                let fb = b.opens("data");
                a.lease(fa, *kind, ALL).unwrap();
                let before = a.state_report(fa);
                match axes.stranger_change {
                    ChangeRule::Fail => {
                        assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{what} under {kind}");
                        assert_eq!(a.state_report(fa), before, "{what}: a failed change was never visible");
                        assert_eq!(a.signals(), [], "{what}: no signal when a check fails first");
                    }
                    ChangeRule::Wait => {
                        let changing = b.blocks("exclusive lease", move |b| change(b, fb));
                        assert_eq!(a.state_report(fa), before);
                        assert_eq!(a.signals(), [], "{what}: no signal under wait");
                        a.unlock(fa, ALL).unwrap();
                        assert_eq!(changing.finish(), Ok(()), "{what}");
                        assert_ne!(a.state_report(fa), before);
                    }
                    ChangeRule::Revoke => {
                        assert_eq!(change(&b, fb), Ok(()), "{what}");
                        assert_eq!(a.signals(), [Signal::Sigio], "{what}: its lease was removed");
                        assert_eq!(a.held(fa), []);
                    }
                    ChangeRule::Proceed | ChangeRule::Orphan => {
                        assert_eq!(change(&b, fb), Ok(()), "{what}");
                        assert_eq!((a.signals(), a.held(fa).len()), (vec![], 1));
                    }
                }
                lab.end([&a, &b]);
            }
        }
    });
}

/// S31: the report names the process that keeps the lease, and killing it removes the lease.
#[test]
fn s31_killing_the_lease_holder_lets_the_change_proceed() {
    let (lab, [a, b]) = Lab::cast(preset("rfc-v2"));
    let fa = canvas(&a);
    a.lease(fa, LeaseKind::READ_U, ALL).unwrap();
    assert_eq!(b.truncate("data", 0), Err(Errno::ETXTBSY));
    let fb = b.opens("data");
    assert_eq!(b.leases(fb).iter().map(|lease| lease.pid).collect::<Vec<_>>(), [a.pid()]);
    b.kill(a.pid(), Signal::Sigkill).unwrap();
    assert_eq!(b.truncate("data", 0), Ok(()));
    lab.end([&a, &b]);
}

/// S01, S05: a breakable lease of another process: the owner is signalled, and every change waits
/// until the owner releases the lease.
#[test]
fn s01_stranger_breaks_a_breakable_lease() {
    every_preset(|axes| {
        let kinds: &[LeaseKind] = match axes.lease_rules {
            LeaseRules::None => return,
            LeaseRules::ManPage => &[LeaseKind::READ, LeaseKind::WRITE],
            LeaseRules::Chinner => &[LeaseKind::READ],
        };
        for kind in kinds {
            for (what, change) in CHANGES {
                let (lab, [a, b]) = Lab::cast(axes);
                let fa = canvas(&a);
                let fb = b.opens("data");
                a.lease(fa, *kind, ALL).unwrap();
                let before = a.state_report(fa);
                let changing = b.blocks("lease break", move |b| change(b, fb));
                assert_eq!(a.signals(), [Signal::Sigio], "{what}");
                assert_eq!(a.state_report(fa), before, "{what}");
                a.unlock(fa, ALL).unwrap();
                assert_eq!(changing.finish(), Ok(()), "{what}");
                assert_ne!(a.state_report(fa), before, "{what}");
                lab.end([&a, &b]);
            }
        }
    });
}

/// S01: the break time ends the wait as `break_timeout` says.
#[test]
fn s01_change_waits_no_longer_than_the_break_time() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = canvas(&a);
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        let changing = b.blocks("lease break", |b| b.truncate("data", 0));
        let deadline = lab.world.sleepers()[0].deadline;
        assert_eq!(deadline.is_none(), axes.break_timeout == BreakTimeout::Never);
        lab.advance(BREAK_TIME);
        match axes.break_timeout {
            BreakTimeout::Never => a.unlock(fa, ALL).unwrap(),
            BreakTimeout::Kill | BreakTimeout::Force => {}
        }
        assert_eq!(changing.finish(), Ok(()));
        assert_eq!(a.process().is_dying(), axes.break_timeout == BreakTimeout::Kill);
        lab.end([&a, &b]);
    });
}

/// Section 1, "judged by effect", and S08 (precise), S35: a call without an effect on the layout
/// breaks no lease.
#[test]
fn s08_no_effect_is_no_change() {
    every_preset(|axes| {
        for kind in [LeaseKind::READ, LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::WRITE_U] {
            let known = match axes.lease_rules {
                LeaseRules::None => false,
                LeaseRules::ManPage => true,
                LeaseRules::Chinner => !kind.unbreakable,
            };
            if !known {
                continue;
            }
            let (lab, [a, b]) = Lab::cast(axes);
            let fa = canvas(&a);
            let fb = b.opens("data");
            a.lease(fa, kind, ALL).unwrap();
            for (what, call) in NO_CHANGES {
                assert_eq!(call(&b, fb), Ok(()), "stranger: {what} under {kind}");
                assert_eq!(call(&a, fa), Ok(()), "holder: {what} under {kind}");
            }
            assert_eq!((a.signals(), b.signals()), (vec![], vec![]));
            assert_eq!(a.held(fa), [(kind, ALL)]);
            lab.end([&a, &b]);
        }
    });
}

/// S08, `write_break = conservative`: an overwrite is a change. Zeroing written blocks, or
/// truncating to the same size, is still no change.
#[test]
fn s08_conservative_takes_every_write_for_a_change() {
    every_preset_with(LeaseRules::ManPage, |axes| {
        let lab = Lab::with(axes, |config| config.options.write_break = WriteBreak::Conservative);
        let (a, b) = (lab.actor(), lab.actor());
        let fa = canvas(&a);
        let fb = b.opens("data");
        a.lease(fa, LeaseKind::READ_U, ALL).unwrap();
        let before = a.state_report(fa);
        for (who, fd, rule) in [(&b, fb, axes.stranger_change), (&a, fa, axes.holder_change)] {
            match rule {
                ChangeRule::Fail => {
                    assert_eq!(write(who, fd, 1), Err(Errno::ETXTBSY));
                    assert_eq!(a.state_report(fa), before);
                    assert_eq!(a.signals(), []);
                }
                ChangeRule::Revoke => {
                    assert_eq!(write(who, fd, 1), Ok(()));
                    assert_eq!((a.signals(), a.held(fa)), (vec![Signal::Sigio], vec![]));
                    a.lease(fa, LeaseKind::READ_U, ALL).unwrap();
                }
                _ => assert_eq!(write(who, fd, 1), Ok(())),
            }
        }
        assert_eq!(b.ftruncate(fb, 6 * BLOCK), Ok(()));
        a.unlock(fa, ALL).unwrap();
        assert_eq!(write(&b, fb, 1), Ok(()), "no lease is concerned");
        lab.end([&a, &b]);
    });
}

/// S02, S07, S32 without pins: the holder's own changes.
#[test]
fn s02_s07_the_holders_own_changes() {
    every_preset(|axes| {
        for (what, change) in CHANGES {
            for kind in [LeaseKind::READ, LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::WRITE_U] {
                let (lab, [a]) = Lab::cast(axes);
                let fa = canvas(&a);
                if a.lease(fa, kind, ALL) == Err(Errno::EINVAL) {
                    assert!(axes.lease_rules == LeaseRules::None || kind.unbreakable);
                    lab.end([&a]);
                    continue;
                }
                let before = a.state_report(fa);
                let man_page = axes.lease_rules == LeaseRules::ManPage;
                // (outcome, signalled, lease kept)
                let (outcome, told, kept) = match (man_page, kind, axes.holder_change) {
                    (true, LeaseKind::READ, _) => (Ok(()), true, false),
                    (true, LeaseKind::READ_U, ChangeRule::Fail) => (Err(Errno::ETXTBSY), false, true),
                    (true, LeaseKind::READ_U, ChangeRule::Wait) => (Err(Errno::EDEADLK), false, true),
                    (true, LeaseKind::READ_U, ChangeRule::Revoke) => (Ok(()), true, false),
                    _ => (Ok(()), false, true),
                };
                assert_eq!(change(&a, fa), outcome, "{what} under {kind}");
                assert_eq!(a.signals(), vec![Signal::Sigio; usize::from(told)], "{what} under {kind}");
                assert_eq!(a.held(fa).len(), usize::from(kept), "{what} under {kind}");
                assert_eq!(a.state_report(fa) == before, outcome.is_err(), "{what} under {kind}");
                lab.end([&a]);
            }
        }
    });
}

/// S03: A holds a read lease, B a write lease, and A changes the file.
#[test]
fn s03_a_reader_changes_while_another_holds_write() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let fa = canvas(&a);
    let fb = b.opens("data");
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
    let _told = a.signals();
    a.unlock(fa, ALL).unwrap();
    asking.finish().unwrap();
    let changing = a.blocks("lease break", |a| a.truncate("data", 0));
    assert_eq!(b.signals(), [Signal::Sigio]);
    b.unlock(fb, ALL).unwrap();
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b]);

    every_preset_with(LeaseRules::Chinner, |axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = canvas(&a);
        let fb = b.opens("data");
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        b.lease(fb, LeaseKind::WRITE, ALL).unwrap();
        let before = a.state_report(fa);
        assert_eq!(a.truncate("data", 0), Err(Errno::ETXTBSY));
        assert_eq!((a.state_report(fa), b.signals(), b.held(fb).len()), (before, vec![], 2), "B undisturbed");
        lab.end([&a, &b]);
    });
}

/// S02, S04 under `chinner` rules: the holder of the write lease is not signalled; it waits for the
/// read leases of the others.
#[test]
fn s04_chinner_writer_waits_for_readers() {
    every_preset_with(LeaseRules::Chinner, |axes| {
        for own in [LeaseKind::READ, LeaseKind::WRITE] {
            let (lab, [a, b]) = Lab::cast(patient(axes));
            let fa = canvas(&a);
            let fb = b.opens("data");
            a.lease(fa, LeaseKind::READ, ALL).unwrap();
            b.lease(fb, own, ALL).unwrap();
            assert_eq!((a.signals(), b.signals()), (vec![], vec![]), "they coexist");
            let changing = b.blocks("lease break", |b| b.truncate("data", BLOCK));
            assert_eq!(a.signals(), [Signal::Sigio]);
            a.unlock(fa, ALL).unwrap();
            assert_eq!(changing.finish(), Ok(()));
            assert_eq!((b.signals(), b.held(fb)), (vec![], vec![(own, ALL)]));
            lab.end([&a, &b]);
        }
    });
}

/// Section 3, `chinner`: a signalled reader releases its lease and requests it again. The request
/// waits until the change is over.
#[test]
fn s53_chinner_reader_asks_again_and_waits_for_the_change() {
    every_preset_with(LeaseRules::Chinner, |axes| {
        let (lab, [a, b, c]) = Lab::cast(patient(axes));
        let fa = canvas(&a);
        let fc = c.opens("data");
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        c.lease(fc, LeaseKind::READ, ALL).unwrap();
        let changing = b.blocks("lease break", |b| b.truncate("data", BLOCK));
        a.unlock(fa, ALL).unwrap();
        let _told = a.signals();
        let again = a.blocks("layout change that broke the lease", move |a| a.lease(fa, LeaseKind::READ, ALL));
        assert_eq!(a.leases(fa).iter().filter(|lease| lease.pid == a.pid()).count(), 0);
        a.kill(a.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(again.finish(), Err(Errno::EINTR), "interruptible");
        let _usr1 = a.signals();
        let again = a.blocks("layout change that broke the lease", move |a| a.lease(fa, LeaseKind::READ, ALL));
        c.unlock(fc, ALL).unwrap();
        assert_eq!(changing.finish(), Ok(()));
        assert_eq!(again.finish(), Ok(()));
        assert_eq!(a.held(fa), [(LeaseKind::READ, ALL)]);
        lab.end([&a, &b, &c]);
    });
}

/// S53: while a change waits, new leases get EAGAIN (`chinner`: they wait) and new long-term pins
/// get EAGAIN. Reads and overwrites continue.
#[test]
fn s53_calls_while_a_change_waits() {
    every_preset_where(can_pin, |axes| {
        let (lab, [a, b, c]) = Lab::cast(patient(axes));
        let fa = canvas(&a);
        let fc = c.opens("data");
        if needs_lease(axes) {
            c.lease(fc, exclusive(axes), BlockRange::new(0, 1)).unwrap();
        }
        a.lease(fa, LeaseKind::READ, BlockRange::new(1, 4)).unwrap();
        let (_, nic) = Nic::open(&c);
        let va = c.mmap(fc, 0, 6 * BLOCK, true).unwrap();
        // The punch starts at byte 1, so C's exclusive lease on block 0 does not matter, except for
        // C's own new pin of block 1.
        let changing = b.blocks("lease break", |b| b.truncate("data", BLOCK));
        if axes.lease_rules == LeaseRules::Chinner {
            let asking = c.blocks("layout change that broke the lease", move |c| c.lease(fc, LeaseKind::READ, ALL));
            c.kill(c.pid(), Signal::Sigusr1).unwrap();
            assert_eq!(asking.finish(), Err(Errno::EINTR));
            let _usr1 = c.signals();
        } else {
            assert_eq!(c.lease(fc, LeaseKind::READ, BlockRange::new(2, 3)), Err(Errno::EAGAIN));
        }
        let pinned = nic.pins(&c, fc, 0..1);
        assert!(pinned.is_ok(), "outside the waiting change's range: {:?}", pinned.err());
        assert_eq!(nic.pins(&c, fc, 1..2).err(), Some(Errno::EAGAIN));
        let mut byte = [0];
        assert_eq!((c.read(fc, 3 * BLOCK, &mut byte), byte), (Ok(1), [4]), "old contents");
        assert_eq!((c.load(va + 2 * BLOCK, &mut byte), byte), (Ok(()), [3]));
        assert_eq!(write(&c, fc, 3), Ok(()));
        assert_eq!(c.store(va + BLOCK, &[9]), Ok(()));
        assert_eq!(c.store(va + 4 * BLOCK, &[9]), Err(Errno::SIGBUS), "a fault that must allocate never waits");
        a.unlock(fa, ALL).unwrap();
        assert_eq!(changing.finish(), Ok(()));
        assert_eq!(c.load(va + BLOCK, &mut byte), Err(Errno::SIGBUS), "past the new end");
        assert_eq!(c.bytes_of(fc), [1]);
        c.munmap(va, 6 * BLOCK).unwrap();
        lab.end([&a, &b, &c]);
    });
}

/// S35: a truncate to the same size breaks no layout lease; see also `s08_no_effect_is_no_change`.
/// Blocks behind the end of the file are part of the layout, and a truncate that takes them away is
/// a change.
#[test]
fn s35_truncate_to_the_same_size_with_blocks_behind_the_end() {
    let (lab, [a, b]) = Lab::cast(preset("rfc-v2"));
    let fa = canvas(&a);
    a.fallocate(fa, KEEP, 6 * BLOCK, 2 * BLOCK).unwrap();
    a.lease(fa, LeaseKind::READ_U, ALL).unwrap();
    let before = a.state_report(fa);
    assert_eq!(b.truncate("data", 6 * BLOCK), Err(Errno::ETXTBSY));
    assert_eq!(a.state_report(fa), before);
    a.unlock(fa, ALL).unwrap();
    assert_eq!(b.truncate("data", 6 * BLOCK), Ok(()));
    assert_eq!(a.stat(fa).unwrap().blocks, 5);
    lab.end([&a, &b]);
}

/// S44: ENOSPC in the middle of a change, under a lease: nothing changes and no block leaks.
#[test]
fn s44_enospc_changes_nothing() {
    every_preset(|axes| {
        let lab = Lab::on(2 << 20, axes, |_| {});
        let a = lab.actor();
        let fa = canvas(&a);
        let leased = axes.lease_rules != LeaseRules::None;
        if leased {
            a.lease(fa, LeaseKind::WRITE, ALL).unwrap();
        }
        let (before, usage) = (a.state_report(fa), lab.kernel.usage());
        let calls: [(&str, Call); 4] = [
            ("allocate", |t, fd| t.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, 600 * BLOCK)),
            ("zero range", |t, fd| {
                t.fallocate(fd, FallocateMode::ZeroRange { keep_size: false }, 2 * BLOCK, 600 * BLOCK)
            }),
            ("write", |t, fd| t.write(fd, 3 * BLOCK, &vec![1; 600 * BLOCK as usize]).map(|_| ())),
            ("allocate far away", |t, fd| t.fallocate(fd, KEEP, 1 << 40, 600 * BLOCK)),
        ];
        for (what, call) in calls {
            assert_eq!(call(&a, fa), Err(Errno::ENOSPC), "{what}");
            assert_eq!((a.state_report(fa), lab.kernel.usage()), (before.clone(), usage), "{what}");
        }
        // Five of the blocks are there already.
        assert_eq!(a.fallocate(fa, KEEP, 0, (usage.free + 5) * BLOCK), Ok(()), "all that is free can still be had");
        assert_eq!(lab.kernel.usage().free, 0);
        if leased {
            assert_eq!(a.held(fa), [(LeaseKind::WRITE, ALL)]);
        }
        lab.end([&a]);
    });
}

/// Every interruptible wait of a change, a lease request and an unlock: EINTR, nothing changed, and
/// no other task is left waiting.
#[test]
fn eintr_of_every_wait() {
    struct Case {
        reason: &'static str,
        axes: Axes,
        lease: Option<LeaseKind>,
        pinned: bool,
    }
    let open = |rule| Axes { stranger_change: rule, ..preset("unsafe") };
    let cases = [
        Case { reason: "lease break", axes: preset("man-page"), lease: Some(LeaseKind::READ), pinned: false },
        Case { reason: "exclusive lease", axes: preset("chinner-2025"), lease: Some(LeaseKind::WRITE), pinned: false },
        Case { reason: "long-term pins", axes: open(ChangeRule::Wait), lease: None, pinned: true },
        Case { reason: "pins draining", axes: open(ChangeRule::Revoke), lease: None, pinned: true },
    ];
    for Case { reason, axes, lease, pinned } in cases {
        for (what, change) in DEPARTURES {
            let (lab, [a, b, c]) = Lab::cast(axes);
            let fa = canvas(&a);
            let (fb, fc) = (b.opens("data"), c.opens("data"));
            if let Some(kind) = lease {
                a.lease(fa, kind, ALL).unwrap();
            }
            let (_, nic) = Nic::open(&a);
            let region = pinned.then(|| nic.pins(&a, fa, 0..4).unwrap());
            if let Some(region) = &region {
                region.dma_in_flight.store(true, Ordering::SeqCst);
            }
            let before = a.state_report(fa);
            let changing = b.blocks(reason, move |b| change(b, fb));
            let behind = c.blocks("layout change ahead", move |c| c.ftruncate(fc, 0));
            c.kill(c.pid(), Signal::Sigusr1).unwrap();
            assert_eq!(behind.finish(), Err(Errno::EINTR), "in the queue behind {reason}");
            let _usr1 = c.signals();
            b.kill(b.pid(), Signal::Sigusr1).unwrap();
            assert_eq!(changing.finish(), Err(Errno::EINTR), "{what}, {reason}");
            assert_eq!(a.state_report(fa), before, "{what}, {reason}");
            assert_eq!(lab.kernel.blocked(), Vec::<String>::new());
            // The next task does not queue behind the interrupted one.
            if let Some(region) = region {
                region.release(&lab.kernel);
            }
            if lease.is_some() {
                a.unlock(fa, ALL).unwrap();
            }
            assert_eq!(c.ftruncate(fc, 9 * BLOCK), Ok(()));
            lab.end([&a, &b, &c]);
        }
    }
}

/// A revocation ends with the unpin. Meanwhile the change waits with its pages closed: new leases
/// and pins get EAGAIN.
#[test]
fn revoke_waits_for_dma_in_flight() {
    let (lab, a) = Lab::pinned(preset("revoke"), 4, 0..4).unwrap();
    let (b, c) = (lab.actor(), lab.actor());
    let fc = c.opens("data");
    a.region.dma_in_flight.store(true, Ordering::SeqCst);
    let changing = b.blocks("pins draining", |b| b.truncate("data", 0));
    assert!(a.region.revoked.load(Ordering::SeqCst));
    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[1; 64]), Ok(()), "the one in flight");
    assert_eq!(c.lease(fc, LeaseKind::READ_U, ALL), Err(Errno::EAGAIN));
    a.region.release(&lab.kernel);
    assert_eq!(changing.finish(), Ok(()));
    assert_eq!(c.lease(fc, LeaseKind::READ_U, ALL), Ok(()));
    assert_eq!(a.who.bytes_of(a.fd), []);
    lab.end([&a.who, &b, &c]);
}

/// S48: two holders of read leases change the file at once under a design that waits: one gets
/// EDEADLK, the other proceeds.
#[test]
fn s48_two_readers_change_at_once() {
    let (lab, [a, b]) = Lab::cast(preset("chinner-2025"));
    let fa = canvas(&a);
    let fb = b.opens("data");
    for (actor, fd) in [(&a, fa), (&b, fb)] {
        actor.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        actor.lease(fd, LeaseKind::READ, ALL).unwrap();
    }
    let (_, nic) = Nic::open(&b);
    let region = nic.pins(&b, fb, 0..1).unwrap();
    let changing = a.blocks("lease break", move |a| a.ftruncate(fa, 0));
    assert_eq!(b.ftruncate(fb, BLOCK), Err(Errno::EDEADLK));
    assert_eq!(lab.kernel.counters.deadlocks.get(), 1);
    assert_eq!(b.unlock(fb, ALL), Err(Errno::EBUSY));
    region.dereg(&b);
    b.unlock(fb, ALL).unwrap();
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b]);
}

/// Section 4: EDEADLK in each wait that can close a cycle. A process with a running thread is not
/// part of a cycle.
#[test]
fn edeadlk_of_each_cycle() {
    // A change that would wait for the changer's own pins gets EDEADLK at once.
    let waits = Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..preset("unsafe") };
    let (lab, a) = Lab::pinned(waits, 4, 0..4).unwrap();
    assert_eq!(a.who.ftruncate(a.fd, 0), Err(Errno::EDEADLK));
    assert_eq!(a.who.bytes_of(a.fd), [1, 2, 3, 4]);

    // B waits for A's pins. A, with one thread, requests what only B can give.
    for second_thread in [false, true] {
        let b = lab.actor();
        let other = b.writes_file(if second_thread { "g" } else { "f" }, 1, 1);
        let (_, nic) = Nic::open(&b);
        let region = nic.pins(&b, other, 0..1).unwrap();
        let helper = second_thread.then(|| b.another_thread());
        let changing = b.blocks("long-term pins", |b| b.truncate("data", 0));
        let name = if second_thread { "g" } else { "f" };
        match helper {
            None => assert_eq!(a.who.truncate(name, 0), Err(Errno::EDEADLK), "a cycle"),
            Some(helper) => {
                let own = a.who.blocks("long-term pins", move |a| a.truncate(name, 0));
                region.dereg(&helper);
                assert_eq!(own.finish(), Ok(()), "the other thread could help");
            }
        }
        b.kill(b.pid(), Signal::Sigusr1).unwrap();
        assert_eq!(changing.finish(), Err(Errno::EINTR));
        b.exit();
    }
    lab.end([&a.who]);

    // A change does not stand behind one that waits for its own process: it passes it.
    let (lab, a) = Lab::pinned(waits, 4, 0..4).unwrap();
    let b = lab.actor();
    let _other = b.writes_file("f", 1, 1);
    let changing = b.blocks("long-term pins", |b| b.truncate("data", 0));
    assert_eq!(a.who.ftruncate(a.fd, 8 * BLOCK), Ok(()), "B waits for A");
    assert_eq!(a.who.ftruncate(a.fd, 4 * BLOCK), Ok(()));
    a.region.dereg(&a.who);
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a.who, &b]);

    // `chinner`: a request for a lease while the requester holds pins that the change waits for.
    let axes = Axes { unlock_while_pinned: Some(UnlockRule::Release), ..preset("chinner-2025") };
    let (lab, [a]) = Lab::cast(axes);
    let fa = a.writes_file("data", 4, 1);
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let region = nic.pins(&a, fa, 0..1).unwrap();
    let b = lab.actor();
    let changing = b.blocks("lease break", |b| b.truncate("data", 0));
    let _told = a.signals();
    a.unlock(fa, ALL).unwrap();
    changing.expect_blocked("long-term pins");
    assert_eq!(a.lease(fa, LeaseKind::READ, ALL), Err(Errno::EDEADLK));
    region.dereg(&a);
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b]);
}

/// Invariant 5: a change with several leases in its way judges all of them before it signals any
/// owner.
#[test]
fn one_refusing_lease_fails_the_change_before_any_signal() {
    let (lab, [a, b, c]) = Lab::cast(preset("man-page"));
    let fa = canvas(&a);
    let fb = b.opens("data");
    a.lease(fa, LeaseKind::READ, BlockRange::new(0, 2)).unwrap();
    b.lease(fb, LeaseKind::READ_U, BlockRange::new(2, 4)).unwrap();
    assert_eq!(c.truncate("data", 0), Err(Errno::ETXTBSY));
    assert_eq!((a.signals(), a.leases(fa)[0].state), (vec![], LeaseStatus::Held));
    b.unlock(fb, ALL).unwrap();
    let changing = c.blocks("lease break", |c| c.truncate("data", 0));
    assert_eq!(a.signals(), [Signal::Sigio]);
    // After the wait the leases are judged again. An exclusive lease outside the waiting range
    // cannot have come meanwhile.
    assert_eq!(b.lease(fb, LeaseKind::READ_U, BlockRange::new(2, 4)), Err(Errno::EAGAIN));
    lab.advance(BREAK_TIME + Duration::from_millis(1));
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b, &c]);
}

/// Changes run one after the other in the order of arrival, and each is judged when its turn comes.
#[test]
fn changes_queue_in_order() {
    let (lab, [a, b, c, d]) = Lab::cast(preset("man-page"));
    let fa = canvas(&a);
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let first = b.blocks("lease break", |b| b.truncate("data", 2 * BLOCK));
    let second = c.blocks("layout change ahead", |c| c.truncate("data", BLOCK));
    let third = d.blocks("layout change ahead", |d| d.truncate("data", 3 * BLOCK));
    a.unlock(fa, ALL).unwrap();
    assert_eq!((first.finish(), second.finish(), third.finish()), (Ok(()), Ok(()), Ok(())));
    assert_eq!(a.bytes_of(fa), [1, 0, 0], "shrunk, shrunk further, then grown");
    soon("an empty wait graph", || lab.kernel.blocked().is_empty().then_some(()));
    lab.end([&a, &b, &c, &d]);
}

/// S44: a change without space is refused before any owner is signalled: a lease, breakable or
/// exclusive, stays.
#[test]
fn s44_a_change_without_space_breaks_no_lease() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        for kind in [LeaseKind::READ, exclusive(axes)] {
            let (lab, [a, b]) = Lab::cast(axes);
            let f = a.writes_file("data", 4, 1);
            a.lease(f, kind, ALL).unwrap();
            let g = b.opens("data");
            let more = (lab.kernel.usage().free + 1) * BLOCK;
            assert_eq!(
                b.fallocate(g, FallocateMode::Allocate { keep_size: true }, 4 * BLOCK, more),
                Err(Errno::ENOSPC)
            );
            assert_eq!((a.signals(), a.held(f)), (vec![], vec![(kind, ALL)]));
            lab.end([&a, &b]);
        }
    });
}
