//! Changed registrations: the same keys over other memory, with other rights, in another domain.

use fs_sim::design::{PassRule, PinGate};
use fs_sim::holders::in_flight_io::Transfer;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{BlockRange, Errno};
use rdma_sim::{AccessFlags, MwType, QpConfig, Rereg, WindowAccess, WindowBind, WorkFault, WorkOperation, WorkStatus};

use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::sync::{Arc, thread};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const READ_ONLY: AccessFlags = AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ };

fn translation(va: u64, len: u64) -> Rereg<'static> {
    Rereg { translation: Some((va, len)), ..Rereg::default() }
}

fn access(access: AccessFlags) -> Rereg<'static> {
    Rereg { access: Some(access), ..Rereg::default() }
}

#[test]
fn another_translation_under_the_same_key() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    local.fill(0, b"moved on");
    let first = b.file("first", 2 * PAGE, ALL);
    let (second, va) = b.leased("second", 3 * PAGE);

    let new = b.ctx.rereg_mr(&b.task, &first.mr, translation(va + PAGE, PAGE)).unwrap();
    assert_eq!((new.lkey(), new.rkey(), new.va(), new.len()), (first.mr.lkey(), first.mr.rkey(), va + PAGE, PAGE));
    assert!(first.mr.is_released() && !new.is_released());
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (1, 1));
    a.post(1, WorkOperation::Write, local.sge(0, 8), new.remote(0));
    a.expect(1, WorkStatus::Success);
    assert_eq!(contents(&b.task, second, PAGE, 8), b"moved on");
    assert_eq!(contents(&b.task, first.fd, 0, 8), [0; 8]);

    // The first file has no holder any more; the second has one.
    assert_eq!(a.task.truncate("second", 0), Err(Errno::ETXTBSY));
    b.task.unlock(first.fd, BlockRange::ALL).unwrap();
    a.task.truncate("first", 0).unwrap();
    // The old handle is of no use any more.
    assert_eq!(b.ctx.dereg_mr(&b.task, &first.mr), Err(Errno::EINVAL));
    assert_eq!(b.ctx.rereg_mr(&b.task, &first.mr, access(ALL)).err(), Some(Errno::EINVAL));
    // The old addresses are outside of the region now.
    a.post(2, WorkOperation::Write, local.sge(0, 8), (first.va, new.rkey()));
    assert_eq!(a.expect(2, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Range);
    b.ctx.dereg_mr(&b.task, &new).unwrap();
    assert_eq!(b.task.process().locked_pages(), 0);
    end_dialogue(&a, &b);
}

#[test]
fn another_domain_keeps_the_pins() {
    let (kernel, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", PAGE, ALL);
    let pd = b.ctx.alloc_pd(&b.task).unwrap();
    // The gate is not asked again: without the lease it would refuse a new registration.
    b.task.unlock(target.fd, BlockRange::ALL).unwrap();
    let new = b.ctx.rereg_mr(&b.task, &target.mr, Rereg { pd: Some(&pd), ..Rereg::default() }).unwrap();
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (1, 1));
    assert_eq!(b.ctx.dealloc_pd(&b.task, &pd), Err(Errno::EBUSY));
    a.post(1, WorkOperation::Write, local.sge(0, 8), new.remote(0));
    assert_eq!(a.expect(1, WorkStatus::RemoteAccessError).vendor_err, WorkFault::OtherDomain);

    let config = QpConfig { send_cq: Arc::clone(&b.cq), recv_cq: Arc::clone(&b.cq), max_send: 1, max_recv: 1 };
    let qp = b.ctx.create_qp(&b.task, &pd, config).unwrap();
    let c = side(&kernel, 4);
    rdma_sim::Qp::connect(&c.qp, &qp).unwrap();
    c.post(2, WorkOperation::Write, c.anon(PAGE, ALL).sge(0, 8), new.remote(0));
    c.expect(2, WorkStatus::Success);
    // The old domain is not used any more.
    b.ctx.destroy_qp(&b.task, &b.qp).unwrap();
    b.ctx.dealloc_pd(&b.task, &b.pd).unwrap();
    b.ctx.dereg_mr(&b.task, &new).unwrap();
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (0, 0));
    expect_rest(&kernel, &[&a.task, &b.task, &c.task]);
}

#[test]
fn other_rights_hold_at_once_and_new_local_write_is_judged() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", PAGE, READ_ONLY);
    let new = b.ctx.rereg_mr(&b.task, &target.mr, access(ALL)).unwrap();
    a.post(1, WorkOperation::Write, local.sge(0, 8), new.remote(0));
    a.expect(1, WorkStatus::Success);
    let less = b.ctx.rereg_mr(&b.task, &new, access(READ_ONLY)).unwrap();
    a.post(2, WorkOperation::Read, local.sge(0, 8), less.remote(0));
    a.expect(2, WorkStatus::Success);

    b.task.unlock(target.fd, BlockRange::ALL).unwrap();
    assert_eq!(b.ctx.rereg_mr(&b.task, &less, access(ALL)).err(), Some(Errno::EPERM), "the gate is asked again");
    a.post(3, WorkOperation::Read, local.sge(0, 8), less.remote(0));
    a.expect(3, WorkStatus::Success);
    a.post(4, WorkOperation::Write, local.sge(0, 8), less.remote(0));
    assert_eq!(a.expect(4, WorkStatus::RemoteAccessError).vendor_err, WorkFault::Access);
    end_dialogue(&a, &b);
}

#[test]
fn a_refused_change_leaves_the_region_as_it_was() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", 2 * PAGE, ALL.mw_bind());
    let bare = b.task.open("bare", OpenFlags::create()).unwrap();
    b.task.write(bare, 0, &[7; PAGE as usize]).unwrap();
    let unleased = b.task.mmap(bare, 0, PAGE, true).unwrap();
    let writes = AccessFlags { remote_write: true, ..AccessFlags::LOCAL_READ };
    let (other, anon) = (&a.pd, b.anon(PAGE, ALL));
    let cases: [(Rereg<'_>, Errno); 8] = [
        (Rereg::default(), Errno::EINVAL),
        (access(writes), Errno::EINVAL),
        (translation(target.va, 0), Errno::EINVAL),
        (translation(target.va + PAGE, 2 * PAGE), Errno::EINVAL),
        (translation(u64::MAX - 8, 64), Errno::EINVAL),
        (translation(unleased, PAGE), Errno::EPERM),
        (Rereg { pd: Some(other), ..Rereg::default() }, Errno::EINVAL),
        (Rereg { access: Some(ALL.flush_persistent()), ..translation(anon.mr.va(), PAGE) }, Errno::EINVAL),
    ];
    for (change, errno) in cases {
        assert_eq!(b.ctx.rereg_mr(&b.task, &target.mr, change).err(), Some(errno), "{change:?}");
        a.post(1, WorkOperation::Write, local.sge(0, 8), target.remote(0));
        a.expect(1, WorkStatus::Success);
        assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (1, 2), "{change:?}");
    }
    assert_eq!(b.ctx.rereg_mr(&a.task, &target.mr, access(ALL)).err(), Some(Errno::EBADF));
    assert_eq!(a.ctx.rereg_mr(&a.task, &target.mr, access(ALL)).err(), Some(Errno::EINVAL));

    let mw = b.ctx.alloc_mw(&b.task, &b.pd, MwType::Type1).unwrap();
    let bind = WindowBind { rkey: 0, lkey: target.mr.lkey(), addr: target.va, len: 8, access: WindowAccess::READ };
    b.qp.bind_mw(2, &mw, bind, true).unwrap();
    b.expect(2, WorkStatus::Success);
    assert_eq!(b.ctx.rereg_mr(&b.task, &target.mr, access(ALL)).err(), Some(Errno::EBUSY));
    b.ctx.dealloc_mw(&b.task, &mw).unwrap();
    b.ctx.rereg_mr(&b.task, &target.mr, access(ALL)).unwrap();
    end_dialogue(&a, &b);
}

#[test]
fn both_registrations_are_charged_until_the_old_one_is_gone() {
    let (_, a, b) = dialogue("rfc-v2");
    let target = b.file("data", 4 * PAGE, ALL);
    b.task.set_memlock(5).unwrap();
    let moved = translation(target.va, 2 * PAGE);
    assert_eq!(b.ctx.rereg_mr(&b.task, &target.mr, moved).err(), Some(Errno::ENOMEM));
    assert_eq!(b.task.process().locked_pages(), 4);
    b.task.set_memlock(6).unwrap();
    let new = b.ctx.rereg_mr(&b.task, &target.mr, moved).unwrap();
    assert_eq!(b.task.process().locked_pages(), 2);
    b.ctx.dereg_mr(&b.task, &new).unwrap();
    assert_eq!(b.task.process().locked_pages(), 0);
    end_dialogue(&a, &b);
}

#[test]
fn locked_memory_has_a_limit_of_its_own_for_each_process() {
    let (_, a, b) = dialogue("rfc-v2");
    let (fd, va) = b.leased("data", 4 * PAGE);
    b.task.set_memlock(3).unwrap();
    assert_eq!(b.reg(va, 4 * PAGE, ALL).err(), Some(Errno::ENOMEM));
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (0, 0));
    assert_eq!(b.task.inode(fd).unwrap().holders().len(), 0);
    let child = b.task.fork().unwrap();
    assert_eq!(
        (child.process().memlock(), a.task.process().memlock() > 3),
        (3, true),
        "inherited, and of this process only"
    );
    child.exit();

    // Charged to the registrant, also after passing, and credited back whichever process ends the
    // region.
    let mr = b.reg(va, 3 * PAGE, ALL).unwrap();
    b.task.send_fd(a.task.pid(), b.fd).unwrap();
    a.task.recv_fd().unwrap();
    b.task.close(b.fd).unwrap();
    assert_eq!((b.task.process().locked_pages(), a.task.process().locked_pages()), (3, 0));
    b.ctx.dereg_mr(&a.task, &mr).unwrap();
    assert_eq!(b.task.process().locked_pages(), 0);
    b.task.close(fd).unwrap();
    end_dialogue(&a, &b);
}

#[test]
fn a_change_may_turn_pins_into_faults_and_back() {
    let (_, a, b) = dialogue("rfc-v2");
    let local = a.anon(PAGE, ALL);
    let target = b.file("data", PAGE, ALL);
    let faulted = b.ctx.rereg_mr(&b.task, &target.mr, access(ALL.on_demand())).unwrap();
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (0, 0));
    a.post(1, WorkOperation::Write, local.sge(0, 8), faulted.remote(0));
    a.expect(1, WorkStatus::Success);
    let pinned = b.ctx.rereg_mr(&b.task, &faulted, access(ALL)).unwrap();
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (1, 1));
    a.post(2, WorkOperation::Write, local.sge(0, 8), pinned.remote(0));
    a.expect(2, WorkStatus::Success);
    end_dialogue(&a, &b);
}

#[test]
fn deny_judges_a_change_that_pins_as_a_registration() {
    let mut axes = axes("man-page");
    assert_eq!((axes.pass_context, axes.pin_gate), (PassRule::Deny, PinGate::Unbreakable));
    axes.pass_context = PassRule::Deny;
    let kernel = machine_with(axes);
    let (a, b) = pair(&kernel);
    let (_, va) = b.leased("data", PAGE);
    let anon = b.anon(PAGE, ALL);
    b.task.send_fd(a.task.pid(), b.fd).unwrap();
    assert_eq!(b.ctx.rereg_mr(&b.task, &anon.mr, translation(va, PAGE)).err(), Some(Errno::EPERM));
    assert_eq!((b.ctx.file_pins(), b.task.process().locked_pages()), (0, 0));
    end_dialogue(&a, &b);
}

/// Copies run while a region changes to and fro between two files. Each copy goes to one of the
/// files or is refused, every change waits for the copies in flight, and the close of the context
/// ends everything. A change still registers its new memory when its context is closed. Then its
/// slot belongs to a region of another process, which the change must not touch.
#[test]
fn a_change_whose_context_was_closed_leaves_the_slots_next_region_alone() {
    let kernel = machine("rfc-v2");
    let (a, c) = pair(&kernel);
    let local = a.anon(PAGE, ALL);
    local.fill(0, b"for C");
    let b = side(&kernel, 4);
    let first = b.anon(PAGE, ALL);
    // A hole punch waits for direct I/O: the change of the registration waits for the end of both.
    let second = b.task.open("second", OpenFlags::create()).unwrap();
    b.task.fallocate(second, FallocateMode::Allocate { keep_size: false }, 0, 2 * PAGE).unwrap();
    b.task.lease(second, LeaseKind::WRITE_U, BlockRange::ALL).unwrap();
    let va = b.task.mmap(second, 0, PAGE, true).unwrap();
    let io = b.task.submit_direct_io(second, 0, PAGE, Transfer::Read).unwrap();
    let (puncher, changer, closer) = (b.task.thread(), b.task.thread(), b.task.thread());
    let asleep = |reason: &str| {
        while !kernel.world().sleepers().iter().any(|sleeper| sleeper.reason == reason) {
            thread::yield_now();
        }
    };
    let target = thread::scope(|scope| {
        let punch = scope.spawn(|| puncher.fallocate(second, FallocateMode::PunchHole, 0, PAGE));
        asleep("pins draining");
        let change = scope.spawn(|| b.ctx.rereg_mr(&changer, &first.mr, translation(va, PAGE)).map(drop));
        asleep("pages of a layout change");
        closer.close(b.fd).unwrap();
        let target = c.anon(PAGE, ALL);
        assert_eq!(target.mr.lkey() >> 8, first.mr.lkey() >> 8, "the slot belongs to C now");
        io.complete(&b.task, &mut [0; PAGE as usize]).unwrap();
        punch.join().unwrap().unwrap();
        assert_eq!(change.join().unwrap(), Err(Errno::EIO));
        target
    });
    a.post(1, WorkOperation::Write, local.sge(0, 5), target.remote(0));
    a.expect(1, WorkStatus::Success);
    assert_eq!(target.bytes(0, 5), b"for C");
    assert!(!target.mr.is_revoked() && !c.ctx.is_aborted());
    // Nothing stays of what the change had registered.
    assert_eq!(b.task.process().locked_pages(), 0);
    b.task.unlock(second, BlockRange::ALL).unwrap();
    a.task.truncate("second", 0).unwrap();
    expect_rest(&kernel, &[&a.task, &c.task, &b.task]);
}

#[test]
fn changes_meet_copies_and_the_contexts_end() {
    const CHANGES: u64 = 50;
    for (preset, end) in [("rfc-v2", 0), ("revoke", 1), ("rfc-v2", 2), ("revoke", 2)] {
        let (kernel, a, b) = dialogue(preset);
        let local = a.anon(4 * PAGE, ALL);
        let (_, first) = b.leased("first", 4 * PAGE);
        let (_, second) = b.leased("second", 4 * PAGE);
        let mut mr = b.reg(first, 4 * PAGE, ALL).unwrap();
        let (rkey, admin, own) = (mr.rkey(), kernel.spawn(), b.task.thread());
        let progress = AtomicU64::new(0);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _copies_end_with_us = Over(&over);
            scope.spawn(|| {
                for round in 0.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let va = if round % 2 == 0 { first } else { second };
                    a.post(round, WorkOperation::Write, local.sge(0, 4 * PAGE as u32), (va, rkey));
                    let done = a.cq.poll_one().expect("one thread posts here");
                    progress.fetch_add(1, Ordering::SeqCst);
                    if done.status == WorkStatus::Success {
                        continue;
                    }
                    assert!(
                        matches!(done.status, WorkStatus::RemoteAccessError | WorkStatus::RetryExceeded),
                        "{:?} {:?}",
                        done.status,
                        done.vendor_err
                    );
                    // Connect the next pair of queues, unless the test is over.
                    if b.ctx.is_aborted() || reconnect(&a, &b).is_none() {
                        progress.fetch_add(u64::MAX / 2, Ordering::SeqCst);
                        return;
                    }
                }
            });
            for change in 0..CHANGES {
                let va = if change % 2 == 0 { second } else { first };
                mr = match b.ctx.rereg_mr(&own, &mr, translation(va, 4 * PAGE)) {
                    Ok(new) => new,
                    Err(errno) => panic!("nothing stands in its way: {errno}"),
                };
                let seen = progress.load(Ordering::SeqCst);
                while progress.load(Ordering::SeqCst) == seen {
                    thread::yield_now();
                }
            }
            match end {
                0 => b.task.close(b.fd).unwrap(),
                1 => admin.truncate("first", 0).unwrap(),
                _ => {
                    // Another thread ends the context, in the middle of changes.
                    let ender = scope.spawn(|| match preset {
                        "revoke" => admin.truncate("first", 0).unwrap(),
                        _ => b.task.close(b.fd).unwrap(),
                    });
                    for change in 0.. {
                        let va = if change % 2 == 0 { second } else { first };
                        match b.ctx.rereg_mr(&own, &mr, translation(va, 4 * PAGE)) {
                            Ok(new) => mr = new,
                            // The truncate waits, has broken the lease, or has revoked the pins.
                            Err(Errno::EAGAIN | Errno::EPERM | Errno::EFAULT) if preset == "revoke" => {}
                            Err(errno) => {
                                assert!(matches!(errno, Errno::EIO | Errno::EBADF), "{errno}");
                                break;
                            }
                        }
                        if ender.is_finished() && !b.ctx.is_aborted() {
                            // The truncate found the region over the other file: no pin was in its
                            // way.
                            b.task.close(b.fd).unwrap();
                        }
                    }
                    ender.join().unwrap();
                }
            }
        });
        own.exit();
        expect_rest(&kernel, &[&a.task, &b.task, &admin]);
    }
}

/// On drop, lets the other threads end, also after a panic of this one.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Connects both ends again; none if one of them is destroyed.
fn reconnect(a: &Side, b: &Side) -> Option<()> {
    a.qp.reset().ok()?;
    b.qp.reset().ok()?;
    rdma_sim::Qp::connect(&a.qp, &b.qp).ok()
}
