//! Memory windows: what they open, for which queue pairs, and when they end.

use emulator::sync::Arc;
use fs_sim::Errno;
use rdma_sim::{
    AccessFlags, AsyncEvent, Mr, Mw, MwType, Nic, PostError, Qp, QpConfig, QpState, ReceiveRequest, Sge, WindowAccess,
    WindowBind, WorkFault, WorkOpcode, WorkOperation, WorkRequest, WorkStatus,
};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
/// Windows may be bound; the own side may write; a peer has access only through windows.
const HOST: AccessFlags = AccessFlags::LOCAL_WRITE.mw_bind();
const NOWHERE: Sge = Sge { lkey: 0, addr: 0, len: 0 };

/// A binding of `len` bytes of `mr` from byte `at` on.
fn part(mr: &Arc<Mr>, at: u64, len: u64, access: WindowAccess) -> WindowBind {
    WindowBind { rkey: 0, lkey: mr.lkey(), addr: mr.va() + at, len, access }
}

/// Binds by a work request, under the next key.
fn bind2(b: &Side, mw: &Mw, bind: WindowBind) -> u32 {
    let rkey = mw.next_rkey();
    b.post(70, WorkOperation::BindMw(WindowBind { rkey, ..bind }), NOWHERE, (0, 0));
    b.expect_done(70, WorkOpcode::BindMw, 0);
    rkey
}

fn bind1(b: &Side, mw: &Mw, bind: WindowBind) -> u32 {
    let rkey = b.qp.bind_mw(71, mw, bind, true).unwrap();
    b.expect_done(71, WorkOpcode::BindMw, 0);
    assert_eq!(mw.rkey(), rkey);
    rkey
}

#[test]
fn a_window_opens_its_range_and_rights_and_no_more() {
    let cases: [(WorkOperation, WindowAccess, u64, u32, Option<WorkFault>); 9] = [
        (WorkOperation::Write, WindowAccess::ALL, 512, 8, None),
        (WorkOperation::Read, WindowAccess::READ, 1024, 512, None),
        (WorkOperation::FetchAdd { add: 1 }, WindowAccess::ALL, 1528, 8, None),
        (WorkOperation::AtomicWrite { value: 1 }, WindowAccess::ALL, 1528, 0, None),
        (WorkOperation::Write, WindowAccess::READ, 512, 8, Some(WorkFault::Access)),
        (WorkOperation::Read, WindowAccess::default(), 512, 8, Some(WorkFault::Access)),
        (WorkOperation::FetchAdd { add: 1 }, WindowAccess::READ, 512, 8, Some(WorkFault::Access)),
        (WorkOperation::Write, WindowAccess::ALL, 504, 16, Some(WorkFault::Range)),
        (WorkOperation::Read, WindowAccess::ALL, 1529, 8, Some(WorkFault::Range)),
    ];
    for kind in [MwType::Type1, MwType::Type2] {
        for (op, access, at, len, refused) in cases {
            let (kernel, a, b) = dialogue("rfc-v2");
            let local = a.anon(PAGE, ALL);
            let host = b.file("data", PAGE, HOST);
            let mw = b.ctx.alloc_mw(&b.task, &b.pd, kind).unwrap();
            let bind = part(&host.mr, 512, 1024, access);
            let rkey = if kind == MwType::Type1 { bind1(&b, &mw, bind) } else { bind2(&b, &mw, bind) };
            assert_eq!((mw.is_bound(), host.mr.windows()), (true, 1));
            local.fill(0, b"windowed");

            a.post(1, op, local.sge(0, len), (host.mr.va() + at, rkey));
            match refused {
                None => {
                    a.expect(1, WorkStatus::Success);
                    if op == WorkOperation::Write {
                        assert_eq!(contents(&b.task, host.fd, 512, 8), b"windowed");
                    }
                }
                Some(fault) => {
                    assert_eq!(
                        a.expect(1, WorkStatus::RemoteAccessError).vendor_err,
                        fault,
                        "{kind:?} {op:?} {access:?} {at}"
                    );
                    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
                    b.expect_state(QpState::Error);
                    assert_eq!(contents(&b.task, host.fd, 0, PAGE as usize), [0; PAGE as usize]);
                }
            }
            end_dialogue(&a, &b);
            assert_eq!(Nic::of(&kernel).live_windows(), 0);
        }
    }
}

#[test]
fn a_window_is_no_local_memory_and_its_region_stays_shut() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let host = b.anon(PAGE, HOST);
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let lkey = bind1(&b, &mw, part(&host.mr, 0, PAGE, WindowAccess::ALL));
    b.post(1, WorkOperation::Write, Sge { lkey, ..host.sge(0, 8) }, local.remote(0));
    assert_eq!(b.expect(1, WorkStatus::LocalProtectionError).vendor_err, WorkFault::Access);

    let (a, b) = pair(&kernel);
    let (local, host) = (a.anon(PAGE, ALL), b.anon(PAGE, HOST));
    a.post(2, WorkOperation::Write, local.sge(0, 8), host.remote(0));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Access);
}

#[test]
fn each_binding_has_its_own_key_and_no_bytes_unbind() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let (first, second) = (b.anon(PAGE, HOST), b.anon(PAGE, HOST));
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let old = bind1(&b, &mw, part(&first.mr, 0, 64, WindowAccess::ALL));
    let new = bind1(&b, &mw, part(&second.mr, 0, 64, WindowAccess::ALL));
    assert!(old != new && old >> 8 == new >> 8);
    assert_eq!((first.mr.windows(), second.mr.windows()), (0, 1), "bound elsewhere");
    a.post(1, WorkOperation::Write, local.sge(0, 8), (second.mr.va(), new));
    a.expect(1, WorkStatus::Success);

    let none = bind1(&b, &mw, WindowBind { len: 0, lkey: 0, ..part(&second.mr, 0, 0, WindowAccess::ALL) });
    assert_eq!((mw.is_bound(), second.mr.windows()), (false, 0));
    for (wr_id, stale) in [(2, old), (3, new), (4, none)] {
        let (a, b) = pair(&kernel);
        let local = a.anon(PAGE, ALL);
        a.post(wr_id, WorkOperation::Write, local.sge(0, 8), (second.mr.va(), stale));
        assert_eq!(a.expect(wr_id, WorkStatus::RemoteAccessError).vendor_err, WorkFault::UnknownKey);
        expect_no_leftover(&b);
    }
}

fn expect_no_leftover(side: &Side) {
    side.expect_nothing();
    side.expect_state(QpState::Error);
}

#[test]
fn a_binding_that_does_not_fit_fails_its_queue_pair() {
    type Wrong = fn(&Side, WindowBind) -> WindowBind;
    let cases: [(Wrong, WorkFault); 8] = [
        (|_, bind| WindowBind { lkey: bind.lkey ^ 1, ..bind }, WorkFault::UnknownKey),
        (|_, bind| WindowBind { addr: bind.addr - 1, ..bind }, WorkFault::Range),
        (|_, bind| WindowBind { len: PAGE + 1, ..bind }, WorkFault::Range),
        (|_, bind| WindowBind { len: u64::MAX, ..bind }, WorkFault::Range),
        (|_, bind| WindowBind { len: 0, ..bind }, WorkFault::Range),
        (|b, bind| WindowBind { lkey: b.anon(PAGE, ALL).mr.lkey(), ..bind }, WorkFault::Access),
        (
            |b, bind| {
                let read_only = b.anon(PAGE, AccessFlags::LOCAL_READ.mw_bind());
                part(&read_only.mr, 0, 8, WindowAccess { remote_write: true, ..WindowAccess::default() })
                    .with_key(bind.rkey)
            },
            WorkFault::Access,
        ),
        (|_, bind| WindowBind { rkey: bind.rkey.wrapping_sub(1), ..bind }, WorkFault::WindowKey),
    ];
    for (wrong, fault) in cases {
        let (_, a, b) = dialogue("rfc-v2");
        let host = b.anon(PAGE, HOST);
        let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type2).unwrap();
        let bind = wrong(&b, part(&host.mr, 0, PAGE, WindowAccess::ALL).with_key(mw.next_rkey()));
        b.post(1, WorkOperation::BindMw(bind), NOWHERE, (0, 0));
        assert_eq!(b.expect(1, WorkStatus::MemoryWindowBindError).vendor_err, fault, "{bind:?}");
        b.expect_state(QpState::Error);
        a.expect_state(QpState::ReadyToSend);
        assert_eq!((mw.is_bound(), host.mr.windows()), (false, 0));
        b.post(2, WorkOperation::BindMw(bind), NOWHERE, (0, 0));
        b.expect(2, WorkStatus::Flushed);
        end_dialogue(&a, &b);
    }
}

/// A binding under a key.
trait WithKey {
    fn with_key(self, rkey: u32) -> WindowBind;
}

impl WithKey for WindowBind {
    fn with_key(self, rkey: u32) -> WindowBind {
        WindowBind { rkey, ..self }
    }
}

#[test]
fn each_type_is_bound_its_own_way() {
    let kernel = machine("rfc-v2");
    let (_a, b) = pair(&kernel);
    let host = b.anon(PAGE, HOST);
    let one = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let two = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type2).unwrap();
    let bind = part(&host.mr, 0, 8, WindowAccess::READ);
    let wrong = b.qp.bind_mw(1, &two, bind, true).unwrap_err();
    assert!(matches!(wrong, PostError::Window { .. }) && wrong.errno() == Errno::EINVAL, "{wrong}");
    let request = |rkey| {
        let op = WorkOperation::BindMw(WindowBind { rkey, ..bind });
        WorkRequest { wr_id: 1, op, local: NOWHERE, remote_addr: 0, rkey: 0, signaled: true }
    };
    assert!(matches!(b.qp.post_send(request(one.next_rkey())), Err(PostError::Window { .. })));
    assert!(matches!(b.qp.post_send(request(host.mr.rkey())), Err(PostError::Window { .. })));
    b.expect_nothing();
    b.expect_state(QpState::ReadyToSend);

    // A bound type 2 window must be invalidated first.
    let rkey = bind2(&b, &two, bind);
    b.post(2, WorkOperation::LocalInvalidate { rkey }, NOWHERE, (0, 0));
    b.expect_done(2, WorkOpcode::LocalInvalidate, 0);
    assert!(!two.is_bound());
    b.post(3, WorkOperation::LocalInvalidate { rkey }, NOWHERE, (0, 0));
    b.expect_done(3, WorkOpcode::LocalInvalidate, 0);
    bind2(&b, &two, bind);
    b.post(4, WorkOperation::BindMw(WindowBind { rkey: two.next_rkey(), ..bind }), NOWHERE, (0, 0));
    assert_eq!(b.expect(4, WorkStatus::MemoryWindowBindError).vendor_err, WorkFault::WindowBound);
}

#[test]
fn only_a_bound_type_2_window_of_this_queue_pair_can_be_invalidated() {
    let kernel = machine("rfc-v2");
    for case in 0..4 {
        let (_a, b) = pair(&kernel);
        let host = b.anon(PAGE, HOST);
        let bind = part(&host.mr, 0, 8, WindowAccess::READ);
        let mw = |kind| b.ctx.alloc_mw(&b.task, &b.pd, kind).unwrap();
        let (rkey, fault) = match case {
            0 => (host.mr.rkey(), WorkFault::UnknownKey),
            1 => (bind2(&b, &mw(MwType::Type2), bind) ^ 1, WorkFault::UnknownKey),
            2 => (bind1(&b, &mw(MwType::Type1), bind), WorkFault::WindowType),
            _ => {
                let other = second_qp(&b);
                (bind2(&other, &mw(MwType::Type2), bind), WorkFault::OtherQp)
            }
        };
        b.post(1, WorkOperation::LocalInvalidate { rkey }, NOWHERE, (0, 0));
        assert_eq!(b.expect(1, WorkStatus::LocalOperationError).vendor_err, fault, "case {case}");
        b.expect_state(QpState::Error);
    }
}

/// The same program with another queue pair, connected to itself.
fn second_qp(b: &Side) -> Side {
    let make = || {
        let config = QpConfig { send_cq: Arc::clone(&b.cq), recv_cq: Arc::clone(&b.cq), max_send: 8, max_recv: 8 };
        b.ctx.create_qp(&b.task, &b.pd, config).unwrap()
    };
    let (qp, peer) = (make(), make());
    Qp::connect(&qp, &peer).unwrap();
    let Side { fd, ctx, pd, cq, .. } = b;
    Side { task: b.task.thread(), fd: *fd, ctx: Arc::clone(ctx), pd: Arc::clone(pd), cq: Arc::clone(cq), qp }
}

#[test]
fn a_type_2_window_opens_for_its_queue_pair_only_and_a_type_1_window_for_the_domain() {
    let kernel = machine("rfc-v2");
    for kind in [MwType::Type1, MwType::Type2] {
        let (a, b) = pair(&kernel);
        let local = a.anon(PAGE, ALL);
        let host = b.anon(PAGE, HOST);
        let other = second_qp(&b);
        let mw = b.ctx.alloc_mw(&b.task, &b.pd, kind).unwrap();
        let bind = part(&host.mr, 0, 8, WindowAccess::ALL);
        let rkey = if kind == MwType::Type1 { bind1(&other, &mw, bind) } else { bind2(&other, &mw, bind) };
        a.post(1, WorkOperation::Write, local.sge(0, 8), (host.mr.va(), rkey));
        match kind {
            MwType::Type1 => assert_eq!(a.expect(1, WorkStatus::Success).byte_len, 8),
            MwType::Type2 => assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::OtherQp),
        }
    }
}

#[test]
fn a_send_invalidates_at_the_receiver_and_says_so() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, HOST));
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type2).unwrap();
    let rkey = bind2(&b, &mw, part(&inbox.mr, 512, 8, WindowAccess::ALL));
    local.fill(0, b"the end.");
    b.recv(10, inbox.sge(0, 64));
    a.post(1, WorkOperation::SendWithInvalidate { rkey }, local.sge(0, 8), (0, 0));
    a.expect_done(1, WorkOpcode::Send, 8);
    let received = b.expect(10, WorkStatus::Success);
    assert_eq!((received.opcode, received.byte_len, received.invalidated), (WorkOpcode::Recv, 8, Some(rkey)));
    assert_eq!(inbox.bytes(0, 8), b"the end.");
    assert_eq!((mw.is_bound(), inbox.mr.windows()), (false, 0));
    a.post(2, WorkOperation::Write, local.sge(0, 8), (inbox.mr.va() + 512, rkey));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::UnknownKey);
}

#[test]
fn a_send_that_can_t_invalidate_is_refused() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, HOST));
    b.qp.post_recv(ReceiveRequest { wr_id: 10, local: inbox.sge(0, 64) }).unwrap();
    a.post(1, WorkOperation::SendWithInvalidate { rkey: inbox.mr.rkey() }, local.sge(0, 8), (0, 0));
    assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::UnknownKey);
    b.expect(10, WorkStatus::RemoteInvalidRequest);
    a.expect_state(QpState::Error);
    b.expect_state(QpState::Error);
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
}

#[test]
fn a_region_with_windows_is_busy() {
    let kernel = machine("rfc-v2");
    let (_a, b) = pair(&kernel);
    let host = b.anon(PAGE, HOST);
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    bind1(&b, &mw, part(&host.mr, 0, 8, WindowAccess::READ));
    assert_eq!(b.ctx.dereg_mr(&b.task, &host.mr), Err(Errno::EBUSY));
    assert!(!host.mr.is_released() && mw.is_bound());
    b.ctx.dealloc_mw(&b.task, &mw).unwrap();
    assert_eq!(b.ctx.dealloc_mw(&b.task, &mw), Err(Errno::EINVAL));
    assert_eq!(b.ctx.dereg_mr(&b.task, &host.mr), Ok(()));
    assert_eq!(Nic::of(&kernel).live_windows(), 0);
}

#[test]
fn windows_are_objects_of_their_context() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let pd = b.ctx.alloc_pd(&b.task).unwrap();
    assert_eq!(b.ctx.alloc_mw(&b.task, &a.pd, MwType::Type1).err(), Some(Errno::EINVAL));
    assert_eq!(b.ctx.alloc_mw(&a.task, &pd, MwType::Type1).err(), Some(Errno::EBADF));
    assert_eq!(Nic::of(&kernel).live_windows(), 0);
    let mw = b.ctx.alloc_mw(&b.task, &pd, MwType::Type2).unwrap();
    assert_eq!(b.ctx.dealloc_pd(&b.task, &pd), Err(Errno::EBUSY));
    assert_eq!(a.ctx.dealloc_mw(&a.task, &mw), Err(Errno::EINVAL));

    // A window of another domain than the queue pair's.
    let host = b.anon(PAGE, HOST);
    let bind = part(&host.mr, 0, 8, WindowAccess::READ).with_key(mw.next_rkey());
    b.post(1, WorkOperation::BindMw(bind), NOWHERE, (0, 0));
    assert_eq!(b.expect(1, WorkStatus::MemoryWindowBindError).vendor_err, WorkFault::OtherDomain);

    b.task.close(b.fd).unwrap();
    assert_eq!(Nic::of(&kernel).live_windows(), 0);
    end_dialogue(&a, &b);
}

#[test]
fn an_abort_unbinds_every_window() {
    let (_, a, b) = dialogue_with(whole_context());
    let local = a.anon(PAGE, ALL);
    let host = b.file("data", PAGE, HOST);
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let rkey = bind1(&b, &mw, part(&host.mr, 0, 8, WindowAccess::ALL));
    a.task.truncate("data", 0).unwrap();
    assert!(b.ctx.is_aborted() && host.mr.is_revoked() && !mw.is_bound());
    a.post(1, WorkOperation::Write, local.sge(0, 8), (host.mr.va(), rkey));
    assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Revoked);
    assert_eq!(b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).err(), Some(Errno::EIO));
    assert_eq!(b.ctx.dereg_mr(&b.task, &host.mr), Ok(()), "no window holds it");
    b.ctx.dealloc_mw(&b.task, &mw).unwrap();
    end_dialogue(&a, &b);
}

/// `revoke_scope = region`: a window of the region is unbound, a window of another one stays.
#[test]
fn a_revoked_region_loses_its_windows() {
    let (_, a, b) = dialogue("revoke");
    let local = a.anon(PAGE, ALL);
    let (host, other) = (b.file("data", PAGE, HOST), b.file("other", PAGE, HOST));
    let [mine, stays] = [(); 2].map(|()| b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap());
    let rkey = bind1(&b, &mine, part(&host.mr, 0, 8, WindowAccess::ALL));
    let stays_key = bind1(&b, &stays, part(&other.mr, 0, 8, WindowAccess::ALL));
    a.task.truncate("data", 0).unwrap();
    assert!(!b.ctx.is_aborted() && host.mr.is_revoked() && !mine.is_bound() && stays.is_bound());
    a.post(1, WorkOperation::Write, local.sge(0, 8), (other.mr.va(), stays_key));
    a.expect(1, WorkStatus::Success);
    assert_eq!(b.ctx.dereg_mr(&b.task, &host.mr), Ok(()), "no window holds it");
    a.post(2, WorkOperation::Write, local.sge(0, 8), (host.mr.va(), rkey));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::UnknownKey);
    end_dialogue(&a, &b);
}
