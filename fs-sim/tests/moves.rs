//! Dialogues about blocks that keep their contents and move: collapse and insert range (S42), and
//! defragmentation by the system (S47). Outcomes are stated per axis value, so they hold for every
//! preset.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{ALL, canvas, scattered};
use common::{Lab, Nic, PinnedFile, can_pin, every_preset, exclusive, needs_lease, preset};
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, ChangeRule, LeaseRules};
use fs_sim::holders::block_layout::IoMode;
use fs_sim::layout_change::defragment::Defragmented;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode::{Allocate, CollapseRange, InsertRange, PunchHole};
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, BlockRange, Errno, FILE_MAX, Task};

#[test]
fn collapse_and_insert_move_what_is_behind() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let fd = a.writes_file("data", 6, 1);
    a.fallocate(fd, PunchHole, 4 * BLOCK, BLOCK).unwrap();
    a.fallocate(fd, Allocate { keep_size: true }, 8 * BLOCK, BLOCK).unwrap();
    assert_eq!(a.fallocate(fd, CollapseRange, BLOCK, 2 * BLOCK), Ok(()));
    assert_eq!(a.bytes_of(fd), [1, 4, 0, 6]);
    assert_eq!(a.stat(fd).unwrap().blocks, 4, "two of six freed, one a hole, one behind the end");
    assert_eq!(a.fallocate(fd, InsertRange, BLOCK, 3 * BLOCK), Ok(()));
    assert_eq!(a.bytes_of(fd), [1, 0, 0, 0, 4, 0, 6]);
    let behind = a.fiemap(fd, BlockRange::from(7)).unwrap();
    assert_eq!(behind.iter().map(|extent| extent.logical / BLOCK).collect::<Vec<_>>(), [9], "moved there and back");
    // A size that is no whole number of blocks stays so.
    a.write(fd, 7 * BLOCK, b"tail").unwrap();
    assert_eq!(a.fallocate(fd, CollapseRange, 0, BLOCK), Ok(()));
    let (mut tail, size) = ([0; 4], a.stat(fd).unwrap().size);
    assert_eq!((a.read(fd, size - 4, &mut tail), &tail), (Ok(4), b"tail"));
    assert_eq!(size, 6 * BLOCK + 4);
    lab.end([&a]);
}

/// `xfs_falloc_collapse_range`, `xfs_falloc_insert_range`.
#[test]
fn errnos_of_collapse_and_insert() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let fd = canvas(&a);
    let before = a.state_report(fd);
    let calls = [
        (CollapseRange, 100, BLOCK, Errno::EINVAL),
        (CollapseRange, BLOCK, 100, Errno::EINVAL),
        (CollapseRange, 0, 0, Errno::EINVAL),
        // To the end of the file it would be a truncate.
        (CollapseRange, 4 * BLOCK, 2 * BLOCK, Errno::EINVAL),
        (CollapseRange, 9 * BLOCK, BLOCK, Errno::EINVAL),
        (InsertRange, 100, BLOCK, Errno::EINVAL),
        (InsertRange, BLOCK, 100, Errno::EINVAL),
        (InsertRange, 6 * BLOCK, BLOCK, Errno::EINVAL),
        (InsertRange, 0, FILE_MAX - 5 * BLOCK, Errno::EFBIG),
        (InsertRange, FILE_MAX, BLOCK, Errno::EFBIG),
    ];
    for (mode, offset, len, errno) in calls {
        assert_eq!(a.fallocate(fd, mode, offset, len), Err(errno), "{mode:?} {offset} {len}");
    }
    assert_eq!(a.state_report(fd), before);
    lab.end([&a]);
}

/// Leases conflict from the range's start on.
#[test]
fn leases_in_front_of_the_range_are_not_asked() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let (lab, [a, b]) = Lab::cast(axes);
        let fa = canvas(&a);
        let fb = b.opens("data");
        a.lease(fa, LeaseKind::READ, BlockRange::new(0, 1)).unwrap();
        assert_eq!(b.fallocate(fb, CollapseRange, BLOCK, BLOCK), Ok(()));
        assert_eq!(b.fallocate(fb, InsertRange, BLOCK, BLOCK), Ok(()));
        assert_eq!((a.signals(), a.held(fa).len()), (vec![], 1));
        a.unlock(fa, ALL).unwrap();
        a.lease(fa, LeaseKind::READ, BlockRange::new(100, 101)).unwrap();
        let changing = b.blocks("lease break", move |b| b.fallocate(fb, InsertRange, BLOCK, BLOCK));
        a.unlock(fa, ALL).unwrap();
        assert_eq!(changing.finish(), Ok(()), "everything behind it moves");
        lab.end([&a, &b]);
    });
}

type Move = fn(&Task, Fd) -> Result<(), Errno>;

/// The file `[1, 2, 3, 4]` after the change; block 2 (the third) is pinned.
const MOVES: [(&str, Move, &[u8]); 2] = [
    ("collapse in front of the pin", |t, fd| t.fallocate(fd, CollapseRange, BLOCK, BLOCK), &[1, 3, 4]),
    ("insert in front of the pin", |t, fd| t.fallocate(fd, InsertRange, BLOCK, BLOCK), &[1, 0, 2, 3, 4]),
];

/// The file block that sees a device's write into the pinned block.
fn dma(lab: &Lab, a: &PinnedFile) {
    assert_eq!(a.region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
}

/// S42: a stranger moves a pinned block that stays in the file.
#[test]
fn s42_stranger_moves_pinned_blocks() {
    every_preset(|axes| {
        for (what, change, result) in MOVES {
            let Some((lab, a)) = Lab::pinned(axes, 4, 2..3) else { continue };
            let b = lab.actor();
            let fb = b.opens("data");
            let before = a.who.state_report(a.fd);
            match axes.stranger_change {
                ChangeRule::Fail => {
                    assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{what}");
                    assert_eq!((a.who.state_report(a.fd), a.who.signals()), (before, vec![]));
                    dma(&lab, &a);
                    assert_eq!(a.who.bytes_of(a.fd), [1, 2, 9, 4]);
                }
                ChangeRule::Wait => {
                    let changing = b.blocks("exclusive lease", move |b| change(b, fb));
                    a.region.dereg(&a.who);
                    a.who.unlock(a.fd, ALL).unwrap();
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                    assert_eq!(b.bytes_of(fb), result);
                }
                ChangeRule::Revoke => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    assert!(a.region.revoked.load(Ordering::SeqCst) && !a.region.is_pinned());
                    assert_eq!(b.bytes_of(fb), result);
                }
                ChangeRule::Orphan => unreachable!("no preset lets strangers orphan"),
                ChangeRule::Proceed => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    assert_eq!(b.bytes_of(fb), result);
                    dma(&lab, &a);
                    assert_eq!(lab.stale(), 1, "{what}: it is at another offset now");
                    assert_ne!(b.bytes_of(fb), result, "{what}: and the write went there");
                    let finding = lab.kernel.findings().pop().unwrap();
                    assert_ne!(finding.new_owner, Some(finding.old_owner), "{what}");
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

/// S42: the holder moves the block itself, under every lease that lets it pin.
#[test]
fn s42_holder_moves_its_pinned_blocks() {
    every_preset(|axes| {
        for (what, change, result) in MOVES {
            let Some((lab, a)) = Lab::pinned(axes, 4, 2..3) else { continue };
            let before = a.who.state_report(a.fd);
            let moved = change(&a.who, a.fd);
            match axes.holder_change {
                ChangeRule::Fail => {
                    assert_eq!(moved, Err(Errno::ETXTBSY), "{what}");
                    assert_eq!(a.who.state_report(a.fd), before);
                }
                ChangeRule::Orphan => {
                    assert_eq!(moved, Ok(()), "{what}");
                    dma(&lab, &a);
                    assert_eq!(a.who.bytes_of(a.fd), result, "{what}: the file goes on with a copy");
                    assert_eq!(lab.kernel.counters.orphan_dma.get(), 1);
                    assert_eq!(lab.kernel.usage().orphaned, 1);
                    a.region.dereg(&a.who);
                    assert_eq!(lab.kernel.usage().orphaned, 0);
                }
                ChangeRule::Revoke => {
                    assert_eq!(moved, Ok(()), "{what}");
                    assert!(a.region.revoked.load(Ordering::SeqCst));
                }
                ChangeRule::Wait => unreachable!("no preset that pins waits for its own"),
                ChangeRule::Proceed => {
                    assert_eq!(moved, Ok(()), "{what}");
                    dma(&lab, &a);
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

/// The same axis for pins alone, without a lease. A region that is registered after the move is
/// current at once.
#[test]
fn pins_without_a_lease_meet_moves() {
    for rule in [ChangeRule::Fail, ChangeRule::Wait, ChangeRule::Revoke, ChangeRule::Orphan] {
        for (what, change, result) in MOVES {
            let (lab, a) =
                Lab::pinned(Axes { stranger_change: rule, holder_change: rule, ..preset("unsafe") }, 4, 2..3).unwrap();
            let b = lab.actor();
            let fb = b.opens("data");
            match rule {
                ChangeRule::Fail => assert_eq!(change(&b, fb), Err(Errno::ETXTBSY), "{what}"),
                ChangeRule::Wait => {
                    let changing = b.blocks("long-term pins", move |b| change(b, fb));
                    dma(&lab, &a);
                    a.region.dereg(&a.who);
                    assert_eq!(changing.finish(), Ok(()), "{what}");
                    assert!(b.bytes_of(fb).contains(&9), "the write of before moved with its block");
                }
                _ => {
                    assert_eq!(change(&b, fb), Ok(()), "{what}");
                    if rule == ChangeRule::Orphan {
                        dma(&lab, &a);
                        assert_eq!((lab.stale(), lab.kernel.counters.orphan_dma.get()), (0, 1));
                    }
                    assert_eq!(b.bytes_of(fb), result, "{what}");
                }
            }
            let (_, nic) = Nic::open(&b);
            let blocks = b.stat(fb).unwrap().size / BLOCK;
            let region = nic.pins(&b, fb, 0..blocks).unwrap();
            assert_eq!(region.dma_write(&lab.kernel, 0, &vec![5; (blocks * BLOCK) as usize]), Ok(()));
            assert_eq!(lab.stale(), 0, "{what}: the stamp came before the new map");
            assert_eq!(b.bytes_of(fb), vec![5; blocks as usize]);
            lab.end([&a.who, &b]);
        }
    }
}

/// A block in front of the range is not in the way, pinned or not.
#[test]
fn pins_in_front_of_the_range_are_not_in_the_way() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        if !can_pin(axes) {
            return;
        }
        let (a, b) = (lab.actor(), lab.actor());
        let fa = a.writes_file("data", 4, 1);
        let fb = b.opens("data");
        if needs_lease(axes) {
            a.lease(fa, exclusive(axes), BlockRange::new(0, 1)).unwrap();
        }
        let (_, nic) = Nic::open(&a);
        let region = nic.pins(&a, fa, 0..1).unwrap();
        for (what, change, result) in MOVES {
            assert_eq!(change(&b, fb), Ok(()), "{what}");
            assert_eq!(b.bytes_of(fb)[1..3], result[1..3]);
            b.ftruncate(fb, BLOCK).unwrap();
            (1..4).for_each(|block| _ = b.fills(fb, block, 1 + block as u8));
        }
        assert_eq!(region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
        assert_eq!(b.bytes_of(fb), [9, 2, 3, 4]);
        lab.end([&a, &b]);
    });
}

/// S47: the system copies a file into one run, and skips blocks that it may not move. It signals no
/// process and never waits.
#[test]
fn s47_defragmentation_skips_what_it_may_not_move() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let (a, fd) = scattered(&lab, 8);
        assert_eq!(lab.kernel.defragment_politely("nothing"), Err(Errno::ENOENT));
        let usage = lab.kernel.usage();
        let inode = a.inode_of(fd);
        let kinds: &[LeaseKind] = match axes.lease_rules {
            LeaseRules::None => &[],
            LeaseRules::ManPage => &[LeaseKind::READ, LeaseKind::READ_U, LeaseKind::WRITE, LeaseKind::WRITE_U],
            LeaseRules::Chinner => &[LeaseKind::READ, LeaseKind::WRITE],
        };
        for kind in kinds {
            let before = a.state_report(fd);
            a.lease(fd, *kind, ALL).unwrap();
            assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 0, skipped: 8 }), "{kind}");
            assert_eq!((a.signals(), inode.leases().len()), (vec![], 1), "no owner is signalled, whatever the lease");
            assert_eq!(a.state_report(fd), before);
            a.unlock(fd, ALL).unwrap();
        }
        let region = can_pin(axes).then(|| {
            if needs_lease(axes) {
                a.lease(fd, exclusive(axes), BlockRange::new(2, 3)).unwrap();
            }
            Nic::open(&a).1.pins(&a, fd, 2..3).unwrap()
        });
        let skipped = u64::from(region.is_some());
        assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 8 - skipped, skipped }));
        assert_eq!(a.bytes_of(fd), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(lab.kernel.usage(), usage);
        if let Some(region) = region {
            assert_eq!(region.dma_write(&lab.kernel, 0, &[9; BLOCK as usize]), Ok(()));
            assert_eq!((a.bytes_of(fd)[2], lab.stale()), (9, 0), "its block stayed where it was");
            region.dereg(&a);
            a.unlock(fd, ALL).unwrap_or(());
            assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 8, skipped: 0 }));
        }
        assert_eq!(a.fiemap(fd, ALL).unwrap().len(), 1, "in one run");
        assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented::default()), "nothing left to do");
        lab.end([&a]);
    });
}

/// S47: a client that writes the device directly pins nothing: only its layout says which blocks
/// must stay.
#[test]
fn s47_defragmentation_leaves_block_layouts_true() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let (a, fd) = scattered(&lab, 8);
        let client = lab.actor();
        let g = client.opens("data");
        let (layout_fd, layout) = client.layoutget(g, BlockRange::new(2, 5), IoMode::ReadWrite).unwrap();
        assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 5, skipped: 3 }));
        assert_eq!((layout.recall(), layout.is_fenced()), (None, false), "no client is asked for anything");
        assert_eq!(layout.write(&lab.kernel, 2 * BLOCK, &[9; 3 * BLOCK as usize]), Ok(()));
        assert_eq!((a.bytes_of(fd), lab.stale()), (vec![1, 2, 9, 9, 9, 6, 7, 8], 0));
        client.layoutreturn(layout_fd).unwrap();
        assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 8, skipped: 0 }));
        lab.end([&a, &client]);
    });
}

/// S47: a file with a layout change in progress is skipped, and so are shared blocks. On a full
/// device nothing changes.
#[test]
fn s47_defragmentation_never_waits() {
    let lab = Lab::on(2 << 20, preset("man-page"), |_| {});
    let (a, fd) = scattered(&lab, 8);
    let (b, all) = (lab.actor(), Defragmented { moved: 0, skipped: 8 });
    a.lease(fd, LeaseKind::READ, BlockRange::from(7)).unwrap();
    let changing = b.blocks("lease break", |b| b.truncate("data", 7 * BLOCK));
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(all));
    a.unlock(fd, ALL).unwrap();
    assert_eq!(changing.finish(), Ok(()));
    let copy = a.creates("copy");
    a.reflink(fd, 0, copy, 0, BLOCK).unwrap();
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 6, skipped: 1 }));
    // Fill the device but for single blocks.
    let (filler, free) = (a.creates("filler"), lab.kernel.usage().free);
    a.fallocate(filler, Allocate { keep_size: false }, 0, free * BLOCK).unwrap();
    for block in (0..free).step_by(2) {
        a.fallocate(filler, PunchHole, block * BLOCK, BLOCK).unwrap();
    }
    let (before, usage) = (a.state_report(filler), lab.kernel.usage());
    assert!(usage.free > free / 2 - 1);
    assert_eq!(lab.kernel.defragment_politely("filler"), Err(Errno::ENOSPC));
    let reader = b.opens("filler");
    b.lease(reader, LeaseKind::READ, ALL).unwrap();
    assert_eq!(a.defragment("filler"), Err(Errno::ENOSPC));
    assert_eq!((b.signals(), b.held(reader)), (vec![], vec![(LeaseKind::READ, ALL)]), "before any break");
    assert_eq!((a.state_report(filler), lab.kernel.usage()), (before, usage));
    lab.end([&a, &b]);
}

/// S47: a defragmentation that is not polite breaks only the leases on blocks that it could move.
#[test]
fn s47_defragmentation_breaks_what_helps_it() {
    every_preset(|axes| {
        if axes.lease_rules == LeaseRules::None {
            return;
        }
        let lab = Lab::new(axes);
        let (a, fd) = scattered(&lab, 8);
        let copy = a.creates("copy");
        a.reflink(fd, 0, copy, 0, BLOCK).unwrap();
        let (b, c, system) = (lab.actor(), lab.actor(), lab.actor());
        let (fb, fc) = (b.opens("data"), c.opens("data"));
        b.lease(fb, LeaseKind::READ, BlockRange::new(0, 1)).unwrap();
        c.lease(fc, LeaseKind::READ, BlockRange::new(4, 6)).unwrap();
        let moving = system.blocks("lease break", |system| system.defragment("data"));
        assert_eq!((b.signals(), c.signals()), (vec![], vec![Signal::Sigio]), "block 0 is shared and stays anyway");
        c.unlock(fc, ALL).unwrap();
        assert_eq!(moving.finish(), Ok(Defragmented { moved: 7, skipped: 1 }));
        assert_eq!(b.held(fb), [(LeaseKind::READ, BlockRange::new(0, 1))]);
        assert_eq!(a.bytes_of(fd), [1, 2, 3, 4, 5, 6, 7, 8]);
        lab.end([&a, &b, &c, &system]);
    });
}
