//! Races `reg_mr` against `truncate` on schedules drawn from a seed, with a copy after it.
//!
//! Run with `RUSTFLAGS="--cfg daxlab_shuttle" cargo test -p rdma-sim --test shuttle_reg_mr
//! --release`. `DAXLAB_SCHEDULES` sets the number of schedules. A schedule that fails prints its
//! seed; `DAXLAB_SEED` runs it again.
#![cfg(daxlab_shuttle)]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod schedules;

use emulator::World;
use emulator::device::Device;
use emulator::sync::{Arc, thread};
use fs_sim::design::{Axes, presets};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::signals::{Disposition, Signal};
use fs_sim::{BlockRange, Errno, Kernel, KernelConfig, Sabotage};
use rdma_sim::{AccessFlags, Context, Nic, Qp, QpConfig, WorkOperation, WorkRequest, WorkStatus};
use schedules::{failure, seeds};

const PAGE: u64 = 4096;
const BLOCKS: u64 = 2;

fn axes(preset: &str) -> Axes {
    presets().iter().find(|found| found.name == preset).expect("a preset").axes
}

/// The race under a preset.
fn body(preset: &str, sabotage: Sabotage) -> impl Fn() + Send + Sync + 'static {
    let config = KernelConfig::new(axes(preset)).sabotaged_for_tests(sabotage);
    move || reg_mr_against_truncate(config)
}

/// A program registers a leased file and its peer writes to it, while another program truncates the
/// file and allocates its blocks. The end checks every invariant.
fn reg_mr_against_truncate(config: KernelConfig) {
    let device = Device::memory(2 << 20).unwrap();
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, config).unwrap();
    let owner = kernel.spawn();
    owner.process().set_disposition(Signal::Sigio, Disposition::Handler);
    let fd = owner.open("data", OpenFlags::create()).unwrap();
    owner.write(fd, 0, &[1; (BLOCKS * PAGE) as usize]).unwrap();
    owner.lease(fd, LeaseKind::READ_U, BlockRange::ALL).unwrap();
    let va = owner.mmap(fd, 0, BLOCKS * PAGE, true).unwrap();

    let stranger = kernel.spawn();
    let truncater = thread::spawn(move || {
        let truncated = stranger.truncate("data", 0);
        assert!(matches!(truncated, Ok(()) | Err(Errno::ETXTBSY)), "{truncated:?}");
        stranger.exit();
    });
    // A held lease stops the stranger, so in some schedules the holder unlocks at the worst moment.
    let own = owner.thread();
    let unlocker = thread::spawn(move || {
        let unlocked = own.unlock(fd, BlockRange::ALL);
        assert!(matches!(unlocked, Ok(()) | Err(Errno::EAGAIN | Errno::EBUSY)), "{unlocked:?}");
    });

    let (_, context) = Context::open(&owner).unwrap();
    let pd = context.alloc_pd(&owner).unwrap();
    let cq = context.create_cq(&owner, 4).unwrap();
    let pair = [(); 2].map(|()| {
        let (send_cq, recv_cq) = (Arc::clone(&cq), Arc::clone(&cq));
        context.create_qp(&owner, &pd, QpConfig { send_cq, recv_cq, max_send: 2, max_recv: 2 }).unwrap()
    });
    Qp::connect(&pair[0], &pair[1]).unwrap();
    let (buffer, _) = owner.mmap_anonymous(PAGE).unwrap();
    let local = context.reg_mr(&owner, &pd, buffer, PAGE, AccessFlags::LOCAL_READ).unwrap();

    if let Ok(target) = context.reg_mr(&owner, &pd, va, BLOCKS * PAGE, AccessFlags::ALL) {
        let local = rdma_sim::Sge { lkey: local.lkey(), addr: buffer, len: 8 };
        let (remote_addr, rkey) = (va + PAGE, target.rkey());
        pair[0]
            .post_send(WorkRequest { wr_id: 1, op: WorkOperation::Write, local, remote_addr, rkey, signaled: true })
            .unwrap();
        let done = cq.poll_one().expect("posted and executed by this thread");
        // Both ends belong to one context: an abort revokes the local region as well.
        let aborted = [WorkStatus::RemoteAccessError, WorkStatus::LocalProtectionError, WorkStatus::Flushed];
        assert!(done.status == WorkStatus::Success || aborted.contains(&done.status), "{done:?}");
    }
    truncater.join().unwrap();
    unlocker.join().unwrap();
    owner.exit();
    assert_eq!(kernel.counters.stale_dma.get(), 0, "stale: {:?}", kernel.findings());
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
    assert_eq!(Nic::of(&kernel).live_regions(), 0);
}

#[test]
fn no_schedule_shows_a_stale_copy_or_a_leak() {
    let designs = ["rfc-v2", "revoke", "gunthorpe", "man-page"];
    for preset in designs {
        for seed in seeds() {
            if let Some(what) = failure(seed, body(preset, Sabotage::default())) {
                panic!("{preset}, DAXLAB_SEED={seed}: {what}");
            }
        }
    }
}

#[test]
fn without_the_recheck_a_schedule_fails_and_its_seed_replays_it() {
    let broken = || body("rfc-v2", Sabotage { no_recheck: true, ..Sabotage::default() });
    let (seed, first) = (0..50_000)
        .find_map(|seed| failure(seed, broken()).map(|what| (seed, what)))
        .expect("a pin that is not rechecked meets a truncate in some schedule");
    assert!(first.contains("stale"), "seed {seed}: {first}");
    for _ in 0..3 {
        assert_eq!(failure(seed, broken()).as_deref(), Some(first.as_str()), "seed {seed}");
    }
    assert_eq!(failure(seed, body("rfc-v2", Sabotage::default())), None, "the recheck is what it lacked");
}
