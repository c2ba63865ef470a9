//! Sends that wait in the queue against what lets them go, on schedules drawn from a seed: a queue
//! pair that is drained and started again, receives that come one by one, and failures.
//!
//! Run with `RUSTFLAGS="--cfg daxlab_shuttle" cargo test -p rdma-sim --test shuttle_held_sends
//! --release`; see `schedules`.
#![cfg(daxlab_shuttle)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[allow(dead_code, reason = "what the tests on real threads use besides")]
#[path = "nic/harness.rs"]
mod harness;
mod schedules;

use emulator::sync::{Arc, thread};
use harness::{At, PAGE, dialogue, end_dialogue};
use rdma_sim::{AccessFlags, Completion, Cq, Nic, QpState, RnrRetry, WorkStatus};
use schedules::{failure, seeds};

/// How many messages are sent. The queue holds eight.
const SENDS: u64 = 3;

/// What happens beside the sends and the receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// The sender's queue is drained, then started again.
    DrainAndStart,
    /// The sender's queue pair goes to error.
    SenderFails,
    /// The receiver's queue pair goes to error.
    ReceiverFails,
    /// The NIC is unplugged.
    NicRemoved,
}

/// What a side has of completions whose requests have these numbers, in order.
fn taken(cq: &Arc<Cq>, requests: std::ops::RangeInclusive<u64>) -> Vec<Completion> {
    let done = cq.poll(16);
    let found: Vec<u64> = done.iter().map(|completion| completion.wr_id).collect();
    assert_eq!(found, requests.collect::<Vec<u64>>(), "each request once, in the order posted: {done:?}");
    done
}

/// One thread posts sends that wait for receives, one posts receives, and one acts beside them.
fn sends_that_wait(beside: Beside) {
    let (kernel, a, b) = dialogue("rfc-v2");
    a.qp.set_rnr_retry(RnrRetry::Forever);
    let (local, target) = (a.anon(PAGE, AccessFlags::ALL), b.anon(PAGE, AccessFlags::ALL));
    (1..=SENDS).for_each(|n| local.fill(8 * n, &[n as u8; 8]));
    let (a, b) = (Arc::new(a), Arc::new(b));
    let threads = {
        let (sender, receiver, actor) = (Arc::clone(&a), Arc::clone(&b), (Arc::clone(&a), Arc::clone(&b)));
        let from: Vec<_> = (1..=SENDS).map(|n| local.sge(8 * n, 8)).collect();
        let to: Vec<_> = (1..=SENDS).map(|n| target.sge(8 * n, 8)).collect();
        let sending = thread::spawn(move || {
            for (n, sge) in (1..).zip(from) {
                sender.send(n, sge);
            }
        });
        let receiving = thread::spawn(move || {
            for (n, sge) in (101..).zip(to) {
                receiver.recv(n, sge);
            }
        });
        let nic = Nic::of(&kernel);
        let acting = thread::spawn(move || match beside {
            Beside::DrainAndStart => {
                actor.0.qp.drain_sends().unwrap();
                actor.0.qp.start().unwrap();
            }
            Beside::SenderFails => actor.0.qp.fail(),
            Beside::ReceiverFails => actor.1.qp.fail(),
            Beside::NicRemoved => nic.remove(actor.0.task.kernel()),
        });
        [sending, receiving, acting]
    };
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(a.qp.waiting_sends(), 0, "no send is left waiting");
    let sent = taken(&a.cq, 1..=SENDS);
    let done = sent.iter().take_while(|completion| completion.status == WorkStatus::Success).count();
    // A receiver that did not fail keeps the receives that no message has used.
    let received = match b.qp.state() {
        QpState::Error => taken(&b.cq, 101..=100 + SENDS),
        _ => taken(&b.cq, 101..=100 + done as u64),
    };
    let arrived = received.iter().take_while(|completion| completion.status == WorkStatus::Success).count();
    assert_eq!(done, arrived, "a message is sent and received, or neither");
    if beside == Beside::DrainAndStart {
        assert_eq!(done as u64, SENDS);
    }
    for n in 1..=SENDS {
        let want = if n <= done as u64 { n as u8 } else { 0 };
        assert_eq!(target.bytes(8 * n, 8), vec![want; 8], "the bytes of message {n}");
    }
    end_dialogue(&a, &b);
}

#[test]
fn no_schedule_loses_repeats_or_reorders_a_send_that_waits() {
    for seed in seeds() {
        for beside in [Beside::DrainAndStart, Beside::SenderFails, Beside::ReceiverFails, Beside::NicRemoved] {
            if let Some(what) = failure(seed, move || sends_that_wait(beside)) {
                panic!("{beside:?}, DAXLAB_SEED={seed}: {what}");
            }
        }
    }
}
