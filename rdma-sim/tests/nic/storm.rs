//! Copies in flight while a region ends in two ways at once. Whichever way comes first, every pin
//! is released once, and no copy lands in a block that another file owns.

use emulator::sync::atomic::{AtomicU64, Ordering};
use emulator::sync::{Arc, race, thread};
use fs_sim::design::Axes;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::Signal;
use fs_sim::{BlockRange, Errno, Kernel, Task};
use rdma_sim::{AccessFlags, Nic, Qp, WorkOperation, WorkRequest, WorkStatus};

use crate::harness::*;

const ALL: AccessFlags = AccessFlags::ALL;
const BLOCKS: u64 = 8;

/// One way for a region of `b` to end. Called once, while copies are in flight.
type End = fn(kernel: &Arc<Kernel>, admin: &Task, b: &Side, own: &Task, target: &FileMap);

fn dereg(_: &Arc<Kernel>, _: &Task, b: &Side, own: &Task, target: &FileMap) {
    let found = b.ctx.dereg_mr(own, &target.mr);
    assert!(matches!(found, Ok(()) | Err(Errno::EBADF | Errno::EINVAL | Errno::Dead)), "{found:?}");
    assert!(found.is_err() || target.mr.is_released(), "deregistered means unpinned");
}

fn close(_: &Arc<Kernel>, _: &Task, b: &Side, own: &Task, _: &FileMap) {
    let found = own.close(b.fd);
    assert!(matches!(found, Ok(()) | Err(Errno::EBADF | Errno::EINTR | Errno::Dead)), "{found:?}");
}

fn exit(_: &Arc<Kernel>, _: &Task, _: &Side, own: &Task, _: &FileMap) {
    own.exit();
}

fn kill(_: &Arc<Kernel>, admin: &Task, b: &Side, _: &Task, _: &FileMap) {
    let found = admin.kill(b.task.pid(), Signal::Sigkill);
    assert!(matches!(found, Ok(()) | Err(Errno::ESRCH)), "{found:?}");
}

fn truncate(_: &Arc<Kernel>, admin: &Task, _: &Side, _: &Task, _: &FileMap) {
    let found = admin.truncate("data", 0);
    assert!(matches!(found, Ok(()) | Err(Errno::ETXTBSY)), "{found:?}");
}

fn unlock(_: &Arc<Kernel>, _: &Task, _: &Side, own: &Task, target: &FileMap) {
    let found = own.unlock(target.fd, BlockRange::ALL);
    assert!(matches!(found, Ok(()) | Err(Errno::EAGAIN | Errno::EBUSY | Errno::EBADF | Errno::Dead)), "{found:?}");
}

/// Posts to the victim region until a request is refused. Returns the number of copies that
/// succeeded.
fn storm(a: &Side, local: &Buffer, target: &FileMap, progress: &AtomicU64) -> u64 {
    let (remote_addr, rkey) = target.remote(0);
    let len = (BLOCKS * PAGE) as u32;
    for round in 0.. {
        let (op, len) = match round % 3 {
            0 => (WorkOperation::Write, len),
            1 => (WorkOperation::Read, len),
            _ => (WorkOperation::FetchAdd { add: 1 }, 8),
        };
        let request = WorkRequest { wr_id: round, op, local: local.sge(0, len), remote_addr, rkey, signaled: true };
        a.qp.post_send(request).unwrap();
        let done = a.cq.poll_one().expect("one thread posts here");
        match done.status {
            WorkStatus::Success => {
                progress.fetch_add(1, Ordering::SeqCst);
            }
            WorkStatus::RemoteAccessError | WorkStatus::RetryExceeded => return round,
            other => panic!("{other:?}: {:?}", done.vendor_err),
        }
    }
    unreachable!("the range has no end")
}

/// On drop, counts so much progress that no thread waits for one that has ended, even by a panic.
struct Ended<'a>(&'a AtomicU64);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1 << 32, Ordering::SeqCst);
    }
}

fn round(design: Axes, ends: [End; 2], seed: u64, copies: &AtomicU64) {
    let kernel = machine_with(design);
    let b = side(&kernel, 16);
    let target = b.file("data", BLOCKS * PAGE, ALL);
    let requesters: Vec<(Side, Buffer, Arc<Qp>)> = (0..2)
        .map(|_| {
            let a = side(&kernel, 16);
            let config =
                rdma_sim::QpConfig { send_cq: Arc::clone(&b.cq), recv_cq: Arc::clone(&b.cq), max_send: 1, max_recv: 1 };
            let end = b.ctx.create_qp(&b.task, &b.pd, config).unwrap();
            Qp::connect(&a.qp, &end).unwrap();
            let local = a.anon(BLOCKS * PAGE, ALL);
            (a, local, end)
        })
        .collect();
    let admin = kernel.spawn();
    let progress = AtomicU64::new(0);
    let arm = |index: u64| race::arm(kernel.world().stream("storm", seed * 8 + index), 0.2);
    thread::scope(|scope| {
        for (index, (a, local, _)) in requesters.iter().enumerate() {
            let (target, arm, progress) = (&target, &arm, &progress);
            scope.spawn(move || {
                let _ended = Ended(progress);
                arm(index as u64);
                copies.fetch_add(storm(a, local, target, progress), Ordering::Relaxed);
            });
        }
        let enders: Vec<_> = ends
            .into_iter()
            .enumerate()
            .map(|(index, end)| {
                let (kernel, b, target, arm, progress) = (&kernel, &b, &target, &arm, &progress);
                let (admin, own) = (admin.thread(), b.task.thread());
                scope.spawn(move || {
                    arm(4 + index as u64);
                    // Wait until copies are in flight; only these two threads end the region.
                    while progress.load(Ordering::SeqCst) < seed % 16 {
                        thread::yield_now();
                    }
                    end(kernel, &admin, b, &own, target);
                })
            })
            .collect();
        for ender in enders {
            ender.join().unwrap();
        }
        // Both ways can leave the region alive (a refused truncate, an unlock that revokes
        // nothing): end it now.
        b.task.exit();
    });
    assert!(target.mr.is_released());
    // Another file allocates the blocks at once: a late copy would be visible in it.
    let next = admin.open("next", OpenFlags::create()).unwrap();
    admin.write(next, 0, &vec![1; (BLOCKS * PAGE) as usize]).unwrap();
    assert_eq!(contents(&admin, next, 0, 64), [1; 64]);
    let mut tasks = vec![&admin];
    tasks.extend(requesters.iter().map(|(a, ..)| &a.task));
    expect_rest(&kernel, &tasks);
    assert_eq!(Nic::of(&kernel).live_regions(), 0);
}

#[test]
fn copies_in_flight_meet_every_pair_of_ends() {
    let ends: [End; 6] = [dereg, close, exit, kill, truncate, unlock];
    let copies = AtomicU64::new(0);
    let mut seed = 0;
    let presets = ["revoke", "gunthorpe", "rfc-v2", "man-page", "odp", "revoke", "gunthorpe"];
    for design in presets.into_iter().map(axes).chain([whole_context()]) {
        for first in ends {
            for second in ends {
                seed += 1;
                round(design, [first, second], seed, &copies);
            }
        }
    }
    assert!(copies.load(Ordering::Relaxed) > seed, "no copy ever succeeded");
}

#[test]
fn registration_meets_revocation() {
    for design in [axes("revoke"), whole_context()] {
        registrations_meet_revocations(design);
    }
}

fn registrations_meet_revocations(design: Axes) {
    let kernel = machine_with(design);
    let admin = kernel.spawn();
    for seed in 0..200 {
        let b = side(&kernel, 4);
        let name = format!("data{seed}");
        let (_, va) = b.leased(&name, BLOCKS * PAGE);
        let held = b.reg(va, PAGE, ALL).unwrap();
        let found = thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                race::arm(kernel.world().stream("registration", seed * 2), 0.3);
                admin.truncate(&name, 0)
            });
            race::arm(kernel.world().stream("registration", seed * 2 + 1), 0.3);
            let found = b.reg(va + PAGE, (BLOCKS - 1) * PAGE, ALL);
            race::disarm();
            assert_eq!(stranger.join().unwrap(), Ok(()));
            found
        });
        assert!(held.is_revoked() && held.is_released());
        // In either order: pins taken before are revoked, and nothing is pinned afterwards.
        match found {
            Ok(mr) => assert!(mr.is_revoked() && mr.is_released(), "{seed}"),
            Err(errno) => assert!(
                matches!(errno, Errno::EIO | Errno::EFAULT | Errno::EPERM | Errno::EAGAIN | Errno::ETXTBSY),
                "{seed}: {errno:?}"
            ),
        }
        assert_eq!(b.ctx.file_pins(), 0, "{seed}");
        b.task.exit();
        admin.unlink(&name).unwrap();
    }
    expect_rest(&kernel, &[&admin]);
}

#[test]
fn registration_meets_the_contexts_end() {
    for by_exit in [false, true] {
        let kernel = machine("rfc-v2");
        for seed in 0..200 {
            let b = side(&kernel, 4);
            let name = format!("data{seed}");
            let (_, va) = b.leased(&name, BLOCKS * PAGE);
            let own = b.task.thread();
            let found = thread::scope(|scope| {
                scope.spawn(|| {
                    race::arm(kernel.world().stream("end", seed * 2), 0.3);
                    if by_exit { own.exit() } else { own.close(b.fd).unwrap() }
                });
                race::arm(kernel.world().stream("end", seed * 2 + 1), 0.3);
                let found = b.reg(va, BLOCKS * PAGE, ALL);
                race::disarm();
                found
            });
            match found {
                Ok(mr) => assert!(mr.is_released(), "{seed}"),
                Err(errno) => assert!(matches!(errno, Errno::EBADF | Errno::Dead), "{seed}: {errno:?}"),
            }
            assert_eq!(b.ctx.file_pins(), 0, "{seed}");
            b.task.exit();
            assert_eq!(Nic::of(&kernel).live_regions(), 0, "{seed}");
        }
        expect_rest(&kernel, &[]);
    }
}
