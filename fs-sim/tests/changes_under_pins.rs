//! Dialogues about layout changes that meet long-term pins: `docs/semantics.md`, section 4 step 3,
//! S14, S15, S32, and the pins that a broken lease leaves. Outcomes are stated per axis value, so
//! they hold for every preset.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{ALL, Call, DEPARTURES, ZERO};
use common::{
    BREAK_TIME, Lab, Nic, can_pin, every_preset, every_preset_where, every_preset_with, exclusive, needs_lease, preset,
};
use emulator::sync::atomic::Ordering;
use fs_sim::design::{Axes, BreakTimeout, ChangeRule, LeaseRules};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno};

/// S14: a stranger changes blocks that are pinned under an exclusive lease.
#[test]
fn s14_stranger_meets_long_term_pins() {
    every_preset(|axes| {
        for (what, change) in DEPARTURES {
            let Some((lab, a)) = Lab::pinned(axes, 4, 0..4) else { continue };
            let b = lab.actor();
            let fb = b.opens("data");
            let before = a.who.state_report(a.fd);
            match axes.stranger_change {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!(a.who.state_report(a.fd), before);
                    assert_eq!(a.who.signals(), []);
                    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[7; 64]), Ok(()), "its region is unharmed");
                }
                ChangeRule::Wait => {
                    let changing = b.blocks("exclusive lease", move |b| change(b, fb));
                    assert_eq!(a.who.state_report(a.fd), before);
                    a.region.dereg(&a.who);
                    a.who.unlock(a.fd, ALL).unwrap();
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                }
                ChangeRule::Revoke => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    assert!(a.region.revoked.load(Ordering::SeqCst) && !a.region.is_pinned());
                    assert_eq!(a.who.signals(), [Signal::Sigio]);
                }
                ChangeRule::Orphan => unreachable!("no preset lets strangers orphan"),
                ChangeRule::Proceed => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    assert_eq!(a.region.dma_write(&lab.kernel, BLOCK, &[7; 64]), Ok(()));
                    assert_eq!(lab.stale(), 1, "the negative control must show it");
                    a.who.exit();
                    b.exit();
                    assert_eq!(lab.kernel.check_at_rest(), Vec::<String>::new());
                    continue;
                }
            }
            lab.end([&a.who, &b]);
        }
    });
}

/// S14 with pins and no lease: the same axis applies. Under `orphan` (a design of a user) the
/// stranger continues without harm.
#[test]
fn s14_stranger_meets_pins_without_a_lease() {
    for rule in [ChangeRule::Fail, ChangeRule::Wait, ChangeRule::Revoke, ChangeRule::Orphan] {
        for (what, change) in DEPARTURES {
            let axes = Axes { stranger_change: rule, holder_change: rule, ..preset("unsafe") };
            let (lab, a) = Lab::pinned(axes, 4, 0..4).unwrap();
            let b = lab.actor();
            let fb = b.opens("data");
            let before = a.who.state_report(a.fd);
            let used = lab.kernel.usage().allocated;
            match rule {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!(a.who.state_report(a.fd), before);
                }
                ChangeRule::Wait => {
                    let changing = b.blocks("long-term pins", move |b| change(b, fb));
                    assert_eq!(a.who.state_report(a.fd), before);
                    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[7; 64]), Ok(()), "S49: it goes on meanwhile");
                    a.region.dereg(&a.who);
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                }
                ChangeRule::Revoke => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    assert_eq!(lab.kernel.counters.revocations.get(), 1);
                }
                ChangeRule::Orphan => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    let gone = 4 - b.stat(fb).unwrap().blocks;
                    let usage = lab.kernel.usage();
                    assert_eq!((usage.allocated, usage.orphaned), (used, gone), "{what}: charged as used");
                    assert_eq!(a.region.dma_write(&lab.kernel, BLOCK, &[7; 64]), Ok(()));
                    assert_eq!((lab.stale(), lab.kernel.counters.orphan_dma.get()), (0, 1));
                    a.region.dereg(&a.who);
                    let usage = lab.kernel.usage();
                    assert_eq!((usage.allocated, usage.orphaned, usage.orphaned_peak), (used - gone, 0, gone));
                }
                ChangeRule::Proceed => unreachable!(),
            }
            lab.end([&a.who, &b]);
        }
    }
}

/// Section 4, step 1: pins that no breakable lease covers fail a change before any lease is broken
/// for it.
#[test]
fn refusing_pins_are_judged_before_any_signal() {
    for own in [false, true] {
        let axes = Axes { stranger_change: ChangeRule::Fail, holder_change: ChangeRule::Fail, ..preset("unsafe") };
        let (lab, a) = Lab::pinned(axes, 4, 3..4).unwrap();
        let (b, c) = (lab.actor(), lab.actor());
        let fc = c.opens("data");
        c.lease(fc, LeaseKind::READ, ALL).unwrap();
        let changer = if own { &a.who } else { &b };
        assert_eq!(changer.truncate("data", BLOCK), Err(Errno::ETXTBSY));
        assert_eq!((c.signals(), c.held(fc)), (vec![], vec![(LeaseKind::READ, ALL)]));
        assert_eq!(lab.kernel.counters.lease_breaks.get(), 0);
        lab.end([&a.who, &b, &c]);
    }
}

/// S15 with pins: a range that other processes neither lease nor pin may change. An unpinned range
/// under an exclusive lease of the whole file is still decided by `stranger_change`.
#[test]
fn s15_unpinned_ranges() {
    every_preset_where(needs_lease, |axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = a.writes_file("data", 8, 1);
        let fb = b.opens("data");
        a.lease(fa, exclusive(axes), BlockRange::new(0, 4)).unwrap();
        let (_, nic) = Nic::open(&a);
        let region = nic.pins(&a, fa, 0..2).unwrap();
        assert_eq!(b.fallocate(fb, FallocateMode::PunchHole, 4 * BLOCK, 4 * BLOCK), Ok(()), "behind the lease");
        let punch: Call = |b, fb| b.fallocate(fb, FallocateMode::PunchHole, 3 * BLOCK, BLOCK);
        match axes.stranger_change {
            ChangeRule::Fail => assert_eq!(punch(&b, fb), Err(Errno::ETXTBSY)),
            ChangeRule::Wait => {
                let changing = b.blocks("exclusive lease", move |b| punch(b, fb));
                b.kill(b.pid(), Signal::Sigterm).unwrap();
                assert_eq!(changing.finish(), Err(Errno::EINTR));
            }
            ChangeRule::Revoke => {
                assert_eq!(punch(&b, fb), Ok(()));
                assert_eq!(a.held(fa), [(exclusive(axes), BlockRange::new(0, 3))], "the range is cut out of it");
                assert!(!region.revoked.load(Ordering::SeqCst), "the pins elsewhere have lost nothing");
            }
            ChangeRule::Proceed | ChangeRule::Orphan => unreachable!("no such preset needs a lease"),
        }
        lab.end([&a, &b]);
    });
}

/// S32: the holder's own truncate under its own region.
#[test]
fn s32_holder_changes_under_its_own_pins() {
    every_preset(|axes| {
        for (what, change) in DEPARTURES {
            let kinds: &[LeaseKind] = match axes.lease_rules {
                LeaseRules::None => &[],
                LeaseRules::ManPage => &[LeaseKind::READ_U, LeaseKind::WRITE_U],
                LeaseRules::Chinner => &[LeaseKind::READ, LeaseKind::WRITE],
            };
            for kind in kinds.iter().filter(|_| can_pin(axes)) {
                let (lab, [a]) = Lab::cast(axes);
                let fa = a.writes_file("data", 4, 1);
                a.lease(fa, *kind, ALL).unwrap();
                let (_, nic) = Nic::open(&a);
                let region = nic.pins(&a, fa, 0..4).unwrap();
                let before = a.state_report(fa);
                let used = lab.kernel.usage().allocated;
                match axes.holder_change {
                    ChangeRule::Fail => {
                        assert_eq!(change(&a, fa), Err(Errno::ETXTBSY), "{what} under {kind}");
                        assert_eq!(a.state_report(fa), before);
                    }
                    ChangeRule::Orphan => {
                        assert_eq!(change(&a, fa), Ok(()), "{what} under {kind}");
                        assert_eq!(region.dma_write(&lab.kernel, BLOCK, &[7; 64]), Ok(()));
                        assert_eq!(lab.kernel.counters.orphan_dma.get(), 1);
                        assert_eq!(lab.kernel.usage().allocated, used, "freed at the last unpin");
                        region.dereg(&a);
                        assert_eq!(lab.kernel.usage().allocated, a.stat(fa).unwrap().blocks);
                    }
                    ChangeRule::Revoke => {
                        assert_eq!(change(&a, fa), Ok(()), "{what} under {kind}");
                        assert!(region.revoked.load(Ordering::SeqCst));
                    }
                    ChangeRule::Wait => unreachable!("no preset that pins waits for its own"),
                    ChangeRule::Proceed => {
                        assert_eq!(change(&a, fa), Ok(()), "{what} under {kind}");
                        assert_eq!(region.dma_write(&lab.kernel, BLOCK, &[7; 64]), Ok(()));
                        assert_eq!(lab.stale(), 1, "stale only in `unsafe`");
                        a.exit();
                        assert_eq!(lab.kernel.check_at_rest(), Vec::<String>::new());
                        continue;
                    }
                }
                assert_eq!(lab.stale(), 0);
                lab.end([&a]);
            }
        }
    });
}

/// Section 4: under an own write or write+U lease, unpinned ranges may change while others are
/// pinned.
#[test]
fn own_write_lease_lets_unpinned_ranges_change() {
    every_preset_where(needs_lease, |axes| {
        let kind = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::WRITE } else { LeaseKind::WRITE_U };
        let (lab, [a]) = Lab::cast(axes);
        let fa = a.writes_file("data", 4, 1);
        a.lease(fa, kind, ALL).unwrap();
        let (_, nic) = Nic::open(&a);
        let region = nic.pins(&a, fa, 0..2).unwrap();
        assert_eq!(a.fallocate(fa, FallocateMode::PunchHole, 2 * BLOCK, BLOCK), Ok(()));
        assert_eq!(a.ftruncate(fa, 9 * BLOCK), Ok(()));
        assert_eq!(a.ftruncate(fa, 2 * BLOCK), Ok(()));
        assert!(region.is_pinned() && !region.revoked.load(Ordering::SeqCst));
        assert_eq!(a.bytes_of(fa), [1, 2]);
        lab.end([&a]);
    });
}

/// Section 1 [chosen]: turning a pinned block unwritten counts as a change. Where the change
/// proceeds, the block is zeroed in place.
#[test]
fn zero_range_over_pinned_blocks_counts_as_a_change() {
    every_preset(|axes| {
        let Some((lab, a)) = Lab::pinned(axes, 4, 1..2) else { return };
        let b = lab.actor();
        let fb = b.opens("data");
        assert_eq!(a.who.fallocate(a.fd, ZERO, 3 * BLOCK, BLOCK), Ok(()), "unpinned: no change, whatever the leases");
        let before = a.who.state_report(a.fd);
        let zero: Call = |t, fd| t.fallocate(fd, ZERO, 0, 3 * BLOCK);
        match axes.stranger_change {
            ChangeRule::Fail => {
                assert_eq!(zero(&b, fb), Err(Errno::ETXTBSY));
                assert_eq!(a.who.state_report(a.fd), before);
            }
            ChangeRule::Wait => {
                let changing = b.blocks("exclusive lease", move |b| zero(b, fb));
                a.region.dereg(&a.who);
                a.who.unlock(a.fd, ALL).unwrap();
                assert_eq!(changing.finish(), Ok(()));
            }
            ChangeRule::Revoke => assert_eq!(zero(&b, fb), Ok(())),
            ChangeRule::Proceed | ChangeRule::Orphan => {
                assert_eq!(zero(&b, fb), Ok(()));
                assert_eq!(a.region.dma_write(&lab.kernel, 0, &[8; BLOCK as usize]), Ok(()));
                assert_eq!(a.who.bytes_of(a.fd), [0, 8, 0, 0], "the pinned block stays written, and the file's");
            }
        }
        assert_eq!(lab.stale(), 0);
        lab.end([&a.who, &b]);
    });
    let (lab, a) = Lab::pinned(preset("chinner-2019"), 4, 1..2).unwrap();
    assert_eq!(a.who.fallocate(a.fd, ZERO, 0, 3 * BLOCK), Ok(()), "holder_change = orphan");
    assert_eq!(lab.kernel.usage().orphaned, 0, "nothing left the file");
    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[8; BLOCK as usize]), Ok(()));
    assert_eq!(a.who.bytes_of(a.fd), [0, 8, 0, 4]);
    lab.end([&a.who]);
}

/// Section 4, step 2, with pins under a breakable lease (`chinner`): the holder is signalled. The
/// pins that it still has afterwards are judged. `kill` ends a holder that only waits.
#[test]
fn chinner_reader_with_pins_is_broken_first() {
    every_preset_with(LeaseRules::Chinner, |axes| {
        for answer in ["gives back", "is stubborn"] {
            let (lab, [a, b]) = Lab::cast(axes);
            let fa = a.writes_file("data", 4, 1);
            a.lease(fa, LeaseKind::READ, ALL).unwrap();
            let (_, nic) = Nic::open(&a);
            let region = nic.pins(&a, fa, 0..2).unwrap();
            let changing = b.blocks("lease break", |b| b.truncate("data", 0));
            assert_eq!(a.signals(), [Signal::Sigio]);
            assert_eq!(a.unlock(fa, ALL), Err(Errno::EBUSY), "unlock_while_pinned = busy");
            assert_eq!(nic.pins(&a, fa, 2..3).err(), Some(Errno::EAGAIN), "it is being broken");
            if answer == "gives back" || axes.break_timeout == BreakTimeout::Never {
                region.dereg(&a);
                a.unlock(fa, ALL).unwrap();
            } else {
                lab.advance(BREAK_TIME);
            }
            assert_eq!(changing.finish(), Ok(()), "A {answer}");
            let killed = answer == "is stubborn" && axes.break_timeout == BreakTimeout::Kill;
            assert_eq!(a.process().is_dying(), killed);
            lab.end([&a, &b]);
        }
    });
}

/// `force` under a breakable lease with pins (a design of a user): the lease is removed, the owner
/// was signalled before, and `stranger_change` decides about the pins.
#[test]
fn pins_left_after_a_forced_break_are_judged() {
    let axes = Axes { break_timeout: BreakTimeout::Force, ..preset("chinner-2019") };
    let (lab, [a, b]) = Lab::cast(axes);
    let fa = a.writes_file("data", 4, 1);
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let (_, nic) = Nic::open(&a);
    let region = nic.pins(&a, fa, 0..2).unwrap();
    let before = a.state_report(fa);
    let changing = b.blocks("lease break", |b| b.truncate("data", 0));
    lab.advance(BREAK_TIME);
    assert_eq!(changing.finish(), Err(Errno::ETXTBSY));
    assert_eq!((a.state_report(fa), a.held(fa), region.is_pinned()), (before, vec![], true));
    lab.end([&a, &b]);
}
