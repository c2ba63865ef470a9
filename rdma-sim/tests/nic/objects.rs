//! The objects: which process may make them, which cannot be destroyed while used, and the states
//! of a queue pair.

use emulator::sync::Arc;
use fs_sim::base::numbers::Fd;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BlockRange, Errno};
use rdma_sim::engine::qp_state::QpEvent;
use rdma_sim::{AccessFlags, Context, Qp, QpConfig, QpState, QpTransitionError, ReceiveRequest, Sge};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

#[test]
fn a_context_is_found_by_its_descriptor() {
    let kernel = machine("rfc-v2");
    let a = side(&kernel, 4);
    assert!(Arc::ptr_eq(&Context::of(&a.task, a.fd).unwrap(), &a.ctx));
    assert_eq!(Context::of(&a.task, Fd(99)).err(), Some(Errno::EBADF));
    let file = a.task.open("data", OpenFlags::create()).unwrap();
    assert_eq!(Context::of(&a.task, file).err(), Some(Errno::EINVAL));
}

#[test]
fn only_a_holder_may_call_on_a_context() {
    let kernel = machine("rfc-v2");
    let a = side(&kernel, 4);
    let stranger = kernel.spawn();
    assert_eq!(a.ctx.alloc_pd(&stranger).err(), Some(Errno::EBADF));
    a.task.close(a.fd).unwrap();
    assert_eq!(a.ctx.alloc_pd(&a.task).err(), Some(Errno::EBADF));
    assert_eq!(a.ctx.create_cq(&a.task, 1).err(), Some(Errno::EBADF));
    a.expect_state(QpState::Destroyed);
    a.task.exit();
    assert_eq!(a.ctx.alloc_pd(&a.task).err(), Some(Errno::Dead));
}

#[test]
fn what_is_used_is_busy() {
    let kernel = machine("rfc-v2");
    let a = side(&kernel, 4);
    let (ctx, task) = (&a.ctx, &a.task);
    let buffer = a.anon(PAGE, ALL);
    assert_eq!(ctx.dealloc_pd(task, &a.pd), Err(Errno::EBUSY));
    assert_eq!(ctx.destroy_cq(task, &a.cq), Err(Errno::EBUSY));
    ctx.destroy_qp(task, &a.qp).unwrap();
    assert_eq!(ctx.destroy_qp(task, &a.qp), Err(Errno::EINVAL), "once");
    assert_eq!(ctx.dealloc_pd(task, &a.pd), Err(Errno::EBUSY), "the region still uses it");
    ctx.destroy_cq(task, &a.cq).unwrap();
    assert_eq!(ctx.destroy_cq(task, &a.cq), Err(Errno::EINVAL));
    ctx.dereg_mr(task, &buffer.mr).unwrap();
    assert_eq!(ctx.dereg_mr(task, &buffer.mr), Err(Errno::EINVAL), "once");
    ctx.dealloc_pd(task, &a.pd).unwrap();
    assert_eq!(ctx.dealloc_pd(task, &a.pd), Err(Errno::EINVAL));
    let (va, _) = task.mmap_anonymous(PAGE).unwrap();
    assert_eq!(a.reg(va, PAGE, ALL).err(), Some(Errno::EINVAL), "its domain is gone");
}

#[test]
fn objects_of_another_context_are_not_taken() {
    let (_, a, b) = dialogue("rfc-v2");
    let (va, _) = a.task.mmap_anonymous(PAGE).unwrap();
    assert_eq!(a.ctx.reg_mr(&a.task, &b.pd, va, PAGE, ALL).err(), Some(Errno::EINVAL));
    let config = |cq: &Arc<rdma_sim::Cq>, max| QpConfig {
        send_cq: Arc::clone(cq),
        recv_cq: Arc::clone(&a.cq),
        max_send: max,
        max_recv: 1,
    };
    assert_eq!(a.ctx.create_qp(&a.task, &a.pd, config(&b.cq, 1)).err(), Some(Errno::EINVAL));
    assert_eq!(a.ctx.create_qp(&a.task, &b.pd, config(&a.cq, 1)).err(), Some(Errno::EINVAL));
    assert_eq!(a.ctx.create_qp(&a.task, &a.pd, config(&a.cq, 0)).err(), Some(Errno::EINVAL));
    assert_eq!(a.ctx.create_qp(&a.task, &a.pd, config(&a.cq, 1 << 15)).err(), Some(Errno::EINVAL));
    assert_eq!(a.ctx.create_cq(&a.task, 0).err(), Some(Errno::EINVAL));
    assert_eq!(a.ctx.create_cq(&a.task, u32::MAX).err(), Some(Errno::EINVAL));
    let buffer = b.anon(PAGE, ALL);
    assert_eq!(a.ctx.dereg_mr(&a.task, &buffer.mr).err(), Some(Errno::EINVAL));
}

#[test]
fn reg_mr_refuses_and_leaves_nothing_pinned() {
    let kernel = machine("rfc-v2");
    let a = side(&kernel, 4);
    let (_, va) = a.leased("data", 4 * PAGE);
    let writes = AccessFlags { remote_write: true, ..AccessFlags::LOCAL_READ };
    let atomics = AccessFlags { remote_atomic: true, ..AccessFlags::LOCAL_READ };
    for (at, len, access) in [
        (0, PAGE, writes),
        (0, PAGE, atomics),
        (0, 0, ALL),
        (0, 4 * PAGE + 1, ALL),
        (PAGE, u64::MAX, ALL),
        (4 * PAGE, 1, ALL),
    ] {
        assert_eq!(a.reg(va + at, len, access).err(), Some(Errno::EINVAL), "{at} {len} {access:?}");
        assert_eq!(a.reg(va + at, len, access.on_demand()).err(), Some(Errno::EINVAL), "{at} {len} {access:?}");
    }
    let read_only = a.task.open("data", OpenFlags::open(fs_sim::vfs::open_file::AccessMode::READ)).unwrap();
    let fixed = a.task.mmap(read_only, 0, PAGE, false).unwrap();
    assert_eq!(a.reg(fixed, PAGE, ALL).err(), Some(Errno::EFAULT));
    assert_eq!(a.ctx.file_pins(), 0);
    assert_eq!(a.ctx.nic().live_regions(), 0);
    expect_rest(&kernel, &[&a.task]);
}

#[test]
fn the_gate_asks_for_what_the_design_says() {
    // (preset, lease taken, outcome of reg_mr)
    let cases: [(&str, Option<LeaseKind>, Result<(), Errno>); 8] = [
        ("unsafe", None, Ok(())),
        ("mainline", None, Err(Errno::EOPNOTSUPP)),
        ("rfc-v2", None, Err(Errno::EPERM)),
        ("rfc-v2", Some(LeaseKind::READ), Err(Errno::EPERM)),
        ("rfc-v2", Some(LeaseKind::WRITE_U), Ok(())),
        ("chinner-2019", None, Err(Errno::EPERM)),
        ("chinner-2019", Some(LeaseKind::READ), Ok(())),
        ("odp", None, Ok(())),
    ];
    for (preset, lease, outcome) in cases {
        let kernel = machine(preset);
        let a = side(&kernel, 4);
        let fd = a.task.open("data", OpenFlags::create()).unwrap();
        a.task.write(fd, 0, &[1; 8192]).unwrap();
        if let Some(kind) = lease {
            a.task.lease(fd, kind, BlockRange::ALL).unwrap();
        }
        let va = a.task.mmap(fd, 0, 2 * PAGE, true).unwrap();
        assert_eq!(a.reg(va, 2 * PAGE, ALL).map(|_| ()), outcome, "{preset} {lease:?}");
        let pins = u64::from(outcome.is_ok() && preset != "odp");
        assert_eq!(a.ctx.file_pins(), pins);
        expect_rest(&kernel, &[&a.task]);
    }
}

#[test]
fn a_region_names_its_holder() {
    let kernel = machine("rfc-v2");
    let a = side(&kernel, 4);
    let file = a.file("data", PAGE, ALL);
    let inode = a.task.inode(file.fd).unwrap();
    let named = inode.holders()[0].object.describe();
    assert_eq!(named.kind, "RDMA region");
    assert_eq!(named.processes, [a.task.pid()]);
    assert_eq!(named.fd, Some(a.fd));
    assert_eq!(named.context, Some(a.ctx.number()));
    assert_eq!(named.region, Some(file.mr.rkey()));
    let child = a.task.fork().unwrap();
    assert_eq!(inode.holders()[0].object.describe().processes, [a.task.pid(), child.pid()]);
    a.task.exit();
    assert_eq!(
        inode.holders()[0].object.describe().processes,
        [child.pid()],
        "only the process that can release it now"
    );
    expect_rest(&kernel, &[&child]);
}

#[test]
fn states_move_by_the_table_only() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 4), side(&kernel, 4));
    let refused = |found, event| Err(QpTransitionError { qp_num: a.qp.number(), found, event });
    assert_eq!(a.qp.start(), refused(QpState::Reset, QpEvent::Start));
    let receive = ReceiveRequest { wr_id: 1, local: Sge::default() };
    assert!(a.qp.post_recv(receive).is_err());
    Qp::connect(&a.qp, &b.qp).unwrap();
    assert_eq!(Qp::connect(&a.qp, &b.qp), refused(QpState::ReadyToSend, QpEvent::Initialise));
    a.expect_state(QpState::ReadyToSend);
    a.qp.post_recv(receive).unwrap();
    a.qp.reset().unwrap();
    a.expect_state(QpState::Reset);
    a.expect_nothing();
    b.qp.fail();
    b.qp.reset().unwrap();
    Qp::connect(&a.qp, &b.qp).unwrap();
    let (source, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    a.post(5, rdma_sim::WorkOperation::Write, source.sge(0, 8), target.remote(0));
    a.expect(5, rdma_sim::WorkStatus::Success);
    assert_eq!(
        QpTransitionError { qp_num: 2, found: QpState::Error, event: QpEvent::Start }.to_string(),
        "queue pair 0x2 is in ERR and cannot be moved by Start"
    );
}
