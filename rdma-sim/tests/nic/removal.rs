//! The NIC is unplugged: every context is disassociated, whatever it is doing.

use emulator::sync::{race, thread};
use fs_sim::Errno;
use fs_sim::vfs::signals::Signal;
use rdma_sim::{
    AccessFlags, AsyncEvent, Context, MwType, Nic, QpState, Rereg, RnrRetry, WindowAccess, WindowBind, WorkOperation,
    WorkStatus,
};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

#[test]
fn every_context_loses_its_objects_and_keeps_its_descriptor() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let nic = Nic::of(&kernel);
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", PAGE, ALL.mw_bind());
    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let (lkey, addr, access) = (target.mr.lkey(), target.va, WindowAccess::ALL);
    b.qp.bind_mw(70, &mw, WindowBind { rkey: 0, lkey, addr, len: PAGE, access }, true).unwrap();
    b.expect(70, WorkStatus::Success);
    b.recv(60, target.sge(0, 8));
    a.qp.drain_sends().unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    let stranger = kernel.spawn();
    assert_eq!(stranger.truncate("data", 0), Err(Errno::ETXTBSY));
    stranger.exit();

    nic.remove(&kernel);
    assert!(nic.is_removed() && b.ctx.is_disassociated());
    assert!(target.mr.is_released() && !mw.is_bound());
    assert_eq!(nic.live_regions(), 0);
    a.expect(1, WorkStatus::Flushed);
    b.expect(60, WorkStatus::Flushed);
    for side in [&a, &b] {
        side.expect_nothing();
        side.expect_state(QpState::Error);
        assert_eq!(side.ctx.wait_event(&side.task), Ok(AsyncEvent::Fatal));
        assert_eq!(side.ctx.wait_event(&side.task), Err(Errno::EIO));
        assert_eq!(side.ctx.alloc_pd(&side.task).err(), Some(Errno::EIO));
        assert_eq!(side.reg(target.va, PAGE, ALL).err(), Some(Errno::EIO));
        assert_eq!(side.ctx.destroy_qp(&side.task, &side.qp), Err(Errno::EIO));
        assert!(side.qp.reset().is_err());
    }
    assert_eq!(b.ctx.dereg_mr(&b.task, &target.mr), Err(Errno::EIO));
    let access = Rereg { access: Some(ALL), ..Rereg::default() };
    assert_eq!(b.ctx.rereg_mr(&b.task, &target.mr, access).err(), Some(Errno::EIO));
    assert_eq!(b.ctx.dealloc_mw(&b.task, &mw), Err(Errno::EIO));
    assert_eq!(Context::open(&a.task).err(), Some(Errno::ENODEV));
    // A second removal finds nothing.
    nic.remove(&kernel);
    assert_eq!(a.ctx.poll_event(), None);
    // The lease lives on; no pin stands in the way of its holder.
    b.task.close(b.fd).unwrap();
    end_dialogue(&a, &b);
}

#[test]
fn a_send_that_waits_for_a_receive_is_flushed_and_a_waiter_for_events_wakes() {
    for receiver_first in [false, true] {
        let kernel = machine("rfc-v2");
        let (first, second) = (side(&kernel, 16), side(&kernel, 16));
        let (a, b) = if receiver_first { (second, first) } else { (first, second) };
        rdma_sim::Qp::connect(&a.qp, &b.qp).unwrap();
        a.qp.set_rnr_retry(RnrRetry::Forever);
        let local = a.anon(PAGE, ALL);
        a.send(1, local.sge(0, 8));
        thread::scope(|scope| {
            let waiting = b.task.thread();
            let (b, kernel) = (&b, &kernel);
            let event = scope.spawn(move || [b.ctx.wait_event(&waiting), b.ctx.wait_event(&waiting)]);
            until_asleep(kernel, "an asynchronous event");
            Nic::of(kernel).remove(kernel);
            assert_eq!(event.join().unwrap(), [Ok(AsyncEvent::Fatal), Err(Errno::EIO)]);
        });
        a.expect(1, WorkStatus::Flushed);
        a.expect_nothing();
        end_dialogue(&a, &b);
    }
}

/// Calls in progress meet the removal: no region, pin or context is left over.
#[test]
fn registrations_and_opens_meet_the_removal() {
    for seed in 0..200 {
        let kernel = machine("rfc-v2");
        let (b, other) = (side(&kernel, 4), kernel.spawn());
        let (_, va) = b.leased("data", 4 * PAGE);
        let opened = thread::scope(|scope| {
            let (kernel, other) = (&kernel, &other);
            scope.spawn(move || {
                race::arm(kernel.world().stream("removal", seed * 3), 0.3);
                Nic::of(kernel).remove(kernel);
            });
            let opened = scope.spawn(move || {
                race::arm(kernel.world().stream("removal", seed * 3 + 1), 0.6);
                Context::open(other).map(|(_, context)| context)
            });
            race::arm(kernel.world().stream("removal", seed * 3 + 2), 0.3);
            let found = b.reg(va, 4 * PAGE, ALL);
            race::disarm();
            assert!(found.is_ok() || found.err() == Some(Errno::EIO), "{seed}");
            opened.join().unwrap()
        });
        match opened {
            Ok(context) => assert!(context.is_disassociated(), "{seed}"),
            Err(errno) => assert_eq!(errno, Errno::ENODEV, "{seed}"),
        }
        assert_eq!((b.ctx.file_pins(), Nic::of(&kernel).live_regions()), (0, 0), "{seed}");
        assert!(b.ctx.is_disassociated());
        expect_rest(&kernel, &[&b.task, &other]);
    }
}

#[test]
fn a_killed_process_closes_a_disassociated_context() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let _pinned = b.file("data", PAGE, ALL);
    Nic::of(&kernel).remove(&kernel);
    a.task.kill(b.task.pid(), Signal::Sigkill).unwrap();
    assert_eq!(b.ctx.fd_holders().processes(), [], "its descriptor went with the process");
    end_dialogue(&a, &b);
}
