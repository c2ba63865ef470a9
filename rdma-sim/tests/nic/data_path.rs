//! Every operation moves bytes between files and anonymous memory, in every combination.

use fs_sim::syscalls::open::OpenFlags;
use rdma_sim::{AccessFlags, QpState, WorkOpcode, WorkOperation, WorkRequest, WorkStatus};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

#[test]
fn write_reaches_a_file() {
    let (_, a, b) = dialogue("rfc-v2");
    let source = a.anon(4 * PAGE, AccessFlags::LOCAL_READ);
    let target = b.file("data", 8 * PAGE, ALL);
    let bytes = pattern(10_000, 1);
    source.fill(5, &bytes);

    a.post(1, WorkOperation::Write, source.sge(5, 10_000), target.remote(3));
    a.expect_done(1, WorkOpcode::Write, 10_000);
    a.expect_nothing();
    b.expect_nothing();
    assert_eq!(contents(&b.task, target.fd, 3, 10_000), bytes);
    assert_eq!(contents(&b.task, target.fd, 0, 3), [0; 3], "not a byte before");
    assert_eq!(contents(&b.task, target.fd, 10_003, 5), [0; 5], "nor after");
    a.expect_state(QpState::ReadyToSend);
    b.expect_state(QpState::ReadyToSend);
    end_dialogue(&a, &b);
}

#[test]
fn read_comes_from_a_file() {
    let (_, a, b) = dialogue("rfc-v2");
    let into = a.anon(4 * PAGE, AccessFlags::LOCAL_WRITE);
    let source = b.file("data", 8 * PAGE, ALL);
    let bytes = pattern(9_001, 2);
    b.task.write(source.fd, 4_000, &bytes).unwrap();

    a.post(1, WorkOperation::Read, into.sge(7, 9_001), source.remote(4_000));
    a.expect_done(1, WorkOpcode::Read, 9_001);
    assert_eq!(into.bytes(7, 9_001), bytes);
    assert_eq!(into.bytes(0, 7), [0; 7]);
    end_dialogue(&a, &b);
}

#[test]
fn file_to_file_over_many_pieces() {
    let (_, a, b) = dialogue("unsafe");
    let len = 300 * 1024 + 13;
    let source = a.file("source", 80 * PAGE, ALL);
    let target = b.file("target", 80 * PAGE, ALL);
    let bytes = pattern(len, 3);
    a.task.write(source.fd, 1, &bytes).unwrap();

    a.post(1, WorkOperation::Write, source.sge(1, len as u32), target.remote(PAGE - 1));
    a.expect_done(1, WorkOpcode::Write, len as u32);
    assert!(contents(&b.task, target.fd, PAGE - 1, len) == bytes);

    b.post(2, WorkOperation::Read, target.sge(0, len as u32), source.remote(1));
    b.expect_done(2, WorkOpcode::Read, len as u32);
    assert!(contents(&b.task, target.fd, 0, len) == bytes);
    end_dialogue(&a, &b);
}

#[test]
fn a_region_may_begin_and_end_inside_a_page() {
    let (_, a, b) = dialogue("rfc-v2");
    let source = a.anon(2 * PAGE, AccessFlags::LOCAL_READ);
    let (fd, va) = b.leased("data", 4 * PAGE);
    let part = b.reg(va + PAGE + 100, 5_000, ALL).unwrap();
    let bytes = pattern(5_000, 9);
    source.fill(0, &bytes);

    a.post(1, WorkOperation::Write, source.sge(0, 5_000), part.remote(0));
    a.expect_done(1, WorkOpcode::Write, 5_000);
    assert_eq!(contents(&b.task, fd, PAGE + 100, 5_000), bytes);
    assert_eq!(contents(&b.task, fd, PAGE, 100), [0; 100]);
    end_dialogue(&a, &b);
}

#[test]
fn send_fills_receives_in_the_order_they_were_posted() {
    let (_, a, b) = dialogue("rfc-v2");
    let source = a.anon(PAGE, AccessFlags::LOCAL_READ);
    let first = b.anon(PAGE, AccessFlags::LOCAL_WRITE);
    let second = b.file("inbox", 8 * PAGE, ALL);
    source.fill(0, b"hello, receive");

    b.recv(10, first.sge(8, 5));
    b.recv(11, second.sge(100, 20));
    a.send(1, source.sge(0, 5));
    a.expect_done(1, WorkOpcode::Send, 5);
    b.expect_done(10, WorkOpcode::Recv, 5);
    b.expect_nothing();
    a.send(2, source.sge(7, 7));
    a.expect_done(2, WorkOpcode::Send, 7);
    b.expect_done(11, WorkOpcode::Recv, 7);
    assert_eq!(first.bytes(8, 5), b"hello");
    assert_eq!(contents(&b.task, second.fd, 100, 8), b"receive\0");

    b.recv(12, second.sge(0, 20_000));
    let long = a.anon(5 * PAGE, AccessFlags::LOCAL_READ);
    long.fill(0, &pattern(20_000, 4));
    a.send(3, long.sge(0, 20_000));
    a.expect_done(3, WorkOpcode::Send, 20_000);
    b.expect_done(12, WorkOpcode::Recv, 20_000);
    assert_eq!(contents(&b.task, second.fd, 0, 20_000), pattern(20_000, 4));
    end_dialogue(&a, &b);
}

#[test]
fn atomics_return_what_was_there() {
    for file in [true, false] {
        let (_, a, b) = dialogue("rfc-v2");
        let result = a.anon(PAGE, AccessFlags::LOCAL_WRITE);
        let target = if file { b.file("data", 2 * PAGE, ALL).mr } else { b.anon(2 * PAGE, ALL).mr };
        let before = || u64::from_ne_bytes(result.bytes(16, 8).try_into().unwrap());

        a.post(1, WorkOperation::FetchAdd { add: 40 }, result.sge(16, 8), target.remote(PAGE + 8));
        a.expect_done(1, WorkOpcode::FetchAdd, 8);
        assert_eq!(before(), 0);
        a.post(2, WorkOperation::FetchAdd { add: 2 }, result.sge(16, 8), target.remote(PAGE + 8));
        a.expect_done(2, WorkOpcode::FetchAdd, 8);
        assert_eq!(before(), 40);
        a.post(3, WorkOperation::CompareSwap { compare: 41, swap: 7 }, result.sge(16, 8), target.remote(PAGE + 8));
        a.expect_done(3, WorkOpcode::CompareSwap, 8);
        assert_eq!(before(), 42, "not equal: not swapped");
        a.post(4, WorkOperation::CompareSwap { compare: 42, swap: 7 }, result.sge(16, 8), target.remote(PAGE + 8));
        a.expect_done(4, WorkOpcode::CompareSwap, 8);
        assert_eq!(before(), 42);
        a.post(5, WorkOperation::Read, result.sge(16, 8), target.remote(PAGE + 8));
        a.expect_done(5, WorkOpcode::Read, 8);
        assert_eq!(before(), 7);
        end_dialogue(&a, &b);
    }
}

#[test]
fn nothing_at_all_skips_the_key() {
    let (_, a, b) = dialogue("rfc-v2");
    let nothing = rdma_sim::Sge { lkey: 77, addr: 5, len: 0 };
    a.post(1, WorkOperation::Write, nothing, (123, 456));
    a.expect_done(1, WorkOpcode::Write, 0);
    a.post(2, WorkOperation::Read, nothing, (123, 456));
    a.expect_done(2, WorkOpcode::Read, 0);
    b.recv(10, nothing);
    a.send(3, nothing);
    a.expect_done(3, WorkOpcode::Send, 0);
    b.expect_done(10, WorkOpcode::Recv, 0);
    a.expect_state(QpState::ReadyToSend);
    b.expect_state(QpState::ReadyToSend);
}

#[test]
fn unsignaled_success_is_silent_and_unsignaled_failure_is_not() {
    let (_, a, b) = dialogue("rfc-v2");
    let source = a.anon(PAGE, AccessFlags::LOCAL_READ);
    let target = b.anon(PAGE, ALL);
    let (remote_addr, rkey) = target.remote(0);
    let quiet =
        WorkRequest { wr_id: 1, op: WorkOperation::Write, local: source.sge(0, 8), remote_addr, rkey, signaled: false };
    a.qp.post_send(quiet).unwrap();
    a.expect_nothing();
    a.qp.post_send(WorkRequest { wr_id: 2, rkey: rkey + 1, ..quiet }).unwrap();
    a.expect(2, WorkStatus::RemoteAccessError);
    a.expect_state(QpState::Error);
}

#[test]
fn on_demand_regions_follow_the_file() {
    for preset in ["odp", "mainline", "rfc-v2"] {
        let (_, a, b) = dialogue(preset);
        let local = a.anon(2 * PAGE, AccessFlags::LOCAL_WRITE);
        let fd = b.task.open("data", OpenFlags::create()).unwrap();
        b.task.write(fd, 0, &pattern(2 * PAGE as usize, 5)).unwrap();
        let va = b.task.mmap(fd, 0, 2 * PAGE, true).unwrap();
        // No lease and no pin: an explicit on-demand region needs no gate in any design.
        let target = b.reg(va, 2 * PAGE, ALL.on_demand()).unwrap();
        assert_eq!(b.ctx.file_pins(), 0);

        a.post(1, WorkOperation::Read, local.sge(0, 8192), target.remote(0));
        a.expect_done(1, WorkOpcode::Read, 8192);
        assert_eq!(local.bytes(0, 8192), pattern(8192, 5));
        a.post(2, WorkOperation::FetchAdd { add: 1 }, local.sge(0, 8), target.remote(PAGE));
        a.expect_done(2, WorkOpcode::FetchAdd, 8);
        a.post(3, WorkOperation::Write, local.sge(100, 50), target.remote(PAGE + 100));
        a.expect_done(3, WorkOpcode::Write, 50);
        assert_eq!(contents(&b.task, fd, PAGE + 100, 50), pattern(8192, 5)[100..150]);
        end_dialogue(&a, &b);
    }
}
