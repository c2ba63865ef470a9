//! On-demand regions: when a translation is kept, and when it is invalidated.

use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BlockRange, Errno};
use rdma_sim::{AccessFlags, WorkFault, WorkOperation, WorkStatus};

use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::Kernel;

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const FAULTED: AccessFlags = AccessFlags::ALL.on_demand();

/// The number of faults and of invalidations so far.
fn counted(kernel: &Arc<Kernel>) -> (u64, u64) {
    (kernel.counters.odp_faults.get(), kernel.counters.odp_invalidations.get())
}

fn written(b: &Side, name: &str, pages: u64) -> FileMap {
    let fd = b.task.open(name, OpenFlags::create()).unwrap();
    b.task.write(fd, 0, &pattern((pages * PAGE) as usize, 1)).unwrap();
    let va = b.task.mmap(fd, 0, pages * PAGE, true).unwrap();
    FileMap { fd, va, mr: b.reg(va, pages * PAGE, FAULTED).unwrap() }
}

#[test]
fn what_was_translated_once_is_not_faulted_again() {
    for preset in ["mainline", "odp", "rfc-v2"] {
        let (kernel, a, b) = dialogue(preset);
        let local = a.anon(4 * PAGE, ALL);
        let target = written(&b, "data", 4);
        for round in 0..3 {
            a.post(round, WorkOperation::Read, local.sge(0, 4 * PAGE as u32), target.remote(0));
            a.expect(round, WorkStatus::Success);
            assert_eq!(counted(&kernel), (1, 0), "one chunk, one fault");
        }
        assert_eq!(local.bytes(0, 4 * PAGE as usize), pattern(4 * PAGE as usize, 1));
        // Parts of the range, and writes and atomics too.
        a.post(4, WorkOperation::Write, local.sge(0, 64), target.remote(PAGE - 32));
        a.expect(4, WorkStatus::Success);
        a.post(5, WorkOperation::FetchAdd { add: 1 }, local.sge(0, 8), target.remote(2 * PAGE));
        a.expect(5, WorkStatus::Success);
        a.post(6, WorkOperation::AtomicWrite { value: 9 }, local.sge(0, 0), target.remote(3 * PAGE + 8));
        a.expect(6, WorkStatus::Success);
        assert_eq!(counted(&kernel), (1, 0));
        assert_eq!(contents(&b.task, target.fd, 3 * PAGE + 8, 8), 9u64.to_ne_bytes());
        assert_eq!(b.ctx.file_pins(), 0);
        end_dialogue(&a, &b);
    }
}

/// S39.
#[test]
fn a_truncate_invalidates_and_the_next_access_is_refused() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(2 * PAGE, ALL);
    let target = written(&b, "data", 2);
    a.post(1, WorkOperation::Write, local.sge(0, 2 * PAGE as u32), target.remote(0));
    a.expect(1, WorkStatus::Success);
    b.task.truncate("data", PAGE).unwrap();
    // The blocks go to another file: no access may write them through the old translation.
    let thief = a.task.open("thief", OpenFlags::create()).unwrap();
    a.task.write(thief, 0, &[0xee; 16 * PAGE as usize]).unwrap();

    a.post(2, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(2, WorkStatus::Success);
    assert_eq!(counted(&kernel), (2, 1), "the rest is translated again");
    a.post(3, WorkOperation::Write, local.sge(0, 8), target.remote(PAGE));
    assert_eq!(a.expect(3, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    assert_eq!(counted(&kernel), (3, 1));
    assert_eq!(contents(&a.task, thief, 0, 16 * PAGE as usize), [0xee; 16 * PAGE as usize]);
    end_dialogue(&a, &b);
}

#[test]
fn a_new_end_inside_a_block_is_seen() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = written(&b, "data", 1);
    a.post(1, WorkOperation::Read, local.sge(0, PAGE as u32), target.remote(0));
    a.expect(1, WorkStatus::Success);
    b.task.truncate("data", 100).unwrap();
    a.post(2, WorkOperation::Read, local.sge(0, 100), target.remote(0));
    a.expect(2, WorkStatus::Success);
    a.post(3, WorkOperation::Read, local.sge(0, 101), target.remote(0));
    assert_eq!(a.expect(3, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
}

#[test]
fn an_unmapping_invalidates_and_the_next_access_is_refused() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = written(&b, "data", 2);
    a.post(1, WorkOperation::Read, local.sge(0, 8), target.remote(PAGE));
    a.expect(1, WorkStatus::Success);
    b.task.munmap(target.va, PAGE).unwrap();
    a.post(2, WorkOperation::Read, local.sge(0, 8), target.remote(PAGE));
    a.expect(2, WorkStatus::Success);
    assert_eq!(counted(&kernel), (2, 1), "the other half is still mapped");
    b.task.munmap(target.va + PAGE, PAGE).unwrap();
    a.post(3, WorkOperation::Read, local.sge(0, 8), target.remote(PAGE));
    assert_eq!(a.expect(3, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    end_dialogue(&a, &b);
}

#[test]
fn a_translation_of_zeros_is_not_kept() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let fd = b.task.open("data", OpenFlags::create()).unwrap();
    b.task.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 0, PAGE).unwrap();
    let va = b.task.mmap(fd, 0, PAGE, true).unwrap();
    let mr = b.reg(va, PAGE, FAULTED).unwrap();
    local.fill(0, b"noise...");
    a.post(1, WorkOperation::Read, local.sge(0, 8), mr.remote(0));
    a.expect(1, WorkStatus::Success);
    assert_eq!(local.bytes(0, 8), [0; 8], "unwritten");
    // An unwritten block becomes written. That is not a layout change, and the next read sees the
    // bytes.
    b.task.write(fd, 0, b"now here").unwrap();
    a.post(2, WorkOperation::Read, local.sge(0, 8), mr.remote(0));
    a.expect(2, WorkStatus::Success);
    assert_eq!(local.bytes(0, 8), b"now here");
}

#[test]
fn a_read_of_a_hole_allocates_nothing_and_what_fills_it_is_found() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = written(&b, "data", 2);
    b.task.fallocate(target.fd, FallocateMode::PunchHole, 0, PAGE).unwrap();
    local.fill(0, b"noise...");
    a.post(0, WorkOperation::Read, local.sge(0, 8), target.remote(0));
    a.expect(0, WorkStatus::Success);
    assert_eq!((local.bytes(0, 8), b.task.stat(target.fd).unwrap().blocks), (vec![0; 8], 1));
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(PAGE));
    a.expect(1, WorkStatus::Success);
    b.task.write(target.fd, 0, &[5; PAGE as usize]).unwrap();
    a.post(2, WorkOperation::Read, local.sge(0, 8), target.remote(0));
    a.expect(2, WorkStatus::Success);
    assert_eq!(local.bytes(0, 8), [5; 8]);
}

#[test]
fn a_write_and_an_atomic_fill_holes_and_keep_the_translation() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = written(&b, "data", 3);
    b.task.fallocate(target.fd, FallocateMode::PunchHole, 0, 3 * PAGE).unwrap();
    local.fill(0, b"new data");
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(8));
    a.expect(1, WorkStatus::Success);
    a.post(2, WorkOperation::FetchAdd { add: 5 }, local.sge(8, 8), target.remote(PAGE));
    a.expect(2, WorkStatus::Success);
    assert_eq!(local.bytes(8, 8), [0; 8], "what was there");
    assert_eq!(b.task.stat(target.fd).unwrap().blocks, 2);
    assert_eq!(contents(&b.task, target.fd, 0, 16), *b"\0\0\0\0\0\0\0\0new data");
    let faults = counted(&kernel).0;
    a.post(3, WorkOperation::FetchAdd { add: 1 }, local.sge(8, 8), target.remote(PAGE));
    a.expect(3, WorkStatus::Success);
    assert_eq!((local.bytes(8, 8), counted(&kernel).0), (5u64.to_ne_bytes().to_vec(), faults));
    // The gate asked for no lease, but a fault meets leases: a reader's refuses the write.
    let reader = kernel.spawn();
    let fd = reader.open("data", OpenFlags::open(AccessMode::READ)).unwrap();
    reader.lease(fd, LeaseKind::READ, BlockRange::ALL).unwrap();
    a.post(4, WorkOperation::Write, local.sge(0, 8), target.remote(2 * PAGE));
    assert_eq!(a.expect(4, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    assert_eq!(b.task.stat(target.fd).unwrap().blocks, 2);
    expect_rest(&kernel, &[&a.task, &b.task, &reader]);
}

/// A translation that a read has left does not let a write through a read-only mapping.
#[test]
fn write_rights_over_a_read_only_mapping_fail_at_the_access() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let written = written(&b, "data", 1);
    let va = b.task.mmap(written.fd, 0, PAGE, false).unwrap();
    let mr = b.reg(va, PAGE, FAULTED).unwrap();
    a.post(1, WorkOperation::Read, local.sge(0, 8), mr.remote(0));
    a.expect(1, WorkStatus::Success);
    a.post(2, WorkOperation::Write, local.sge(0, 8), mr.remote(0));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    assert_eq!(contents(&b.task, written.fd, 0, 8), pattern(8, 1));
    end_dialogue(&a, &b);
}

#[test]
fn prefetch_translates_ahead_and_only_on_demand_regions() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = written(&b, "data", 2);
    assert_eq!(b.ctx.prefetch(&b.task, &b.pd, target.sge(0, 2 * PAGE as u32), true), Ok(()));
    assert_eq!(counted(&kernel), (1, 0));
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(PAGE));
    a.expect(1, WorkStatus::Success);
    assert_eq!(counted(&kernel), (1, 0));
    let anon = b.anon(PAGE, ALL);
    assert_eq!(b.ctx.prefetch(&b.task, &b.pd, anon.sge(0, 8), false), Err(Errno::EINVAL));
    assert_eq!(b.ctx.prefetch(&b.task, &b.pd, target.sge(PAGE, 2 * PAGE as u32), false), Err(Errno::EFAULT));
    assert_eq!(b.ctx.prefetch(&a.task, &b.pd, target.sge(0, 8), false), Err(Errno::EBADF));
    b.task.truncate("data", 0).unwrap();
    assert_eq!(b.ctx.prefetch(&b.task, &b.pd, target.sge(0, 8), false), Err(Errno::EFAULT));
}

/// A file shrinks and grows during copies through a kept translation. Each copy lands in the file
/// or is refused, and never lands elsewhere.
#[test]
fn copies_meet_truncates_and_are_never_stale() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(4 * PAGE, ALL);
    let target = written(&b, "data", 4);
    let (admin, over) = (kernel.spawn(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let fd = admin.open("data", OpenFlags::create()).unwrap();
            let thief = admin.open("thief", OpenFlags::create()).unwrap();
            for round in 0..300u64 {
                admin.truncate("data", 0).unwrap();
                // Allocates the blocks that were just freed.
                admin.write(thief, round % 8 * 4 * PAGE, &[0xee; 4 * PAGE as usize]).unwrap();
                admin.write(fd, 0, &[1; 4 * PAGE as usize]).unwrap();
            }
            over.store(true, Ordering::SeqCst);
        });
        let mut round = 0;
        while !over.load(Ordering::SeqCst) {
            round += 1;
            a.post(round, WorkOperation::Write, local.sge(0, 4 * PAGE as u32), target.remote(0));
            match a.cq.poll_one().expect("one thread posts here").status {
                WorkStatus::Success => {}
                WorkStatus::RemoteAccessError => {
                    a.qp.reset().unwrap();
                    b.qp.reset().unwrap();
                    rdma_sim::Qp::connect(&a.qp, &b.qp).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let thief = a.task.open("thief", OpenFlags::create()).unwrap();
    assert_eq!(contents(&a.task, thief, 0, 32 * PAGE as usize), [0xee; 32 * PAGE as usize]);
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}
