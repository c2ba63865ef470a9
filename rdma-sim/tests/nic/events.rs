//! Waiting for asynchronous events.

use emulator::sync::thread;
use fs_sim::Errno;
use fs_sim::vfs::signals::Signal;
use rdma_sim::{AccessFlags, AsyncEvent, WorkOperation, WorkStatus};

use crate::harness::*;

const REASON: &str = "an asynchronous event";

#[test]
fn an_event_that_is_there_is_taken_at_once_and_once() {
    let (_, a, b) = dialogue("rfc-v2");
    let target = b.anon(PAGE, AccessFlags::LOCAL_READ);
    a.post(1, WorkOperation::Write, a.anon(PAGE, AccessFlags::ALL).sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::RemoteAccessError);
    assert_eq!(b.ctx.wait_event(&b.task), Ok(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
    assert_eq!(b.ctx.poll_event(), None);
    assert_eq!(b.ctx.wait_event(&a.task), Err(Errno::EBADF), "the context of another process");
}

/// Only the event wakes the sleeper here: a signal would wake it as well, so this test sends none.
#[test]
fn a_sleeper_is_woken_by_an_event() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let (local, target) = (a.anon(PAGE, AccessFlags::ALL), b.anon(PAGE, AccessFlags::LOCAL_READ));
    let own = b.task.thread();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| b.ctx.wait_event(&own));
        until_asleep(&kernel, REASON);
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        assert_eq!(waiting.join().unwrap(), Ok(AsyncEvent::QpAccess { qp_num: b.qp.number() }));
    });
    end_dialogue(&a, &b);
}

#[test]
fn an_abort_is_an_event() {
    let (_, a, b) = dialogue_with(whole_context());
    let _target = b.file("data", PAGE, AccessFlags::ALL);
    a.task.truncate("data", 0).unwrap();
    assert_eq!(b.ctx.wait_event(&b.task), Ok(AsyncEvent::Fatal));
    end_dialogue(&a, &b);
}

#[test]
fn a_sleep_ends_with_a_signal_the_close_or_the_process() {
    type End = fn(&Side, &Side);
    // The main thread gets the first signal. While that is pending, the sleeper gets the second.
    let twice: End = |a, b| (0..2).for_each(|_| a.task.kill(b.task.pid(), Signal::Sigio).unwrap());
    let ends: [(End, Errno); 3] = [
        (twice, Errno::EINTR),
        (|_, b| b.task.close(b.fd).unwrap(), Errno::EBADF),
        (|a, b| a.task.kill(b.task.pid(), Signal::Sigkill).unwrap(), Errno::Dead),
    ];
    for (end, errno) in ends {
        let (kernel, a, b) = dialogue("rfc-v2");
        let own = b.task.thread();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| b.ctx.wait_event(&own));
            until_asleep(&kernel, REASON);
            end(&a, &b);
            let found = waiting.join().unwrap();
            // The context of a killed process is closed as well: the sleeper may find either.
            assert!(found == Err(errno) || (errno == Errno::Dead && found == Err(Errno::EBADF)), "{found:?}");
        });
        end_dialogue(&a, &b);
    }
}
