//! Every row of the error table (docs/semantics.md, section 7): the requester's completion, the
//! states of both queue pairs afterwards, and what happens to later requests.

use emulator::sync::{Arc, Mutex};
use rdma_sim::transport::{InProcess, LocalMemory, RdmaMessage, Responder, Transport, WorkFailure};
use rdma_sim::{
    AccessFlags, AsyncEvent, PostError, Qp, QpState, ReceiveRequest, Sge, WorkFault, WorkOperation, WorkRequest,
    WorkStatus,
};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const READ_ONLY: AccessFlags = AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ };
const WRITE_ONLY: AccessFlags = AccessFlags { remote_write: true, ..AccessFlags::LOCAL_WRITE };

#[test]
fn bad_key_range_or_access_at_the_peer() {
    let swap = WorkOperation::CompareSwap { compare: 0, swap: 1 };
    let cases: [(WorkOperation, AccessFlags, u64, u32, WorkFault); 8] = [
        (WorkOperation::Write, ALL, 0, 1 << 8, WorkFault::UnknownKey),
        (WorkOperation::Write, ALL, 0, 1, WorkFault::UnknownKey),
        (WorkOperation::Read, ALL, 2 * PAGE - 7, 0, WorkFault::Range),
        (WorkOperation::Write, ALL, u64::MAX - 0x1000_0000, 0, WorkFault::Range),
        (WorkOperation::Write, READ_ONLY, 0, 0, WorkFault::Access),
        (WorkOperation::Read, WRITE_ONLY, 0, 0, WorkFault::Access),
        (swap, WRITE_ONLY, 0, 0, WorkFault::Access),
        (swap, ALL, 2 * PAGE, 0, WorkFault::Range),
    ];
    for (op, access, at, wrong_key, fault) in cases {
        let (_, a, b) = dialogue("rfc-v2");
        let local = a.anon(PAGE, ALL);
        let target = b.file("data", 2 * PAGE, access);
        let remote = (target.va.wrapping_add(at), target.mr.rkey() ^ wrong_key);
        a.recv(90, local.sge(0, 1));
        b.recv(91, target.sge(0, 1));

        a.post(1, op, local.sge(0, 8), remote);
        let failed = a.expect(1, WorkStatus::RemoteAccessError);
        assert_eq!(failed.vendor_err, fault, "{op:?} {access:?} {at:#x}");
        a.expect(90, WorkStatus::Flushed);
        b.expect(91, WorkStatus::Flushed);
        a.expect_state(QpState::Error);
        b.expect_state(QpState::Error);
        assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
        assert_eq!(a.ctx.poll_event(), None);

        a.post(2, op, local.sge(0, 8), remote);
        a.expect(2, WorkStatus::Flushed);
        a.recv(3, local.sge(0, 8));
        a.expect(3, WorkStatus::Flushed);
        b.post(4, WorkOperation::Write, local.sge(0, 8), remote);
        b.expect(4, WorkStatus::Flushed);
        a.expect_nothing();
        b.expect_nothing();
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_key_of_another_domain() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let other = b.ctx.alloc_pd(&b.task).unwrap();
    let (va, _) = b.task.mmap_anonymous(PAGE).unwrap();
    let target = b.ctx.reg_mr(&b.task, &other, va, PAGE, ALL).unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::OtherDomain);
    b.expect_state(QpState::Error);
}

#[test]
fn a_deregistered_key_is_stale() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.anon(PAGE, ALL);
    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::RemoteAccessError);
}

#[test]
fn a_misaligned_atomic_is_an_invalid_request() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", PAGE, ALL);
    a.post(1, WorkOperation::FetchAdd { add: 1 }, local.sge(0, 8), target.remote(4));
    assert_eq!(a.expect(1, WorkStatus::RemoteInvalidRequest).vendor_err, WorkFault::Misaligned);
    a.expect_state(QpState::Error);
    b.expect_state(QpState::Error);
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpRequest { qp_num: b.qp.number() }));
    assert_eq!(contents(&b.task, target.fd, 0, 16), [0; 16]);
}

#[test]
fn a_message_longer_than_its_receive_is_an_invalid_request() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    local.fill(0, b"too long");
    b.recv(10, inbox.sge(0, 7));
    b.recv(11, inbox.sge(0, 8));
    a.send(1, local.sge(0, 8));
    assert_eq!(a.expect(1, WorkStatus::RemoteInvalidRequest).vendor_err, WorkFault::Length);
    b.expect(10, WorkStatus::LocalLengthError);
    b.expect(11, WorkStatus::Flushed);
    b.expect_nothing();
    b.expect_state(QpState::Error);
    assert_eq!(inbox.bytes(0, 8), [0; 8], "no byte was written");
}

#[test]
fn a_receive_into_bad_memory_is_a_remote_operation_error() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, READ_ONLY));
    for (at, len) in [(0, 8), (PAGE - 4, 8)] {
        let (a, b) = pair(&kernel);
        let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, if at == 0 { READ_ONLY } else { ALL }));
        b.recv(10, inbox.sge(at, len));
        a.send(1, local.sge(0, 1));
        assert_eq!(a.expect(1, WorkStatus::RemoteOperationError).vendor_err, WorkFault::ReceiveMemory);
        b.expect(10, WorkStatus::LocalProtectionError);
        b.expect_state(QpState::Error);
        assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpFatal { qp_num: b.qp.number() }));
    }
    b.recv(10, Sge { lkey: inbox.mr.lkey() ^ 1, ..inbox.sge(0, 8) });
    a.send(1, local.sge(0, 1));
    a.expect(1, WorkStatus::RemoteOperationError);
    assert_eq!(b.expect(10, WorkStatus::LocalProtectionError).vendor_err, WorkFault::UnknownKey);
}

#[test]
fn a_bad_local_end_never_reaches_the_peer() {
    let swap = WorkOperation::CompareSwap { compare: 0, swap: 1 };
    let cases: [(WorkOperation, AccessFlags, u64, u32, WorkFault); 7] = [
        (WorkOperation::Write, ALL, 0, 1, WorkFault::UnknownKey),
        (WorkOperation::Write, ALL, PAGE - 7, 0, WorkFault::Range),
        (WorkOperation::Read, AccessFlags::LOCAL_READ, 0, 0, WorkFault::Access),
        (WorkOperation::Send, ALL, 0, 1, WorkFault::UnknownKey),
        (swap, AccessFlags::LOCAL_READ, 0, 0, WorkFault::Access),
        (swap, ALL, 0, 1, WorkFault::UnknownKey),
        (WorkOperation::Read, ALL, PAGE, 0, WorkFault::Range),
    ];
    for (op, access, at, wrong_key, fault) in cases {
        let (_, a, b) = dialogue("rfc-v2");
        let local = a.anon(PAGE, access);
        let target = b.file("data", PAGE, ALL);
        b.recv(91, target.sge(0, 100));
        let sge = Sge { lkey: local.mr.lkey() ^ wrong_key, ..local.sge(at, 8) };

        a.post(1, op, sge, target.remote(0));
        assert_eq!(a.expect(1, WorkStatus::LocalProtectionError).vendor_err, fault, "{op:?}");
        a.expect_state(QpState::Error);
        b.expect_state(QpState::ReadyToSend);
        b.expect_nothing();
        assert_eq!(contents(&b.task, target.fd, 0, 8), [0; 8], "{op:?} must have no effect");
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_silent_peer_exceeds_the_retries() {
    let gone: [fn(&Side); 4] = [
        |b| b.qp.fail(),
        |b| b.qp.reset().unwrap(),
        |b| b.ctx.destroy_qp(&b.task, &b.qp).unwrap(),
        |b| b.task.close(b.fd).unwrap(),
    ];
    for end in gone {
        let (_, a, b) = dialogue("rfc-v2");
        let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
        end(&b);
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        assert_eq!(a.expect(1, WorkStatus::RetryExceeded).vendor_err, WorkFault::Silent);
        a.expect_state(QpState::Error);
        a.post(2, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        a.expect(2, WorkStatus::Flushed);
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_peer_that_only_receives_answers() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 16), side(&kernel, 16));
    for qp in [&a.qp, &b.qp] {
        qp.initialise().unwrap();
    }
    a.qp.attach(&b.qp, Arc::new(InProcess)).unwrap();
    a.qp.start().unwrap();
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    b.qp.attach(&a.qp, Arc::new(InProcess)).unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::Success);
    b.expect_state(QpState::ReadyToReceive);
    let early = WorkRequest {
        wr_id: 2,
        op: WorkOperation::Send,
        local: target.sge(0, 8),
        remote_addr: 0,
        rkey: 0,
        signaled: true,
    };
    let refused = b.qp.post_send(early).unwrap_err();
    assert_eq!(refused, PostError::NotReady { qp_num: b.qp.number(), state: QpState::ReadyToReceive });
    b.expect_nothing();
}

#[test]
fn a_send_without_a_receive_exceeds_the_rnr_retries() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    a.send(1, local.sge(0, 8));
    assert_eq!(a.expect(1, WorkStatus::RnrRetryExceeded).vendor_err, WorkFault::NoReceive);
    a.expect_state(QpState::Error);
    b.expect_state(QpState::ReadyToSend);
    b.expect_nothing();
}

#[test]
fn a_fault_of_the_source_in_mid_message_gives_the_receive_back() {
    let (_, a, b) = dialogue("odp");
    let fd = a.task.open("source", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
    a.task.write(fd, 0, &pattern(16 * PAGE as usize, 1)).unwrap();
    let va = a.task.mmap(fd, 0, 16 * PAGE, true).unwrap();
    let source = a.reg(va, 16 * PAGE, ALL).unwrap();
    let inbox = b.anon(16 * PAGE, ALL);
    b.recv(10, inbox.sge(0, 16 * PAGE as u32));
    a.task.ftruncate(fd, 8 * PAGE).unwrap();

    a.send(1, source.sge(0, 16 * PAGE as u32));
    assert_eq!(a.expect(1, WorkStatus::LocalProtectionError).vendor_err, WorkFault::NotPresent);
    a.expect_state(QpState::Error);
    b.expect_nothing();
    b.expect_state(QpState::ReadyToSend);
    b.qp.fail();
    b.expect(10, WorkStatus::Flushed);
    end_dialogue(&a, &b);
}

#[test]
fn a_truncated_on_demand_range_is_a_remote_access_error_and_never_stale() {
    let (kernel, a, b) = dialogue("odp");
    let local = a.anon(PAGE, ALL);
    let fd = b.task.open("data", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
    b.task.write(fd, 0, &pattern(2 * PAGE as usize, 1)).unwrap();
    let va = b.task.mmap(fd, 0, 2 * PAGE, true).unwrap();
    let target = b.reg(va, 2 * PAGE, ALL).unwrap();
    // On-demand memory has no pin, so the truncate has no holder to ask.
    let admin = kernel.spawn();
    admin.truncate("data", PAGE).unwrap();
    a.post(1, WorkOperation::Read, local.sge(0, 8), target.remote(PAGE - 8));
    a.expect(1, WorkStatus::Success);
    a.post(2, WorkOperation::Write, local.sge(0, 16), target.remote(PAGE - 8));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::NotPresent);
    b.expect_state(QpState::Error);
    expect_rest(&kernel, &[&a.task, &b.task, &admin]);
}

#[test]
fn a_full_completion_queue_is_an_error_that_everybody_hears_of() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 2), side(&kernel, 16));
    Qp::connect(&a.qp, &b.qp).unwrap();
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    let nic = Arc::clone(a.ctx.nic());
    for wr_id in 1..=3 {
        a.post(wr_id, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    }
    assert!(a.cq.is_in_error());
    a.expect_state(QpState::Error);
    assert_eq!(a.ctx.poll_event(), Some(AsyncEvent::CqError { cq: a.cq.number() }));
    assert_eq!(nic.counters.completions_lost.get(), 1);
    a.expect(1, WorkStatus::Success);
    a.expect(2, WorkStatus::Success);
    a.post(4, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect_nothing();
    assert_eq!(nic.counters.completions_lost.get(), 2, "a queue in error accepts no completion, even with room");
    assert_eq!(a.ctx.poll_event(), None, "said once");
}

#[test]
fn a_receiver_whose_completion_queue_is_full_fails_the_send() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 16), side(&kernel, 1));
    Qp::connect(&a.qp, &b.qp).unwrap();
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    b.recv(10, inbox.sge(0, 8));
    b.recv(11, inbox.sge(0, 8));
    a.send(1, local.sge(0, 8));
    a.expect(1, WorkStatus::Success);
    a.send(2, local.sge(0, 8));
    assert_eq!(a.expect(2, WorkStatus::RemoteOperationError).vendor_err, WorkFault::ReceiveOverrun);
    b.expect_state(QpState::Error);
    assert!(b.cq.is_in_error());
}

/// Posts more work on the requester's own queue pair while it carries a message.
struct Reentrant(Mutex<Option<Arc<Qp>>>, WorkRequest);

impl Transport for Reentrant {
    fn carry(
        &self,
        peer: &dyn Responder,
        message: &RdmaMessage,
        local: &LocalMemory<'_>,
        bounce: &mut [u8],
    ) -> Result<(), WorkFailure> {
        let requester = self.0.lock().take();
        if let Some(qp) = requester {
            for wr_id in 10..18 {
                qp.post_send(WorkRequest { wr_id, ..self.1 }).unwrap();
            }
            let refused = qp.post_send(self.1).unwrap_err();
            assert_eq!(refused, PostError::Full { qp_num: qp.number(), bound: 8 });
            assert_eq!(refused.errno(), fs_sim::Errno::ENOMEM);
        }
        InProcess.carry(peer, message, local, bounce)
    }
}

#[test]
fn a_full_send_queue_is_enomem_and_what_is_queued_runs_in_order() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 16), side(&kernel, 16));
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    let (remote_addr, rkey) = target.remote(0);
    let request =
        WorkRequest { wr_id: 1, op: WorkOperation::Write, local: local.sge(0, 8), remote_addr, rkey, signaled: true };
    connect_through(&a, &b, Reentrant(Mutex::new(Some(Arc::clone(&a.qp))), request));
    a.qp.post_send(request).unwrap();
    a.expect(1, WorkStatus::Success);
    for wr_id in 10..18 {
        a.expect(wr_id, WorkStatus::Success);
    }
    a.expect_nothing();
}

#[test]
fn what_is_queued_behind_a_failure_is_flushed_in_order() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 16), side(&kernel, 16));
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    let (remote_addr, rkey) = target.remote(0);
    let request =
        WorkRequest { wr_id: 1, op: WorkOperation::Write, local: local.sge(0, 8), remote_addr, rkey, signaled: true };
    connect_through(&a, &b, Reentrant(Mutex::new(Some(Arc::clone(&a.qp))), request));
    a.recv(90, local.sge(0, 8));
    a.qp.post_send(WorkRequest { rkey: rkey ^ 1, ..request }).unwrap();
    a.expect(1, WorkStatus::RemoteAccessError);
    a.expect(90, WorkStatus::Flushed);
    for wr_id in 10..18 {
        a.expect(wr_id, WorkStatus::Flushed);
    }
    a.expect_nothing();
}

#[test]
fn a_full_receive_queue_is_enomem() {
    let kernel = machine("rfc-v2");
    let (_a, b) = pair(&kernel);
    let inbox = b.anon(PAGE, ALL);
    for wr_id in 0..8 {
        b.recv(wr_id, inbox.sge(0, 8));
    }
    let refused = b.qp.post_recv(ReceiveRequest { wr_id: 9, local: inbox.sge(0, 8) }).unwrap_err();
    assert_eq!(refused, PostError::Full { qp_num: b.qp.number(), bound: 8 });
}

#[test]
fn lengths_that_no_operation_can_have_are_not_taken() {
    let kernel = machine("rfc-v2");
    let (a, _b) = pair(&kernel);
    let local = a.anon(PAGE, ALL);
    let request =
        |op, len| WorkRequest { wr_id: 1, op, local: local.sge(0, len), remote_addr: 0, rkey: 0, signaled: true };
    for (op, len) in [(WorkOperation::FetchAdd { add: 1 }, 4), (WorkOperation::Write, (1 << 31) + 1)] {
        let refused = a.qp.post_send(request(op, len)).unwrap_err();
        assert!(matches!(refused, PostError::Length { len: found, .. } if found == len));
        assert_eq!(refused.errno(), fs_sim::Errno::EINVAL);
    }
    a.expect_nothing();
    a.expect_state(QpState::ReadyToSend);
}
