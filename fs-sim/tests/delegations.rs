//! Dialogues about delegations, of files and of the directory: `docs/semantics.md`, section 2.
//! Expected results are those measured on Linux 7.3, or follow from its fs/locks.c, fs/namei.c and
//! fs/attr.c.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::{Actor, BREAK_TIME, Lab, Nic, every_preset, preset};
use emulator::sync::thread;
use fs_sim::base::numbers::{Fd, Ino};
use fs_sim::leases::posix::request::{PosixLeaseFlavor, PosixLeaseRequest, PosixLeaseType};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::credentials::Credentials;
use fs_sim::vfs::names::DIRECTORY_NAME;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, Errno};

const READ: PosixLeaseRequest = PosixLeaseRequest::Take(PosixLeaseType::Read);
const WRITE: PosixLeaseRequest = PosixLeaseRequest::Take(PosixLeaseType::Write);
const UNLOCK: PosixLeaseRequest = PosixLeaseRequest::Unlock;
const BREAK: &str = "delegation break";

fn lab<const N: usize>() -> (Lab, [Actor; N]) {
    Lab::cast(preset("man-page"))
}

/// "data", opened for reading by its holder alone.
fn delegated(who: &Actor) -> Fd {
    let fd = who.writes_file("data", 2, 1);
    who.close(fd).unwrap();
    let fd = reads(who, "data");
    who.set_delegation(fd, READ).unwrap();
    fd
}

fn reads(who: &Actor, name: &str) -> Fd {
    who.open(name, OpenFlags::open(AccessMode::READ)).unwrap()
}

#[test]
fn the_checks_come_in_this_order() {
    let (lab, [root, user]) = lab();
    let f = delegated(&root);
    let directory = reads(&root, DIRECTORY_NAME);
    user.set_credentials(Credentials::user(1000)).unwrap();
    for name in ["data", DIRECTORY_NAME] {
        let (own, named) = (reads(&user, name), user.open(name, OpenFlags::path()).unwrap());
        for request in [READ, WRITE, UNLOCK] {
            assert_eq!(user.set_delegation(Fd(99), request), Err(Errno::EBADF));
            assert_eq!(user.set_delegation(named, request), Err(Errno::EBADF), "O_PATH");
            let told = "not the owner, before a directory's write delegation is EINVAL";
            assert_eq!(user.set_delegation(own, request), Err(Errno::EACCES), "{told}");
        }
        assert_eq!(user.get_delegation(own), Ok(None), "any process may query");
        assert_eq!(user.get_delegation(named), Err(Errno::EBADF));
    }
    let (context, _) = Nic::open(&root);
    assert_eq!(root.set_delegation(context, READ), Err(Errno::EINVAL), "neither a file nor the directory");
    assert_eq!(root.set_delegation(directory, WRITE), Err(Errno::EINVAL));
    assert_eq!(root.set_delegation(directory, UNLOCK), Err(Errno::EAGAIN), "none to give back");
    assert_eq!(root.set_delegation(directory, READ), Ok(()));
    assert_eq!(root.set_base_lease(directory, READ), Err(Errno::EINVAL), "a directory has no leases");
    assert_eq!(root.set_base_lease(directory, UNLOCK), Err(Errno::EINVAL));
    assert_eq!(root.get_base_lease(directory), Ok(None));
    assert_eq!(root.get_delegation(f), Ok(Some(PosixLeaseType::Read)));
    lab.end([&root, &user]);
}

/// Which permission is looked at before the break, and which after it: `may_setattr` comes before
/// `try_break_deleg`, `setattr_prepare` after it, `may_linkat` before it.
#[test]
fn what_a_stranger_without_rights_breaks() {
    let (lab, [root, user]) = lab();
    let f = delegated(&root);
    root.set_delegation(f, UNLOCK).unwrap();
    root.chmod("data", 0o744).unwrap();
    root.set_delegation(f, READ).unwrap();
    user.set_credentials(Credentials::user(1000)).unwrap();
    assert_eq!(user.utime("data"), Err(Errno::EACCES));
    assert_eq!(user.link("data", "more"), Err(Errno::EPERM));
    assert_eq!(user.truncate("data", 0), Err(Errno::EACCES));
    assert_eq!((root.signals(), root.get_delegation(f)), (vec![], Ok(Some(PosixLeaseType::Read))));
    let change = user.blocks(BREAK, |task| task.chmod("data", 0o777));
    assert_eq!(root.signals().len(), 1);
    root.set_delegation(f, UNLOCK).unwrap();
    assert_eq!(change.finish(), Err(Errno::EPERM));
    lab.end([&root, &user]);
}

/// The directory is no file: calls for files don't find one.
#[test]
fn the_directory_is_no_file() {
    let (lab, [a]) = lab();
    let opened = |flags| a.open(DIRECTORY_NAME, flags);
    for access in [AccessMode::WRITE, AccessMode::BOTH] {
        assert_eq!(opened(OpenFlags::open(access)), Err(Errno::EISDIR));
    }
    let reading = OpenFlags::open(AccessMode::READ);
    assert_eq!(opened(OpenFlags { create: true, ..reading }), Err(Errno::EISDIR));
    assert_eq!(opened(OpenFlags { truncate: true, ..reading }), Err(Errno::EISDIR));
    let d = opened(reading).unwrap();
    let named = opened(OpenFlags { truncate: true, ..OpenFlags::path() }).unwrap();
    assert_eq!(a.stat(named).unwrap().ino, Ino::DIRECTORY);
    assert_eq!(a.stat(d).unwrap().ino, Ino::DIRECTORY);
    assert_eq!(a.stat_name(DIRECTORY_NAME).unwrap().ino, Ino::DIRECTORY);
    assert_eq!(a.read(d, 0, &mut [0; 8]), Err(Errno::EISDIR));
    assert_eq!(a.ftruncate(d, 0), Err(Errno::EISDIR));
    assert_eq!(a.mmap(d, 0, BLOCK, false), Err(Errno::EINVAL));
    assert_eq!(a.truncate(DIRECTORY_NAME, 0), Err(Errno::EISDIR));
    assert_eq!(a.unlink(DIRECTORY_NAME), Err(Errno::EISDIR));
    assert_eq!(a.rename(DIRECTORY_NAME, "other"), Err(Errno::EBUSY));
    let f = a.creates("data");
    assert_eq!(a.rename("data", DIRECTORY_NAME), Err(Errno::EBUSY));
    assert_eq!(a.link("data", DIRECTORY_NAME), Err(Errno::EEXIST));
    assert_eq!(a.link(DIRECTORY_NAME, "more"), Err(Errno::EISDIR));
    assert!(matches!(a.exec(DIRECTORY_NAME), Err(Errno::EISDIR)));
    assert_eq!(lab.kernel.named(DIRECTORY_NAME).map(|inode| inode.ino()), None);
    a.close(f).unwrap();
    assert_eq!(lab.kernel.unmount(), Err(Errno::EBUSY), "the directory is open");
    a.close(d).unwrap();
    a.close(named).unwrap();
    assert_eq!(lab.kernel.unmount(), Ok(()));
    assert_eq!(opened(reading), Err(Errno::ENODEV));
    lab.end([&a]);
}

#[test]
fn a_delegation_lives_with_its_open_file() {
    every_preset(|axes| {
        let (lab, [a, b, c]) = Lab::cast(axes);
        let d = reads(&a, DIRECTORY_NAME);
        a.set_delegation(d, READ).unwrap();
        a.send_fd(b.pid(), d).unwrap();
        a.close(d).unwrap();
        let opening = c.blocks(BREAK, |task| task.open("new", OpenFlags::create()));
        assert_eq!(a.signals().len(), 1, "the setter is told, which has closed it");
        assert_eq!(b.signals().len(), 0);
        let Received::Fd(d) = b.recv_fd().unwrap() else { panic!("a directory passes") };
        assert_eq!(b.get_delegation(d), Ok(None));
        let child = b.child();
        b.close(d).unwrap();
        opening.expect_blocked(BREAK);
        child.exit();
        assert!(opening.finish().is_ok());
        lab.end([&a, &b, &c, &child]);
    });
}

/// The holder gets no exemption. Where breaks never time out the wait for itself is refused.
#[test]
fn the_holder_waits_for_itself() {
    let span = |time| move |config: &mut fs_sim::KernelConfig| config.options.lease_break_time = time;
    for time in [Duration::ZERO, BREAK_TIME] {
        let lab = Lab::with(preset("man-page"), span(time));
        let a = lab.actor();
        a.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        let f = delegated(&a);
        let d = reads(&a, DIRECTORY_NAME);
        a.set_delegation(d, READ).unwrap();
        if time.is_zero() {
            assert_eq!(a.chmod("data", 0), Err(Errno::EDEADLK));
            assert_eq!(a.unlink("data"), Err(Errno::EDEADLK));
            assert!(a.stat_name("data").is_ok());
            assert_eq!((a.get_delegation(f), a.get_delegation(d)), (Ok(None), Ok(None)));
        } else {
            let removing = a.blocks(BREAK, |task| task.unlink("data"));
            lab.advance(BREAK_TIME);
            while lab.kernel.counters.lease_breaks.get() < 2 {
                thread::yield_now();
            }
            removing.expect_blocked(BREAK);
            lab.advance(BREAK_TIME);
            assert_eq!(removing.finish(), Ok(()), "the directory's break time, then the file's");
            assert_eq!(lab.kernel.counters.lease_timeouts.get(), 2);
        }
        lab.end([&a]);
    }
}

/// A rename looks at the file that loses its name too; two names of one file are no change.
#[test]
fn a_rename_breaks_what_it_replaces() {
    let (lab, [a, b]) = lab();
    let f = delegated(&a);
    let other = b.creates("other");
    b.close(other).unwrap();
    let renaming = b.blocks(BREAK, |task| task.rename("other", "data"));
    a.set_delegation(f, UNLOCK).unwrap();
    assert_eq!(renaming.finish(), Ok(()));
    a.set_delegation(f, READ).unwrap();
    assert_eq!(b.unlink("data"), Ok(()), "that name is the other file's now");
    b.creates("one");
    b.link("one", "two").unwrap();
    let d = reads(&a, DIRECTORY_NAME);
    a.set_delegation(d, READ).unwrap();
    assert_eq!(b.rename("one", "two"), Ok(()));
    assert_eq!(a.get_delegation(d), Ok(Some(PosixLeaseType::Read)));
    let held = lab.kernel.base_leases(&a.inode_of(d));
    assert_eq!(
        (held.len(), held[0].flavor, held[0].releasers.as_slice()),
        (1, PosixLeaseFlavor::Delegation, [a.pid()].as_slice())
    );
    lab.end([&a, &b]);
}

/// An open that creates a file looks up the name again after its wait.
#[test]
fn who_waits_to_create_finds_what_came_meanwhile() {
    let (lab, [a, b, c]) = lab();
    let d = reads(&a, DIRECTORY_NAME);
    a.set_delegation(d, READ).unwrap();
    let exclusive = OpenFlags { exclusive: true, ..OpenFlags::create() };
    let first = b.blocks(BREAK, |task| task.open("new", OpenFlags::create()));
    let second = c.blocks(BREAK, move |task| task.open("new", exclusive));
    assert_eq!(a.signals().len(), 1, "one break, one signal");
    a.set_delegation(d, UNLOCK).unwrap();
    let made = [first.finish(), second.finish()];
    assert!(matches!(made, [Ok(_), Err(Errno::EEXIST)] | [Ok(_), Ok(_)]), "{made:?}");
    assert!(b.stat_name("new").is_ok());
    lab.end([&a, &b, &c]);
}
