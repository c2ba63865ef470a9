//! What the bodies under shuttle share: seeded schedules, and a stand-in for a NIC.
//!
//! It owns the choice of schedules and their count. A seed stands for a batch of schedules: an even
//! one picks a random thread at every step; an odd one uses random priorities that change at few
//! steps, so that one thread can finish inside another one's window.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use emulator::World;
use emulator::device::Device;
use emulator::sync::machine::{AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Fd;
use fs_sim::design::Axes;
use fs_sim::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::{PinRequest, Pinned, Registration};
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::open_file::{Deferred, OpenObject, Passing};
use fs_sim::{BLOCK, Errno, Kernel, KernelConfig, Task};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};

/// How many schedules one seed stands for.
const BATCH: u64 = 16;

/// How often a priority schedule changes priorities.
const CHANGES: usize = 3;

/// The bytes of the smallest device.
const DEVICE: u64 = 2 << 20;

/// How many schedules are 100 percent, unless `DAXLAB_CHANGE_SCHEDULES` says otherwise.
const SCHEDULES: u64 = 200_000;

/// A body's seeds are shared out among so many tests, so that all processors have work.
pub(crate) const PARTS: u64 = 2;

/// How many schedules this program has run.
static RUN: AtomicU64 = AtomicU64::new(0);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Runs the schedules of `seed`. Returns their number, or what the one that fails says.
pub(crate) fn batch(seed: u64, body: impl Fn() + Send + Sync + 'static) -> Result<u64, String> {
    let mut settings = shuttle::Config::new();
    // The seed names a failing batch; shuttle's default would print every step as well.
    settings.failure_persistence = shuttle::FailurePersistence::None;
    let scheduler: Box<dyn Scheduler + Send> = match seed.is_multiple_of(2) {
        true => Box::new(RandomScheduler::new_from_seed(seed, BATCH as usize)),
        false => Box::new(PctScheduler::new_from_seed(seed, CHANGES, BATCH as usize)),
    };
    let run = || shuttle::Runner::new(scheduler, settings).run(body) as u64;
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// Runs `body` on one part of its seeds, and says how many schedules there were. All parts together
/// run `percent` of the schedules that are asked for. `DAXLAB_SEED` runs one seed only.
pub(crate) fn explore(name: &str, percent: u64, part: u64, body: impl Fn(u64) + Copy + Send + Sync + 'static) {
    let wanted = setting("DAXLAB_CHANGE_SCHEDULES").unwrap_or(SCHEDULES);
    let seeds = (wanted * percent).div_ceil(100 * BATCH);
    let seeds = setting("DAXLAB_SEED").map_or(0..seeds, |seed| seed..seed + 1);
    let mut run = 0;
    // Both kinds of schedule are in every part.
    for seed in seeds.filter(|seed| seed / 2 % PARTS == part) {
        match batch(seed, move || body(seed)) {
            Ok(schedules) => run += schedules,
            Err(what) => panic!("{name}, DAXLAB_SEED={seed}: {what}"),
        }
    }
    let all = RUN.fetch_add(run, Ordering::Relaxed) + run;
    // Past the capture of the test harness: the count is a result.
    let _not_shown = writeln!(std::io::stderr(), "{name}: {run} schedules; {all} so far");
}

/// A kernel on the smallest device.
pub(crate) fn kernel(axes: Axes) -> Arc<Kernel> {
    let device = Device::memory(DEVICE).unwrap();
    Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).unwrap()
}

/// With every process gone, nothing that must hold is broken.
pub(crate) fn assert_at_rest(kernel: &Kernel) {
    assert_eq!(kernel.counters.stale_dma.get(), 0, "stale: {:?}", kernel.findings());
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
}

/// What a region of the stand-in holds.
enum RegionSlot {
    /// Its registration is under way; whether it was revoked meanwhile.
    Coming(bool),
    Pinned(Pinned),
    Gone,
}

/// A region of the stand-in for a NIC.
pub(crate) struct SmallRegion {
    fd_holders: Arc<FdHolders>,
    slot: Mutex<RegionSlot>,
}

impl PinHolder for SmallRegion {
    fn describe(&self) -> HolderInfo {
        let processes = self.fd_holders.processes();
        HolderInfo { kind: "test region", processes, fd: None, context: None, region: None, guest: None }
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(&self.fd_holders))
    }

    fn revoke(&self, kernel: &Arc<Kernel>, _reason: RevokeReason) {
        self.release(kernel);
    }
}

impl SmallRegion {
    /// Unpins, from whatever context.
    pub(crate) fn release(&self, kernel: &Arc<Kernel>) {
        let mut deferred = Deferred::default();
        self.release_into(kernel, &mut deferred);
        kernel.run_deferred(deferred);
    }

    fn release_into(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let held = {
            let mut slot = self.slot.lock();
            let left = if matches!(*slot, RegionSlot::Coming(_)) { RegionSlot::Coming(true) } else { RegionSlot::Gone };
            std::mem::replace(&mut *slot, left)
        };
        if let RegionSlot::Pinned(pinned) = held {
            pinned.release(kernel, deferred);
        }
    }

    /// Runs `access` on the pins. EFAULT once they are gone.
    pub(crate) fn access(&self, access: impl FnOnce(&Pinned) -> Result<(), Errno>) -> Result<(), Errno> {
        match &*self.slot.lock() {
            RegionSlot::Pinned(pinned) => access(pinned),
            RegionSlot::Coming(_) | RegionSlot::Gone => Err(Errno::EFAULT),
        }
    }
}

/// A stand-in for an RDMA context with one region at a time: the end of its descriptor drops the
/// pins.
pub(crate) struct SmallNic {
    fd_holders: Arc<FdHolders>,
    region: Mutex<Option<Arc<SmallRegion>>>,
}

impl OpenObject for SmallNic {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let region = self.region.lock().take();
        if let Some(region) = region {
            region.release_into(kernel, deferred);
        }
    }

    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync> {
        self
    }
}

impl SmallNic {
    pub(crate) fn open(task: &Task) -> (Fd, Arc<SmallNic>) {
        let (fd, object) = task
            .install_object(|fd_holders| Arc::new(SmallNic { fd_holders, region: Mutex::new(None) }))
            .expect("a context");
        (fd, object.as_any().downcast::<SmallNic>().unwrap_or_else(|_| panic!("not a SmallNic")))
    }

    /// A registration of `blocks` of the file open as `fd`, which the device may write through.
    pub(crate) fn pins(&self, task: &Task, fd: Fd, blocks: std::ops::Range<u64>) -> Result<Arc<SmallRegion>, Errno> {
        let len = (blocks.end - blocks.start) * BLOCK;
        let va = task.mmap(fd, blocks.start * BLOCK, len, true)?;
        let slot = Mutex::new(RegionSlot::Coming(false));
        let region = Arc::new(SmallRegion { fd_holders: Arc::clone(&self.fd_holders), slot });
        let want = PinRequest { va, len, write: true, user: LongTermUser::Rdma };
        let registered = task.register(want, Arc::clone(&region) as Arc<dyn PinHolder>);
        task.munmap(va, len)?;
        let Registration::Pinned(pinned) = registered? else { panic!("a file's pages are pinned") };
        let revoked = {
            let mut slot = region.slot.lock();
            let revoked = matches!(*slot, RegionSlot::Coming(true));
            *slot = RegionSlot::Pinned(pinned);
            revoked
        };
        if revoked {
            region.release(task.kernel());
        }
        *self.region.lock() = Some(Arc::clone(&region));
        Ok(region)
    }
}
