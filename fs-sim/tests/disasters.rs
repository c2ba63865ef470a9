//! Dialogues about poisoned pages, power cuts, unmounting and the loss of the device.
//! `docs/semantics.md`, sections 3 and 4, and the scenarios S41, S45, S46, S51, S52.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::changes::{CHANGES, NO_CHANGES, canvas, scattered};
use common::watchdog::{soon, spawn, spawn_in};
use common::{Actor, Lab, Nic, PinnedFile, can_pin, every_preset, pinned_file, preset};
use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, race, thread};
use fs_sim::design::{Axes, ChangeRule, GateScope, LastCloseRule};
use fs_sim::holders::block_layout::IoMode;
use fs_sim::kernel::power::Recovered;
use fs_sim::layout_change::defragment::Defragmented;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig};

const PAGE: usize = BLOCK as usize;

/// S45: the DMA that touches the poisoned page fails. Other pages, regions and files are
/// unaffected.
#[test]
fn s45_a_poisoned_page_under_a_pin() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let Some(PinnedFile { who: a, fd, nic, region, .. }) = pinned_file(&lab, "data", 4, 0..4) else { return };
        let second = nic.pins(&a, fd, 2..4).unwrap();
        let ino = a.inode_of(fd).ino();
        lab.kernel.poison(ino, 1).unwrap();
        let mut byte = [0];
        assert_eq!(region.dma_read(&lab.kernel, BLOCK, &mut byte), Err(Errno::EIO));
        assert_eq!(region.dma_write(&lab.kernel, BLOCK, &[7; PAGE]), Err(Errno::EIO), "a DMA heals nothing");
        assert_eq!((region.dma_read(&lab.kernel, 0, &mut byte), byte), (Ok(()), [1]));
        assert_eq!((region.dma_read(&lab.kernel, 2 * BLOCK, &mut byte), byte), (Ok(()), [3]));
        assert_eq!((second.dma_read(&lab.kernel, 0, &mut byte), byte), (Ok(()), [3]), "another region");
        lab.kernel.clear_poison(ino, 1).unwrap();
        assert_eq!((region.dma_read(&lab.kernel, BLOCK, &mut byte), byte), (Ok(()), [0]), "healed, its contents lost");
        lab.end([&a]);
    });
}

/// What system calls, loads and stores return on a poisoned page, and which of them heal it.
#[test]
fn calls_that_heal_a_poisoned_page() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let f = a.writes_file("data", 4, 1);
    let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
    let ino = a.inode_of(f).ino();
    let mut byte = [0];
    let mut page = [0; PAGE];
    lab.kernel.poison(ino, 1).unwrap();
    assert_eq!(a.read(f, BLOCK, &mut byte), Err(Errno::EIO));
    assert_eq!(a.load(va + BLOCK, &mut byte), Err(Errno::SIGBUS));
    assert_eq!(a.store(va + BLOCK, &[9; PAGE]), Err(Errno::SIGBUS), "a store heals nothing");
    assert_eq!(a.write(f, BLOCK, &[9]), Err(Errno::EIO), "nor does part of a page");
    assert_eq!(a.write(f, BLOCK / 2, &[9; PAGE]), Err(Errno::EIO), "nor do two parts");
    assert_eq!(a.write(f, BLOCK - 1, &[9; 3 * PAGE + 1]), Err(Errno::EIO), "nor a write that is not aligned");
    assert_eq!((a.read(f, 0, &mut byte), byte), (Ok(1), [1]), "the neighbour was not written");
    assert_eq!(a.write(f, BLOCK, &[9; PAGE]), Ok(PAGE), "the whole page does");
    assert_eq!((a.load(va + BLOCK, &mut page), page), (Ok(()), [9; PAGE]));

    // By an extending write, which is a layout change.
    lab.kernel.poison(ino, 3).unwrap();
    assert_eq!(a.write(f, 3 * BLOCK + 1, &[8; PAGE]), Err(Errno::EIO));
    assert_eq!(a.stat(f).unwrap().size, 4 * BLOCK, "and nothing grew");
    assert_eq!(a.write(f, 3 * BLOCK, &[8; 2 * PAGE]), Ok(2 * PAGE));
    assert_eq!(a.bytes_of(f), [1, 9, 3, 8, 8]);

    // By being zeroed, and by being given to another file.
    lab.kernel.poison(ino, 0).unwrap();
    a.fallocate(f, FallocateMode::ZeroRange { keep_size: true }, 0, BLOCK).unwrap();
    assert_eq!((a.store(va, &[4]), a.load(va, &mut byte), byte), (Ok(()), Ok(()), [4]));
    lab.kernel.poison(ino, 2).unwrap();
    a.truncate("data", 0).unwrap();
    let all = a.creates("all");
    assert_eq!(a.write(all, 0, &vec![5; 1024 * PAGE]), Ok(1024 * PAGE));
    assert!(a.bytes_of(all).iter().all(|byte| *byte == 5));

    assert_eq!(lab.kernel.poison(fs_sim::base::numbers::Ino(99), 0), Err(Errno::ENOENT));
    assert_eq!(lab.kernel.poison(ino, 7), Err(Errno::ENXIO), "a hole has no page");
    lab.end([&a]);
}

/// Who is told of a bad page, and where: a private mapping's copy is no page of the device, what
/// shows the page is told by address, a child inherits the policy.
#[test]
fn a_bad_page_is_told_by_its_addresses() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let fd = a.writes_file("data", 4, 1);
    let [whole, tail] = [(0, 4), (2, 2)].map(|(from, len)| a.mmap(fd, from * BLOCK, len * BLOCK, true).unwrap());
    let private = a.mmap_private(fd, 0, 4 * BLOCK, true).unwrap();
    a.store(private + 3 * BLOCK, &[9]).unwrap();
    let unmapped = a.mmap(fd, 0, 4 * BLOCK, true).unwrap();
    a.munmap(unmapped + 2 * BLOCK, BLOCK).unwrap();
    let other = b.opens("data");
    b.mmap(other, 0, 4 * BLOCK, true).unwrap();
    a.process().set_early_kill(true);
    let child = a.child();
    for who in [&a, &b, &child] {
        who.process().set_disposition(Signal::Sigbus, Disposition::Handler);
    }
    let ino = a.inode_of(fd).ino();
    lab.kernel.poison_range(ino, BlockRange::new(2, 9)).unwrap();
    let told = |who: &Actor| -> Vec<u64> {
        let signals = who.take_signals();
        assert!(signals.iter().all(|info| info.signal == Signal::Sigbus));
        signals.into_iter().map(|info| info.address.unwrap()).collect()
    };
    let (two, three) = (2 * BLOCK, 3 * BLOCK);
    let all = [whole + two, whole + three, tail, tail + BLOCK, private + two, unmapped + three];
    assert_eq!((told(&a), told(&child)), (all.to_vec(), all.to_vec()));
    assert_eq!(told(&b), Vec::<u64>::new(), "late: at its next access");
    assert_eq!(lab.kernel.bad_blocks(&a.inode_of(fd)), [BlockRange::new(2, 4)]);
    assert_eq!(lab.kernel.poison_range(ino, BlockRange::new(4, 9)), Err(Errno::ENXIO));
    assert_eq!(a.poison_mapped(private, BLOCK), Err(Errno::EOPNOTSUPP));
    assert_eq!(a.poison_mapped(whole + 3 * BLOCK, 2 * BLOCK), Err(Errno::EFAULT));
    assert_eq!(lab.kernel.poison_region(7, whole, 0, BLOCK), Err(Errno::ENXIO), "no region has this key");
    lab.kernel.clear_poison_range(ino, BlockRange::ALL).unwrap();
    assert_eq!((lab.kernel.bad_blocks(&a.inode_of(fd)), a.bytes_of(fd)), (Vec::new(), vec![1, 2, 0, 0]));
    lab.end([&a, &b, &child]);
}

/// Fills all blocks that are free with `byte` and frees them again, poisoned or not.
fn litters(lab: &Lab, a: &Actor, byte: u8, poisoned: bool) {
    let (fd, free) = (a.creates("litter"), lab.kernel.usage().free);
    a.write(fd, 0, &vec![byte; free as usize * PAGE]).unwrap();
    for block in (0..free).filter(|_| poisoned) {
        lab.kernel.poison(a.inode_of(fd).ino(), block).unwrap();
    }
    a.close(fd).unwrap();
    a.unlink("litter").unwrap();
}

/// A change that would have to copy an unreadable block fails and changes nothing. No file gets the
/// old bytes of another block.
#[test]
fn unreadable_blocks_are_not_copied() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (f, g) = (a.writes_file("one", 4, 1), a.creates("two"));
    a.reflink(f, 0, g, 0, 4 * BLOCK).unwrap();
    litters(&lab, &a, 42, false);
    let va = a.mmap(g, 0, 4 * BLOCK, true).unwrap();
    lab.kernel.poison(a.inode_of(f).ino(), 2).unwrap();
    let picture = || (a.stat(g).unwrap(), a.fiemap(g, BlockRange::ALL).unwrap(), lab.kernel.usage());
    let before = picture();
    assert_eq!(a.store(va + 2 * BLOCK, &[7]), Err(Errno::SIGBUS));
    assert_eq!(a.store(va + 2 * BLOCK, &[7; PAGE]), Err(Errno::SIGBUS), "a store heals nothing");
    assert_eq!(a.write(g, 2 * BLOCK, &[7]), Err(Errno::EIO));
    assert_eq!(a.fallocate(g, FallocateMode::UnshareRange { keep_size: true }, 0, 4 * BLOCK), Err(Errno::EIO));
    assert_eq!(a.fallocate(g, FallocateMode::PunchHole, 2 * BLOCK + 100, 2 * BLOCK - 100), Err(Errno::EIO));
    assert_eq!(a.ftruncate(g, 2 * BLOCK + 100), Err(Errno::EIO));
    assert_eq!(a.layoutget(g, BlockRange::new(2, 3), IoMode::ReadWrite).err(), Some(Errno::EIO));
    assert_eq!(picture(), before);
    assert_eq!(
        (a.read(g, 2 * BLOCK, &mut [0]), a.load(va + 2 * BLOCK, &mut [0])),
        (Err(Errno::EIO), Err(Errno::SIGBUS))
    );
    assert_eq!((a.store(va + BLOCK, &[7; PAGE]), a.fills(g, 3, 8)), (Ok(()), Ok(PAGE)), "its neighbours are copied");

    // A block that is overwritten as a whole is not copied: the write heals it, for this file
    // alone.
    assert_eq!(a.fills(g, 2, 9), Ok(PAGE));
    assert_eq!(a.bytes_of(g), [1, 7, 9, 8]);
    assert_eq!(a.read(f, 2 * BLOCK, &mut [0]), Err(Errno::EIO));
    lab.end([&a]);
}

/// The copy into a new block heals the block if it was poisoned.
#[test]
fn copies_heal_new_blocks() {
    let lab = Lab::new(preset("mainline"));
    let (a, f) = scattered(&lab, 8);
    let g = a.creates("clone");
    a.reflink(f, 0, g, 0, BLOCK).unwrap();
    litters(&lab, &a, 42, true);
    let mut two = [0; 2];
    assert_eq!((a.write(g, 0, &[6]), a.read(g, 0, &mut two), two), (Ok(1), Ok(2), [6, 1]));
    assert_eq!(lab.kernel.defragment_politely("data").map(|done| done.moved), Ok(7), "all but the one that was shared");
    assert_eq!(a.bytes_of(f), [1, 2, 3, 4, 5, 6, 7, 8]);
    lab.end([&a]);
}

/// Defragmentation leaves a poisoned block in place and moves all others.
#[test]
fn defragmentation_skips_unreadable_blocks() {
    let lab = Lab::new(preset("mainline"));
    let (a, f) = scattered(&lab, 8);
    litters(&lab, &a, 42, false);
    lab.kernel.poison(a.inode_of(f).ino(), 1).unwrap();
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 7, skipped: 1 }));
    assert_eq!(a.read(f, BLOCK, &mut [0]), Err(Errno::EIO));
    lab.kernel.clear_poison(a.inode_of(f).ino(), 1).unwrap();
    assert_eq!(a.bytes_of(f), [1, 0, 3, 4, 5, 6, 7, 8]);
    assert_eq!(lab.kernel.defragment_politely("data"), Ok(Defragmented { moved: 8, skipped: 0 }));
    lab.end([&a]);
}

/// Dedupe skips an unreadable block: sharing it would take away the good block of the other file.
#[test]
fn dedupe_skips_unreadable_blocks() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (f, g) = (a.writes_file("one", 2, 5), a.writes_file("two", 2, 5));
    a.fills(g, 1, 5).unwrap();
    lab.kernel.poison(a.inode_of(f).ino(), 1).unwrap();
    let extents = a.fiemap(g, BlockRange::ALL).unwrap();
    assert_eq!(a.dedupe(f, 0, g, 0, 2 * BLOCK), Err(Errno::EIO));
    assert_eq!(a.dedupe(g, 0, f, 0, 2 * BLOCK), Err(Errno::EIO), "nor is the block to be got back this way");
    assert_eq!((a.bytes_of(g), a.fiemap(g, BlockRange::ALL).unwrap()), (vec![5, 5], extents));
    assert_eq!(a.read(f, BLOCK, &mut [0]), Err(Errno::EIO));
    lab.end([&a]);
}

/// A holder that moves its pinned block leaves the block behind and continues with a copy, if the
/// block can be copied.
#[test]
fn a_poisoned_block_cannot_be_left_behind_for_a_copy() {
    every_preset(|axes| {
        if axes.holder_change != ChangeRule::Orphan {
            return;
        }
        let lab = Lab::new(axes);
        let Some(PinnedFile { who: a, fd, region, .. }) = pinned_file(&lab, "data", 4, 2..3) else { return };
        lab.kernel.poison(a.inode_of(fd).ino(), 2).unwrap();
        let before = (a.fiemap(fd, BlockRange::ALL).unwrap(), lab.kernel.usage());
        assert_eq!(a.fallocate(fd, FallocateMode::CollapseRange, BLOCK, BLOCK), Err(Errno::EIO));
        assert_eq!((a.fiemap(fd, BlockRange::ALL).unwrap(), lab.kernel.usage()), before);
        lab.kernel.clear_poison(a.inode_of(fd).ino(), 2).unwrap();
        assert_eq!(region.dma_write(&lab.kernel, 0, &[9; PAGE]), Ok(()));
        assert_eq!(a.bytes_of(fd), [1, 2, 9, 4], "it is the file's still");
        lab.end([&a]);
    });
}

/// Cuts the power and mounts what is left, under the same design.
fn cut_and_recover(lab: &Lab) -> (Lab, Recovered) {
    let durable = lab.kernel.power_cut().expect("the device, once more");
    let config = KernelConfig::new(*lab.kernel.axes());
    let (kernel, recovered) = Kernel::recover(Arc::clone(&lab.world), durable, config).expect("a kernel");
    (Lab::over(kernel, Arc::clone(&lab.world)), recovered)
}

/// Every change, and every call that is not a change, is durable when it returns: after a power cut
/// each file is unchanged.
#[test]
fn a_completed_call_survives_a_power_cut() {
    every_preset(|axes| {
        for (name, call) in CHANGES.iter().chain(&NO_CHANGES) {
            let (lab, [a]) = Lab::cast(axes);
            let f = canvas(&a);
            call(&a, f).unwrap();
            let before = a.state_report(f);
            let free = lab.kernel.usage().free;
            let (after, recovered) = cut_and_recover(&lab);
            assert_eq!(recovered, Recovered { names: 1, ..Recovered::default() }, "{name}");
            assert_eq!(a.read(f, 0, &mut [0]), Err(Errno::Dead), "{name}: nothing of the old machine goes on");
            let b = after.actor();
            assert_eq!(b.state_report(b.opens("data")), before, "{name}");
            assert_eq!(after.kernel.usage().free, free, "{name}");
            after.end([&b]);
        }
    });
}

/// A defragmentation is durable when it returns. Blocks that it freed are free after the cut, or
/// belong to other files.
#[test]
fn a_defragmentation_survives_a_power_cut() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let (a, fd) = scattered(&lab, 8);
        assert_eq!(lab.kernel.defragment_politely("data").map(|done| done.moved), Ok(8));
        let (all, free) = (a.creates("all"), lab.kernel.usage().free);
        assert_eq!(a.write(all, 0, &vec![99; free as usize * PAGE]), Ok(free as usize * PAGE));
        let before = (a.state_report(fd), a.state_report(all));
        let (after, _) = cut_and_recover(&lab);
        let b = after.actor();
        assert_eq!((b.state_report(b.opens("data")), b.state_report(b.opens("all"))), before);
        assert_eq!(b.bytes_of(b.opens("data")), [1, 2, 3, 4, 5, 6, 7, 8]);
        after.end([&b]);
    });
}

/// S46: a power cut while blocks are orphaned. Recovery frees them exactly once, and removes files
/// that were open without a name.
#[test]
fn s46_recovery_frees_orphaned_blocks_exactly_once() {
    every_preset(|axes| {
        if !can_pin(axes) || axes.stranger_change == ChangeRule::Proceed {
            return;
        }
        let lab = Lab::new(axes);
        let PinnedFile { who: a, fd, region, .. } = pinned_file(&lab, "data", 8, 0..4).unwrap();
        let b = lab.actor();
        let kept = b.writes_file("kept", 3, 40);
        let nameless = b.writes_file("nameless", 5, 60);
        b.unlink("nameless").unwrap();
        b.unlink("data").unwrap();
        // The last reference is a mapping's: munmap never waits.
        let va = a.mmap(fd, 0, BLOCK, false).unwrap();
        a.close(fd).unwrap();
        a.munmap(va, BLOCK).unwrap();
        let revoked = axes.last_close_while_pinned == Some(LastCloseRule::Revoke);
        let held = axes.mr_holds_lease == Some(true);
        let orphaned = lab.kernel.usage().orphaned;
        assert_eq!(orphaned, if revoked || held { 0 } else { 4 });
        let bytes = b.bytes_of(kept);
        let (after, recovered) = cut_and_recover(&lab);
        assert_eq!(
            recovered,
            Recovered {
                names: 1,
                freed_pending: orphaned,
                removed_inodes: 1 + u64::from(held && !revoked),
                lost_lines: None,
            },
        );
        assert_eq!(
            (region.dma_write(&lab.kernel, 0, &[1]).is_err(), b.stat(nameless).err()),
            (true, Some(Errno::Dead))
        );
        let c = after.actor();
        assert_eq!(c.bytes_of(c.opens("kept")), bytes);
        assert_eq!(after.kernel.usage().free, 1024 - 3);
        assert_eq!(c.open("nameless", OpenFlags::open(AccessMode::READ)), Err(Errno::ENOENT));
        let all = c.creates("all");
        assert_eq!(c.write(all, 0, &vec![9; 1021 * PAGE]), Ok(1021 * PAGE), "all of it can be had again, once");
        assert_eq!(c.write(all, 1021 * BLOCK, &[9]), Err(Errno::ENOSPC));
        after.end([&c]);
    });
}

/// A change that was not published is not durable, and neither is a part of it. Sleeping tasks die;
/// leases and pins are gone.
#[test]
fn a_cut_during_a_change_leaves_the_layout_before_it() {
    let axes = Axes { stranger_change: ChangeRule::Wait, ..preset("man-page") };
    let (lab, file) = Lab::pinned(axes, 4, 0..4).unwrap();
    let b = lab.actor();
    let before = file.who.state_report(file.fd);
    let blocked = b.blocks("exclusive lease", |task| task.truncate("data", 0));
    let (after, recovered) = cut_and_recover(&lab);
    // Any result is correct on a machine without power.
    let _dead_or_done = blocked.finish();
    assert_eq!(lab.kernel.check_at_rest(), Vec::<String>::new(), "the old machine ends in order");
    assert_eq!(recovered.freed_pending, 0);
    let c = after.actor();
    let f = c.opens("data");
    assert_eq!(c.state_report(f), before);
    assert_eq!((c.leases(f), c.inode_of(f).holders().len()), (vec![], 0));
    c.truncate("data", 0).unwrap();
    let (last, _) = cut_and_recover(&after);
    let d = last.actor();
    assert_eq!(d.stat(d.opens("data")).unwrap().blocks, 0, "and again");
    assert_ne!(d.inode_of(d.creates("new")).ino(), d.inode_of(d.opens("data")).ino());
    last.end([&d]);
}

/// A power cut at any moment of many concurrent changes: after the mount every block has one owner.
#[test]
fn a_power_cut_among_many_changes_is_consistent() {
    for round in 0..20u64 {
        let lab = Lab::new(preset("mainline"));
        let writers: Vec<_> = (0..3u64)
            .map(|n| {
                let (a, kernel) = (lab.actor(), Arc::clone(&lab.kernel));
                spawn(move || {
                    for step in 0u64.. {
                        let name = format!("file{}", (n + step) % 4);
                        let done = a.open(&name, OpenFlags::create()).and_then(|fd| {
                            a.write(fd, (step * 7 % 40) * BLOCK, &[n as u8; 3 * PAGE])?;
                            a.fallocate(fd, FallocateMode::PunchHole, (step * 5 % 40) * BLOCK, 4 * BLOCK)?;
                            if step % 5 == 0 {
                                a.unlink(&name)?;
                            }
                            a.ftruncate(fd, (step * 11 % 50) * BLOCK)?;
                            // ENOENT, ENOSPC and a dead device are all correct here.
                            let _done = kernel.defragment_politely(&name);
                            a.close(fd)
                        });
                        if done == Err(Errno::Dead) || done == Err(Errno::EINTR) {
                            return step;
                        }
                    }
                    0
                })
            })
            .collect();
        while lab.kernel.usage().allocated < 20 + round {
            thread::yield_now();
        }
        let durable = lab.kernel.power_cut().unwrap();
        for writer in writers {
            writer.join();
        }
        let (kernel, _) =
            Kernel::recover(Arc::clone(&lab.world), durable, KernelConfig::new(preset("mainline"))).unwrap();
        assert_eq!(kernel.check_at_rest(), Vec::<String>::new(), "round {round}");
        assert_eq!(kernel.usage().orphaned, 0);
    }
}

/// S51: EBUSY while a file is open or a page is pinned. After the unmount no file can be opened.
#[test]
fn s51_unmount() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        assert_eq!(lab.kernel.unmount(), Err(Errno::EBUSY), "open");
        let va = a.mmap(f, 0, BLOCK, false).unwrap();
        a.close(f).unwrap();
        assert_eq!(lab.kernel.unmount(), Err(Errno::EBUSY), "mapped");
        a.munmap(va, BLOCK).unwrap();
        if let Some(file) = pinned_file(&lab, "pinned", 4, 0..2) {
            let who = &file.who;
            if axes.last_close_while_pinned == Some(LastCloseRule::WaitKillable) {
                who.mmap(file.fd, 0, BLOCK, false).unwrap();
            }
            who.close(file.fd).unwrap();
            if file.region.is_pinned() {
                who.unlink("pinned").unwrap();
                assert_eq!(lab.kernel.unmount(), Err(Errno::EBUSY), "pinned, if only as orphans");
            }
            who.exit();
        }
        assert_eq!(lab.kernel.unmount(), Ok(()));
        assert_eq!(lab.kernel.unmount(), Err(Errno::ENODEV));
        assert_eq!(a.open("data", OpenFlags::open(AccessMode::READ)), Err(Errno::ENODEV));
        assert_eq!(a.open("new", OpenFlags::create()), Err(Errno::ENODEV));
        assert_eq!((a.unlink("data"), a.truncate("data", 0)), (Err(Errno::ENODEV), Err(Errno::ENODEV)));
        lab.end([&a]);
    });
}

/// An open concurrent with an unmount makes the unmount fail with EBUSY, or fails itself. Both
/// never succeed, and a failed unmount has no effect.
#[test]
fn an_open_and_an_unmount_at_once() {
    let (mut unmounted, mut opened) = (0, 0);
    // The call that is started first mostly wins, so each is started first in turn.
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS && unmounted > 0 && opened > 0 {
            return;
        }
        let (lab, [a, b]) = Lab::cast(preset("mainline"));
        let f = a.creates("data");
        a.close(f).unwrap();
        let opens = || (b.open("data", OpenFlags::open(AccessMode::READ)), b.open("new", OpenFlags::create()));
        match at_once(round % 2 == 0, || lab.kernel.unmount(), opens) {
            (Ok(()), (Err(Errno::ENODEV), Err(Errno::ENODEV))) => unmounted += 1,
            (Err(Errno::EBUSY), (Ok(_), Ok(_))) => opened += 1,
            other => panic!("{other:?}"),
        }
    }
    panic!("in {ROUNDS_MAX} rounds {unmounted} unmounts and {opened} opens were first");
}

/// How many rounds run two calls at once, and how many at most until each call was first once.
const ROUNDS: u32 = 300;
const ROUNDS_MAX: u32 = 100 * ROUNDS;

/// Runs both at once, on threads of their own; `first_leads` says which is started first.
fn at_once<A: Send, B: Send>(
    first_leads: bool,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    thread::scope(|scope| match first_leads {
        true => {
            let first = spawn_in(scope, first);
            let second = spawn_in(scope, second);
            (first.join(), second.join())
        }
        false => {
            let second = spawn_in(scope, second);
            let first = spawn_in(scope, first);
            (first.join(), second.join())
        }
    })
}

/// Names do not change after the unmount.
#[test]
fn names_and_an_unmount_at_once() {
    let (mut before, mut after) = (0, 0);
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS && before > 0 && after > 0 {
            return;
        }
        let (lab, [a, b]) = Lab::cast(preset("mainline"));
        for name in ["data", "more"] {
            let f = a.creates(name);
            a.close(f).unwrap();
        }
        let unmount = || lab.kernel.unmount().map(|()| lab.kernel.file_names());
        let seed = lab.world.stream("changes", round.into());
        let changes = || {
            race::arm(seed, 0.5);
            (b.rename("data", "moved"), b.unlink("more"))
        };
        let (unmounted, changed) = at_once(round % 2 == 0, unmount, changes);
        assert_eq!(unmounted, Ok(lab.kernel.file_names()), "{changed:?}");
        match changed {
            (Ok(()), Ok(())) => before += 1,
            (Ok(()) | Err(Errno::ENODEV), Err(Errno::ENODEV)) => after += 1,
            other => panic!("{other:?}"),
        }
    }
    panic!("in {ROUNDS_MAX} rounds the names were changed {before} times before and {after} times after");
}

/// S52: the device is removed under pins and a guest: contexts are aborted, flushes fail, and the
/// removal completes in every design.
#[test]
fn s52_device_removal_with_pins_and_a_guest() {
    every_preset(|axes| {
        let lab = Lab::new(axes);
        let file = pinned_file(&lab, "data", 4, 0..4);
        let g = lab.actor();
        let exported = g.writes_file("guest", 4, 1);
        let guest = g.export_to_guest(exported).ok();
        assert_eq!(guest.is_some(), can_pin(axes) && axes.gate_scope == GateScope::All);
        let va = g.mmap(exported, 0, BLOCK, true).unwrap();
        let c = lab.actor();
        let shared = c.writes_file("shared", 2, 1);
        let (_, layout) = c.layoutget(shared, BlockRange::new(0, 2), IoMode::ReadWrite).unwrap();
        // Orphaned pins count as well.
        let orphan =
            (axes.stranger_change != ChangeRule::Proceed).then(|| pinned_file(&lab, "gone", 2, 0..2)).flatten();
        if let Some(orphan) = &orphan {
            orphan.who.unlink("gone").unwrap();
            let va = orphan.who.mmap(orphan.fd, 0, BLOCK, false).unwrap();
            orphan.who.close(orphan.fd).unwrap();
            orphan.who.munmap(va, BLOCK).unwrap();
        }
        if let Some(file) = &file {
            file.region.dma_in_flight.store(true, Ordering::SeqCst);
        }
        let kernel = Arc::clone(&lab.kernel);
        let removal = spawn(move || kernel.remove_device());
        if let Some(file) = &file {
            soon("the revocation", || file.region.revoked.load(Ordering::SeqCst).then_some(()));
            assert!(!removal.is_over());
            assert_eq!(file.region.dma_write(&lab.kernel, 0, &[1]), Ok(()), "in flight");
            assert_eq!(g.open("data", OpenFlags::open(AccessMode::READ)), Err(Errno::ENODEV));
            file.region.release(&lab.kernel);
        }
        soon("the end of the removal", || removal.is_over().then_some(()));
        removal.join();
        if let Some((_, guest)) = &guest {
            assert_eq!(
                (guest.flush(&lab.kernel), guest.read(&lab.kernel, 0, &mut [0])),
                (Err(Errno::EIO), Err(Errno::EIO))
            );
        }
        assert!(orphan.iter().all(|orphan| orphan.region.revoked.load(Ordering::SeqCst)));
        assert!(layout.is_fenced());
        assert_eq!(layout.write(&lab.kernel, 0, &[1]), Err(Errno::EIO));
        assert_eq!((g.read(exported, 0, &mut [0]), g.write(exported, 0, &[1])), (Err(Errno::EIO), Err(Errno::EIO)));
        assert_eq!((g.load(va, &mut [0]), g.store(va, &[1])), (Err(Errno::SIGBUS), Err(Errno::SIGBUS)));
        assert_eq!(g.ftruncate(exported, 0), Err(Errno::EIO));
        let (_, nic) = Nic::open(&g);
        let late = nic.pins(&g, exported, 0..1).err();
        if can_pin(axes) {
            assert_eq!(late, Some(Errno::ENODEV), "no new pins");
        }
        assert_eq!(lab.kernel.unmount(), Err(Errno::ENODEV));
        for actor in file.iter().map(|file| &file.who).chain(orphan.iter().map(|orphan| &orphan.who)) {
            actor.exit();
        }
        lab.end([&g, &c]);
    });
}

/// Shared blocks, hard links and a written clone survive a power cut with the same counts and
/// names.
#[test]
fn shared_blocks_and_names_survive_a_cut() {
    every_preset(|axes| {
        let (lab, [a]) = Lab::cast(axes);
        let (f, g) = (a.writes_file("one", 4, 1), a.creates("two"));
        a.reflink(f, 0, g, 0, 4 * BLOCK).unwrap();
        a.fills(g, 1, 90).unwrap();
        a.link("one", "first").unwrap();
        a.rename("two", "second").unwrap();
        a.chmod("second", 0o640).unwrap();
        let free = lab.kernel.usage().free;
        let (after, recovered) = cut_and_recover(&lab);
        assert_eq!(recovered, Recovered { names: 3, ..Recovered::default() });
        assert_eq!(after.kernel.usage().free, free);
        assert_eq!(after.kernel.check_at_rest(), Vec::<String>::new(), "shared with the right count");
        let b = after.actor();
        let (f, g) = (b.opens("first"), b.opens("second"));
        assert_eq!((b.bytes_of(f), b.bytes_of(g)), (vec![1, 2, 3, 4], vec![1, 90, 3, 4]));
        assert_eq!((b.stat(f).unwrap().links, b.inode_of(g).mode()), (2, 0o640));
        b.fills(f, 0, 70).unwrap();
        assert_eq!(b.bytes_of(g), [1, 90, 3, 4], "copied on write, still");
        b.unlink("one").unwrap();
        b.unlink("first").unwrap();
        b.close(f).unwrap();
        assert_eq!(b.bytes_of(g), [1, 90, 3, 4]);
        after.end([&b]);
    });
}

/// A power cut in the middle of an exchange, with concurrent writes to both files that are not
/// layout changes: both halves are durable or none, so no block is in two files.
#[test]
fn half_a_two_file_change_is_never_durable() {
    const BLOCKS: u64 = 1024;
    for round in 0..100u64 {
        let lab = Lab::on(16 << 20, preset("mainline"), |_| {});
        let a = lab.actor();
        let files = [a.creates("one"), a.creates("two")];
        for (fd, byte) in files.into_iter().zip(1..) {
            a.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, BLOCKS * BLOCK).unwrap();
            a.fills(fd, 0, byte).unwrap();
        }
        let steps = Arc::new(AtomicU64::new(0));
        let (task, counter) = (a.another_thread(), Arc::clone(&steps));
        let exchanging = spawn(move || {
            while task.exchange_range(files[0], 0, files[1], 0, BLOCK).is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        let writing = files.map(|fd| {
            let task = a.another_thread();
            // Each turns an unwritten block written.
            spawn(move || (1..BLOCKS).all(|block| task.write(fd, block * BLOCK, &[3]).is_ok()))
        });
        soon("some exchanges", || (steps.load(Ordering::SeqCst) > 5 + round % 40).then_some(()));
        let durable = lab.kernel.power_cut().unwrap();
        exchanging.join();
        for thread in writing {
            let _cut_or_done = thread.join();
        }
        let config = KernelConfig::new(*lab.kernel.axes());
        let (kernel, _) = Kernel::recover(Arc::clone(&lab.world), durable, config).unwrap();
        assert_eq!(kernel.check_at_rest(), Vec::<String>::new(), "round {round}");
    }
}

/// While the removal of the device waits for a DMA in flight, no client gets a layout. The removal
/// ends.
#[test]
fn no_layout_is_granted_while_the_device_is_removed() {
    let (lab, file) = Lab::pinned(preset("man-page"), 4, 0..4).unwrap();
    let c = lab.actor();
    let other = c.writes_file("other", 4, 1);
    file.region.dma_in_flight.store(true, Ordering::SeqCst);
    let kernel = Arc::clone(&lab.kernel);
    let removal = spawn(move || kernel.remove_device());
    soon("the revocation", || file.region.revoked.load(Ordering::SeqCst).then_some(()));
    assert_eq!(c.layoutget(other, BlockRange::new(0, 4), IoMode::Read).err(), Some(Errno::ENODEV));
    assert_eq!(c.layoutget(other, BlockRange::new(0, 4), IoMode::ReadWrite).err(), Some(Errno::ENODEV));
    file.region.release(&lab.kernel);
    soon("the end of the removal", || removal.is_over().then_some(()));
    lab.end([&file.who, &c]);
}

/// A layout that is granted while a removal begins is refused or fenced. The removal ends in both
/// cases, although the client returns no layout.
#[test]
fn a_layout_and_a_removal_at_once() {
    for _ in 0..200 {
        let (lab, [c]) = Lab::cast(preset("mainline"));
        let f = c.writes_file("data", 4, 1);
        let task = c.another_thread();
        let asking = spawn(move || {
            let mut held = Vec::new();
            loop {
                match task.layoutget(f, BlockRange::new(0, 4), IoMode::Read) {
                    Ok((fd, layout)) => held.push((fd, layout)),
                    Err(errno) => return (errno, held),
                }
                if let Some((fd, _)) = (held.len() > 8).then(|| held.swap_remove(0)) {
                    task.layoutreturn(fd).unwrap();
                }
            }
        });
        let kernel = Arc::clone(&lab.kernel);
        let removal = spawn(move || kernel.remove_device());
        soon("the end of the removal", || removal.is_over().then_some(()));
        let (errno, held) = asking.join();
        assert_eq!(errno, Errno::ENODEV);
        assert!(held.iter().all(|(_, layout)| layout.is_fenced()));
        lab.end([&c]);
    }
}

/// A change that waits when the removal begins fails with EIO, whatever it waits for, although the
/// device stays until the last DMA has ended.
#[test]
fn a_change_that_waits_for_pins_when_the_device_is_removed() {
    let waits = Axes { stranger_change: ChangeRule::Wait, ..preset("unsafe") };
    for (axes, reason) in [(waits, "long-term pins"), (preset("revoke"), "pins draining")] {
        let lab = Lab::new(axes);
        let [first, second] = ["data", "other"].map(|name| pinned_file(&lab, name, 4, 0..4).unwrap());
        for file in [&first, &second] {
            file.region.dma_in_flight.store(true, Ordering::SeqCst);
        }
        let b = lab.actor();
        let waiting = b.blocks(reason, |task| task.truncate("data", 0));
        let kernel = Arc::clone(&lab.kernel);
        let removal = spawn(move || kernel.remove_device());
        soon("the revocation", || second.region.revoked.load(Ordering::SeqCst).then_some(()));
        first.region.release(&lab.kernel);
        assert_eq!(waiting.finish(), Err(Errno::EIO), "{reason}");
        assert_eq!(first.who.stat(first.fd).unwrap().size, 4 * BLOCK);
        assert!(!removal.is_over());
        second.region.release(&lab.kernel);
        soon("the end of the removal", || removal.is_over().then_some(()));
        lab.end([&first.who, &second.who, &b]);
    }
}
