//! FLUSH and atomic write: the memory placement extensions.

use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::{Errno, Kernel, KernelConfig};
use rdma_sim::{
    AccessFlags, AsyncEvent, FlushLevel, FlushPlacement, PostError, Qp, QpState, Sge, WorkFault, WorkOpcode,
    WorkOperation, WorkRequest, WorkStatus,
};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const FLUSHED: AccessFlags = AccessFlags::ALL.flush_global().flush_persistent();

fn flush(placement: FlushPlacement, level: FlushLevel) -> WorkOperation {
    WorkOperation::Flush { placement, level }
}

/// A local end that carries only a length.
fn so_many(len: u32) -> Sge {
    Sge { len, ..Sge::default() }
}

#[test]
fn a_flush_makes_what_was_written_before_durable() {
    use FlushLevel::{Mr, Range};
    use FlushPlacement::{Global, Persistent};
    let folder = tempfile::tempdir().unwrap();
    for (nth, image) in [false, true].into_iter().enumerate() {
        let device = match image {
            true => Device::image(&folder.path().join(format!("image{nth}")), 16 << 20).unwrap(),
            false => Device::memory(16 << 20).unwrap(),
        };
        let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes("rfc-v2"))).unwrap();
        let (a, b) = pair(&kernel);
        let local = a.anon(8 * PAGE, ALL);
        // Once with pinned memory, once on demand.
        for (name, access) in [("pinned", FLUSHED), ("faulted", FLUSHED.on_demand())] {
            let target = b.file(name, 8 * PAGE, access);
            let before = kernel.counters.pages_persisted.get();
            let persisted = || kernel.counters.pages_persisted.get() - before;
            a.post(1, WorkOperation::Write, local.sge(0, 8 * PAGE as u32), target.remote(0));
            a.expect(1, WorkStatus::Success);
            a.post(2, flush(Global, Range), so_many(100), target.remote(0));
            a.expect_done(2, WorkOpcode::Flush, 0);
            assert_eq!(persisted(), 0, "a global flush does not touch the medium");
            // Exactly the pages that the range touches.
            a.post(3, flush(Persistent, Range), so_many(100), target.remote(2 * PAGE - 50));
            a.expect_done(3, WorkOpcode::Flush, 0);
            assert_eq!(persisted(), 2);
            a.post(4, flush(Persistent, Mr), so_many(0), (0, target.mr.rkey()));
            a.expect_done(4, WorkOpcode::Flush, 0);
            assert_eq!(persisted(), 2 + 8, "the whole region, whatever range the request names");
        }
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_flush_that_was_not_allowed_is_a_remote_access_error() {
    use FlushLevel::{Mr, Range};
    use FlushPlacement::{Global, Persistent};
    let cases = [
        (Global, Range, ALL.flush_persistent(), 0, 8, 0, WorkFault::Access),
        (Persistent, Range, ALL.flush_global(), 0, 8, 0, WorkFault::Access),
        (Global, Mr, ALL.flush_persistent(), 0, 8, 0, WorkFault::Access),
        (Persistent, Mr, ALL.flush_global(), 0, 8, 0, WorkFault::Access),
        (Persistent, Range, FLUSHED, PAGE - 4, 8, 0, WorkFault::Range),
        (Global, Range, FLUSHED, PAGE, 1, 0, WorkFault::Range),
        (Global, Range, FLUSHED, 0, 8, 1, WorkFault::UnknownKey),
        // Unlike a read or write of no bytes, a flush of no bytes checks its key.
        (Global, Range, FLUSHED, 0, 0, 1, WorkFault::UnknownKey),
        (Persistent, Mr, FLUSHED, 0, 0, 1, WorkFault::UnknownKey),
    ];
    for (placement, level, access, at, len, wrong_key, fault) in cases {
        let (kernel, a, b) = dialogue("rfc-v2");
        let target = b.file("data", PAGE, access);
        let (addr, rkey) = target.remote(at);
        a.post(1, flush(placement, level), so_many(len), (addr, rkey ^ wrong_key));
        let failed = a.expect(1, WorkStatus::RemoteAccessError);
        assert_eq!(failed.vendor_err, fault, "{placement:?} {level:?} {access:?} {at} {len}");
        a.expect_state(QpState::Error);
        b.expect_state(QpState::Error);
        assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
        assert_eq!(kernel.counters.pages_persisted.get(), 0);
        end_dialogue(&a, &b);
    }
}

#[test]
fn only_persistent_memory_can_be_registered_as_such() {
    for flags in [FLUSHED, FLUSHED.on_demand()] {
        let (kernel, a, b) = dialogue("rfc-v2");
        let (va, _) = b.task.mmap_anonymous(PAGE).unwrap();
        assert_eq!(b.reg(va, PAGE, flags).err(), Some(Errno::EINVAL));
        let global = b.reg(va, PAGE, ALL.flush_global()).unwrap();
        a.post(1, flush(FlushPlacement::Global, FlushLevel::Range), so_many(8), global.remote(0));
        a.expect(1, WorkStatus::Success);
        a.post(2, flush(FlushPlacement::Persistent, FlushLevel::Mr), so_many(8), global.remote(0));
        assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Access);
        // Device-DAX memory is persistent.
        let (c, d) = pair(&kernel);
        let (va, _) = d.task.mmap_device_dax(PAGE).unwrap();
        let device = d.reg(va, PAGE, flags).unwrap();
        c.post(3, flush(FlushPlacement::Persistent, FlushLevel::Range), so_many(8), device.remote(0));
        c.expect(3, WorkStatus::Success);
        expect_rest(&kernel, &[&a.task, &b.task, &c.task, &d.task]);
    }
}

#[test]
fn a_flush_over_a_truncated_on_demand_range_is_refused() {
    let (_, a, b) = dialogue("rfc-v2");
    let target = b.file("data", 2 * PAGE, FLUSHED.on_demand());
    // Release the lease first: this test is about the range, not about the lease.
    b.task.unlock(target.fd, fs_sim::BlockRange::ALL).unwrap();
    b.task.truncate("data", PAGE).unwrap();
    a.post(1, flush(FlushPlacement::Persistent, FlushLevel::Range), so_many(8), target.remote(0));
    a.expect(1, WorkStatus::Success);
    a.post(2, flush(FlushPlacement::Persistent, FlushLevel::Mr), so_many(8), target.remote(0));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    end_dialogue(&a, &b);
}

#[test]
fn an_atomic_write_stores_8_bytes_where_a_write_may() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let target = b.file("data", PAGE, AccessFlags { remote_write: true, ..AccessFlags::LOCAL_WRITE });
    let value = 0x0102_0304_0506_0708;
    a.post(1, WorkOperation::AtomicWrite { value }, Sge::default(), target.remote(16));
    a.expect_done(1, WorkOpcode::AtomicWrite, 8);
    assert_eq!(contents(&b.task, target.fd, 16, 8), value.to_ne_bytes());
    let carried = WorkRequest {
        wr_id: 2,
        op: WorkOperation::AtomicWrite { value },
        local: so_many(8),
        remote_addr: target.va,
        rkey: target.mr.rkey(),
        signaled: true,
    };
    assert!(matches!(a.qp.post_send(carried), Err(PostError::Length { len: 8, .. })));

    a.post(3, WorkOperation::AtomicWrite { value: 1 }, Sge::default(), target.remote(4));
    assert_eq!(a.expect(3, WorkStatus::RemoteInvalidRequest).vendor_err, WorkFault::Misaligned);
    b.expect_state(QpState::Error);
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpRequest { qp_num: b.qp.number() }));

    let read_only = AccessFlags { remote_read: true, remote_atomic: true, ..AccessFlags::LOCAL_WRITE };
    for (access, at, fault) in [(read_only, 0, WorkFault::Access), (ALL, PAGE, WorkFault::Range)] {
        let (a, b) = pair(&kernel);
        let target = b.anon(PAGE, access);
        a.post(4, WorkOperation::AtomicWrite { value: 1 }, Sge::default(), target.remote(at));
        assert_eq!(a.expect(4, WorkStatus::RemoteAccessError).vendor_err, fault);
        assert_eq!(target.bytes(0, 8), [0; 8]);
    }
}

/// Two peers store different words at one address and a third peer reads it: it never sees a
/// mixture.
#[test]
fn an_atomic_write_is_never_torn() {
    const VALUES: [u64; 2] = [0, u64::MAX];
    let kernel = machine("rfc-v2");
    let owner = side(&kernel, 16);
    let target = owner.file("data", PAGE, ALL);
    let remote = target.remote(64);
    let connected = || {
        let (own, peer) = (side(&kernel, 16), {
            let config = rdma_sim::QpConfig {
                send_cq: Arc::clone(&owner.cq),
                recv_cq: Arc::clone(&owner.cq),
                max_send: 8,
                max_recv: 8,
            };
            owner.ctx.create_qp(&owner.task, &owner.pd, config).unwrap()
        });
        Qp::connect(&own.qp, &peer).unwrap();
        own
    };
    let (writers, reader, over) = ([connected(), connected()], connected(), AtomicBool::new(false));
    thread::scope(|scope| {
        for (writer, value) in writers.iter().zip(VALUES) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    writer.post(1, WorkOperation::AtomicWrite { value }, Sge::default(), remote);
                    writer.expect(1, WorkStatus::Success);
                }
            });
        }
        let local = reader.anon(PAGE, ALL);
        let (mut seen, mut changes, mut round) = (0, 0, 0);
        // Until the writers have run; on one processor that takes long.
        while changes < 2_000 && round < 200_000 {
            round += 1;
            reader.post(round, WorkOperation::Read, local.sge(0, 8), remote);
            reader.expect(round, WorkStatus::Success);
            let found = u64::from_ne_bytes(local.bytes(0, 8).try_into().unwrap());
            if !VALUES.contains(&found) {
                over.store(true, Ordering::SeqCst);
                panic!("torn: {found:#x}");
            }
            changes += u32::from(found != seen);
            seen = found;
        }
        over.store(true, Ordering::SeqCst);
    });
    let [first, second] = &writers;
    expect_rest(&kernel, &[&owner.task, &first.task, &second.task, &reader.task]);
}
