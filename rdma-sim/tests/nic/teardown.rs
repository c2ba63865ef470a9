//! Teardown in every order: descriptors, exit, SIGKILL, regions that hold their file.

use emulator::sync::thread;
use fs_sim::Errno;
use fs_sim::design::{Axis, presets};
use fs_sim::vfs::signals::{Disposition, Signal};
use rdma_sim::{AccessFlags, Context};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;

#[test]
fn exit_and_sigkill_free_everything_in_every_order() {
    for preset in presets() {
        for kill in [false, true] {
            for file_first in [false, true] {
                let kernel = machine(preset.name);
                let task = kernel.spawn();
                // Descriptors are released in their order: the lower number first.
                let spare =
                    if file_first { task.open("data", fs_sim::syscalls::open::OpenFlags::create()).ok() } else { None };
                let b = side_of(task, 4);
                let (fd, va) = b.leased("data", 4 * PAGE);
                if let Some(spare) = spare {
                    b.task.dup2(fd, spare).unwrap();
                }
                let region = b.reg(va, 4 * PAGE, ALL);
                assert_eq!(region.is_ok(), preset.name != "mainline");
                b.anon(PAGE, ALL);
                let admin = kernel.spawn();
                if kill {
                    admin.kill(b.task.pid(), Signal::Sigkill).unwrap();
                } else {
                    b.task.exit();
                }
                assert!(region.is_err() || region.unwrap().is_released());
                admin.truncate("data", 0).unwrap();
                expect_rest(&kernel, &[&admin]);
            }
        }
    }
}

#[test]
fn closing_context_and_file_in_either_order() {
    for preset in presets() {
        let waits = preset.axes.get(Axis::LastCloseWhilePinned) == "wait-killable";
        for file_first in [false, true] {
            if file_first && waits {
                continue;
            }
            let kernel = machine(preset.name);
            let b = side(&kernel, 4);
            let (fd, va) = b.leased("data", 4 * PAGE);
            let region = b.reg(va, 4 * PAGE, ALL);
            b.task.munmap(va, 4 * PAGE).unwrap();
            let order = if file_first { [fd, b.fd] } else { [b.fd, fd] };
            for fd in order {
                b.task.close(fd).unwrap();
            }
            assert!(region.is_err() || region.unwrap().is_released(), "{}", preset.name);
            let admin = kernel.spawn();
            admin.truncate("data", 0).unwrap();
            expect_rest(&kernel, &[&admin, &b.task]);
        }
    }
}

#[test]
fn only_a_fatal_signal_ends_a_blocked_close() {
    let kernel = machine("chinner-2019");
    let b = side(&kernel, 4);
    b.task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
    let target = b.file("data", 4 * PAGE, ALL);
    b.task.munmap(target.va, 4 * PAGE).unwrap();
    let (admin, heir) = (kernel.spawn(), kernel.spawn());
    // Another process holds the context: the pins outlive the process that closes it.
    let peer_lease = heir.open("data", fs_sim::syscalls::open::OpenFlags::create()).unwrap();
    heir.lease(peer_lease, fs_sim::leases::layout::kind::LeaseKind::READ, fs_sim::BlockRange::ALL).unwrap();
    b.task.send_fd(heir.pid(), b.fd).unwrap();
    let received = heir.recv_fd().unwrap();
    thread::scope(|scope| {
        let closer = scope.spawn(|| b.task.close(target.fd));
        until_asleep(&kernel, "close while pinned");
        admin.kill(b.task.pid(), Signal::Sigusr1).unwrap();
        thread::yield_now();
        until_asleep(&kernel, "close while pinned");
        assert!(!target.mr.is_released());
        admin.kill(b.task.pid(), Signal::Sigkill).unwrap();
        assert_eq!(closer.join().unwrap(), Err(Errno::EINTR));
    });
    assert!(!target.mr.is_released(), "the pins live until the context dies");
    let fs_sim::syscalls::descriptors::Received::Fd(fd) = received else { panic!("covered") };
    assert!(!Context::of(&heir, fd).unwrap().is_aborted());
    heir.close(fd).unwrap();
    assert!(target.mr.is_released());
    expect_rest(&kernel, &[&admin, &heir]);
}

#[test]
fn a_blocked_close_goes_on_when_the_region_is_deregistered() {
    let kernel = machine("chinner-2025");
    let b = side(&kernel, 4);
    let target = b.file("data", 4 * PAGE, ALL);
    b.task.munmap(target.va, 4 * PAGE).unwrap();
    let other = b.task.thread();
    thread::scope(|scope| {
        let closer = scope.spawn(|| b.task.close(target.fd));
        until_asleep(&kernel, "close while pinned");
        b.ctx.dereg_mr(&other, &target.mr).unwrap();
        assert_eq!(closer.join().unwrap(), Ok(()));
    });
    expect_rest(&kernel, &[&b.task]);
}

#[test]
fn a_region_that_holds_its_file_keeps_the_lease_until_deregistered() {
    for preset in ["kara", "gunthorpe"] {
        let (_, a, b) = dialogue(preset);
        let target = b.file("data", 4 * PAGE, ALL);
        let inode = b.task.inode(target.fd).unwrap();
        b.task.munmap(target.va, 4 * PAGE).unwrap();
        b.task.close(target.fd).unwrap();
        assert_eq!(inode.leases().len(), 1, "the region holds the open file");
        assert!(!target.mr.is_revoked());
        b.ctx.dereg_mr(&b.task, &target.mr).unwrap();
        assert_eq!(inode.leases(), []);
        end_dialogue(&a, &b);
    }
}

#[test]
fn a_context_may_drop_the_last_reference_to_its_files() {
    // The release of the context releases its regions. That drops the last references to their
    // files, and the release of the files ends the leases that the same context's pins were taken
    // under. All of it is deferred; none of it is nested in a lock.
    for preset in ["kara", "gunthorpe"] {
        for by_exit in [false, true] {
            let (_, a, b) = dialogue(preset);
            let files = ["one", "two", "three"].map(|name| b.file(name, 4 * PAGE, ALL));
            for file in &files {
                b.reg(file.va, PAGE, ALL).unwrap();
                b.task.close(file.fd).unwrap();
                b.task.munmap(file.va, 4 * PAGE).unwrap();
            }
            b.task.unlink("two").unwrap();
            if by_exit {
                b.task.exit();
            } else {
                b.task.close(b.fd).unwrap();
            }
            assert!(files.iter().all(|file| file.mr.is_released()));
            end_dialogue(&a, &b);
        }
    }
}

#[test]
fn a_context_whose_queue_was_its_own_receivers_dies_with_it() {
    let kernel = machine("kara");
    let b = side(&kernel, 4);
    let target = b.file("data", 4 * PAGE, ALL);
    // The process sends the context to itself: its inbox holds the last reference to the context,
    // and the context holds the last reference to the file.
    b.task.send_fd(b.task.pid(), b.fd).unwrap();
    b.task.munmap(target.va, 4 * PAGE).unwrap();
    for fd in [target.fd, b.fd] {
        b.task.close(fd).unwrap();
    }
    assert!(!target.mr.is_released());
    b.task.exit();
    assert!(target.mr.is_released());
    expect_rest(&kernel, &[]);
}

#[test]
fn locked_memory_is_given_back_to_the_registrant() {
    let kernel = machine("rfc-v2");
    let b = side(&kernel, 4);
    let target = b.file("data", 4 * PAGE, ALL);
    assert_eq!(b.task.process().locked_pages(), 4);
    let child = b.task.fork().unwrap();
    let ctx = Context::of(&child, b.fd).unwrap();
    ctx.dereg_mr(&child, &target.mr).unwrap();
    assert_eq!(b.task.process().locked_pages(), 0);
    expect_rest(&kernel, &[&b.task, &child]);
}
