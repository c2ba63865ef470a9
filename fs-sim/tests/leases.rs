//! Dialogues about layout leases: `docs/semantics.md`, section 3, and the scenarios of section 6
//! that concern leases alone.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::{BREAK_TIME, Lab, Nic, every_preset_with, preset};
use emulator::runtime::clock::Nanos;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, BreakTimeout, LeaseRules};
use fs_sim::inspect::books::LeaseStatus;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno};

const ALL: BlockRange = BlockRange::ALL;
const KINDS: [LeaseKind; 4] = [LeaseKind::READ, LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::WRITE_U];

fn r(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

/// Section 3: breakable needs read access, exclusive needs write access, else EACCES.
#[test]
fn access_mode_decides_what_may_be_asked() {
    for axes in [preset("man-page"), preset("chinner-2019")] {
        let (lab, [a]) = Lab::cast(axes);
        a.creates("data");
        let reader = a.open("data", OpenFlags::open(AccessMode::READ)).unwrap();
        let writer = a.open("data", OpenFlags::open(AccessMode::WRITE)).unwrap();
        for kind in KINDS.into_iter().filter(|kind| !kind.unbreakable || axes.lease_rules == LeaseRules::ManPage) {
            let exclusive = kind.is_exclusive(axes.lease_rules);
            let (may, may_not) = if exclusive { (writer, reader) } else { (reader, writer) };
            assert_eq!(a.lease(may_not, kind, ALL), Err(Errno::EACCES), "{kind}");
            assert_eq!(a.lease(may, kind, ALL), Ok(()), "{kind}");
            assert_eq!(a.unlock(may, ALL), Ok(()), "{kind}");
        }
        lab.end([&a]);
    }
}

#[test]
fn invalid_lease_requests() {
    common::every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.creates("data");
        let (context, _) = Nic::open(&a);
        for kind in KINDS {
            let known = match axes.lease_rules {
                LeaseRules::None => false,
                LeaseRules::ManPage => true,
                LeaseRules::Chinner => !kind.unbreakable,
            };
            let expected = if known { Ok(()) } else { Err(Errno::EINVAL) };
            assert_eq!(a.lease(f, kind, ALL), expected, "{kind}");
            assert_eq!(a.lease(f, kind, r(3, 3)), Err(Errno::EINVAL), "an empty range");
            assert_eq!(a.lease(context, kind, ALL), Err(Errno::EINVAL), "not a file");
            assert_eq!(a.lease(Fd(99), kind, ALL), Err(Errno::EBADF));
            assert_eq!(a.unlock(f, ALL), if known { Ok(()) } else { Err(Errno::EAGAIN) });
        }
        let downgrade = if axes.lease_rules == LeaseRules::ManPage { Errno::EAGAIN } else { Errno::EINVAL };
        assert_eq!(a.downgrade_lease(f, ALL), Err(downgrade));
        lab.end([&a]);
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Grant,
    /// The lease is broken, the request waits and is granted; the holder keeps this.
    Break(Option<LeaseKind>),
    Busy,
}

/// The table of section 3, `man-page` rules: a row per kind held, a column per kind asked.
fn table() -> [[Cell; 4]; 4] {
    use Cell::{Break, Busy, Grant};
    let (none, read) = (Break(None), Break(Some(LeaseKind::READ)));
    [[Grant, Grant, none, none], [Grant, Grant, Busy, Busy], [read, read, none, none], [Busy, Busy, Busy, Busy]]
}

/// The whole grant table under every preset with these rules; the holder lets the break time pass.
#[test]
fn man_page_grant_table() {
    every_preset_with(LeaseRules::ManPage, |axes| {
        for (held, row) in KINDS.into_iter().zip(table()) {
            for (asked, cell) in KINDS.into_iter().zip(row) {
                let (lab, [a, b]) = Lab::cast(axes);
                let (fa, fb) = (a.creates("data"), b.opens("data"));
                a.lease(fa, held, ALL).unwrap();
                let left = match cell {
                    Cell::Grant => {
                        assert_eq!(b.lease(fb, asked, ALL), Ok(()), "{held} held, {asked} asked");
                        Some(held)
                    }
                    Cell::Busy => {
                        assert_eq!(b.lease(fb, asked, ALL), Err(Errno::ETXTBSY), "{held} held, {asked} asked");
                        assert_eq!(a.held(fa), [(held, ALL)]);
                        assert_eq!(a.signals(), [], "a refusal signals no process");
                        lab.end([&a, &b]);
                        continue;
                    }
                    Cell::Break(left) => {
                        let asking = b.blocks("lease break", move |b| b.lease(fb, asked, ALL));
                        assert_eq!(a.signals(), [Signal::Sigio]);
                        assert_eq!(a.leases(fa)[0].state, LeaseStatus::Breaking);
                        lab.advance(BREAK_TIME);
                        assert_eq!(asking.finish(), Ok(()), "{held} held, {asked} asked");
                        left
                    }
                };
                let mut expected: Vec<_> = left.into_iter().collect();
                expected.push(asked);
                let found: Vec<_> = a.leases(fa).iter().map(|lease| lease.kind).collect();
                assert_eq!(found, expected, "{held} held, {asked} asked");
                assert_eq!(b.signals(), []);
                lab.end([&a, &b]);
            }
        }
    });
}

/// The same breaks with a holder that answers: it unlocks, or for a break to read it converts the
/// lease.
#[test]
fn man_page_breaks_end_with_the_holders_answer() {
    let axes = preset("man-page");
    for (held, row) in KINDS.into_iter().zip(table()) {
        for (asked, cell) in KINDS.into_iter().zip(row) {
            let Cell::Break(left) = cell else { continue };
            for convert in [false, true].into_iter().filter(|convert| !convert || left.is_some()) {
                let (lab, [a, b]) = Lab::cast(axes);
                let (fa, fb) = (a.creates("data"), b.opens("data"));
                a.lease(fa, held, ALL).unwrap();
                let asking = b.blocks("lease break", move |b| b.lease(fb, asked, ALL));
                let answered = if convert { a.lease(fa, LeaseKind::READ, ALL) } else { a.unlock(fa, ALL) };
                assert_eq!(answered, Ok(()));
                assert_eq!(asking.finish(), Ok(()));
                assert_eq!(a.held(fa).len(), if convert { 2 } else { 1 });
                assert_eq!(lab.kernel.counters.lease_timeouts.get(), 0);
                lab.end([&a, &b]);
            }
        }
    }
}

/// Section 3: leases of the same process on two open files conflict like those of two processes.
#[test]
fn man_page_conflicts_are_between_open_files() {
    let (lab, [a]) = Lab::cast(preset("man-page"));
    let (one, other) = (a.creates("data"), a.opens("data"));
    a.lease(one, LeaseKind::WRITE_U, ALL).unwrap();
    assert_eq!(a.lease(other, LeaseKind::READ, ALL), Err(Errno::ETXTBSY));
    let dup = a.dup(one).unwrap();
    assert_eq!(a.lease(dup, LeaseKind::READ_U, ALL), Ok(()), "a conversion: the same open file");
    assert_eq!(a.held(one), [(LeaseKind::READ_U, ALL)]);
    lab.end([&a]);
}

/// Section 3: a third request gets EAGAIN while a break is pending. Requests are served in the
/// order of arrival.
#[test]
fn a_third_request_gets_eagain() {
    let (lab, [a, b, c]) = Lab::cast(preset("man-page"));
    let (fa, fb, fc) = (a.creates("data"), b.opens("data"), c.opens("data"));
    a.lease(fa, LeaseKind::READ, r(0, 8)).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, r(0, 8)));
    for kind in KINDS {
        assert_eq!(c.lease(fc, kind, r(4, 6)), Err(Errno::EAGAIN), "{kind}");
    }
    assert_eq!(c.lease(fc, LeaseKind::WRITE_U, r(8, 9)), Ok(()), "another range is free");
    a.unlock(fa, ALL).unwrap();
    assert_eq!(asking.finish(), Ok(()));
    assert_eq!(a.signals(), [Signal::Sigio], "the third request signalled no process");
    lab.end([&a, &b, &c]);
}

/// A lease that is being broken cannot be renewed or strengthened by its holder while the breaker
/// waits.
#[test]
fn a_lease_being_broken_can_not_be_renewed() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    for (held, asked) in
        [(LeaseKind::READ, LeaseKind::WRITE), (LeaseKind::WRITE, LeaseKind::READ), (LeaseKind::WRITE, LeaseKind::WRITE)]
    {
        a.lease(fa, held, ALL).unwrap();
        let asking = b.blocks("lease break", move |b| b.lease(fb, asked, ALL));
        let _told = a.signals();
        let answers = asked == LeaseKind::READ;
        for kind in KINDS.into_iter().filter(|kind| !answers || *kind != LeaseKind::READ) {
            assert_eq!(a.lease(fa, kind, ALL), Err(Errno::EAGAIN), "{held} being broken, {kind} asked");
        }
        assert_eq!(a.leases(fa)[0].state, LeaseStatus::Breaking);
        lab.advance(BREAK_TIME);
        assert_eq!(asking.finish(), Ok(()), "the break's time was over all the same");
        b.unlock(fb, ALL).unwrap();
        let _rest = a.unlock(fa, ALL);
    }
    lab.end([&a, &b]);
}

/// A request that gives up leaves the break pending. The next request finds the break time over.
#[test]
fn a_break_outlives_its_breaker() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::WRITE, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::READ, ALL));
    b.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(asking.finish(), Err(Errno::EINTR));
    assert_eq!(b.signals(), [Signal::Sigusr1]);
    assert_eq!(a.leases(fa)[0].state, LeaseStatus::Breaking);
    assert_eq!(b.lease(fb, LeaseKind::READ, ALL), Err(Errno::EAGAIN), "its time is not over");
    lab.advance(BREAK_TIME);
    assert_eq!(b.lease(fb, LeaseKind::READ, ALL), Ok(()));
    assert_eq!(a.signals(), [Signal::Sigio], "told once");
    assert_eq!(a.held(fa), [(LeaseKind::READ, ALL), (LeaseKind::READ, ALL)]);
    lab.end([&a, &b]);
}

/// Section 2, kept by layout leases: a break to read and then to none signals twice, each with its
/// own deadline.
#[test]
fn a_break_to_read_and_then_to_none_signals_twice() {
    let (lab, [a, b, c]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::WRITE, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::READ, ALL));
    assert_eq!(a.signals(), [Signal::Sigio]);
    lab.advance(BREAK_TIME / 4);
    b.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(asking.finish(), Err(Errno::EINTR));
    let changing = c.blocks("lease break", |c| c.truncate("data", BLOCK));
    assert_eq!(a.signals(), [Signal::Sigio]);
    let deadline = lab.world.sleepers()[0].deadline;
    assert_eq!(deadline, Some(Nanos(0).after(BREAK_TIME / 4 + BREAK_TIME)));
    lab.advance(BREAK_TIME);
    assert_eq!(changing.finish(), Ok(()));
    assert_eq!(a.held(fa), []);
    lab.end([&a, &b, &c]);
}

/// S25: a descriptor with a lease was passed to another process. Only the setter is signalled; the
/// receiver sees the break and may release the lease.
#[test]
fn s25_only_the_setter_is_signalled() {
    let (lab, [a, b, c]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    a.send_fd(c.pid(), fa).unwrap();
    let Ok(Received::Fd(fc)) = c.recv_fd() else { panic!("a descriptor") };
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE_U, ALL));
    assert_eq!((a.signals(), c.signals()), (vec![Signal::Sigio], vec![]));
    assert_eq!(c.leases(fc)[0].state, LeaseStatus::Breaking);
    assert_eq!(c.unlock(fc, ALL), Ok(()));
    assert_eq!(asking.finish(), Ok(()));
    lab.end([&a, &b, &c]);
}

fn breaking(timeout: BreakTimeout) -> Axes {
    Axes { break_timeout: timeout, ..preset("man-page") }
}

/// `break_timeout`: what happens at the deadline, and not one nanosecond earlier.
#[test]
fn force_takes_the_lease_at_the_deadline() {
    let (lab, [a, b]) = Lab::cast(breaking(BreakTimeout::Force));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
    lab.advance(BREAK_TIME - Duration::from_nanos(1));
    assert_eq!(lab.world.sleepers()[0].deadline, Some(Nanos(0).after(BREAK_TIME)));
    assert_eq!(a.leases(fa)[0].state, LeaseStatus::Breaking);
    lab.advance(Duration::from_nanos(1));
    assert_eq!(asking.finish(), Ok(()));
    assert_eq!(lab.kernel.counters.lease_timeouts.get(), 1);
    assert_eq!(a.unlock(fa, ALL), Err(Errno::EAGAIN), "its lease is gone");
    assert!(!a.process().is_dying());
    lab.end([&a, &b]);
}

#[test]
fn kill_ends_the_owner() {
    let (lab, [a, b]) = Lab::cast(breaking(BreakTimeout::Kill));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
    lab.advance(BREAK_TIME);
    assert_eq!(asking.finish(), Ok(()), "the owner's exit released it");
    assert!(a.process().is_dying());
    assert_eq!(lab.kernel.counters.processes_killed.get(), 1);
    assert_eq!(lab.kernel.counters.lease_timeouts.get(), 0, "no force was needed");
    lab.end([&a, &b]);
}

/// S26: the setter closed its descriptor and the open file is alive elsewhere. `kill`: the setter
/// dies, then the lease is removed by force. `force`: the lease is removed.
#[test]
fn s26_setter_closed_and_the_break_times_out() {
    for timeout in [BreakTimeout::Force, BreakTimeout::Kill] {
        let (lab, [a, b, c]) = Lab::cast(breaking(timeout));
        let (fa, fb) = (a.creates("data"), b.opens("data"));
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        a.send_fd(c.pid(), fa).unwrap();
        a.close(fa).unwrap();
        let Ok(Received::Fd(fc)) = c.recv_fd() else { panic!("a descriptor") };
        let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
        assert_eq!(a.signals(), [Signal::Sigio], "even after it closed its fd");
        lab.advance(BREAK_TIME);
        if timeout == BreakTimeout::Kill {
            common::watchdog::soon("the setter's death", || a.process().is_dying().then_some(()));
            assert!(!asking.is_over(), "one more break time");
            let twice = Some(Nanos(0).after(BREAK_TIME * 2));
            common::watchdog::soon("the second wait", || {
                (lab.world.sleepers().first()?.deadline == twice).then_some(())
            });
            lab.advance(BREAK_TIME);
        }
        assert_eq!(asking.finish(), Ok(()));
        assert!(!c.process().is_dying(), "the other holder of the open file lives");
        assert_eq!(c.unlock(fc, ALL), Err(Errno::EAGAIN));
        lab.end([&a, &b, &c]);
    }
}

/// Section 2: the setter is dead: no process is signalled, and the request waits the full break
/// time.
#[test]
fn dead_setter_means_a_full_wait() {
    for timeout in [BreakTimeout::Force, BreakTimeout::Kill] {
        let (lab, [a, b, c]) = Lab::cast(breaking(timeout));
        let (fa, fb) = (a.creates("data"), b.opens("data"));
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        a.send_fd(c.pid(), fa).unwrap();
        a.exit();
        let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
        assert_eq!(lab.kernel.counters.sigio_unsent.get(), 1);
        assert_eq!(lab.kernel.counters.sigio_sent.get(), 0);
        lab.advance(BREAK_TIME);
        if timeout == BreakTimeout::Kill {
            let twice = Some(Nanos(0).after(BREAK_TIME * 2));
            common::watchdog::soon("the second wait", || {
                (lab.world.sleepers().first()?.deadline == twice).then_some(())
            });
            lab.advance(BREAK_TIME);
        }
        assert_eq!(asking.finish(), Ok(()));
        assert_eq!(c.signals(), []);
        lab.end([&a, &b, &c]);
    }
}

/// `break_timeout = never`, and `lease_break_time` 0 under any: no deadline at all.
#[test]
fn never_waits_for_the_owner() {
    let never = Lab::new(breaking(BreakTimeout::Never));
    let zero = Lab::with(breaking(BreakTimeout::Force), |config| config.options.lease_break_time = Duration::ZERO);
    for lab in [never, zero] {
        let (a, b) = (lab.actor(), lab.actor());
        let (fa, fb) = (a.creates("data"), b.opens("data"));
        a.lease(fa, LeaseKind::READ, ALL).unwrap();
        let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
        assert_eq!(lab.world.sleepers()[0].deadline, None);
        lab.advance(Duration::from_secs(1_000_000));
        assert_eq!(a.leases(fa)[0].state, LeaseStatus::Breaking);
        a.unlock(fa, ALL).unwrap();
        assert_eq!(asking.finish(), Ok(()));
        lab.end([&a, &b]);
    }
}

/// Section 2: the default action of SIGIO kills the process, and its lease is released.
#[test]
fn unhandled_sigio_kills_the_holder() {
    let lab = Lab::new(preset("man-page"));
    let (a, b, c) = (lab.fragile(), lab.actor(), lab.actor());
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::READ, ALL).unwrap();
    assert_eq!(b.lease(fb, LeaseKind::WRITE, ALL), Ok(()), "no wait: the owner's exit released it");
    assert!(a.process().is_dying());
    assert_eq!(a.unlock(fa, ALL), Err(Errno::Dead));
    c.process().set_disposition(Signal::Sigio, Disposition::Ignore);
    let fc = c.opens("data");
    b.unlock(fb, ALL).unwrap();
    c.lease(fc, LeaseKind::READ, ALL).unwrap();
    let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::WRITE, ALL));
    assert_eq!(c.signals(), [], "ignored");
    lab.advance(BREAK_TIME);
    assert_eq!(asking.finish(), Ok(()));
    lab.end([&a, &b, &c]);
}

/// Section 3, conversion on one open file: up, down, growing, shrinking, split in the middle.
#[test]
fn conversions_on_one_open_file() {
    every_preset_with(LeaseRules::ManPage, |axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.creates("data");
        let (read, write, write_u) = (LeaseKind::READ, LeaseKind::WRITE, LeaseKind::WRITE_U);
        type Held = (LeaseKind, BlockRange);
        let steps: &[(LeaseKind, BlockRange, &[Held])] = &[
            (read, r(0, 4), &[(read, r(0, 4))]),
            (write, r(0, 4), &[(write, r(0, 4))]),
            (read, r(0, 4), &[(read, r(0, 4))]),
            (read, r(2, 8), &[(read, r(0, 4)), (read, r(4, 8))]),
            (write, r(0, 8), &[(write, r(0, 4)), (write, r(4, 8))]),
            (read, r(5, 6), &[(write, r(0, 4)), (write, r(4, 5)), (read, r(5, 6)), (write, r(6, 8))]),
            (
                write_u,
                ALL,
                &[
                    (write_u, r(0, 4)),
                    (write_u, r(4, 5)),
                    (write_u, r(5, 6)),
                    (write_u, r(6, 8)),
                    (write_u, BlockRange::from(8)),
                ],
            ),
        ];
        for (asked, range, expected) in steps {
            assert_eq!(a.lease(f, *asked, *range), Ok(()));
            assert_eq!(a.held(f), *expected, "after {asked} on {range:?}");
        }
        assert_eq!(a.unlock(f, r(1, 7)), Ok(()));
        assert_eq!(a.held(f), [(write_u, r(0, 1)), (write_u, r(7, 8)), (write_u, BlockRange::from(8))]);
        assert_eq!(a.signals(), [], "no other process is concerned");
        lab.end([&a]);
    });
}

/// A request that fails changes no lease of the caller.
#[test]
fn a_failed_conversion_leaves_the_old_lease() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::READ, r(0, 4)).unwrap();
    b.lease(fb, LeaseKind::READ_U, r(3, 9)).unwrap();
    assert_eq!(a.lease(fa, LeaseKind::WRITE, r(0, 4)), Err(Errno::ETXTBSY));
    assert_eq!(a.held(fa), [(LeaseKind::READ, r(0, 4)), (LeaseKind::READ_U, r(3, 9))]);
    b.lease(fb, LeaseKind::READ, r(3, 9)).unwrap();
    let asking = a.blocks("lease break", move |a| a.lease(fa, LeaseKind::WRITE_U, r(2, 6)));
    a.kill(a.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(asking.finish(), Err(Errno::EINTR));
    assert_eq!(a.held(fa), [(LeaseKind::READ, r(0, 4)), (LeaseKind::READ, r(3, 9))]);
    lab.end([&a, &b]);
}

/// S11: write, fallocate, then downgrade to read+U. After a break the downgrade fails.
#[test]
fn s11_downgrade_only_without_a_break_between() {
    every_preset_with(LeaseRules::ManPage, |axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let (fa, fb) = (a.creates("data"), b.opens("data"));
        a.lease(fa, LeaseKind::WRITE, ALL).unwrap();
        a.fallocate(fa, fs_sim::syscalls::fallocate::FallocateMode::Allocate { keep_size: false }, 0, 4 * BLOCK)
            .unwrap();
        assert_eq!(a.downgrade_lease(fa, ALL), Ok(()));
        assert_eq!(a.held(fa), [(LeaseKind::READ_U, ALL)]);
        assert_eq!(a.downgrade_lease(fa, ALL), Err(Errno::EAGAIN), "no write lease any more");
        a.unlock(fa, ALL).unwrap();

        a.lease(fa, LeaseKind::WRITE, ALL).unwrap();
        let asking = b.blocks("lease break", move |b| b.lease(fb, LeaseKind::READ, ALL));
        assert_eq!(a.downgrade_lease(fa, ALL), Err(Errno::EAGAIN), "it is being broken");
        let _told = a.signals();
        a.unlock(fa, ALL).unwrap();
        assert_eq!(asking.finish(), Ok(()));
        b.unlock(fb, ALL).unwrap();

        a.lease(fa, LeaseKind::WRITE, r(0, 6)).unwrap();
        assert_eq!(a.downgrade_lease(fa, r(2, 8)), Err(Errno::EAGAIN), "not all of it is held");
        assert_eq!(a.downgrade_lease(fa, r(2, 4)), Ok(()));
        assert_eq!(
            a.held(fa),
            [(LeaseKind::WRITE, r(0, 2)), (LeaseKind::READ_U, r(2, 4)), (LeaseKind::WRITE, r(4, 6))]
        );
        lab.end([&a, &b]);
    });
}

/// S15, S10: exclusive leases conflict where they overlap, and only there.
#[test]
fn s15_leases_that_do_not_overlap_ignore_each_other() {
    for axes in [preset("man-page"), preset("chinner-2019")] {
        let kind = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::WRITE } else { LeaseKind::WRITE_U };
        let (lab, [a, b]) = Lab::cast(axes);
        let (fa, fb) = (a.creates("data"), b.opens("data"));
        a.lease(fa, kind, r(0, 4)).unwrap();
        assert_eq!(b.lease(fb, kind, r(3, 5)), Err(Errno::ETXTBSY));
        assert_eq!(b.lease(fb, kind, r(4, 8)), Ok(()));
        assert_eq!((a.signals(), b.signals()), (vec![], vec![]));
        lab.end([&a, &b]);
    }
}

/// Section 3, `chinner` rules: read and write of different processes coexist; write against write
/// is ETXTBSY.
#[test]
fn chinner_leases_coexist_but_for_write_against_write() {
    every_preset_with(LeaseRules::Chinner, |axes| {
        for (held, asked) in [
            (LeaseKind::READ, LeaseKind::READ),
            (LeaseKind::READ, LeaseKind::WRITE),
            (LeaseKind::WRITE, LeaseKind::READ),
            (LeaseKind::WRITE, LeaseKind::WRITE),
        ] {
            let (lab, [a, b]) = Lab::cast(axes);
            let (fa, fb) = (a.creates("data"), b.opens("data"));
            a.lease(fa, held, ALL).unwrap();
            let both_write = held == LeaseKind::WRITE && asked == LeaseKind::WRITE;
            let expected = if both_write { Err(Errno::ETXTBSY) } else { Ok(()) };
            assert_eq!(b.lease(fb, asked, ALL), expected, "{held} held, {asked} asked");
            assert_eq!((a.signals(), b.signals()), (vec![], vec![]), "S04: until a process modifies");
            lab.end([&a, &b]);
        }
    });
}

/// Section 2, life: a lease can be unlocked through any descriptor of the open file, also by a
/// forked child, but not through another open file.
#[test]
fn unlock_works_on_every_descriptor_of_the_open_file() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (fa, fb) = (a.creates("data"), b.opens("data"));
    a.lease(fa, LeaseKind::WRITE_U, ALL).unwrap();
    assert_eq!(b.unlock(fb, ALL), Err(Errno::EAGAIN));
    let dup = a.dup(fa).unwrap();
    assert_eq!(a.unlock(dup, ALL), Ok(()));
    a.lease(fa, LeaseKind::WRITE_U, ALL).unwrap();
    let child = a.child();
    assert_eq!(child.unlock(fa, ALL), Ok(()));
    assert_eq!(a.unlock(fa, ALL), Err(Errno::EAGAIN));
    lab.end([&a, &b, &child]);
}

/// Section 4: the task whose wait would close a cycle gets EDEADLK. A process with a running thread
/// is not part of a cycle, and a wait with a deadline closes none.
#[test]
fn lease_waits_in_a_cycle() {
    for (timeout, second_thread) in
        [(BreakTimeout::Never, false), (BreakTimeout::Never, true), (BreakTimeout::Force, false)]
    {
        let (lab, [a, b]) = Lab::cast(breaking(timeout));
        for actor in [&a, &b] {
            actor.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        }
        let (f, g) = (a.creates("f"), b.creates("g"));
        let (a_g, b_f) = (a.opens("g"), b.opens("f"));
        a.lease(f, LeaseKind::WRITE, ALL).unwrap();
        b.lease(g, LeaseKind::WRITE, ALL).unwrap();
        let helper = second_thread.then(|| a.another_thread());
        let asking = a.blocks("lease break", move |a| a.lease(a_g, LeaseKind::WRITE, ALL));
        if timeout == BreakTimeout::Never && !second_thread {
            assert_eq!(b.lease(b_f, LeaseKind::WRITE, ALL), Err(Errno::EDEADLK));
            assert_eq!(lab.kernel.counters.deadlocks.get(), 1);
            b.unlock(g, ALL).unwrap();
            assert_eq!(asking.finish(), Ok(()), "the other proceeds");
        } else {
            let other = b.blocks("lease break", move |b| b.lease(b_f, LeaseKind::WRITE, ALL));
            match helper {
                Some(helper) => helper.unlock(f, ALL).unwrap(),
                None => lab.advance(BREAK_TIME),
            }
            assert_eq!(other.finish(), Ok(()));
            if second_thread {
                b.unlock(g, ALL).unwrap();
            }
            assert_eq!(asking.finish(), Ok(()));
            assert_eq!(lab.kernel.counters.deadlocks.get(), 0);
        }
        lab.end([&a, &b]);
    }
}
