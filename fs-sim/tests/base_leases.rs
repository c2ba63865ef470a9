//! Dialogues about ordinary fcntl leases: `docs/semantics.md`, section 2. Every expected result was
//! first observed on Linux 6.18.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod common;

use std::time::Duration;

use common::watchdog::spawn_in;
use common::{Actor, BREAK_TIME, Blocked, Lab, Nic, every_preset, preset};
use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{race, thread};
use fs_sim::base::numbers::Fd;
use fs_sim::leases::posix::request::{PosixLeaseInfo, PosixLeaseRequest, PosixLeaseType};
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::credentials::Credentials;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BLOCK, Errno};

const READ: PosixLeaseRequest = PosixLeaseRequest::Take(PosixLeaseType::Read);
const WRITE: PosixLeaseRequest = PosixLeaseRequest::Take(PosixLeaseType::Write);
const UNLOCK: PosixLeaseRequest = PosixLeaseRequest::Unlock;
const BREAK: &str = "base lease break";

fn lab<const N: usize>() -> (Lab, [Actor; N]) {
    Lab::cast(preset("man-page"))
}

/// A file that exists and that no process has open.
fn file(who: &Actor) -> &'static str {
    let fd = who.writes_file("data", 2, 1);
    who.close(fd).unwrap();
    "data"
}

fn reads(who: &Actor) -> Fd {
    who.open("data", OpenFlags::open(AccessMode::READ)).unwrap()
}

fn now(access: AccessMode) -> OpenFlags {
    OpenFlags { nonblock: true, ..OpenFlags::open(access) }
}

fn opens(who: &Actor, access: AccessMode) -> Blocked<Result<Fd, Errno>> {
    who.blocks(BREAK, move |task| task.open("data", OpenFlags::open(access)))
}

fn base(lab: &Lab, who: &Actor, fd: Fd) -> Vec<PosixLeaseInfo> {
    lab.kernel.base_leases(&who.inode_of(fd))
}

#[test]
fn the_checks_come_in_this_order() {
    let (lab, [root, user]) = lab();
    file(&root);
    user.set_credentials(Credentials::user(1000)).unwrap();
    assert_eq!(user.set_credentials(Credentials::ROOT), Err(Errno::EPERM), "no way back");
    let (f, p) = (reads(&user), user.open("data", OpenFlags::path()).unwrap());
    for request in [READ, WRITE, UNLOCK] {
        assert_eq!(user.set_base_lease(Fd(99), request), Err(Errno::EBADF));
        assert_eq!(user.set_base_lease(p, request), Err(Errno::EBADF), "O_PATH, before the owner is looked at");
        assert_eq!(user.set_base_lease(f, request), Err(Errno::EACCES), "not the owner, for giving back as well");
    }
    assert_eq!(user.get_base_lease(f), Ok(None), "any process may query");
    assert_eq!(user.get_base_lease(p), Err(Errno::EBADF));
    assert_eq!(user.set_owner(p, None), Err(Errno::EBADF));
    assert_eq!(user.set_signal(p, None), Err(Errno::EBADF));
    assert_eq!(user.set_owner(f, Some(fs_sim::base::numbers::Pid(999))), Err(Errno::ESRCH));
    let capable = root.child();
    capable.set_credentials(Credentials { uid: 1000, cap_lease: true }).unwrap();
    let g = reads(&capable);
    assert_eq!(capable.set_base_lease(g, READ), Ok(()), "CAP_LEASE");
    let (context, _) = Nic::open(&root);
    assert_eq!(root.set_base_lease(context, READ), Err(Errno::EINVAL), "not a regular file");
    let own = user.open("own", OpenFlags::create()).unwrap();
    assert_eq!(user.set_base_lease(own, WRITE), Ok(()), "a file is its creator's");
    assert_eq!(user.set_base_lease(own, UNLOCK), Ok(()));
    assert_eq!(user.set_base_lease(own, UNLOCK), Err(Errno::EAGAIN), "none to give back");
    lab.end([&root, &user, &capable]);
}

#[test]
fn a_read_lease_needs_a_file_without_writers() {
    let (lab, [a, b]) = lab();
    file(&a);
    for access in [AccessMode::WRITE, AccessMode::BOTH] {
        let f = a.open("data", OpenFlags::open(access)).unwrap();
        assert_eq!(a.set_base_lease(f, READ), Err(Errno::EAGAIN), "its own description counts");
        let r = reads(&b);
        assert_eq!(b.set_base_lease(r, READ), Err(Errno::EAGAIN), "open for writing elsewhere");
        a.close(f).unwrap();
        assert_eq!(b.set_base_lease(r, READ), Ok(()));
        b.close(r).unwrap();
    }
    let (fa, fb) = (reads(&a), reads(&b));
    assert_eq!(a.set_base_lease(fa, READ), Ok(()));
    assert_eq!(b.set_base_lease(fb, READ), Ok(()), "read leases stand side by side");
    assert_eq!(base(&lab, &a, fa).len(), 2);
    assert_eq!(a.set_base_lease(fa, WRITE), Err(Errno::EAGAIN), "to write: not the sole open");
    b.close(fb).unwrap();
    assert_eq!(a.set_base_lease(fa, WRITE), Ok(()), "to write: the sole open, whatever its mode");
    assert_eq!(a.get_base_lease(fa), Ok(Some(PosixLeaseType::Write)));
    assert_eq!(a.set_base_lease(fa, READ), Ok(()), "and back, on a description that can't write");
    assert_eq!(a.get_base_lease(fa), Ok(Some(PosixLeaseType::Read)));
    lab.end([&a, &b]);
}

#[test]
fn a_write_lease_needs_the_only_open_description() {
    let (lab, [a, b]) = lab();
    file(&a);
    for access in [AccessMode::READ, AccessMode::WRITE, AccessMode::BOTH] {
        let f = a.open("data", OpenFlags::open(access)).unwrap();
        let other = reads(&b);
        assert_eq!(a.set_base_lease(f, WRITE), Err(Errno::EAGAIN), "another open");
        let va = b.mmap(other, 0, BLOCK, false).unwrap();
        b.close(other).unwrap();
        assert_eq!(a.set_base_lease(f, WRITE), Err(Errno::EAGAIN), "a mapping keeps that one open");
        b.munmap(va, BLOCK).unwrap();
        let named = b.open("data", OpenFlags::path()).unwrap();
        let (dup, child) = (a.dup(f).unwrap(), a.child());
        assert_eq!(a.set_base_lease(f, WRITE), Ok(()), "dups, a forked copy and O_PATH don't count");
        let converted = a.set_base_lease(f, READ);
        assert_eq!(converted, if access.write { Err(Errno::EAGAIN) } else { Ok(()) }, "open for writing by itself");
        assert_eq!(child.set_base_lease(dup, UNLOCK), Ok(()), "given back through any descriptor, by any process");
        child.exit();
        for fd in [f, dup] {
            a.close(fd).unwrap();
        }
        b.close(named).unwrap();
    }
    lab.end([&a, &b]);
}

/// Opening for reading breaks a write lease to a read lease. Opening for writing breaks every lease
/// to none.
#[test]
fn open_breaks_conflicting_leases() {
    for held in [PosixLeaseType::Read, PosixLeaseType::Write] {
        for access in [AccessMode::READ, AccessMode::WRITE, AccessMode::BOTH] {
            let (lab, [a, b]) = lab();
            let conflict = held == PosixLeaseType::Write || access.write;
            let f = a.reads_under(PosixLeaseRequest::Take(held));
            let left = if access.write { None } else { Some(PosixLeaseType::Read) };
            let opened = b.open("data", now(access));
            if !conflict {
                assert!(opened.is_ok() && a.signals().is_empty());
                lab.end([&a, &b]);
                continue;
            }
            assert_eq!(opened, Err(Errno::EAGAIN), "EWOULDBLOCK, and the break goes on");
            assert_eq!(a.signals(), [Signal::Sigio]);
            assert_eq!(a.get_base_lease(f), Ok(left), "the type it is being broken to");
            assert_eq!(b.open("data", now(access)), Err(Errno::EAGAIN));
            assert_eq!(a.signals(), [], "told once");
            let opening = opens(&b, access);
            assert_eq!(base(&lab, &a, f)[0].deadline, Some(Nanos(0).after(BREAK_TIME)), "since the first");
            lab.advance(BREAK_TIME);
            let opened = opening.finish().unwrap();
            assert_eq!(a.get_base_lease(f), Ok(left), "carried out by force");
            assert_eq!(base(&lab, &a, f).iter().filter(|info| info.breaking).count(), 0);
            assert_eq!(lab.kernel.counters.lease_timeouts.get(), 1);
            b.close(opened).unwrap();
            lab.end([&a, &b]);
        }
    }
}

/// How a lease holder can answer a break: it releases or downgrades the lease. Other requests do
/// not end the break.
#[test]
fn a_holder_releases_or_downgrades() {
    let (lab, [a, b]) = lab();
    let f = a.reads_under(WRITE);
    let opening = opens(&b, AccessMode::READ);
    assert_eq!(a.set_base_lease(f, WRITE), Err(Errno::EAGAIN), "who waits to open counts as open");
    assert_eq!(a.set_base_lease(f, READ), Ok(()), "downgraded in time");
    let g = opening.finish().unwrap();
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)));
    b.close(g).unwrap();

    let opening = opens(&b, AccessMode::BOTH);
    assert_eq!(a.set_base_lease(f, READ), Err(Errno::EAGAIN), "who waits to write counts as a writer");
    let c = lab.actor();
    let h = c.blocks(BREAK, |task| task.open("data", OpenFlags::open(AccessMode::WRITE)));
    assert_eq!(a.set_base_lease(f, UNLOCK), Ok(()));
    assert!(opening.finish().is_ok() && h.finish().is_ok());
    assert_eq!(a.signals(), [Signal::Sigio; 2], "one for each break");
    lab.end([&a, &b, &c]);
}

/// After the opener has gone, the holder can set the same type again; the break stays pending.
#[test]
fn setting_it_again_while_a_break_is_pending() {
    let (lab, [a, b]) = lab();
    let f = a.reads_under(WRITE);
    assert_eq!(b.open("data", now(AccessMode::READ)), Err(Errno::EAGAIN));
    assert_eq!(a.set_base_lease(f, WRITE), Ok(()));
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)), "still being broken to read");
    assert_eq!(a.set_base_lease(f, READ), Ok(()));
    assert_eq!(a.set_base_lease(f, WRITE), Ok(()), "that break was answered; now it is a new one");
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Write)));
    assert_eq!(b.open("data", now(AccessMode::WRITE)), Err(Errno::EAGAIN));
    for request in [WRITE, READ] {
        assert_eq!(a.set_base_lease(f, request), Ok(()));
        assert_eq!(a.get_base_lease(f), Ok(None), "a break to nothing is never undone");
    }
    let g = b.open("data", now(AccessMode::READ)).expect("a reader does not mind what is a read lease by now");
    assert_eq!(b.set_base_lease(g, READ), Err(Errno::EAGAIN), "no new lease beside it");
    assert_eq!(a.set_base_lease(f, UNLOCK), Ok(()));
    assert_eq!(b.set_base_lease(g, READ), Ok(()));
    lab.end([&a, &b]);
}

/// The holder cannot downgrade a write lease on a description that is open for writing. The kernel
/// can, when the break time is over.
#[test]
fn a_writer_can_only_give_back() {
    let (lab, [a, b]) = lab();
    let f = a.writes_file("data", 1, 1);
    a.set_base_lease(f, WRITE).unwrap();
    let opening = opens(&b, AccessMode::READ);
    assert_eq!(a.set_base_lease(f, READ), Err(Errno::EAGAIN));
    lab.advance(BREAK_TIME);
    assert!(opening.finish().is_ok());
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)), "by its own timeout the kernel does");
    lab.end([&a, &b]);
}

/// A break to read, then a break to nothing: two signals, two deadlines. The reader sleeps until
/// the later deadline, unless some call evaluates the lease earlier.
#[test]
fn a_second_break_has_its_own_deadline() {
    let (lab, [a, b, c]) = lab();
    let f = a.reads_under(WRITE);
    let reading = opens(&b, AccessMode::READ);
    lab.advance(BREAK_TIME / 2);
    let writing = opens(&c, AccessMode::BOTH);
    assert_eq!(a.signals(), [Signal::Sigio; 2]);
    assert_eq!(a.get_base_lease(f), Ok(None));
    lab.advance(BREAK_TIME / 2);
    reading.expect_blocked(BREAK);
    assert_eq!(a.get_base_lease(f), Ok(None));
    assert!(reading.finish().is_ok(), "downgraded after its break time");
    assert_eq!(base(&lab, &a, f)[0].held, PosixLeaseType::Read);
    assert_eq!(base(&lab, &a, f)[0].deadline, Some(Nanos(0).after(BREAK_TIME * 3 / 2)));
    writing.expect_blocked(BREAK);
    lab.advance(BREAK_TIME / 2);
    assert!(writing.finish().is_ok());
    assert_eq!(base(&lab, &a, f), []);
    lab.end([&a, &b, &c]);
}

#[test]
fn truncate_by_name_breaks_all_even_the_callers_own() {
    every_preset(|axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.reads_under(READ);
        let truncating = b.blocks(BREAK, |task| task.truncate("data", 2 * BLOCK));
        assert_eq!(a.get_base_lease(f), Ok(None), "even to the same size");
        assert_eq!(a.set_base_lease(f, READ), Err(Errno::EAGAIN), "it counts as a writer");
        a.set_base_lease(f, UNLOCK).unwrap();
        assert_eq!(truncating.finish(), Ok(()));
        assert_eq!(a.signals(), [Signal::Sigio]);

        a.set_base_lease(f, READ).unwrap();
        assert_eq!(a.truncate("data", BLOCK), Err(Errno::EINTR), "its own signal interrupts it");
        assert_eq!(a.signals(), [Signal::Sigio]);
        assert_eq!(a.get_base_lease(f), Ok(None));
        a.process().set_disposition(Signal::Sigio, Disposition::Ignore);
        let truncating = a.blocks(BREAK, |task| task.truncate("data", BLOCK));
        lab.advance(BREAK_TIME);
        assert_eq!(truncating.finish(), Ok(()), "else it waits for itself");
        assert_eq!(a.stat(f).unwrap().size, BLOCK);
        lab.end([&a, &b]);
    });
}

/// `O_RDONLY|O_TRUNC` opens as a reader and truncates the file despite read leases.
#[test]
fn o_rdonly_o_trunc_ignores_read_leases() {
    let (lab, [a, b]) = lab();
    file(&a);
    let f = reads(&a);
    let truncates = OpenFlags { truncate: true, ..now(AccessMode::READ) };
    a.set_base_lease(f, READ).unwrap();
    let g = b.open("data", truncates).unwrap();
    assert_eq!(a.stat(f).unwrap().size, 0);
    assert_eq!((a.signals(), a.get_base_lease(f)), (vec![], Ok(Some(PosixLeaseType::Read))));
    b.close(g).unwrap();
    a.set_base_lease(f, WRITE).unwrap();
    assert_eq!(b.open("data", truncates), Err(Errno::EAGAIN));
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)), "to read only");
    let exclusive = OpenFlags { exclusive: true, truncate: true, ..OpenFlags::create() };
    assert_eq!(b.open("data", exclusive), Err(Errno::EEXIST), "before any break");
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)));
    let opened = b.open("data", OpenFlags { truncate: true, nonblock: true, ..OpenFlags::create() });
    assert_eq!(opened, Err(Errno::EAGAIN));
    assert_eq!(a.get_base_lease(f), Ok(None));
    lab.end([&a, &b]);
}

#[test]
fn calls_that_break_no_lease() {
    let (lab, [a, b]) = lab();
    let w = a.writes_file("data", 4, 1);
    let child = a.child();
    a.set_base_lease(w, WRITE).unwrap();
    assert_eq!(child.fills(w, 0, 9), Ok(BLOCK as usize));
    assert_eq!(child.ftruncate(w, BLOCK), Ok(()));
    assert_eq!(child.fallocate(w, FallocateMode::Allocate { keep_size: false }, 0, 4 * BLOCK), Ok(()));
    let named = b.open("data", OpenFlags { truncate: true, ..OpenFlags::path() }).unwrap();
    assert_eq!(b.stat(named).unwrap().size, 4 * BLOCK, "O_PATH truncates nothing");
    assert_eq!(b.read(named, 0, &mut [0; 8]), Err(Errno::EBADF));
    assert_eq!(b.write(named, 0, &[0; 8]), Err(Errno::EBADF));
    assert_eq!(b.ftruncate(named, 0), Err(Errno::EBADF));
    assert_eq!(b.mmap(named, 0, BLOCK, false), Err(Errno::EBADF));
    assert_eq!(b.reflink(named, 0, named, 0, 0), Err(Errno::EBADF));
    assert_eq!(b.fallocate(named, FallocateMode::Allocate { keep_size: false }, 0, BLOCK), Err(Errno::EBADF));
    assert_eq!(b.open("other", OpenFlags { create: true, ..OpenFlags::path() }), Err(Errno::ENOENT), "creates nothing");
    b.unlink("data").unwrap();
    assert_eq!((a.signals(), a.get_base_lease(w)), (vec![], Ok(Some(PosixLeaseType::Write))));
    lab.end([&a, &b, &child]);
}

#[test]
fn a_break_signals_the_owner_that_was_set() {
    let (lab, [a, b, c]) = lab();
    file(&a);
    let f = reads(&a);
    let breaks = || assert_eq!(b.open("data", now(AccessMode::WRITE)), Err(Errno::EAGAIN));
    let told = || (a.signals(), b.signals(), c.signals());
    let no_signals = (vec![], vec![], vec![]);
    a.set_owner(f, Some(c.pid())).unwrap();
    a.set_signal(f, Some(Signal::Sigusr1)).unwrap();
    a.set_base_lease(f, READ).unwrap();
    breaks();
    assert_eq!(told(), (vec![], vec![], vec![Signal::Sigusr1]), "named before the lease was set");
    a.set_base_lease(f, UNLOCK).unwrap();
    a.set_base_lease(f, READ).unwrap();
    breaks();
    assert_eq!(told(), (vec![Signal::Sigio], vec![], vec![]), "giving it back forgot both");
    a.set_base_lease(f, UNLOCK).unwrap();
    a.set_base_lease(f, READ).unwrap();
    a.set_owner(f, None).unwrap();
    assert_eq!(base(&lab, &a, f)[0].owner, None);
    breaks();
    assert_eq!(told(), no_signals);
    a.set_base_lease(f, UNLOCK).unwrap();
    a.set_base_lease(f, READ).unwrap();
    a.set_owner(f, None).unwrap();
    let child = a.child();
    child.set_base_lease(f, READ).unwrap();
    assert_eq!(base(&lab, &a, f)[0].owner, Some(child.pid()), "the setter is named if no process is");
    a.set_base_lease(f, READ).unwrap();
    breaks();
    assert_eq!((told(), child.signals()), (no_signals.clone(), vec![Signal::Sigio]), "and stays so");
    a.set_base_lease(f, UNLOCK).unwrap();
    // A signal on behalf of one user is not sent to a process of another user.
    a.set_base_lease(f, READ).unwrap();
    let user = lab.actor();
    user.set_credentials(Credentials::user(1000)).unwrap();
    a.send_fd(user.pid(), f).unwrap();
    let Ok(Received::Fd(g)) = user.recv_fd() else { panic!("nothing came") };
    user.set_owner(g, Some(c.pid())).unwrap();
    breaks();
    assert_eq!((told(), user.signals()), (no_signals, vec![]));
    assert_eq!(lab.kernel.counters.sigio_unsent.get(), 2);
    lab.end([&a, &b, &c, &child, &user]);
}

/// The process that set the lease is signalled although it closed its descriptor. The process that
/// has the open file now is not signalled, but it sees the break and may release the lease.
#[test]
fn a_passed_lease_signals_its_setter() {
    let (lab, [a, b, c]) = lab();
    let f = a.reads_under(READ);
    a.send_fd(b.pid(), f).unwrap();
    a.close(f).unwrap();
    let opening = opens(&c, AccessMode::BOTH);
    assert_eq!(lab.kernel.blocked().len(), 1);
    assert!(lab.kernel.blocked()[0].ends_with(&format!("needs [process {}]", b.pid())), "unread in b's queue");
    assert_eq!(a.signals(), [Signal::Sigio]);
    let Ok(Received::Fd(g)) = b.recv_fd() else { panic!("nothing came") };
    assert_eq!((b.signals(), b.get_base_lease(g)), (vec![], Ok(None)));
    assert_eq!(b.set_base_lease(g, UNLOCK), Ok(()));
    assert!(opening.finish().is_ok());
    lab.end([&a, &b, &c]);
}

#[test]
fn a_dead_setter_is_not_signalled() {
    let (lab, [a, b]) = lab();
    file(&a);
    let f = reads(&a);
    let child = a.child();
    child.set_base_lease(f, READ).unwrap();
    child.exit();
    let opening = opens(&b, AccessMode::WRITE);
    assert_eq!((a.signals(), a.get_base_lease(f)), (vec![], Ok(None)));
    assert_eq!(lab.kernel.counters.sigio_unsent.get(), 1);
    lab.advance(BREAK_TIME - Duration::from_nanos(1));
    opening.expect_blocked(BREAK);
    lab.advance(Duration::from_nanos(1));
    assert!(opening.finish().is_ok(), "the full time");
    lab.end([&a, &b]);
}

#[test]
fn the_default_action_ends_the_holder() {
    let (lab, [b]) = lab();
    let a = lab.fragile();
    let _lease = a.reads_under(READ);
    assert_eq!(
        b.open("data", now(AccessMode::WRITE)),
        Err(Errno::EAGAIN),
        "what was in the way when it was told counts"
    );
    assert!(a.process().is_dying());
    assert!(b.open("data", now(AccessMode::WRITE)).is_ok(), "nothing is in the way any more");
    assert_eq!(lab.kernel.counters.lease_timeouts.get(), 0);
    lab.end([&a, &b]);
}

/// What keeps a lease alive: any reference to the open file.
#[test]
fn a_lease_lives_with_its_open_file() {
    let (lab, [a, b]) = lab();
    file(&a);
    let probe = || b.open("data", now(AccessMode::WRITE)).map(|fd| b.close(fd).unwrap());

    let f = reads(&a);
    a.set_base_lease(f, READ).unwrap();
    let (dup, child) = (a.dup(f).unwrap(), a.child());
    let va = a.mmap(f, 0, BLOCK, false).unwrap();
    a.send_fd(b.pid(), f).unwrap();
    a.close(f).unwrap();
    a.close(dup).unwrap();
    assert_eq!(probe(), Err(Errno::EAGAIN), "a child's descriptors");
    child.exit();
    assert_eq!(probe(), Err(Errno::EAGAIN), "a mapping, and one in a queue");
    let Ok(Received::Fd(g)) = b.recv_fd() else { panic!("nothing came") };
    b.close(g).unwrap();
    assert_eq!(probe(), Err(Errno::EAGAIN), "a mapping");
    let opening = opens(&b, AccessMode::WRITE);
    assert!(lab.kernel.blocked()[0].ends_with(&format!("needs [process {}]", a.pid())), "who maps it");
    a.munmap(va, BLOCK).unwrap();
    assert!(opening.finish().is_ok());
    assert_eq!(lab.kernel.counters.lease_timeouts.get(), 0);
    lab.end([&a, &b, &child]);
}

/// A break stays pending after its opener was interrupted. That opener no longer counts as an open
/// of the file.
#[test]
fn an_interrupted_open_leaves_its_break_pending() {
    let (lab, [a, b]) = lab();
    let f = a.reads_under(WRITE);
    let opening = opens(&b, AccessMode::READ);
    a.kill(b.pid(), Signal::Sigusr1).unwrap();
    assert_eq!(opening.finish(), Err(Errno::EINTR));
    assert_eq!(b.signals(), [Signal::Sigusr1]);
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)), "still pending");
    assert_eq!(a.set_base_lease(f, WRITE), Ok(()), "the opener does not count any more");
    lab.advance(BREAK_TIME);
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)));
    assert_eq!(base(&lab, &a, f)[0].held, PosixLeaseType::Read, "the next query carries it out");
    assert_eq!(a.set_base_lease(f, WRITE), Ok(()));
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)), "Linux forgets no downgrade's time: again");
    lab.end([&a, &b]);
}

/// Where breaks never time out, a wait that no process can end is refused with EDEADLK.
#[test]
fn endless_waits_are_refused() {
    let lab = Lab::with(preset("man-page"), |config| config.options.lease_break_time = Duration::ZERO);
    let (a, b) = (lab.actor(), lab.actor());
    for who in [&a, &b] {
        who.process().set_disposition(Signal::Sigio, Disposition::Ignore);
    }
    for (who, name) in [(&a, "a"), (&b, "b")] {
        who.creates(name);
        let fd = who.open(name, OpenFlags::open(AccessMode::READ)).unwrap();
        who.close(Fd(fd.0 - 1)).unwrap();
        who.set_base_lease(fd, READ).unwrap();
    }
    assert_eq!(a.truncate("a", 0), Err(Errno::EDEADLK), "only the process itself could release it");
    let opening = a.blocks(BREAK, |task| task.open("b", OpenFlags::open(AccessMode::WRITE)));
    assert_eq!(b.open("a", OpenFlags::open(AccessMode::WRITE)), Err(Errno::EDEADLK));
    lab.advance(Duration::from_secs(3600));
    opening.expect_blocked(BREAK);
    b.exit();
    assert!(opening.finish().is_ok());
    lab.end([&a, &b]);
}

/// Ordinary leases and layout leases do not affect each other.
#[test]
fn layout_leases_stand_apart() {
    every_preset(|axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.writes_file("data", 2, 1);
        let leased = a.lease(f, fs_sim::leases::layout::kind::LeaseKind::READ, fs_sim::BlockRange::ALL);
        assert_eq!(a.set_base_lease(f, WRITE), Ok(()));
        assert_eq!(a.held(f).len(), usize::from(leased.is_ok()));
        assert_eq!(b.open("data", now(AccessMode::BOTH)), Err(Errno::EAGAIN));
        assert_eq!(a.held(f).len(), usize::from(leased.is_ok()), "opening breaks no layout lease");
        a.set_base_lease(f, UNLOCK).unwrap();
        assert_eq!(a.held(f).len(), usize::from(leased.is_ok()));
        lab.end([&a, &b]);
    });
}

/// The file mode is checked before leases, for users other than root.
#[test]
fn a_files_mode_comes_before_its_leases() {
    let (lab, [a, b]) = lab();
    let f = a.reads_under(READ);
    b.set_credentials(Credentials::user(7)).unwrap();
    assert!(b.open("data", now(AccessMode::READ)).is_ok());
    assert_eq!(b.chmod("data", 0o777), Err(Errno::EPERM), "not its owner");
    assert_eq!(b.utime("data"), Ok(()), "who may write may touch");
    a.chmod("data", 0o744).unwrap();
    for access in [AccessMode::WRITE, AccessMode::BOTH] {
        assert_eq!(b.open("data", now(access)), Err(Errno::EACCES));
    }
    let truncates = OpenFlags { truncate: true, ..now(AccessMode::READ) };
    assert_eq!(b.open("data", truncates), Err(Errno::EACCES), "O_TRUNC needs write permission");
    assert_eq!(b.truncate("data", 0), Err(Errno::EACCES));
    assert_eq!(b.utime("data"), Err(Errno::EACCES));
    assert_eq!(b.link("data", "more"), Err(Errno::EPERM));
    assert!(b.open("data", OpenFlags::path()).is_ok(), "O_PATH needs none");
    assert_eq!((a.signals(), a.get_base_lease(f)), (vec![], Ok(Some(PosixLeaseType::Read))));
    assert_eq!(a.open("data", now(AccessMode::WRITE)), Err(Errno::EAGAIN), "root may");
    lab.end([&a, &b]);
}

/// Links, renames and unlinks leave both kinds of leases with the inode.
#[test]
fn leases_stay_with_the_inode_when_names_change() {
    every_preset(|axes| {
        let (lab, [a, b]) = Lab::cast(axes);
        let f = a.writes_file("data", 1, 1);
        let _layout_lease = a.lease(f, fs_sim::leases::layout::kind::LeaseKind::READ, fs_sim::BlockRange::ALL);
        let layout_leases = a.held(f);
        a.set_base_lease(f, WRITE).unwrap();
        let ino = a.stat(f).unwrap().ino;
        assert_eq!(b.link("none", "more"), Err(Errno::ENOENT));
        assert_eq!(b.link("data", "data"), Err(Errno::EEXIST));
        assert_eq!(b.link("data", ""), Err(Errno::EINVAL));
        assert_eq!(b.link("data", "more"), Ok(()));
        assert_eq!(b.stat_name("more").unwrap(), a.stat(f).unwrap());
        assert_eq!(a.stat(f).unwrap().links, 2);
        assert_eq!(b.rename("more", "data"), Ok(()), "two names of one file: nothing happens");
        assert_eq!(a.stat(f).unwrap().links, 2);
        assert_eq!(b.rename("none", "data"), Err(Errno::ENOENT));
        assert_eq!(b.rename("more", "moved"), Ok(()));
        assert_eq!(b.stat_name("more"), Err(Errno::ENOENT));
        let other = b.creates("other");
        b.close(other).unwrap();
        let before = lab.kernel.inodes().len();
        assert_eq!(b.rename("moved", "other"), Ok(()), "replaces");
        assert_eq!(lab.kernel.inodes().len(), before - 1, "the file that was called so is gone");
        assert_eq!(b.stat_name("other").unwrap().ino, ino);
        assert_eq!(b.chmod("other", 0o600), Ok(()));
        assert_eq!(b.stat_name("other").unwrap().mode, 0o600);
        assert_eq!(b.chmod("none", 0), Err(Errno::ENOENT));
        assert_eq!(b.utime("other"), Ok(()));
        assert_eq!(b.utime("none"), Err(Errno::ENOENT));
        b.unlink("data").unwrap();
        assert_eq!(a.stat(f).unwrap().links, 1);
        let third = b.creates("third");
        b.rename("third", "other").unwrap();
        assert_eq!(a.stat(f).unwrap().links, 0, "without a name, still open");
        assert_eq!((a.signals(), a.get_base_lease(f)), (vec![], Ok(Some(PosixLeaseType::Write))));
        assert_eq!(a.held(f), layout_leases);
        assert_eq!(b.stat(third).unwrap().links, 1);
        lab.end([&a, &b]);
    });
}

/// rename(2) over an existing name is atomic: the name resolves to a file at every moment.
#[test]
fn a_rename_over_a_name_is_atomic() {
    let (lab, [a, b]) = lab();
    let first = a.creates("data");
    a.close(first).unwrap();
    let (over, seed) = (AtomicBool::new(false), lab.world.stream("looker", 0));
    let looks = thread::scope(|scope| {
        let looker = spawn_in(scope, || {
            race::arm(seed, 0.5);
            let mut looks = 0;
            loop {
                looks += 1;
                let stat = b.stat_name("data");
                assert!(stat.is_ok(), "look {looks}: {stat:?}");
                if over.load(Ordering::SeqCst) {
                    return looks;
                }
            }
        });
        for _ in 0..3000 {
            let new = a.creates("new");
            a.close(new).unwrap();
            a.rename("new", "data").unwrap();
        }
        over.store(true, Ordering::SeqCst);
        looker.join()
    });
    assert!(looks > 0);
    lab.end([&a, &b]);
}

#[test]
fn a_running_program_counts_as_an_open() {
    let (lab, [a, b]) = lab();
    file(&a);
    let f = reads(&a);
    assert_eq!(b.exec("none").err(), Some(Errno::ENOENT));
    a.chmod("data", 0o666).unwrap();
    assert_eq!(b.exec("data").err(), Some(Errno::EACCES), "no user may, not even root");
    a.chmod("data", 0o777).unwrap();
    a.set_base_lease(f, WRITE).unwrap();
    let starting = b.blocks(BREAK, |task| task.exec("data"));
    assert_eq!((a.signals(), a.get_base_lease(f)), (vec![Signal::Sigio], Ok(Some(PosixLeaseType::Read))));
    a.set_base_lease(f, READ).unwrap();
    let program = starting.finish().unwrap();
    assert_eq!(a.set_base_lease(f, WRITE), Err(Errno::EAGAIN), "it counts as an open");
    for access in [AccessMode::WRITE, AccessMode::BOTH] {
        assert_eq!(a.open("data", OpenFlags::open(access)), Err(Errno::ETXTBSY));
    }
    assert_eq!(a.truncate("data", 0), Err(Errno::ETXTBSY));
    assert_eq!(a.open("data", OpenFlags { truncate: true, ..OpenFlags::open(AccessMode::READ) }), Err(Errno::ETXTBSY));
    assert_eq!(
        (a.signals(), a.get_base_lease(f)),
        (vec![], Ok(Some(PosixLeaseType::Read))),
        "what is refused breaks nothing"
    );
    a.set_base_lease(f, UNLOCK).unwrap();
    a.close(f).unwrap();
    let child = b.child();
    program.end(&lab.kernel);
    let w = a.open("data", OpenFlags::open(AccessMode::WRITE)).unwrap();
    assert_eq!(b.exec("data").err(), Some(Errno::ETXTBSY), "a process has it open for writing");
    a.close(w).unwrap();
    let _goes_on = child.exec("data").unwrap();
    assert_eq!(a.open("data", OpenFlags::open(AccessMode::WRITE)), Err(Errno::ETXTBSY));
    child.exit();
    assert!(a.open("data", OpenFlags::open(AccessMode::WRITE)).is_ok(), "it ended with its process");
    lab.end([&a, &b, &child]);
}

/// The lease holder has the program's file open for writing: exec breaks the lease first and is
/// refused afterwards.
#[test]
fn a_program_refused_after_its_wait() {
    let (lab, [a, b]) = lab();
    let f = a.writes_file("data", 1, 1);
    a.set_base_lease(f, WRITE).unwrap();
    let starting = b.blocks(BREAK, |task| task.exec("data").map(drop));
    lab.advance(BREAK_TIME);
    assert_eq!(starting.finish(), Err(Errno::ETXTBSY));
    assert_eq!(a.get_base_lease(f), Ok(Some(PosixLeaseType::Read)));
    assert_eq!(a.signals(), [Signal::Sigio]);
    lab.end([&a, &b]);
}
