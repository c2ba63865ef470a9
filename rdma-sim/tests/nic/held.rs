//! Requests that wait in the send queue: in SQD, and for a receive of the peer. However the wait
//! ends, each request is completed at most once and in the order posted.

use emulator::sync::{Arc, race, thread};
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::syscalls::open::OpenFlags;
use rdma_sim::{
    AccessFlags, AsyncEvent, PostError, Qp, QpState, ReceiveRequest, RnrRetry, WorkFault, WorkOpcode, WorkOperation,
    WorkRequest, WorkStatus,
};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

/// Two programs whose sends wait for receives.
fn patient() -> (Arc<fs_sim::Kernel>, Side, Side) {
    let (kernel, a, b) = dialogue("rfc-v2");
    a.qp.set_rnr_retry(RnrRetry::Forever);
    (kernel, a, b)
}

#[test]
fn drained_sends_wait_and_go_on_in_order() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    a.qp.drain_sends().unwrap();
    a.qp.drain_sends().unwrap();
    a.expect_state(QpState::SendQueueDrained);
    local.fill(0, b"first...");
    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.post(2, WorkOperation::Read, local.sge(8, 8), target.remote(0));
    a.post(3, WorkOperation::FetchAdd { add: 1 }, local.sge(16, 8), target.remote(8));
    a.expect_nothing();
    assert_eq!((a.qp.waiting_sends(), target.bytes(0, 8)), (3, vec![0; 8]));
    // The bytes are read when the request is executed, not when it is posted.
    local.fill(0, b"changed.");
    // The queue pair still answers its peer.
    b.post(50, WorkOperation::Write, target.sge(64, 8), local.remote(64));
    b.expect(50, WorkStatus::Success);

    a.qp.start().unwrap();
    a.expect_done(1, WorkOpcode::Write, 8);
    a.expect_done(2, WorkOpcode::Read, 8);
    a.expect_done(3, WorkOpcode::FetchAdd, 8);
    a.expect_nothing();
    assert_eq!((target.bytes(0, 8), local.bytes(8, 8)), (b"changed.".to_vec(), b"changed.".to_vec()));
    a.qp.start().unwrap();
    a.expect_state(QpState::ReadyToSend);
    end_dialogue(&a, &b);
}

#[test]
fn only_a_queue_pair_that_sends_can_be_drained() {
    let kernel = machine("rfc-v2");
    let (a, b) = (side(&kernel, 16), side(&kernel, 16));
    assert!(a.qp.drain_sends().is_err());
    a.qp.initialise().unwrap();
    assert!(a.qp.drain_sends().is_err());
    a.qp.fail();
    assert!(a.qp.drain_sends().is_err() && a.qp.start().is_err());
    end_dialogue(&a, &b);
}

#[test]
fn a_held_queue_has_its_bound() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    let (remote_addr, rkey) = target.remote(0);
    a.qp.drain_sends().unwrap();
    for wr_id in 1..=8 {
        a.post(wr_id, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    }
    let (op, local) = (WorkOperation::Write, local.sge(0, 8));
    let refused = a.qp.post_send(WorkRequest { wr_id: 9, op, local, remote_addr, rkey, signaled: true });
    assert_eq!(refused, Err(PostError::Full { qp_num: a.qp.number(), bound: 8 }));
    a.qp.start().unwrap();
    for wr_id in 1..=8 {
        a.expect(wr_id, WorkStatus::Success);
    }
    a.expect_nothing();
    end_dialogue(&a, &b);
}

#[test]
fn a_failure_flushes_what_is_held_once_and_in_order() {
    type Failure = fn(&Side);
    let failures: [Failure; 2] = [|a| a.qp.fail(), |a| a.task.kernel().remove_device()];
    for (index, fail) in failures.into_iter().enumerate() {
        let (_, a, b) = dialogue("rfc-v2");
        let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
        let _file = a.file("data", PAGE, ALL);
        a.qp.drain_sends().unwrap();
        a.recv(90, local.sge(0, 8));
        for wr_id in 1..=3 {
            a.post(wr_id, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        }
        fail(&a);
        a.expect_state(QpState::Error);
        a.expect(90, WorkStatus::Flushed);
        for wr_id in 1..=3 {
            assert_eq!(a.expect(wr_id, WorkStatus::Flushed).vendor_err, WorkFault::Behind, "{index}");
        }
        a.expect_nothing();
        assert!(a.qp.start().is_err(), "no way back but by RESET");
        a.expect_nothing();
        b.expect_state(QpState::ReadyToSend);
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_failure_on_resuming_flushes_the_rest() {
    let (_, a, b) = dialogue("rfc-v2");
    let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    a.qp.drain_sends().unwrap();
    for wr_id in 1..=3 {
        a.post(wr_id, WorkOperation::Read, local.sge(0, 8), target.remote(0));
    }
    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
    a.qp.start().unwrap();
    a.expect(1, WorkStatus::RemoteAccessError);
    a.expect(2, WorkStatus::Flushed);
    a.expect(3, WorkStatus::Flushed);
    a.expect_nothing();
    end_dialogue(&a, &b);
}

#[test]
fn reset_and_destroy_make_held_requests_vanish() {
    type End = fn(&Side);
    let ends: [End; 3] =
        [|a| a.qp.reset().unwrap(), |a| a.ctx.destroy_qp(&a.task, &a.qp).unwrap(), |a| a.task.close(a.fd).unwrap()];
    for end in ends {
        let (_, a, b) = dialogue("rfc-v2");
        let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
        local.fill(0, b"vanished");
        a.qp.drain_sends().unwrap();
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        a.post(2, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        end(&a);
        assert_eq!(a.qp.waiting_sends(), 0);
        assert!(a.qp.start().is_err());
        a.expect_nothing();
        assert_eq!(target.bytes(0, 8), [0; 8]);
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_send_waits_for_a_receive_and_later_requests_wait_behind_it() {
    let (_, a, b) = patient();
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    local.fill(0, b"message.");
    a.send(1, local.sge(0, 8));
    a.post(2, WorkOperation::Write, local.sge(0, 8), inbox.remote(64));
    a.send(3, local.sge(0, 8));
    a.expect_nothing();
    assert_eq!((a.qp.waiting_sends(), inbox.bytes(64, 8)), (3, vec![0; 8]));

    b.recv(10, inbox.sge(0, 8));
    a.expect(1, WorkStatus::Success);
    a.expect(2, WorkStatus::Success);
    a.expect_nothing();
    b.expect_done(10, WorkOpcode::Recv, 8);
    b.recv(11, inbox.sge(8, 8));
    a.expect(3, WorkStatus::Success);
    b.expect(11, WorkStatus::Success);
    assert_eq!(inbox.bytes(0, 16), b"message.message.");
    end_dialogue(&a, &b);
}

#[test]
fn a_message_that_waited_is_judged_as_any() {
    let (_, a, b) = patient();
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    a.send(1, local.sge(0, 8));
    a.send(2, local.sge(0, 8));
    b.recv(10, inbox.sge(0, 7));
    assert_eq!(a.expect(1, WorkStatus::RemoteInvalidRequest).vendor_err, WorkFault::Length);
    a.expect(2, WorkStatus::Flushed);
    b.expect(10, WorkStatus::LocalLengthError);
    assert_eq!(b.ctx.poll_event(), Some(AsyncEvent::QpRequest { qp_num: b.qp.number() }));
    end_dialogue(&a, &b);
}

#[test]
fn the_end_of_either_side_ends_a_wait_for_a_receive() {
    type End = fn(&Side, &Side);
    let ends: [(End, Option<WorkStatus>); 6] = [
        (|a, _| a.qp.fail(), Some(WorkStatus::Flushed)),
        (|a, _| a.qp.reset().unwrap(), None),
        (|_, b| b.qp.fail(), Some(WorkStatus::RetryExceeded)),
        (|_, b| b.qp.reset().unwrap(), Some(WorkStatus::RetryExceeded)),
        (|_, b| b.ctx.destroy_qp(&b.task, &b.qp).unwrap(), Some(WorkStatus::RetryExceeded)),
        (|_, b| b.task.exit(), Some(WorkStatus::RetryExceeded)),
    ];
    for (index, (end, status)) in ends.into_iter().enumerate() {
        let (_, a, b) = patient();
        let local = a.anon(PAGE, ALL);
        a.send(1, local.sge(0, 8));
        a.send(2, local.sge(0, 8));
        end(&a, &b);
        if let Some(status) = status {
            assert_eq!(a.expect(1, status).wr_id, 1, "{index}");
            a.expect(2, WorkStatus::Flushed);
        }
        a.expect_nothing();
        assert_eq!(a.qp.waiting_sends(), 0, "{index}");
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_revoked_receiver_refuses_the_send_that_waited() {
    let (kernel, a, b) = dialogue_with(whole_context());
    a.qp.set_rnr_retry(RnrRetry::Forever);
    let local = a.anon(PAGE, ALL);
    let _pinned = b.file("data", PAGE, ALL);
    a.send(1, local.sge(0, 8));
    let stranger = kernel.spawn();
    stranger.truncate("data", 0).unwrap();
    stranger.exit();
    assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Revoked);
    b.expect_state(QpState::Error);
    end_dialogue(&a, &b);
}

#[test]
fn a_drained_queue_takes_no_receive() {
    let (_, a, b) = patient();
    let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
    a.send(1, local.sge(0, 8));
    a.qp.drain_sends().unwrap();
    b.recv(10, inbox.sge(0, 8));
    a.expect_nothing();
    b.expect_nothing();
    a.qp.start().unwrap();
    a.expect(1, WorkStatus::Success);
    b.expect(10, WorkStatus::Success);
    end_dialogue(&a, &b);
}

/// Posts, holds and resumes at once, then fails: every request is completed once, each poster's in
/// order, and no success comes after the first flushed one.
#[test]
fn posts_meet_drains_and_a_failure() {
    const POSTERS: u64 = 2;
    const EACH: u64 = 60;
    for seed in 0..60 {
        let kernel = machine("rfc-v2");
        let (a, b) = (side(&kernel, 1024), side(&kernel, 16));
        Qp::connect(&a.qp, &b.qp).unwrap();
        let (local, target) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
        let arm = |index: u64| race::arm(kernel.world().stream("held", seed * 4 + index), 0.2);
        let accepted: Vec<Vec<u64>> = thread::scope(|scope| {
            let posters: Vec<_> = (0..POSTERS)
                .map(|poster| {
                    let (a, local, target, arm) = (&a, &local, &target, &arm);
                    scope.spawn(move || {
                        arm(poster);
                        let (remote_addr, rkey) = target.remote(0);
                        let (op, local) = (WorkOperation::Write, local.sge(0, 8));
                        let post = |wr_id| WorkRequest { wr_id, op, local, remote_addr, rkey, signaled: true };
                        let ids = (0..EACH).map(|n| poster << 32 | n);
                        ids.filter(|wr_id| a.qp.post_send(post(*wr_id)).is_ok()).collect()
                    })
                })
                .collect();
            let (a, arm) = (&a, &arm);
            scope.spawn(move || {
                arm(2);
                for _ in 0..EACH {
                    if a.qp.drain_sends().is_err() {
                        return;
                    }
                    thread::yield_now();
                    let _failed_meanwhile = a.qp.start();
                }
            });
            scope.spawn(move || {
                arm(3);
                for _ in 0..seed {
                    thread::yield_now();
                }
                a.qp.fail();
            });
            posters.into_iter().map(|poster| poster.join().unwrap()).collect()
        });
        assert_eq!(a.qp.waiting_sends(), 0, "{seed}");
        let done = a.cq.poll(1024);
        for (poster, accepted) in accepted.iter().enumerate() {
            let of = done.iter().map(|done| done.wr_id).filter(|wr_id| wr_id >> 32 == poster as u64);
            assert_eq!(&of.collect::<Vec<_>>(), accepted, "{seed}");
        }
        let flushed = done.iter().position(|done| done.status == WorkStatus::Flushed).unwrap_or(done.len());
        assert!(done[flushed..].iter().all(|done| done.status == WorkStatus::Flushed), "{seed}: {done:?}");
        end_dialogue(&a, &b);
    }
}

/// Sends and receives are posted at once: none waits although the other one is there.
#[test]
fn sends_meet_receives() {
    const EACH: u64 = 200;
    for seed in 0..30 {
        let kernel = machine("rfc-v2");
        let (a, b) = (side(&kernel, 1024), side(&kernel, 1024));
        Qp::connect(&a.qp, &b.qp).unwrap();
        a.qp.set_rnr_retry(RnrRetry::Forever);
        let (local, inbox) = (a.anon(PAGE, ALL), b.anon(PAGE, ALL));
        // Far more than a post takes: a send that waits for ever ends the test.
        let again = |tries: &mut u64| {
            *tries += 1;
            assert!(*tries < 1 << 24, "{seed}: a queue stays full");
            thread::yield_now();
        };
        thread::scope(|scope| {
            let (a, b, local, inbox, kernel) = (&a, &b, &local, &inbox, &kernel);
            scope.spawn(move || {
                race::arm(kernel.world().stream("receives", seed), 0.2);
                let mut tries = 0;
                for wr_id in 0..EACH {
                    while b.qp.post_recv(ReceiveRequest { wr_id, local: inbox.sge(0, 8) }).is_err() {
                        again(&mut tries);
                    }
                }
            });
            race::arm(kernel.world().stream("sends", seed), 0.2);
            let mut tries = 0;
            for wr_id in 0..EACH {
                let (op, local) = (WorkOperation::Send, local.sge(0, 8));
                let send = WorkRequest { wr_id, op, local, remote_addr: 0, rkey: 0, signaled: true };
                while a.qp.post_send(send).is_err() {
                    again(&mut tries);
                }
            }
            race::disarm();
        });
        for side in [&a, &b] {
            for wr_id in 0..EACH {
                side.expect(wr_id, WorkStatus::Success);
            }
            side.expect_nothing();
        }
        assert_eq!(a.qp.waiting_sends(), 0);
        end_dialogue(&a, &b);
    }
}

/// A message has taken a receive and waits for its own buffer when the receiver is reset: that
/// receive is forgotten, and the next connection's receives are not held up by it.
#[test]
fn a_reset_forgets_the_receive_that_a_message_has_taken() {
    let kernel = machine("man-page");
    let (a, b, c) = (side(&kernel, 16), side(&kernel, 16), side(&kernel, 16));
    Qp::connect(&a.qp, &b.qp).unwrap();
    let fd = a.task.open("data", OpenFlags::create()).unwrap();
    a.task.write(fd, 0, &[7; 2 * PAGE as usize]).unwrap();
    let io = a.task.submit_direct_io(fd, 0, PAGE, Transfer::Read).unwrap();
    let va = a.task.mmap(fd, 0, 2 * PAGE, true).unwrap();
    let slow = a.reg(va, 2 * PAGE, ALL.on_demand()).unwrap();
    let (target, local) = (b.anon(PAGE, ALL), c.anon(PAGE, ALL));
    b.recv(100, target.sge(0, 8));
    let other = kernel.spawn();
    let truncating = thread::spawn(move || {
        let truncated = other.truncate("data", 0);
        other.exit();
        truncated
    });
    until_asleep(&kernel, "pins draining");
    // The page of the sender's buffer is closed until the I/O ends.
    let (sender, sge) = (Arc::clone(&a.qp), slow.sge(0, 8));
    let sending = thread::spawn(move || {
        let (remote_addr, rkey) = (0, 0);
        sender.post_send(WorkRequest {
            wr_id: 1,
            op: WorkOperation::Send,
            local: sge,
            remote_addr,
            rkey,
            signaled: true,
        })
    });
    until_asleep(&kernel, "pages of a layout change");
    b.qp.reset().unwrap();
    Qp::connect(&c.qp, &b.qp).unwrap();
    b.recv(200, target.sge(64, 8));
    c.send(2, local.sge(0, 8));
    c.expect(2, WorkStatus::Success);
    b.expect(200, WorkStatus::Success);

    io.complete(&a.task, &mut [0; PAGE as usize]).unwrap();
    truncating.join().unwrap().unwrap();
    sending.join().unwrap().unwrap();
    assert_eq!(b.qp.posted_receives(), 0, "the forgotten receive is not posted anew");
    b.expect_nothing();
    expect_rest(&kernel, &[&a.task, &b.task, &c.task]);
}
