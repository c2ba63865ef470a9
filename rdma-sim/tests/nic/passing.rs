//! Passing a context: allowed, denied, or allowed only to a process with its own lease.

use emulator::sync::{Arc, thread};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BlockRange, Errno};
use rdma_sim::{AccessFlags, Context, WorkOperation, WorkStatus};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

#[test]
fn a_passed_context_keeps_its_regions_and_names_its_new_holder() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", 4 * PAGE, ALL);
    let heir = kernel.spawn();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    let inode = b.task.inode(target.fd).unwrap();
    b.task.exit();
    assert_eq!(inode.holders()[0].object.describe().processes, [], "unread in a queue");
    let Received::Fd(fd) = heir.recv_fd().unwrap() else { panic!("allowed") };
    let ctx = Context::of(&heir, fd).unwrap();
    assert!(Arc::ptr_eq(&ctx, &b.ctx));

    a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
    a.expect(1, WorkStatus::Success);
    let admin = kernel.spawn();
    assert_eq!(admin.truncate("data", 0), Err(Errno::ETXTBSY));
    let named = inode.holders()[0].object.describe();
    assert_eq!((named.processes, named.fd), (vec![heir.pid()], Some(fd)));
    ctx.dereg_mr(&heir, &target.mr).unwrap();
    admin.truncate("data", 0).unwrap();
    expect_rest(&kernel, &[&a.task, &heir, &admin]);
}

#[test]
fn an_unread_context_dies_with_its_queue() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let target = b.file("data", 4 * PAGE, ALL);
    let heir = kernel.spawn();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    b.task.exit();
    assert!(!target.mr.is_released());
    heir.exit();
    assert!(target.mr.is_released());
    expect_rest(&kernel, &[&a.task]);
}

#[test]
fn deny_refuses_to_send_pins_and_to_pin_what_was_sent() {
    let (kernel, a, b) = dialogue("man-page");
    let target = b.file("data", 4 * PAGE, ALL);
    let heir = kernel.spawn();
    assert_eq!(b.task.send_fd(heir.pid(), b.fd), Err(Errno::EPERM));
    assert!(!b.ctx.fd_holders().shared_beyond(b.task.pid()), "a refused message holds nothing");
    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();

    b.task.send_fd(heir.pid(), b.fd).unwrap();
    assert_eq!(b.reg(target.va, PAGE, ALL).err(), Some(Errno::EPERM), "a queue holds it");
    assert_eq!(b.ctx.file_pins(), 0);
    let Received::Fd(fd) = heir.recv_fd().unwrap() else { panic!("nothing was pinned") };
    assert_eq!(b.reg(target.va, PAGE, ALL).err(), Some(Errno::EPERM), "another process holds it");
    b.anon(PAGE, ALL);
    heir.close(fd).unwrap();
    b.reg(target.va, PAGE, ALL).unwrap();

    let child = b.task.fork().unwrap();
    assert_eq!(Context::of(&child, b.fd).err(), Some(Errno::EBADF), "not inherited");
    expect_rest(&kernel, &[&a.task, &b.task, &heir, &child]);
}

#[test]
fn deny_holds_when_sending_and_pinning_race() {
    let kernel = machine("man-page");
    let b = side(&kernel, 4);
    let (_, va) = b.leased("data", PAGE);
    for _ in 0..300 {
        let heir = kernel.spawn();
        let other = b.task.thread();
        let (pinned, sent) = thread::scope(|scope| {
            let sender = scope.spawn(|| other.send_fd(heir.pid(), b.fd));
            let pinned = b.reg(va, PAGE, ALL);
            (pinned, sender.join().unwrap())
        });
        assert!(pinned.is_err() || sent.is_err(), "both went through");
        heir.exit();
        if let Ok(mr) = pinned {
            b.ctx.dereg_mr(&b.task, &mr).unwrap();
        }
        assert_eq!(b.ctx.file_pins(), 0);
    }
    expect_rest(&kernel, &[&b.task]);
}

#[test]
fn receiver_lease_drops_the_descriptor_of_who_has_none() {
    let (kernel, a, b) = dialogue("chinner-2019");
    let target = b.file("data", 4 * PAGE, ALL);
    let heir = kernel.spawn();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    assert_eq!(heir.recv_fd(), Ok(Received::Truncated));
    assert!(!b.ctx.fd_holders().shared_beyond(b.task.pid()));

    let fd = heir.open("data", OpenFlags::create()).unwrap();
    heir.lease(fd, LeaseKind::READ, BlockRange::new(0, 3)).unwrap();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    assert_eq!(heir.recv_fd(), Ok(Received::Truncated), "its lease does not cover the pins");
    heir.lease(fd, LeaseKind::READ, BlockRange::ALL).unwrap();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    let Received::Fd(passed) = heir.recv_fd().unwrap() else { panic!("covered") };
    heir.close(passed).unwrap();

    b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
    let other = kernel.spawn();
    b.task.send_fd(other.pid(), b.fd).unwrap();
    assert!(matches!(other.recv_fd(), Ok(Received::Fd(_))), "nothing is pinned");
    expect_rest(&kernel, &[&a.task, &b.task, &heir, &other]);
}

#[test]
fn a_forked_child_keeps_the_context_of_a_dead_parent() {
    for preset in ["rfc-v2", "chinner-2025"] {
        let (kernel, a, b) = dialogue(preset);
        let local = a.anon(PAGE, ALL);
        let target = b.file("data", 4 * PAGE, ALL);
        let child = b.task.fork().unwrap();
        b.task.exit();
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        a.expect(1, WorkStatus::Success);
        assert!(!target.mr.is_released());
        child.exit();
        assert!(target.mr.is_released());
        expect_rest(&kernel, &[&a.task]);
    }
}
