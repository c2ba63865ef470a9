//! Dialogues about processes: what keeps an open file (and so its leases) alive, passing
//! descriptors, and death in every position. `docs/semantics.md`, sections 1, 2 and the scenarios
//! S20, S21, S33, S34.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use common::watchdog::soon;
use common::{Actor, Lab, Nic, can_pin, every_preset_where, exclusive, needs_lease, preset};
use fs_sim::base::numbers::Fd;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::fd_holders::INBOX_MAX;
use fs_sim::vfs::fd_table::FDS_MAX;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, BlockRange, Errno};

const ALL: BlockRange = BlockRange::ALL;

fn receives(actor: &Actor) -> Fd {
    match actor.recv_fd() {
        Ok(Received::Fd(fd)) => fd,
        other => panic!("no descriptor: {other:?}"),
    }
}

/// Section 2, life: a lease lives as long as its open file: dups, forked copies, mappings, unread
/// messages keep it.
#[test]
fn a_lease_lives_and_dies_with_the_open_file() {
    type Keep = fn(&Lab, &Actor, Fd) -> (Actor, Box<dyn FnOnce(&Actor)>);
    let keepers: [(&str, Keep); 6] = [
        ("a dup", |_, a, f| {
            let dup = a.dup(f).unwrap();
            (a.clone(), Box::new(move |a| a.close(dup).unwrap()))
        }),
        ("a mapping", |_, a, f| {
            let va = a.mmap(f, 0, 2 * BLOCK, false).unwrap();
            (a.clone(), Box::new(move |a| a.munmap(va, 2 * BLOCK).unwrap()))
        }),
        ("half a mapping", |_, a, f| {
            let va = a.mmap(f, 0, 3 * BLOCK, false).unwrap();
            a.munmap(va + BLOCK, BLOCK).unwrap();
            a.munmap(va, BLOCK).unwrap();
            (a.clone(), Box::new(move |a| a.munmap(va + 2 * BLOCK, BLOCK).unwrap()))
        }),
        ("a child", |_, a, _| (a.child(), Box::new(|child| child.exit()))),
        ("a child's mapping", |_, a, f| {
            let va = a.mmap(f, 0, BLOCK, false).unwrap();
            let child = a.child();
            child.close(f).unwrap();
            a.munmap(va, BLOCK).unwrap();
            (child, Box::new(move |child| child.munmap(va, BLOCK).unwrap()))
        }),
        ("an unread message", |lab, a, f| {
            let b = lab.actor();
            a.send_fd(b.pid(), f).unwrap();
            (b, Box::new(|b| b.exit()))
        }),
    ];
    for (what, keep) in keepers {
        let (lab, [a, looker]) = Lab::cast(preset("man-page"));
        let f = a.writes_file("data", 4, 1);
        let look = looker.opens("data");
        a.lease(f, LeaseKind::WRITE_U, ALL).unwrap();
        let (keeper, release) = keep(&lab, &a, f);
        a.close(f).unwrap();
        assert_eq!(looker.held(look), [(LeaseKind::WRITE_U, ALL)], "{what}");
        assert_eq!(looker.lease(look, LeaseKind::READ, ALL), Err(Errno::ETXTBSY), "{what}");
        release(&keeper);
        assert_eq!(looker.held(look), [], "{what}");
        assert_eq!(looker.lease(look, LeaseKind::WRITE_U, ALL), Ok(()));
        lab.end([&a, &looker, &keeper]);
    }
}

/// Sending: the message holds the open file; a dead receiver and a full inbox leave the reference
/// with the sender.
#[test]
fn send_and_receive() {
    let (lab, [a, b, dead]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 2, 1);
    a.lease(f, LeaseKind::WRITE_U, ALL).unwrap();
    dead.exit();
    assert_eq!(a.send_fd(dead.pid(), f), Err(Errno::ECONNREFUSED));
    assert_eq!(a.send_fd(b.pid(), Fd(77)), Err(Errno::EBADF));
    assert_eq!(b.recv_fd(), Err(Errno::EAGAIN), "nothing there");
    for _ in 0..INBOX_MAX {
        a.send_fd(b.pid(), f).unwrap();
    }
    assert_eq!(a.send_fd(b.pid(), f), Err(Errno::EAGAIN), "full");
    let received = receives(&b);
    assert_eq!(b.bytes_of(received), [1, 2], "the access mode travels along");
    assert_eq!(a.send_fd(b.pid(), f), Ok(()), "room for one");
    a.close(f).unwrap();
    assert_eq!(b.held(received), [(LeaseKind::WRITE_U, ALL)]);
    for _ in 0..INBOX_MAX {
        let fd = receives(&b);
        b.close(fd).unwrap();
    }
    assert_eq!(b.unlock(received, ALL), Ok(()), "it may release");
    b.lease(received, LeaseKind::WRITE_U, ALL).unwrap();
    let looker = lab.actor();
    let look = looker.opens("data");
    b.close(received).unwrap();
    assert_eq!(looker.held(look), [], "every reference was counted once");
    lab.end([&a, &b, &dead, &looker]);
}

/// The fd holders of an object are the processes that could still close it: by descriptors, copies
/// and queued messages.
#[test]
fn fd_holders_of_an_object() {
    let (lab, [a, b]) = Lab::cast(preset("unsafe"));
    let f = a.writes_file("data", 1, 1);
    let (nic_fd, nic) = Nic::open(&a);
    let region = nic.pins(&a, f, 0..1).unwrap();
    let holders = || {
        use fs_sim::holders::holder::PinHolder;
        region.describe().processes
    };
    assert_eq!(holders(), [a.pid()]);
    let dup = a.dup(nic_fd).unwrap();
    a.close(nic_fd).unwrap();
    assert_eq!(holders(), [a.pid()]);
    let child = a.child();
    assert_eq!(holders(), [a.pid(), child.pid()]);
    child.exit();
    a.send_fd(b.pid(), dup).unwrap();
    a.dup2(f, dup).unwrap();
    assert_eq!(holders(), [], "in a queue");
    assert!(region.is_pinned());
    let got = receives(&b);
    assert_eq!(holders(), [b.pid()]);
    b.dup2(got, Fd(9)).unwrap();
    b.close(got).unwrap();
    assert_eq!(holders(), [b.pid()]);
    assert!(a.object(dup).is_err_and(|errno| errno == Errno::EINVAL), "a file now");
    b.close(Fd(9)).unwrap();
    assert!(!region.is_pinned());
    lab.end([&a, &b, &child]);
}

#[test]
fn descriptors_are_the_lowest_free_and_bounded() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 2, 1);
    assert_eq!((f, a.dup(f).unwrap(), a.dup(f).unwrap()), (Fd(0), Fd(1), Fd(2)));
    a.close(Fd(1)).unwrap();
    assert_eq!(a.dup(f), Ok(Fd(1)));
    assert_eq!(a.close(Fd(50)), Err(Errno::EBADF));
    assert_eq!(a.dup2(Fd(50), f), Err(Errno::EBADF));
    assert_eq!(a.bytes_of(f), [1, 2], "a failed dup2 closes nothing");
    assert_eq!(a.dup2(f, Fd(FDS_MAX as u32)), Err(Errno::EBADF));
    assert_eq!(a.dup2(f, f), Ok(f));
    b.send_fd(a.pid(), b.creates("other")).unwrap();
    while a.dup(f).is_ok() {}
    let last = Fd(FDS_MAX as u32 - 1);
    assert_eq!(a.stat(last).map(|stat| stat.size), Ok(2 * BLOCK));
    assert_eq!(a.dup(f), Err(Errno::EMFILE));
    let truncating = OpenFlags { truncate: true, ..OpenFlags::open(AccessMode::BOTH) };
    assert_eq!(a.open("data", truncating), Err(Errno::EMFILE));
    assert_eq!(a.bytes_of(f), [1, 2], "nothing was truncated on the way to EMFILE");
    assert_eq!(a.open("new", OpenFlags::create()), Err(Errno::EMFILE));
    assert_eq!(b.open("new", OpenFlags::open(AccessMode::READ)), Err(Errno::ENOENT), "nothing was created either");
    assert_eq!(a.recv_fd(), Err(Errno::EMFILE), "the message's descriptor is dropped");
    assert_eq!(a.dup2(f, Fd(7)), Ok(Fd(7)), "a number that is taken can be had");
    a.close(last).unwrap();
    assert_eq!(a.open("data", OpenFlags::open(AccessMode::READ)), Ok(last));
    lab.end([&a, &b]);
}

/// Names, flags and bounds of `open`.
#[test]
fn open_checks_names_flags_and_bounds() {
    let (lab, [a]) = Lab::cast(preset("man-page"));
    let open = |name: &str| a.open(name, OpenFlags::open(AccessMode::BOTH));
    assert_eq!(open("data"), Err(Errno::ENOENT));
    assert_eq!(open(""), Err(Errno::EINVAL));
    assert_eq!(a.open(&"x".repeat(256), OpenFlags::create()), Err(Errno::EINVAL));
    assert_eq!(a.open("data", OpenFlags::open(AccessMode { read: false, write: false })), Err(Errno::EINVAL));
    let f = a.writes_file("data", 2, 1);
    let exclusively = OpenFlags { exclusive: true, ..OpenFlags::create() };
    assert_eq!(a.open("data", exclusively), Err(Errno::EEXIST));
    assert_eq!(a.truncate("nothing", 0), Err(Errno::ENOENT));
    assert_eq!(a.unlink("nothing"), Err(Errno::ENOENT));
    let reader = a.open("data", OpenFlags::open(AccessMode::READ)).unwrap();
    let writer = a.open("data", OpenFlags::open(AccessMode::WRITE)).unwrap();
    assert_eq!(a.write(reader, 0, &[1]), Err(Errno::EBADF));
    assert_eq!(a.read(writer, 0, &mut [0]), Err(Errno::EBADF));
    assert_eq!(a.ftruncate(reader, 0), Err(Errno::EINVAL));
    assert_eq!(a.mmap(writer, 0, BLOCK, false), Err(Errno::EACCES));
    assert_eq!(a.mmap(reader, 0, BLOCK, true), Err(Errno::EACCES));
    assert_eq!(a.mmap(f, 1, BLOCK, true), Err(Errno::EINVAL));
    assert_eq!(a.mmap(f, 0, 0, true), Err(Errno::EINVAL));
    assert_eq!(a.mmap(f, 0, u64::MAX, true), Err(Errno::EINVAL));
    assert_eq!(a.truncate("data", u64::MAX), Err(Errno::EFBIG));
    assert_eq!(a.write(f, u64::MAX, &[1, 2]), Err(Errno::EFBIG));
    a.unlink("data").unwrap();
    let g = a.open("data", exclusively).unwrap();
    assert_ne!(a.stat(g).unwrap().ino, a.stat(f).unwrap().ino);
    assert_eq!((a.bytes_of(g), a.bytes_of(f)), (vec![], vec![1, 2]), "the old file lives on, nameless");
    assert_eq!(a.stat(f).unwrap().links, 0);
    lab.end([&a]);
}

/// Signals: SIGKILL cannot be handled, a dead process makes no call, and an unknown process is
/// ESRCH.
#[test]
fn death_by_signal() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 2, 1);
    a.process().set_disposition(Signal::Sigkill, Disposition::Handler);
    assert_eq!(b.kill(a.pid(), Signal::Sigusr1), Ok(()));
    assert_eq!(a.signals(), [Signal::Sigusr1]);
    assert_eq!(b.kill(a.pid(), Signal::Sigkill), Ok(()));
    assert_eq!(a.read(f, 0, &mut [0]), Err(Errno::Dead));
    assert_eq!(a.fork().map(|_| ()), Err(Errno::Dead));
    assert_eq!(a.another_thread().close(f), Err(Errno::Dead), "also in a thread made too late");
    assert!(lab.kernel.process(a.pid()).is_none());
    assert_eq!(b.kill(a.pid(), Signal::Sigkill), Err(Errno::ESRCH));
    assert_eq!(lab.kernel.counters.processes_killed.get(), 1);
    let child = b.child();
    child.kill(child.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(child.signals(), [Signal::Sigusr1], "dispositions are inherited");
    let fragile = lab.fragile();
    fragile.kill(fragile.pid(), Signal::Sigterm).unwrap();
    assert!(fragile.process().is_dying());
    lab.end([&a, &b, &child]);
}

/// A pending signal interrupts the waits of the thread that is to run its handler, until the signal
/// is taken. A second signal meanwhile goes to another thread.
#[test]
fn taking_signals_ends_their_effect_on_every_thread() {
    let (lab, [a, b]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 2, 1);
    a.lease(f, LeaseKind::READ, ALL).unwrap();
    let helper = b.another_thread();
    b.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(b.truncate("data", 0), Err(Errno::EINTR), "pending for the main thread");
    b.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(helper.truncate("data", 0), Err(Errno::EINTR), "the main thread has one already");
    assert_eq!(b.signals(), [Signal::Sigusr1; 2], "taken by the other thread");
    let changing = helper.blocks("lease break", |helper| helper.truncate("data", 0));
    a.unlock(f, ALL).unwrap();
    assert_eq!(changing.finish(), Ok(()));
    lab.end([&a, &b]);
}

/// Exit while another thread is blocked in a system call: the call ends, and the last thread to
/// leave does the exit.
#[test]
fn exit_while_another_thread_is_blocked() {
    for by_signal in [false, true] {
        let (lab, [a, b]) = Lab::cast(preset("man-page"));
        let f = a.writes_file("data", 2, 1);
        let own = b.writes_file("own", 1, 1);
        a.lease(f, LeaseKind::READ, ALL).unwrap();
        b.lease(own, LeaseKind::WRITE_U, ALL).unwrap();
        let helper = b.another_thread();
        let changing = helper.blocks("lease break", |helper| helper.truncate("data", 0));
        match by_signal {
            true => a.kill(b.pid(), Signal::Sigkill).unwrap(),
            false => b.exit(),
        }
        assert_eq!(changing.finish(), Err(Errno::EINTR));
        assert!(lab.kernel.process(b.pid()).is_none(), "gone when its last call has left");
        assert_eq!(a.bytes_of(f), [1, 2]);
        let look = a.opens("own");
        assert_eq!(a.held(look), [], "and with it its lease");
        lab.end([&a, &b]);
    }
}

/// S20: exit or SIGKILL, after the data and the context were closed in either order, or not at all:
/// no deadlock, and all pins are gone.
#[test]
fn s20_death_in_every_order() {
    every_preset_where(can_pin, |axes| {
        for order in ["context first", "data first", "exit", "kill", "exit with mappings"] {
            let (lab, a) = Lab::pinned(axes, 4, 0..4).unwrap();
            let b = lab.actor();
            let fb = b.opens("data");
            let _mapped = a.who.mmap(a.fd, 0, 4 * BLOCK, true).unwrap();
            match order {
                "context first" => {
                    a.who.close(a.nic_fd).unwrap();
                    a.who.close(a.fd).unwrap();
                }
                "data first" => {
                    // The mapping is still there: not the last reference, so no design waits.
                    a.who.close(a.fd).unwrap();
                    a.who.close(a.nic_fd).unwrap();
                }
                "kill" => b.kill(a.who.pid(), Signal::Sigkill).unwrap(),
                _ => a.who.exit(),
            }
            a.who.exit();
            assert!(lab.kernel.process(a.who.pid()).is_none(), "{order}");
            assert_eq!((b.held(fb), b.inode_of(fb).holders().len()), (vec![], 0), "{order}");
            assert_eq!(b.truncate("data", 0), Ok(()));
            lab.end([&a.who, &b]);
        }
    });
}

/// S21: closing the context drops the last reference to a file without a name. The release of the
/// file runs deferred and evicts it.
#[test]
fn s21_context_close_drops_the_last_file_reference() {
    let (lab, a) = Lab::pinned(preset("kara"), 4, 0..4).unwrap();
    a.who.unlink("data").unwrap();
    a.who.close(a.fd).unwrap();
    let (_, inode) = lab.kernel.inodes().pop().expect("the region keeps the file");
    assert_eq!(inode.leases().len(), 1, "and its lease: S28");
    a.who.close(a.nic_fd).unwrap();
    assert_eq!(lab.kernel.inodes().len(), 0);
    assert_eq!((inode.leases().len(), lab.kernel.usage().allocated, lab.kernel.usage().orphaned), (0, 0, 0));
    lab.end([&a.who]);
}

/// S33: fork in another thread while a close is blocked: the child doesn't get the closing
/// descriptor, and nothing leaks.
#[test]
fn s33_fork_while_a_close_is_blocked() {
    let (lab, a) = Lab::pinned(preset("chinner-2019"), 4, 0..2).unwrap();
    let fd = a.fd;
    let helper = a.who.another_thread();
    let closing = a.who.blocks("close while pinned", move |a| a.close(fd));
    let child = Actor::adopt(helper.fork().unwrap());
    assert_eq!(child.stat(fd), Err(Errno::EBADF));
    assert_eq!(helper.stat(fd), Err(Errno::EBADF), "the number is free at once");
    a.region.dereg(&helper);
    assert_eq!(closing.finish(), Ok(()));
    lab.end([&a.who, &child]);
}

/// S34: munmap with live pins succeeds, always.
#[test]
fn s34_munmap_with_live_pins() {
    every_preset_where(can_pin, |axes| {
        let (lab, [a]) = Lab::cast(axes);
        let f = a.writes_file("data", 4, 1);
        if needs_lease(axes) {
            a.lease(f, exclusive(axes), ALL).unwrap();
        }
        let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
        let (_, nic) = Nic::open(&a);
        let region = nic.pins(&a, f, 0..4).unwrap();
        assert_eq!(a.munmap(va + 1, BLOCK), Err(Errno::EINVAL), "alignment");
        assert_eq!(a.munmap(va, 0), Err(Errno::EINVAL));
        assert_eq!(a.munmap(va, 4 * BLOCK), Ok(()));
        assert_eq!(a.munmap(va, 4 * BLOCK), Ok(()), "nothing there is no error");
        assert_eq!(a.load(va, &mut [0]), Err(Errno::SIGSEGV));
        assert!(region.is_pinned());
        lab.end([&a]);
    });
}

/// A read-only mapping, its edges, and anonymous memory.
#[test]
fn read_only_and_anonymous_mappings() {
    let (lab, [a]) = Lab::cast(preset("man-page"));
    let f = a.writes_file("data", 3, 1);
    let va = a.mmap(f, BLOCK, 2 * BLOCK, false).unwrap();
    let mut bytes = [0; 2];
    assert_eq!((a.load(va + BLOCK - 1, &mut bytes), bytes), (Ok(()), [2, 3]));
    assert_eq!(a.store(va, &[1]), Err(Errno::SIGSEGV), "read-only");
    assert_eq!(a.load(va + 2 * BLOCK - 1, &mut bytes), Err(Errno::SIGSEGV), "over the mapping's end");
    a.ftruncate(f, BLOCK + 10).unwrap();
    assert_eq!((a.load(va + 9, &mut bytes), bytes), (Ok(()), [2, 0]), "the last page is there as a whole");
    assert_eq!(a.load(va + BLOCK, &mut bytes), Err(Errno::SIGBUS));
    let (anon, memory) = a.mmap_anonymous(100).unwrap();
    assert_eq!(a.store(anon + 4000, &[1, 2, 3]), Ok(()), "rounded up to pages");
    let mut back = [0; 3];
    memory.read(4000, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3]);
    let child = a.child();
    assert_eq!((child.load(anon + 4000, &mut back[..1]), back[0]), (Ok(()), 1), "shared with the child");
    assert_eq!(a.mmap_anonymous(0).map(|_| ()), Err(Errno::EINVAL));
    assert_eq!(a.mmap_anonymous(u64::MAX).map(|_| ()), Err(Errno::ENOMEM));
    soon("an empty wait graph", || lab.kernel.blocked().is_empty().then_some(()));
    lab.end([&a, &child]);
}
