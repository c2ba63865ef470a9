//! Dialogues about direct I/O in flight: `docs/semantics.md`, S16 and S49, and the sequence of
//! xfstests generic/503.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::{CLOSED_PAGES, Lab, every_preset, preset};
use fs_sim::design::{Axes, ChangeRule, WriteBreak};
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::inspect::blockers::Cause;
use fs_sim::syscalls::direct_io::{IN_FLIGHT_MAX, TRANSFER_MAX};
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::syscalls::vmsplice::PIPE_MAX;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BLOCK, Errno};

const WRITE: Transfer = Transfer::Write(7);
const DRAINING: &str = "pins draining";

#[test]
fn refused_submissions() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let f = a.writes_file("data", 2, 1);
    for (offset, len) in [(1, BLOCK), (512, BLOCK), (0, 512), (0, BLOCK + 1), (0, TRANSFER_MAX + BLOCK)] {
        for transfer in [Transfer::Read, WRITE] {
            assert_eq!(a.submit_direct_io(f, offset, len, transfer).err(), Some(Errno::EINVAL), "{offset} {len}");
        }
    }
    assert_eq!(a.submit_direct_io(f, fs_sim::FILE_MAX, BLOCK, WRITE).err(), Some(Errno::EFBIG));
    assert_eq!(a.submit_direct_io(f, u64::MAX / BLOCK * BLOCK, BLOCK, Transfer::Read).err(), Some(Errno::EFBIG));
    let reader = a.open("data", OpenFlags::open(AccessMode::READ)).unwrap();
    let writer = a.open("data", OpenFlags::open(AccessMode::WRITE)).unwrap();
    let named = a.open("data", OpenFlags::path()).unwrap();
    for (fd, transfer) in [(reader, WRITE), (writer, Transfer::Read), (named, Transfer::Read), (named, WRITE)] {
        assert_eq!(a.submit_direct_io(fd, 0, BLOCK, transfer).err(), Some(Errno::EBADF));
    }
    let many: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| a.submit_direct_io(f, 0, BLOCK, WRITE).unwrap()).collect();
    assert_eq!(a.submit_direct_io(f, 0, BLOCK, WRITE).err(), Some(Errno::EAGAIN));
    for io in many {
        assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
    }
    assert_eq!(a.bytes_of(f), [7, 2]);
    lab.end([&a]);
}

/// S16: a truncate, a punch or a zero-range waits for I/O in flight, in every design that respects
/// pins.
#[test]
fn changes_wait_for_io_in_flight() {
    every_preset(|axes| {
        if axes.stranger_change == ChangeRule::Proceed {
            return;
        }
        for transfer in [Transfer::Read, WRITE] {
            for change in 0..2 {
                let (lab, [a, b]) = Lab::cast(axes);
                let f = a.writes_file("data", 4, 1);
                let io = a.submit_direct_io(f, BLOCK, 2 * BLOCK, transfer).unwrap();
                let g = b.opens("data");
                let changing = b.blocks(DRAINING, move |task| match change {
                    0 => task.ftruncate(g, BLOCK),
                    _ => task.fallocate(g, FallocateMode::PunchHole, BLOCK, BLOCK),
                });
                assert_eq!(a.stat(f).unwrap().size, 4 * BLOCK, "nothing is visible yet");
                let mut got = vec![0; 2 * BLOCK as usize];
                assert_eq!(io.complete(&a, &mut got), Ok(2 * BLOCK as usize));
                if transfer == Transfer::Read {
                    assert_eq!((got[0], got[BLOCK as usize]), (2, 3), "what was there when it was submitted");
                }
                assert_eq!(changing.finish(), Ok(()));
                let third = if transfer == WRITE { 7 } else { 3 };
                assert_eq!(a.bytes_of(f), if change == 0 { vec![1] } else { vec![1, 0, third, 4] });
                lab.end([&a, &b]);
            }
        }
    });
}

/// The design that ignores pins: the write lands in a block that has left the file, and the ledger
/// detects it.
#[test]
fn unsafe_truncates_under_it() {
    let (lab, [a, b]) = Lab::cast(preset("unsafe"));
    let f = a.writes_file("data", 2, 1);
    let io = a.submit_direct_io(f, BLOCK, BLOCK, WRITE).unwrap();
    assert_eq!(b.truncate("data", BLOCK), Ok(()));
    assert_eq!(lab.stale(), 0);
    assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
    assert_eq!(lab.stale(), 1);
    a.exit();
    b.exit();
}

#[test]
fn a_change_that_waits_for_io_can_be_interrupted() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 2, 1);
    let io = a.submit_direct_io(f, 0, BLOCK, WRITE).unwrap();
    let truncating = b.blocks(DRAINING, |task| task.truncate("data", 0));
    let reading = a.another_thread().blocks(CLOSED_PAGES, move |task| task.read(f, 0, &mut [0; 8]));
    a.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(truncating.finish(), Err(Errno::EINTR));
    assert_eq!(reading.finish(), Ok(8));
    assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
    assert_eq!(a.bytes_of(f), [7, 2]);
    lab.end([&a, &b]);
}

/// A submitted write allocates the holes in its range; they read as zeros until completion. A write
/// beyond the end of the file is done at submission.
#[test]
fn holes_and_the_end_of_the_file() {
    every_preset(|axes| {
        for write_break in [WriteBreak::Precise, WriteBreak::Conservative] {
            let lab = Lab::with(axes, |config| config.options.write_break = write_break);
            let a = lab.actor();
            let f = a.creates("data");
            a.ftruncate(f, 3 * BLOCK).unwrap();
            let io = a.submit_direct_io(f, BLOCK, BLOCK, WRITE).unwrap();
            assert_eq!(a.stat(f).unwrap().blocks, 1);
            if write_break == WriteBreak::Precise {
                assert_eq!(a.bytes_of(f), [0, 0, 0]);
            }
            assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
            assert_eq!(a.bytes_of(f), [0, 7, 0]);
            let io = a.submit_direct_io(f, 2 * BLOCK, 2 * BLOCK, Transfer::Write(9)).unwrap();
            assert_eq!(a.bytes_of(f), [0, 7, 9, 9], "extending");
            assert_eq!(io.complete(&a, &mut []), Ok(2 * BLOCK as usize));
            let mut got = vec![0xee; 4 * BLOCK as usize];
            let io = a.submit_direct_io(f, 2 * BLOCK, 4 * BLOCK, Transfer::Read).unwrap();
            assert_eq!(io.complete(&a, &mut got), Ok(2 * BLOCK as usize), "short at the end");
            assert_eq!((got[0], got[2 * BLOCK as usize]), (9, 0xee));
            let io = a.submit_direct_io(f, 0, 4 * BLOCK, Transfer::Read).unwrap();
            assert_eq!(io.complete(&a, &mut got[1..]), Err(Errno::EFAULT), "no room");
            for (offset, len) in [(0, 0), (9 * BLOCK, BLOCK)] {
                let io = a.submit_direct_io(f, offset, len, Transfer::Read).unwrap();
                assert_eq!(io.complete(&a, &mut got), Ok(0));
            }
            let io = a.submit_direct_io(f, 9 * BLOCK, 0, WRITE).unwrap();
            assert_eq!(io.complete(&a, &mut []), Ok(0));
            assert_eq!(a.stat(f).unwrap().size, 4 * BLOCK, "nothing written, nothing extended");
            lab.end([&a]);
        }
    });
}

/// The file stays while I/O is in flight. The death of the process completes a write and drops the
/// pins.
#[test]
fn io_in_flight_outlives_its_submitter() {
    let (lab, [a, b]) = Lab::cast(preset("mainline"));
    let f = a.writes_file("data", 2, 1);
    let io = a.submit_direct_io(f, 0, BLOCK, WRITE).unwrap();
    a.unlink("data").unwrap();
    a.close(f).unwrap();
    assert_eq!(lab.kernel.usage().allocated, 2, "open, without a name or a descriptor");
    assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
    assert_eq!(lab.kernel.usage().allocated, 0);
    let f = a.writes_file("data", 2, 1);
    let io = a.submit_direct_io(f, 0, BLOCK, WRITE).unwrap();
    let reads = a.submit_direct_io(f, BLOCK, BLOCK, Transfer::Read).unwrap();
    let g = b.opens("data");
    let punching = b.blocks(DRAINING, move |task| task.fallocate(g, FallocateMode::PunchHole, BLOCK, BLOCK));
    a.exit();
    assert_eq!(punching.finish(), Ok(()));
    assert_eq!(b.bytes_of(g), [7, 0]);
    assert_eq!(io.complete(&a, &mut []), Err(Errno::Dead));
    assert_eq!(reads.complete(&a, &mut [0; BLOCK as usize]), Err(Errno::Dead));
    lab.end([&a, &b]);
}

/// S49: while a truncate waits for a long-term pin, direct I/O goes on.
#[test]
fn io_goes_on_beside_a_wait_for_a_long_term_pin() {
    let axes = Axes { stranger_change: ChangeRule::Wait, holder_change: ChangeRule::Wait, ..preset("unsafe") };
    let (lab, pinned) = Lab::pinned(axes, 2, 0..2).unwrap();
    let (b, fd) = (lab.actor(), pinned.fd);
    let truncating = b.blocks("long-term pins", |task| task.truncate("data", 0));
    for round in 0..3 {
        let io = pinned.who.submit_direct_io(fd, 0, BLOCK, Transfer::Write(round)).unwrap();
        assert_eq!(io.complete(&pinned.who, &mut []), Ok(BLOCK as usize));
    }
    truncating.expect_blocked("long-term pins");
    assert_eq!(pinned.who.bytes_of(fd), [2, 2]);
    let io = pinned.who.submit_direct_io(fd, 0, BLOCK, Transfer::Write(9)).unwrap();
    pinned.region.release(&lab.kernel);
    truncating.expect_blocked(DRAINING);
    assert_eq!(io.complete(&pinned.who, &mut []), Ok(BLOCK as usize));
    assert_eq!(truncating.finish(), Ok(()));
    lab.end([&pinned.who, &b]);
}

/// A clone waits for a write in flight to the source and to the target: no block is written once it
/// is shared.
#[test]
fn a_clone_waits_for_writes_in_flight() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (source, target) = (a.writes_file("data", 2, 1), a.writes_file("copy", 2, 4));
    for fd in [source, target] {
        let io = a.submit_direct_io(fd, 0, BLOCK, WRITE).unwrap();
        let (from, to) = (b.opens("data"), b.opens("copy"));
        let cloning = b.blocks(DRAINING, move |task| task.reflink(from, 0, to, 0, BLOCK));
        assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
        assert_eq!(cloning.finish(), Ok(()));
        assert_eq!((a.bytes_of(source), a.bytes_of(target)), (vec![7, 2], vec![7, 5]));
    }
    let io = a.submit_direct_io(target, 0, BLOCK, Transfer::Write(9)).unwrap();
    assert_eq!(a.bytes_of(target), [7, 5], "copied by now, written on completion");
    assert_eq!(io.complete(&a, &mut []), Ok(BLOCK as usize));
    assert_eq!((a.bytes_of(source), a.bytes_of(target)), (vec![7, 2], vec![9, 5]), "the sharer keeps its own");
    lab.end([&a, &b]);
}

/// Only the process that has I/O in flight can end it. A process with one thread that would wait
/// for its own I/O gets EDEADLK. Of two processes that would wait for each other, the second gets
/// EDEADLK. Another thread can end the I/O.
#[test]
fn io_in_flight_and_deadlocks() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let (f, g) = (a.writes_file("data", 2, 1), b.writes_file("other", 2, 4));
    let io = a.submit_direct_io(f, 0, BLOCK, Transfer::Read).unwrap();
    assert_eq!(a.ftruncate(f, 0), Err(Errno::EDEADLK));
    let deadlocks = lab.kernel.deadlocks();
    let [itself] = &deadlocks[0].participants[..] else { panic!("a cycle of one") };
    assert_eq!((itself.pid, itself.reason), (a.pid(), DRAINING));
    assert_eq!(itself.needs[0].any_of, [a.pid()]);
    assert_eq!(a.ftruncate(f, BLOCK), Ok(()), "elsewhere it has none");

    let other = b.submit_direct_io(g, 0, BLOCK, Transfer::Read).unwrap();
    let waiting = a.blocks(DRAINING, |task| task.truncate("other", 0));
    assert_eq!(b.truncate("data", 0), Err(Errno::EDEADLK));
    assert_eq!(lab.kernel.deadlocks()[1].participants.len(), 2);
    other.complete(&a, &mut [0; BLOCK as usize]).unwrap();
    assert_eq!(waiting.finish(), Ok(()));

    let thread = a.another_thread();
    let waiting = a.blocks(DRAINING, move |task| task.ftruncate(f, 0));
    io.complete(&a, &mut [0; BLOCK as usize]).unwrap();
    assert_eq!(waiting.finish(), Ok(()));
    drop(thread);
    lab.end([&a, &b]);
}

/// Pages in a pipe hold neither the mapping nor the open file: the file can lose everything else.
#[test]
fn pages_in_a_pipe_outlive_mapping_descriptor_and_name() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 4, 1);
    let ino = a.inode_of(f).ino();
    let va = a.mmap(f, 0, 4 * BLOCK, false).unwrap();
    assert_eq!(a.vmsplice(va, 0).err(), Some(Errno::EINVAL));
    assert_eq!(a.vmsplice(va, PIPE_MAX + 1).err(), Some(Errno::EINVAL));
    assert_eq!(a.vmsplice(va, 5 * BLOCK).err(), Some(Errno::EFAULT), "beyond the mapping");
    let pages = a.vmsplice(va + BLOCK, 2 * BLOCK).unwrap();
    a.munmap(va, 4 * BLOCK).unwrap();
    a.close(f).unwrap();
    let truncating = b.blocks(DRAINING, |task| task.truncate("data", 2 * BLOCK));
    let found = lab.kernel.blockers(ino).unwrap();
    let pipe = &found.blocked.unwrap().blockers[0];
    assert_eq!(pipe.cause, Cause::PipePages { process: a.pid().0 });
    assert_eq!(
        pipe.releasers.iter().map(|releaser| (releaser.pid, releaser.fd)).collect::<Vec<_>>(),
        [(a.pid().0, None)]
    );
    let got = pages.read(&lab.kernel).unwrap();
    assert_eq!((got[0], got[BLOCK as usize]), (2, 3));
    assert_eq!(truncating.finish(), Ok(()));

    let f = a.opens("data");
    let va = a.mmap(f, 0, 2 * BLOCK, false).unwrap();
    let pages = a.vmsplice(va, BLOCK).unwrap();
    b.unlink("data").unwrap();
    a.munmap(va, 2 * BLOCK).unwrap();
    a.close(f).unwrap();
    assert_eq!(lab.kernel.usage().orphaned, 1);
    assert_eq!(pages.read(&lab.kernel).unwrap(), vec![1; BLOCK as usize]);
    assert_eq!(lab.kernel.usage().orphaned, 0);
    lab.end([&a, &b]);
}

#[test]
fn memory_without_a_file_in_a_pipe() {
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let (va, memory) = a.mmap_anonymous(2 * BLOCK).unwrap();
    let pages = a.vmsplice(va + BLOCK, BLOCK).unwrap();
    a.munmap(va, 2 * BLOCK).unwrap();
    memory.write(BLOCK, &[5; 8]).unwrap();
    assert_eq!(pages.read(&lab.kernel).unwrap()[..9], [5, 5, 5, 5, 5, 5, 5, 5, 0]);
    let f = a.writes_file("data", 2, 1);
    let va = a.mmap(f, 0, BLOCK, false).unwrap();
    let pages = a.vmsplice(va, BLOCK).unwrap();
    a.exit();
    assert_eq!(pages.read(&lab.kernel).err(), Some(Errno::Dead));
    lab.end([]);
}

/// Pages of a private mapping that lie side by side are one run: a pipe takes as few of the
/// process's I/O slots as there are runs of the file's pages.
#[test]
fn many_pipes_of_a_private_mapping() {
    let pages = PIPE_MAX / BLOCK;
    let (lab, [a]) = Lab::cast(preset("mainline"));
    let f = a.writes_file("data", pages, 0);
    let va = a.mmap_private(f, 0, PIPE_MAX, true).unwrap();
    let pipes: Vec<_> = (0..2 * IN_FLIGHT_MAX as u64 / pages).map(|_| a.vmsplice(va, PIPE_MAX).unwrap()).collect();
    for block in [1, 2, 5] {
        a.store(va + block * BLOCK, &[0xaa; BLOCK as usize]).unwrap();
    }
    // From the middle of a page to the middle of one.
    let mixed = a.vmsplice(va + BLOCK / 2, 7 * BLOCK).unwrap().read(&lab.kernel).unwrap();
    let expected = (BLOCK / 2..7 * BLOCK + BLOCK / 2).map(|at| match at / BLOCK {
        1 | 2 | 5 => 0xaa,
        block => block as u8,
    });
    assert!(mixed.into_iter().eq(expected));
    for pipe in pipes {
        let bytes = pipe.read(&lab.kernel).unwrap();
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at as u64 / BLOCK) as u8));
    }
    lab.end([&a]);
}
