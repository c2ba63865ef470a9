//! Revocation: the abort of a whole context, on every kind of demand.

use emulator::sync::{Arc, Mutex};
use fs_sim::design::Axis;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BlockRange, Errno, Task};
use rdma_sim::transport::{InProcess, LocalMemory, RdmaMessage, Responder, Transport, WorkFailure};
use rdma_sim::{AccessFlags, AsyncEvent, QpState, WorkFault, WorkOperation, WorkStatus};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

/// Checks every visible effect of an aborted context.
fn expect_aborted(b: &Side, regions: u64) {
    b.expect_state(QpState::Error);
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::Fatal));
    assert_eq!(b.ctx.poll_event(), None);
    assert!(b.ctx.is_aborted());
    assert_eq!(b.ctx.file_pins(), 0);
    assert_eq!(b.ctx.nic().counters.mrs_aborted.get(), regions);
    let (va, _) = b.task.mmap_anonymous(PAGE).unwrap();
    assert_eq!(b.reg(va, PAGE, ALL).err(), Some(Errno::EIO), "one-way");
    assert_eq!(b.ctx.alloc_pd(&b.task).err(), Some(Errno::EIO));
    assert!(b.qp.reset().is_err());
    b.expect_state(QpState::Error);
}

#[test]
fn truncate_under_revoke_aborts_the_holders_context() {
    let (kernel, a, b) = dialogue("revoke");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", 4 * PAGE, ALL);
    let bystander = b.file("other", 4 * PAGE, ALL);
    let inbox = b.anon(PAGE, ALL);
    b.recv(90, inbox.sge(0, 8));
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::Success);

    let admin = kernel.spawn();
    admin.truncate("data", 0).unwrap();
    b.expect(90, WorkStatus::Flushed);
    b.expect_nothing();
    expect_aborted(&b, 3);
    for region in [&target.mr, &bystander.mr, &inbox.mr] {
        assert!(region.is_revoked() && region.is_released());
    }
    assert_eq!(b.task.stat(target.fd).unwrap().size, 0);
    b.post(2, WorkOperation::Write, inbox.sge(0, 8), local.remote(0));
    b.expect(2, WorkStatus::Flushed);
    a.expect_state(QpState::ReadyToSend);
    a.post(3, WorkOperation::Write, local.sge(0, 8), bystander.remote(0));
    assert_eq!(a.expect(3, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Revoked);
    a.expect_state(QpState::Error);

    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
    assert_eq!(b.ctx.dereg_mr(&b.task, &target.mr), Err(Errno::EINVAL));
    b.ctx.destroy_qp(&b.task, &b.qp).unwrap();
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}

#[test]
fn a_holders_own_truncate_revokes_its_own_region() {
    let (_, a, b) = dialogue("revoke");
    let target = b.file("data", 4 * PAGE, ALL);
    b.task.ftruncate(target.fd, PAGE).unwrap();
    expect_aborted(&b, 1);
    end_dialogue(&a, &b);
}

#[test]
fn losing_the_lease_aborts_where_the_design_says_so() {
    for preset in ["gunthorpe", "revoke", "rfc-v2"] {
        let (kernel, a, b) = dialogue(preset);
        let local = a.anon(PAGE, ALL);
        let target = b.file("data", 4 * PAGE, ALL);
        b.task.unlock(target.fd, BlockRange::ALL).unwrap();
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        if kernel.axes().get(Axis::OnLeaseLost) == "abort" {
            a.expect(1, WorkStatus::RemoteAccessError);
            expect_aborted(&b, 1);
        } else {
            a.expect(1, WorkStatus::Success);
            b.expect_state(QpState::ReadyToSend);
            assert!(!target.mr.is_revoked());
        }
        end_dialogue(&a, &b);
    }
}

#[test]
fn last_close_revokes_where_the_design_says_so() {
    let (_, a, b) = dialogue("revoke");
    let target = b.file("data", 4 * PAGE, ALL);
    b.task.close(target.fd).unwrap();
    assert!(!target.mr.is_revoked(), "the mapping still holds the file");
    b.task.munmap(target.va, 4 * PAGE).unwrap();
    expect_aborted(&b, 1);
    end_dialogue(&a, &b);
}

/// A transport that first runs an action: after the requester's local end was checked, before the
/// message is carried.
struct Meanwhile<F>(F);

impl<F: Fn() + Send + Sync + 'static> Transport for Meanwhile<F> {
    fn carry(
        &self,
        peer: &dyn Responder,
        message: &RdmaMessage,
        local: &LocalMemory<'_>,
        bounce: &mut [u8],
    ) -> Result<(), WorkFailure> {
        self.0();
        InProcess.carry(peer, message, local, bounce)
    }
}

#[test]
fn a_local_region_revoked_in_mid_request_is_a_local_protection_error() {
    let kernel = machine("revoke");
    let (a, b) = (side(&kernel, 16), side(&kernel, 16));
    let source = a.file("source", PAGE, ALL);
    let target = b.anon(PAGE, ALL);
    let admin: Arc<Mutex<Task>> = Arc::new(Mutex::new(kernel.spawn()));
    let truncate = {
        let admin = Arc::clone(&admin);
        move || admin.lock().truncate("source", 0).unwrap()
    };
    connect_through(&a, &b, Meanwhile(truncate));
    a.post(1, WorkOperation::Write, source.sge(0, 8), target.remote(0));
    assert_eq!(a.expect(1, WorkStatus::LocalProtectionError).vendor_err, WorkFault::Revoked);
    a.expect_nothing();
    expect_aborted(&a, 1);
    b.expect_state(QpState::ReadyToSend);
    expect_rest(&kernel, &[&a.task, &b.task, &admin.lock()]);
}

#[test]
fn a_refused_truncate_names_the_region_and_changes_nothing() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", 4 * PAGE, ALL);
    let admin = kernel.spawn();
    assert_eq!(admin.truncate("data", 0), Err(Errno::ETXTBSY));
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::Success);
    admin.kill(b.task.pid(), Signal::Sigkill).unwrap();
    assert!(target.mr.is_released());
    admin.truncate("data", 0).unwrap();
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}

#[test]
fn under_unsafe_the_device_really_writes_into_freed_blocks() {
    let (kernel, a, b) = dialogue("unsafe");
    let local = a.anon(PAGE, ALL);
    local.fill(0, b"stale!!!");
    let target = b.file("victim", 4 * PAGE, ALL);
    let admin = kernel.spawn();
    admin.truncate("victim", 0).unwrap();
    // Allocate every free block, the victim's former blocks included: now another file owns them.
    let next = admin.open("next", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
    admin.write(next, 0, &vec![7; 4096 * 4096 - 4096 * 64]).unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::Success);
    assert_eq!(kernel.counters.stale_dma.get(), 1);
    let found = &kernel.findings()[0];
    assert_eq!(found.region.as_ref().and_then(|region| region.region), Some(target.mr.rkey()));
    for task in [&a.task, &b.task, &admin] {
        task.exit();
    }
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
}
