//! Dialogues about shared blocks: reflink, dedupe, exchange-range, copy-on-write, and pins that
//! unshare (`docs/semantics.md`, S42, S43, S44, and S48 with two files). Outcomes are stated per
//! axis value, so they hold for every preset.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{ALL, KEEP, ZERO};
use common::{Actor, Lab, Nic, can_pin, every_preset, every_preset_where, exclusive, needs_lease, pinned_file, preset};
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, LeaseRules, PinGate};
use fs_sim::holders::block_layout::IoMode;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode::{CollapseRange, PunchHole, UnshareRange};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno, FILE_MAX, Task};

/// "data" of four blocks `[1, 2, 3, 4]`, and "copy", which shares them all.
fn clones(a: &Actor) -> (Fd, Fd) {
    let data = a.writes_file("data", 4, 1);
    let copy = a.creates("copy");
    a.reflink(data, 0, copy, 0, 0).unwrap();
    (data, copy)
}

/// Of each block, whether the map marks it as shared.
fn marks(a: &Actor, fd: Fd) -> Vec<bool> {
    let extents = a.fiemap(fd, ALL).unwrap();
    extents.iter().flat_map(|extent| vec![extent.shared; (extent.length / BLOCK) as usize]).collect()
}

type One = fn(&Task, Fd) -> Result<(), Errno>;

#[test]
fn a_clone_costs_nothing_until_it_is_written() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (data, copy) = clones(&a);
    assert_eq!((a.bytes_of(copy), lab.kernel.usage().allocated), (vec![1, 2, 3, 4], 4));
    assert_eq!((marks(&a, data), marks(&a, copy)), (vec![true; 4], vec![true; 4]));
    let calls: [(&str, One, &[u8]); 5] = [
        ("write", |t, fd| t.write(fd, 0, &[9; BLOCK as usize]).map(|_| ()), &[9, 2, 3, 4]),
        ("zero range", |t, fd| t.fallocate(fd, ZERO, BLOCK, BLOCK), &[9, 0, 3, 4]),
        ("punch", |t, fd| t.fallocate(fd, PunchHole, 2 * BLOCK, BLOCK), &[9, 0, 0, 4]),
        ("unshare", |t, fd| t.fallocate(fd, UnshareRange { keep_size: true }, 3 * BLOCK, BLOCK), &[9, 0, 0, 4]),
        ("truncate", |t, fd| t.ftruncate(fd, BLOCK), &[9]),
    ];
    let allocated = [5, 6, 6, 7, 5];
    for ((what, call, bytes), allocated) in calls.into_iter().zip(allocated) {
        assert_eq!(call(&a, copy), Ok(()), "{what}");
        assert_eq!((a.bytes_of(copy), a.bytes_of(data)), (bytes.to_vec(), vec![1, 2, 3, 4]), "{what}");
        assert_eq!(lab.kernel.usage().allocated, allocated, "{what}");
    }
    // No block is shared any more: overwriting "data" changes nothing and clears the marks of its
    // blocks.
    assert_eq!(a.fallocate(data, ZERO, 0, BLOCK), Ok(()));
    (1..4).for_each(|block| assert_eq!(a.fills(data, block, 7), Ok(BLOCK as usize)));
    assert_eq!((a.bytes_of(data), lab.kernel.usage().allocated), (vec![0, 7, 7, 7], 5));
    assert_eq!(marks(&a, data), [false; 4]);
    lab.end([&a]);
}

type Edge = fn(&Task, Fd);

/// A write copies the unwritten bytes of a shared block, whether it comes from a call, a mapping,
/// or the edge of a punch or truncate.
#[test]
fn partial_copies_keep_the_rest() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let calls: [(&str, Edge, std::ops::Range<usize>); 6] = [
        ("write", |t, fd| assert_eq!(t.write(fd, 100, &[0; 50]), Ok(50)), 100..150),
        (
            "store",
            |t, fd| {
                let va = t.mmap(fd, 0, BLOCK, true).unwrap();
                assert_eq!(t.store(va + 7, &[0; 9]), Ok(()));
                t.munmap(va, BLOCK).unwrap();
            },
            7..16,
        ),
        ("punch", |t, fd| assert_eq!(t.fallocate(fd, PunchHole, 1000, 96), Ok(())), 1000..1096),
        ("zero range", |t, fd| assert_eq!(t.fallocate(fd, ZERO, 10, 5), Ok(())), 10..15),
        ("truncate and grow", |t, fd| assert_eq!(t.ftruncate(fd, 50).and(t.ftruncate(fd, BLOCK)), Ok(())), 50..4096),
        ("truncate, write behind", |t, fd| assert_eq!(t.ftruncate(fd, 9).and(t.write(fd, 4095, &[0])), Ok(1)), 9..4096),
    ];
    for (what, call, zeroed) in calls {
        let (data, copy) = (a.writes_file("data", 1, 3), a.creates("copy"));
        a.reflink(data, 0, copy, 0, 0).unwrap();
        call(&a, copy);
        let (mut found, mut expected) = (vec![0xee; BLOCK as usize], vec![3; BLOCK as usize]);
        expected[zeroed].fill(0);
        assert_eq!(a.read(copy, 0, &mut found), Ok(BLOCK as usize), "{what}");
        assert!(found == expected, "{what}");
        assert_eq!(a.bytes_of(data), [3], "{what}: the other file goes on with the old block");
        assert_eq!(lab.kernel.usage().allocated, 2, "{what}");
        for (name, fd) in [("data", data), ("copy", copy)] {
            a.unlink(name).unwrap();
            a.close(fd).unwrap();
        }
        assert_eq!(lab.kernel.usage().allocated, 0, "{what}");
    }
    lab.end([&a]);
}

type Both = fn(&Task, Fd, u64, Fd, u64, u64) -> Result<bool, Errno>;

/// What is called, in words and for real; two files and offsets, a length, and what comes out.
type Refused = (&'static str, Both, Fd, u64, Fd, u64, u64, Errno);

/// ioctl_ficlonerange(2), ioctl_fideduperange(2), `xfs_exchange_range_checks`.
#[test]
fn errnos_of_two_file_calls() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (f, g) = (a.writes_file("f", 4, 1), a.writes_file("g", 6, 1));
    a.write(f, 4 * BLOCK, b"tail").unwrap();
    let open = |access| a.open("f", OpenFlags::open(access)).unwrap();
    let (reader, writer) = (open(AccessMode::READ), open(AccessMode::WRITE));
    let (_, nic) = (0, Nic::open(&a).0);
    let reflink: Both = |t, a, x, b, y, len| t.reflink(a, x, b, y, len).map(|()| true);
    let dedupe: Both = |t, a, x, b, y, len| t.dedupe(a, x, b, y, len).map(|same| same.is_some());
    let exchange: Both = |t, a, x, b, y, len| t.exchange_range(a, x, b, y, len).map(|()| true);
    let before = (a.state_report(f), a.state_report(g));
    let bad = Fd(99);
    let cases: [Refused; 25] = [
        ("clone", reflink, bad, 0, g, 0, BLOCK, Errno::EBADF),
        ("clone", reflink, f, 0, bad, 0, BLOCK, Errno::EBADF),
        ("clone from a writer", reflink, writer, 0, g, 0, BLOCK, Errno::EBADF),
        ("clone to a reader", reflink, g, 0, reader, 0, BLOCK, Errno::EBADF),
        ("clone no file", reflink, nic, 0, g, 0, BLOCK, Errno::EINVAL),
        ("clone", reflink, f, 100, g, 0, BLOCK, Errno::EINVAL),
        ("clone", reflink, f, 0, g, 100, BLOCK, Errno::EINVAL),
        ("clone half a block", reflink, f, 0, g, 0, 100, Errno::EINVAL),
        ("clone a tail into the middle", reflink, f, 4 * BLOCK, g, 0, 4, Errno::EINVAL),
        ("clone from behind the end", reflink, f, 5 * BLOCK, g, 0, 0, Errno::EINVAL),
        ("clone over the end", reflink, f, 4 * BLOCK, g, 0, BLOCK, Errno::EINVAL),
        ("clone onto itself", reflink, f, 0, f, BLOCK, 2 * BLOCK, Errno::EINVAL),
        ("clone around the world", reflink, f, 0, g, u64::MAX - BLOCK + 1, BLOCK, Errno::EINVAL),
        ("clone too far", reflink, f, 0, g, FILE_MAX, BLOCK, Errno::EFBIG),
        ("dedupe from a writer", dedupe, writer, 0, g, 0, BLOCK, Errno::EBADF),
        ("dedupe", dedupe, f, 1, g, 0, BLOCK, Errno::EINVAL),
        ("dedupe over the end", dedupe, g, 4 * BLOCK, f, 4 * BLOCK, BLOCK, Errno::EINVAL),
        ("dedupe onto itself", dedupe, f, 0, f, BLOCK, 2 * BLOCK, Errno::EINVAL),
        ("exchange with a reader", exchange, g, 0, reader, 0, BLOCK, Errno::EBADF),
        ("exchange with a writer", exchange, writer, 0, g, 0, BLOCK, Errno::EBADF),
        ("exchange", exchange, f, 0, g, 7, BLOCK, Errno::EINVAL),
        ("exchange half a block", exchange, f, 0, g, 0, 100, Errno::EINVAL),
        ("exchange over the end", exchange, f, 0, g, 5 * BLOCK, 2 * BLOCK, Errno::EINVAL),
        ("exchange with itself", exchange, g, 0, g, BLOCK, 2 * BLOCK, Errno::EINVAL),
        ("exchange around the world", exchange, f, 0, g, 0, u64::MAX - 5, Errno::EINVAL),
    ];
    for (what, call, x, at_x, y, at_y, len, errno) in cases {
        assert_eq!(call(&a, x, at_x, y, at_y, len), Err(errno), "{what} {at_x} {at_y} {len}");
    }
    // Nothing to do is no error.
    assert_eq!(a.reflink(f, 4 * BLOCK, f, 4 * BLOCK, 0), Err(Errno::EINVAL), "it overlaps itself");
    assert_eq!(a.dedupe(f, 0, g, 0, 0), Ok(Some(0)));
    assert_eq!(a.dedupe(f, 0, g, 0, 100), Ok(Some(0)), "rounded down to nothing");
    assert_eq!(a.exchange_range(f, 0, g, 0, 0), Ok(()));
    assert_eq!((a.state_report(f), a.state_report(g)), before);
    lab.end([&a]);
}

#[test]
fn dedupe_shares_what_is_the_same_and_leaves_the_rest() {
    every_preset(|axes| {
        let (lab, [a, c]) = Lab::cast(axes);
        let (f, g) = (a.writes_file("f", 4, 1), a.writes_file("g", 4, 1));
        a.fills(g, 3, 77).unwrap();
        if axes.lease_rules != LeaseRules::None {
            for name in ["f", "g"] {
                c.lease(c.opens(name), LeaseKind::READ, ALL).unwrap();
            }
        }
        let before = (a.state_report(f), a.state_report(g));
        assert_eq!(a.dedupe(f, 0, g, 0, 4 * BLOCK), Ok(None), "no lease is broken for files that differ");
        assert_eq!((a.state_report(f), a.state_report(g), c.signals()), (before.0, before.1, vec![]));
        c.exit();
        assert_eq!(a.dedupe(f, 0, g, 0, 3 * BLOCK), Ok(Some(3 * BLOCK)));
        assert_eq!(lab.kernel.usage().allocated, 5);
        assert_eq!((a.bytes_of(f), a.bytes_of(g)), (vec![1, 2, 3, 4], vec![1, 2, 3, 77]));
        assert_eq!(a.dedupe(f, 0, g, 0, 3 * BLOCK), Ok(Some(3 * BLOCK)), "once more: no effect");
        assert_eq!(marks(&a, g), [true, true, true, false]);
        lab.end([&a, &c]);
    });
}

/// Two places in one file: leases and pins between them do not matter, whichever process holds
/// them.
#[test]
fn leases_between_two_places_do_not_matter() {
    every_preset(|axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = a.writes_file("data", 12, 1);
        let fb = b.opens("data");
        let leased = axes.lease_rules != LeaseRules::None;
        if leased {
            b.lease(fb, exclusive(axes), BlockRange::new(1, 10)).unwrap();
        }
        let region = can_pin(axes).then(|| Nic::open(&b).1.pins(&b, fb, 5..6).unwrap());
        let (_, layout) = b.layoutget(fb, BlockRange::new(7, 8), IoMode::ReadWrite).unwrap();
        assert_eq!(a.exchange_range(fa, 0, fa, 10 * BLOCK, BLOCK), Ok(()));
        assert_eq!(a.reflink(fa, 0, fa, 10 * BLOCK, BLOCK), Ok(()));
        assert_eq!((b.signals(), b.held(fb).len(), layout.recall()), (vec![], usize::from(leased), None));
        assert!(region.iter().all(|region| region.is_pinned()));
        assert_eq!(a.bytes_of(fa), [11, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        lab.end([&a, &b]);
    });
}

/// While such a change waits for one of them, leases come and go in between.
#[test]
fn a_change_of_two_places_waits_at_them_alone() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let fa = a.writes_file("data", 12, 1);
    let fb = b.opens("data");
    b.lease(fb, LeaseKind::READ, BlockRange::new(10, 11)).unwrap();
    let changing = a.blocks("lease break", move |a| a.exchange_range(fa, 0, fa, 10 * BLOCK, BLOCK));
    assert_eq!(b.lease(fb, LeaseKind::READ, BlockRange::new(5, 6)), Ok(()));
    assert_eq!(b.lease(fb, LeaseKind::READ, BlockRange::new(0, 1)), Err(Errno::EAGAIN));
    b.unlock(fb, BlockRange::new(10, 11)).unwrap();
    assert_eq!(changing.finish(), Ok(()));
    assert_eq!(b.held(fb), [(LeaseKind::READ, BlockRange::new(5, 6))]);
    lab.end([&a, &b]);
}

/// One call compares and shares at most 16 MiB and returns how much it did, so no other task waits
/// longer than that.
#[test]
fn a_dedupe_is_bounded() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (f, g) = (a.creates("f"), a.creates("g"));
    let (size, bound) = (1 << 40, 16 << 20);
    a.ftruncate(f, size).unwrap();
    a.ftruncate(g, size).unwrap();
    for block in [0, bound / BLOCK - 1, bound / BLOCK] {
        a.fills(f, block, 7).unwrap();
        a.fills(g, block, 7).unwrap();
    }
    a.fills(g, 5, 0).unwrap();
    a.fills(g, size / BLOCK - 1, 8).unwrap();
    assert_eq!(a.dedupe(f, 0, g, 0, size), Ok(Some(bound)), "how they end is not looked at");
    assert_eq!(lab.kernel.usage().allocated, 5, "two blocks shared, one zeroed block gone");
    assert_eq!(a.dedupe(f, bound, g, bound, bound), Ok(Some(bound)), "the next piece");
    assert_eq!(a.dedupe(f, size - bound, g, size - bound, 2 * bound), Err(Errno::EINVAL), "beyond the end");
    assert_eq!(a.dedupe(f, size - bound, g, size - bound, bound), Ok(None));
    assert_eq!(a.dedupe(f, 0, f, bound, size - bound), Err(Errno::EINVAL), "the whole of it would overlap");
    assert_eq!(lab.kernel.usage().allocated, 4);
    lab.end([&a]);
}

#[test]
fn exchange_swaps_blocks_holes_and_marks() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (data, _copy) = clones(&a);
    let g = a.writes_file("g", 3, 11);
    a.ftruncate(g, 5 * BLOCK).unwrap();
    assert_eq!(a.exchange_range(data, BLOCK, g, 2 * BLOCK, 3 * BLOCK), Ok(()));
    assert_eq!((a.bytes_of(data), a.bytes_of(g)), (vec![1, 13, 0, 0], vec![11, 12, 2, 3, 4]));
    assert_eq!((marks(&a, data), marks(&a, g)), (vec![true, false], vec![false, false, true, true, true]));
    assert_eq!(lab.kernel.usage().allocated, 7);
    assert_eq!(a.exchange_range(g, 0, g, 4 * BLOCK, BLOCK), Ok(()), "within a file");
    assert_eq!(a.bytes_of(g), [4, 12, 2, 3, 11]);
    assert_eq!(lab.kernel.usage().allocated, 7, "the copy has its blocks still");
    lab.end([&a]);
}

type Pair = fn(&Task, Fd, Fd) -> Result<(), Errno>;

/// With "data" and "other" both `[1, 2, 3, 4]`: what takes the pinned block 1 of "data" away, moves
/// it or shares it.
const PAIRS: [(&str, Pair); 5] = [
    ("reflink from it", |t, data, other| t.reflink(data, 0, other, 0, 4 * BLOCK)),
    ("reflink over it", |t, data, other| t.reflink(other, 0, data, 0, 4 * BLOCK)),
    ("dedupe from it", |t, data, other| {
        t.dedupe(data, 0, other, 0, 4 * BLOCK).map(|same| assert_eq!(same, Some(4 * BLOCK)))
    }),
    ("dedupe it", |t, data, other| {
        t.dedupe(other, 0, data, 0, 4 * BLOCK).map(|same| assert_eq!(same, Some(4 * BLOCK)))
    }),
    ("exchange it", |t, data, other| t.exchange_range(data, BLOCK, other, BLOCK, 2 * BLOCK)),
];

/// S42: a stranger makes each of these changes over a pinned range.
#[test]
fn s42_stranger_meets_pins() {
    every_preset(|axes| {
        for (what, change) in PAIRS {
            let (lab, [b]) = Lab::cast(axes);
            let other = b.writes_file("other", 4, 1);
            let Some(a) = pinned_file(&lab, "data", 4, 1..2) else { continue };
            let data = b.opens("data");
            let before = (b.state_report(data), b.state_report(other));
            match axes.stranger_change {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, data, other), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!((b.state_report(data), b.state_report(other)), before);
                    assert_eq!(a.who.signals(), []);
                }
                ChangeRule::Wait => {
                    let changing = b.blocks("exclusive lease", move |b| change(b, data, other));
                    assert_eq!((b.state_report(data), b.state_report(other)), before);
                    a.region.dereg(&a.who);
                    a.who.unlock(a.fd, ALL).unwrap();
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                    assert_ne!((b.state_report(data), b.state_report(other)), before);
                }
                ChangeRule::Revoke => {
                    assert_eq!(change(&b, data, other), Ok(()), "{what}");
                    assert!(a.region.revoked.load(Ordering::SeqCst) && !a.region.is_pinned());
                    assert_eq!(a.who.signals(), [Signal::Sigio]);
                }
                ChangeRule::Orphan => unreachable!("no preset lets strangers orphan"),
                ChangeRule::Proceed => {
                    assert_eq!(change(&b, data, other), Ok(()), "{what}");
                    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
                    assert_eq!(lab.stale(), 1, "{what}");
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

/// S42: the holder makes the change. Under `orphan` its file continues with a copy, and neither
/// file sees what its device writes.
#[test]
fn s42_holder_meets_its_own_pins() {
    every_preset(|axes| {
        for (what, change) in PAIRS {
            let Some((lab, a)) = Lab::pinned(axes, 4, 1..2) else { continue };
            let other = a.who.writes_file("other", 4, 1);
            let before = (a.who.state_report(a.fd), a.who.state_report(other));
            let changed = change(&a.who, a.fd, other);
            let dma = || assert_eq!(a.region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
            match axes.holder_change {
                ChangeRule::Fail => {
                    assert_eq!(changed, Err(Errno::ETXTBSY), "{what}");
                    assert_eq!((a.who.state_report(a.fd), a.who.state_report(other)), before);
                }
                ChangeRule::Orphan => {
                    assert_eq!(changed, Ok(()), "{what}");
                    dma();
                    assert_eq!((lab.kernel.counters.orphan_dma.get(), lab.kernel.usage().orphaned), (1, 1), "{what}");
                    assert_eq!((a.who.bytes_of(a.fd), a.who.bytes_of(other)), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
                    let allocated = lab.kernel.usage().allocated;
                    a.region.dereg(&a.who);
                    assert_eq!(lab.kernel.usage().allocated, allocated - 1, "{what}: freed at the last unpin");
                }
                ChangeRule::Revoke => {
                    assert_eq!(changed, Ok(()), "{what}");
                    assert!(a.region.revoked.load(Ordering::SeqCst));
                }
                ChangeRule::Wait => unreachable!("no preset that pins waits for its own"),
                ChangeRule::Proceed => {
                    assert_eq!(changed, Ok(()), "{what}");
                    dma();
                    assert_eq!(lab.stale(), 1, "{what}");
                    a.who.exit();
                    assert_eq!(lab.kernel.check_at_rest(), Vec::<String>::new());
                    continue;
                }
            }
            lab.end([&a.who]);
        }
    });
}

/// The same axis for pins alone, on either file of an exchange.
#[test]
fn pins_without_a_lease_meet_two_file_changes() {
    for rule in [ChangeRule::Fail, ChangeRule::Wait, ChangeRule::Revoke, ChangeRule::Orphan] {
        for (what, change) in PAIRS {
            let (lab, a) =
                Lab::pinned(Axes { stranger_change: rule, holder_change: rule, ..preset("unsafe") }, 4, 1..2).unwrap();
            let b = lab.actor();
            let (data, other) = (b.opens("data"), b.writes_file("other", 4, 1));
            let before = (b.state_report(data), b.state_report(other));
            match rule {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, data, other), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!((b.state_report(data), b.state_report(other)), before);
                }
                ChangeRule::Wait => {
                    let changing = b.blocks("long-term pins", move |b| change(b, data, other));
                    a.region.dereg(&a.who);
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                }
                _ => assert_eq!(change(&b, data, other), Ok(()), "{what}"),
            }
            if rule == ChangeRule::Orphan {
                assert_eq!(a.region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
                assert_eq!(lab.kernel.counters.orphan_dma.get(), 1, "{what}");
            }
            assert_eq!((b.bytes_of(data), b.bytes_of(other)), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
            lab.end([&a.who, &b]);
        }
    }
}

/// Section 4: two-file operations break the leases of both files first. A lease that refuses does
/// so before any owner is signalled.
#[test]
fn two_files_leases_are_broken_together() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        for (what, change) in PAIRS {
            for forbids in [None, Some("data"), Some("other")] {
                let (lab, [a, b, c, d]) = Lab::cast(axes);
                let (data, other) = (a.writes_file("data", 4, 1), a.writes_file("other", 4, 1));
                let (fb, fc) = (b.opens("data"), c.opens("other"));
                let taken = [(&b, fb, "data"), (&c, fc, "other")].map(|(who, fd, name)| {
                    (forbids != Some(name)).then(|| who.lease(fd, LeaseKind::READ, ALL).unwrap()).is_some()
                });
                if let Some(name) = forbids {
                    d.lease(d.opens(name), exclusive(axes), ALL).unwrap();
                }
                let told = taken.map(|taken| if taken { vec![Signal::Sigio] } else { vec![] });
                let release = || {
                    for ((who, fd), taken) in [(&b, fb), (&c, fc)].into_iter().zip(taken) {
                        if taken {
                            who.unlock(fd, ALL).unwrap();
                        }
                    }
                };
                if forbids.is_some() && axes.stranger_change == ChangeRule::Fail {
                    assert_eq!(change(&a, data, other), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!((b.signals(), c.signals()), (vec![], vec![]), "{what}: {forbids:?} refuses first");
                    lab.end([&a, &b, &c, &d]);
                    continue;
                }
                // The change waits for the file with the lower number first. Both owners are
                // signalled by then.
                let changing = match (forbids, axes.stranger_change) {
                    (Some("data"), ChangeRule::Wait) => a.blocks("exclusive lease", move |a| change(a, data, other)),
                    _ => a.blocks("lease break", move |a| change(a, data, other)),
                };
                assert_eq!([b.signals(), c.signals()], told, "{what}");
                release();
                d.exit();
                assert_eq!(changing.finish(), Ok(()), "{what}");
                lab.end([&a, &b, &c, &d]);
            }
        }
    });
}

/// Section 4, two files: a change that waits for leases of one file holds nothing of the other, and
/// neither does one that stands behind another change in one file. A fault, and a change of the
/// same blocks, go on there.
#[test]
fn a_two_file_change_that_waits_in_one_file_holds_nothing_of_the_other() {
    for axes in [preset("man-page"), preset("chinner-2025")] {
        for leased in ["data", "other"] {
            let (lab, [a, b, c]) = Lab::cast(axes);
            let (data, other) = (a.writes_file("data", 4, 1), a.writes_file("other", 4, 1));
            let free = if leased == "data" { "other" } else { "data" };
            a.fallocate(a.opens(free), PunchHole, BLOCK, BLOCK).unwrap();
            let (fc, beside) = (c.opens(leased), c.opens(free));
            c.lease(fc, LeaseKind::READ, ALL).unwrap();
            let va = c.mmap(beside, BLOCK, BLOCK, true).unwrap();
            let changing = a.blocks("lease break", move |a| a.exchange_range(data, BLOCK, other, BLOCK, BLOCK));
            assert_eq!(c.store(va, &[9]), Ok(()), "{free}: the change waits for C in {leased}");
            let third = b.writes_file("a third", 4, 1);
            let fb = b.opens(free);
            assert_eq!(b.exchange_range(third, 0, fb, BLOCK, BLOCK), Ok(()), "{free}");
            changing.expect_blocked("lease break");
            c.unlock(fc, ALL).unwrap();
            assert_eq!(changing.finish(), Ok(()));
            assert_eq!(c.store(va, &[9]), Ok(()));
            c.munmap(va, BLOCK).unwrap();
            lab.end([&a, &b, &c]);
        }
    }
    let (lab, [a, b, c]) = Lab::cast(preset("man-page"));
    let (data, other) = (a.writes_file("data", 4, 1), a.writes_file("other", 4, 1));
    a.fallocate(data, PunchHole, BLOCK, BLOCK).unwrap();
    let (fc, beside) = (c.opens("other"), c.opens("data"));
    c.lease(fc, LeaseKind::READ, ALL).unwrap();
    let va = c.mmap(beside, BLOCK, BLOCK, true).unwrap();
    let truncating = b.blocks("lease break", |b| b.truncate("other", BLOCK));
    let behind = a.blocks("layout change ahead", move |a| a.exchange_range(data, BLOCK, other, 2 * BLOCK, BLOCK));
    assert_eq!(c.store(va, &[9]), Ok(()), "the change of both files stands behind one of the other file");
    c.unlock(fc, ALL).unwrap();
    assert_eq!((truncating.finish(), behind.finish()), (Ok(()), Err(Errno::EINVAL)), "behind the new end");
    c.munmap(va, BLOCK).unwrap();
    lab.end([&a, &b, &c]);
}

/// S48 with two files: A waits for the pins of B in one file, and holds nothing of the other: what
/// B does there closes no cycle.
#[test]
fn s48_two_file_changes_close_no_cycle() {
    let axes = Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..preset("unsafe") };
    let (lab, [a]) = Lab::cast(axes);
    let (f, g) = (a.writes_file("f", 4, 1), a.writes_file("g", 4, 1));
    let b = pinned_file(&lab, "data", 4, 0..1).unwrap();
    let data = a.opens("data");
    let changing = a.blocks("long-term pins", move |a| a.exchange_range(f, 0, data, 0, BLOCK));
    let (bf, bg) = (b.who.opens("f"), b.who.opens("g"));
    assert_eq!(b.who.reflink(bf, 0, bg, 0, BLOCK), Ok(()));
    assert_eq!(b.who.dedupe(bg, 0, bf, 0, BLOCK), Ok(Some(BLOCK)), "whichever is named first");
    changing.expect_blocked("long-term pins");
    b.region.dereg(&b.who);
    assert_eq!(changing.finish(), Ok(()));
    assert_eq!(lab.kernel.counters.deadlocks.get(), 0);
    let _g = g;
    lab.end([&a, &b.who]);
}

/// S43: a long-term pin first unshares its range, also for reading. Sharing the range again meets
/// the pin.
#[test]
fn s43_pins_unshare_first() {
    every_preset_where(can_pin, |axes| {
        for reading in [false, true] {
            let (lab, [a, b]) = Lab::cast(axes);
            let (data, copy) = clones(&a);
            if needs_lease(axes) {
                // The process's own read+U lease does not forbid what its own pin needs.
                let kind = if axes.lease_rules == LeaseRules::Chinner { LeaseKind::WRITE } else { LeaseKind::READ_U };
                a.lease(data, kind, ALL).unwrap();
            }
            let (_, nic) = Nic::open(&a);
            let pin = if reading { Nic::pins_for_reading } else { Nic::pins };
            let region = pin(&nic, &a, data, 1..3).unwrap();
            assert_eq!((marks(&a, data), lab.kernel.usage().allocated), (vec![true, false, false, true], 6));
            if !reading {
                assert_eq!(region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
                assert_eq!((a.bytes_of(data), a.bytes_of(copy)), (vec![1, 9, 3, 4], vec![1, 2, 3, 4]));
            }
            assert_eq!(lab.stale(), 0);
            // A stranger shares the blocks again.
            let (fb, third) = (b.opens("data"), b.creates("third"));
            let again = move |b: &Task| b.reflink(fb, 0, third, 0, 0);
            match axes.stranger_change {
                ChangeRule::Fail => assert_eq!(again(&b), Err(Errno::ETXTBSY)),
                ChangeRule::Wait => {
                    let sharing = b.blocks("exclusive lease", again);
                    region.dereg(&a);
                    a.unlock(data, ALL).unwrap();
                    assert_eq!(sharing.finish(), Ok(()));
                }
                ChangeRule::Revoke => assert_eq!(again(&b), Ok(())),
                ChangeRule::Orphan => unreachable!("no preset lets strangers orphan"),
                ChangeRule::Proceed => {
                    assert_eq!(again(&b), Ok(()));
                    let mut bytes = [0; 8];
                    assert_eq!(region.dma_read(&lab.kernel, 0, &mut bytes), Ok(()));
                    assert_eq!(lab.stale(), 1, "the block is another file's too [chosen]");
                    [&a, &b].iter().for_each(|actor| actor.exit());
                    assert_eq!(lab.kernel.check_at_rest(), Vec::<String>::new());
                    continue;
                }
            }
            lab.end([&a, &b]);
        }
    });
}

/// Section 4: an access that must copy under a lease of another process never waits: SIGBUS for a
/// store, ETXTBSY for a pin.
#[test]
fn faults_that_must_copy_never_wait() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a, b]) = Lab::cast(axes);
        let (data, copy) = clones(&a);
        let va = a.mmap(data, 0, 4 * BLOCK, true).unwrap();
        // A leases what it pins, where a breakable lease suffices; B leases a part of it. An own
        // read+U would forbid the stores (S57c).
        if axes.pin_gate == PinGate::Lease {
            a.lease(data, LeaseKind::READ, ALL).unwrap();
        }
        let fb = b.opens("data");
        b.lease(fb, LeaseKind::READ, BlockRange::new(1, 2)).unwrap();
        let before = a.state_report(data);
        assert_eq!(a.store(va + BLOCK, &[9]), Err(Errno::SIGBUS));
        if can_pin(axes) && axes.pin_gate != PinGate::Unbreakable {
            let (_, nic) = Nic::open(&a);
            assert_eq!(nic.pins(&a, data, 0..4).err(), Some(Errno::ETXTBSY));
        }
        assert_eq!((a.state_report(data), b.signals()), (before, vec![]), "no process is signalled");
        assert_eq!(a.store(va, &[9]), Ok(()), "beside it");
        b.unlock(fb, ALL).unwrap();
        assert_eq!(a.store(va + BLOCK, &[9]), Ok(()));
        let mut byte = [0];
        assert_eq!((a.load(va + BLOCK, &mut byte), byte), (Ok(()), [9]));
        assert_eq!(a.bytes_of(copy), [1, 2, 3, 4]);
        a.munmap(va, 4 * BLOCK).unwrap();
        lab.end([&a, &b]);
    });
}

/// A write into a shared block is a layout change of the written file. A write into a block that is
/// no longer shared is not.
#[test]
fn copy_on_write_is_judged_by_effect() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a, b]) = Lab::cast(axes);
        let (data, copy) = clones(&a);
        let fb = b.opens("data");
        b.lease(fb, LeaseKind::READ, ALL).unwrap();
        assert_eq!(a.fills(copy, 0, 9), Ok(BLOCK as usize), "of the other file: its own business");
        assert_eq!((b.signals(), a.fills(data, 0, 8)), (vec![], Ok(BLOCK as usize)), "block 0 is shared no more");
        assert_eq!(b.signals(), [], "an overwrite, though its map had the mark");
        let writing = a.blocks("lease break", move |a| a.write(data, BLOCK, &[7; BLOCK as usize]));
        assert_eq!(b.signals(), [Signal::Sigio]);
        b.unlock(fb, ALL).unwrap();
        assert_eq!(writing.finish(), Ok(BLOCK as usize));
        assert_eq!((a.bytes_of(data), a.bytes_of(copy)), (vec![8, 7, 3, 4], vec![9, 2, 3, 4]));
        lab.end([&a, &b]);
    });
}

/// A device write through an on-demand region copies shared blocks first. A device read leaves them
/// shared.
#[test]
fn on_demand_writes_copy_first() {
    let (lab, [a]) = Lab::cast(preset("odp"));
    let (data, copy) = clones(&a);
    let (_, nic) = Nic::open(&a);
    let region = nic.pins(&a, data, 0..4);
    // A mapping must stay for a region without pins.
    let va = a.mmap(data, 0, 4 * BLOCK, true).unwrap();
    assert!(region.is_ok());
    let want = fs_sim::pinning::registration::PinRequest {
        va,
        len: 4 * BLOCK,
        write: true,
        user: fs_sim::pinning::admission::LongTermUser::Rdma,
    };
    let region = nic.register(&a, want).unwrap();
    let mut byte = [0];
    assert_eq!((region.dma_read(&lab.kernel, 0, &mut byte), lab.kernel.usage().allocated), (Ok(()), 4));
    assert_eq!(region.dma_write(&lab.kernel, BLOCK, &[9; BLOCK as usize]), Ok(()));
    assert_eq!((a.bytes_of(data), a.bytes_of(copy)), (vec![1, 9, 3, 4], vec![1, 2, 3, 4]));
    let b = lab.actor();
    let fb = b.opens("data");
    b.lease(fb, LeaseKind::READ, ALL).unwrap();
    assert_eq!(region.dma_write(&lab.kernel, 0, &[9; 8]), Err(Errno::EFAULT), "under a lease, as any fault");
    assert_eq!(b.signals(), []);
    lab.end([&a, &b]);
}

/// A call in words and for real, and what it fails with.
type Fails<'a> = (&'static str, Box<dyn Fn(Fd) -> Result<(), Errno> + 'a>, Errno);

/// S44: no space for a copy, at any point: nothing changes, no block leaks, and all free blocks can
/// be allocated.
#[test]
fn s44_no_space_for_copies_changes_nothing() {
    let lab = Lab::on(2 << 20, preset("unsafe"), |_| {});
    let a = lab.actor();
    let (data, copy) = clones(&a);
    a.write(copy, 4 * BLOCK, b"tail").unwrap();
    let third = a.creates("third");
    a.reflink(copy, 0, third, 0, 0).unwrap();
    let filler = a.creates("filler");
    // All blocks but three single ones, which are not neighbours.
    a.fallocate(filler, KEEP, 0, lab.kernel.usage().free * BLOCK).unwrap();
    for block in [100, 200, 300] {
        a.fallocate(filler, PunchHole, block * BLOCK, BLOCK).unwrap();
    }
    let (_, nic) = Nic::open(&a);
    let calls: [Fails<'_>; 8] = [
        ("write", Box::new(|fd| a.write(fd, 1, &vec![7; 3 * BLOCK as usize]).map(|_| ())), Errno::ENOSPC),
        ("zero range", Box::new(|fd| a.fallocate(fd, ZERO, 0, 4 * BLOCK)), Errno::ENOSPC),
        ("zero range with edges", Box::new(|fd| a.fallocate(fd, ZERO, 1, 4 * BLOCK - 2)), Errno::ENOSPC),
        ("unshare", Box::new(|fd| a.fallocate(fd, UnshareRange { keep_size: true }, 0, 4 * BLOCK)), Errno::ENOSPC),
        ("pin", Box::new(|fd| nic.pins(&a, fd, 0..4).map(|_| ())), Errno::ENOSPC),
        ("pin for reading", Box::new(|fd| nic.pins_for_reading(&a, fd, 0..4).map(|_| ())), Errno::ENOSPC),
        (
            "store",
            Box::new(|fd| {
                let va = a.mmap(fd, 0, 4 * BLOCK, true).unwrap();
                let stored = a.store(va, &vec![7; 4 * BLOCK as usize]);
                a.munmap(va, 4 * BLOCK).unwrap();
                stored
            }),
            Errno::SIGBUS,
        ),
        ("allocate", Box::new(|fd| a.fallocate(fd, KEEP, 0, 9 * BLOCK)), Errno::ENOSPC),
    ];
    let usage = lab.kernel.usage();
    assert_eq!(usage.free, 3);
    for (what, call, errno) in &calls {
        let before = (a.state_report(data), a.state_report(copy), a.state_report(third));
        assert_eq!(call(copy), Err(*errno), "{what}");
        assert_eq!((a.state_report(data), a.state_report(copy), a.state_report(third)), before, "{what}");
        assert_eq!(lab.kernel.usage(), usage, "{what}");
    }
    // Three blocks can be allocated, from three runs.
    assert_eq!(a.fallocate(copy, UnshareRange { keep_size: true }, 0, 3 * BLOCK), Ok(()));
    assert_eq!(lab.kernel.usage().free, 0);
    // Not one block is free: the tail that a truncate zeroes, the edge of a punch, the old end of a
    // growing clone.
    let usage = lab.kernel.usage();
    let before = (a.state_report(copy), a.state_report(third));
    assert_eq!(a.ftruncate(third, 4 * BLOCK + 1), Err(Errno::ENOSPC));
    assert_eq!(a.fallocate(third, PunchHole, 10, 2 * BLOCK), Err(Errno::ENOSPC), "nothing punched either");
    assert_eq!(a.reflink(data, 0, third, 8 * BLOCK, BLOCK), Err(Errno::ENOSPC));
    assert_eq!((a.state_report(copy), a.state_report(third), lab.kernel.usage()), (before.0, before.1, usage));
    drop(calls);
    assert_eq!(a.fallocate(third, CollapseRange, 0, BLOCK), Ok(()), "needs none");
    lab.end([&a]);
}

/// Under `orphan` a move needs new blocks. Without them it fails, and the pinned block stays where
/// it was.
#[test]
fn s44_no_space_for_what_stays_behind() {
    let axes = Axes { stranger_change: ChangeRule::Orphan, holder_change: ChangeRule::Orphan, ..preset("unsafe") };
    let lab = Lab::on(2 << 20, axes, |_| {});
    let a = pinned_file(&lab, "data", 4, 2..3).unwrap();
    let filler = a.who.creates("filler");
    a.who.fallocate(filler, KEEP, 0, lab.kernel.usage().free * BLOCK).unwrap();
    let (before, usage) = (a.who.state_report(a.fd), lab.kernel.usage());
    assert_eq!(a.who.fallocate(a.fd, CollapseRange, 0, BLOCK), Err(Errno::ENOSPC));
    assert_eq!((a.who.state_report(a.fd), lab.kernel.usage()), (before, usage));
    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
    assert_eq!(a.who.bytes_of(a.fd), [1, 2, 9, 4]);
    a.who.ftruncate(filler, BLOCK).unwrap();
    a.who.fallocate(filler, PunchHole, 0, BLOCK).unwrap();
    assert_eq!(a.who.fallocate(a.fd, CollapseRange, 0, BLOCK), Ok(()));
    assert_eq!(a.who.bytes_of(a.fd), [2, 9, 4]);
    lab.end([&a.who]);
}

/// Many files release the same blocks in every order: the blocks are freed once, by the last file.
#[test]
fn the_last_file_frees_shared_blocks() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    for first in 0..5u64 {
        let names: Vec<String> = (0..5).map(|n| format!("f{n}")).collect();
        let data = a.writes_file(&names[0], 4, 1);
        let mut fds = vec![data];
        for name in &names[1..] {
            let fd = a.creates(name);
            a.reflink(data, 0, fd, 0, 0).unwrap();
            // The file has the blocks twice.
            a.reflink(fd, 0, fd, 4 * BLOCK, 4 * BLOCK).unwrap();
            fds.push(fd);
        }
        assert_eq!(lab.kernel.usage().allocated, 4);
        for n in 0..5 {
            assert_eq!(lab.kernel.usage().allocated, 4);
            let at = ((first + 2 * n) % 5) as usize;
            if n % 2 == 0 {
                a.truncate(&names[at], 0).unwrap();
            }
            a.unlink(&names[at]).unwrap();
            a.close(fds[at]).unwrap();
        }
        assert_eq!(lab.kernel.usage().allocated, 0);
    }
    lab.end([&a]);
}
