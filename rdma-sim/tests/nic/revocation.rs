//! Revocation: the abort of a whole context, on every kind of demand, and of one region
//! (`revoke_scope = region`).

use emulator::sync::{Arc, Mutex};
use fs_sim::design::Axis;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BlockRange, Errno, Task};
use rdma_sim::transport::{InProcess, LocalMemory, RdmaMessage, Responder, Transport, WorkFailure};
use rdma_sim::{AccessFlags, AsyncEvent, QpState, Rereg, Sge, WorkFault, WorkOperation, WorkStatus};

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
    let (kernel, a, b) = dialogue_with(whole_context());
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
    let (_, a, b) = dialogue_with(whole_context());
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
    let (_, a, b) = dialogue_with(whole_context());
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
    let kernel = machine_with(whole_context());
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

/// `revoke_scope = region`: keys of the region die, an event names it, and all else works on.
#[test]
fn a_truncate_takes_one_region_and_leaves_the_context() {
    let (kernel, a, b) = dialogue("revoke");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", 4 * PAGE, ALL);
    let bystander = b.file("other", 4 * PAGE, ALL);
    let admin = kernel.spawn();
    admin.truncate("data", 0).unwrap();
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::RegionRevoked { rkey: target.mr.rkey() }));
    assert_eq!(b.ctx.poll_event(), None);
    assert!(target.mr.is_revoked() && target.mr.is_released() && !bystander.mr.is_revoked() && !b.ctx.is_aborted());
    assert_eq!((b.ctx.file_pins(), b.ctx.nic().counters.mrs_aborted.get()), (1, 1));
    b.expect_state(QpState::ReadyToSend);
    a.post(1, WorkOperation::Write, local.sge(0, 8), bystander.remote(0));
    a.expect(1, WorkStatus::Success);

    // An access with the dead key is an access with a bad key: both ends of this connection fall.
    a.post(2, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Revoked);
    for side in [&a, &b] {
        side.expect_state(QpState::Error);
    }
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
    connect_again(&a, &b);
    a.post(3, WorkOperation::Write, local.sge(0, 8), bystander.remote(0));
    a.expect(3, WorkStatus::Success);

    // A request of its own with the dead key.
    b.post(4, WorkOperation::Write, Sge { lkey: target.mr.lkey(), addr: target.va, len: 8 }, local.remote(0));
    assert_eq!(b.expect(4, WorkStatus::LocalProtectionError).vendor_err, WorkFault::Revoked);
    b.expect_state(QpState::Error);
    assert!(!b.ctx.is_aborted());

    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
    assert_eq!(b.ctx.dereg_mr(&b.task, &target.mr), Err(Errno::EINVAL));
    let (va, _) = b.task.mmap_anonymous(PAGE).unwrap();
    b.reg(va, PAGE, ALL).unwrap();
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}

/// The holder's own change, and the last close, take regions the same way.
#[test]
fn own_changes_and_the_last_close_take_single_regions() {
    let (_, a, b) = dialogue("revoke");
    let first = b.file("first", 4 * PAGE, ALL);
    let second = b.file("second", 4 * PAGE, ALL);
    b.task.ftruncate(first.fd, PAGE).unwrap();
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::RegionRevoked { rkey: first.mr.rkey() }));
    b.task.close(second.fd).unwrap();
    b.task.munmap(second.va, 4 * PAGE).unwrap();
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::RegionRevoked { rkey: second.mr.rkey() }));
    assert!(second.mr.is_released() && !b.ctx.is_aborted());
    end_dialogue(&a, &b);
}

/// A region is revoked while its registration is being changed: the old one ends the change, the
/// new one is revoked once it is in its place. Rights alone keep the pins under the old handle.
#[test]
fn a_changed_registration_is_revoked_by_its_pins() {
    let (kernel, a, b) = dialogue("revoke");
    let target = b.file("data", 4 * PAGE, ALL);
    let change = Rereg { access: Some(AccessFlags::LOCAL_WRITE), ..Rereg::default() };
    let changed = b.ctx.rereg_mr(&b.task, &target.mr, change).unwrap();
    let admin = kernel.spawn();
    admin.truncate("data", 0).unwrap();
    assert!(changed.is_revoked() && changed.is_released());
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::RegionRevoked { rkey: changed.rkey() }));
    let again = Rereg { access: Some(AccessFlags::ALL), ..Rereg::default() };
    assert_eq!(b.ctx.rereg_mr(&b.task, &changed, again).err(), Some(Errno::EIO), "it is revoked");
    b.ctx.dereg_mr(&b.task, &changed).unwrap();
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}

/// The removal of the device aborts contexts, whatever the scope.
#[test]
fn device_removal_aborts_the_whole_context() {
    let (kernel, _a, b) = dialogue("revoke");
    let _target = b.file("data", PAGE, ALL);
    kernel.remove_device();
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::Fatal));
    assert!(b.ctx.is_aborted());
}

/// Moves both ends through RESET back to RTS.
fn connect_again(a: &Side, b: &Side) {
    a.qp.reset().unwrap();
    b.qp.reset().unwrap();
    rdma_sim::Qp::connect(&a.qp, &b.qp).unwrap();
}
