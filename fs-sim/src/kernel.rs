//! The simulated kernel as a whole: one machine, one volume, one design.
//!
//! It owns everything that is shared between processes. Invariant: it reads a design's axes, never its name; the name does not
//! reach this crate's behaviour at all. Kernel counterpart: the kernel, as far as this lab needs one.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;

use emulator::World;
use emulator::device::Device;
use emulator::ledger::Ledger;
use emulator::pin::{PageRange, PinTable};
use emulator::runtime::registry::Registry;
use emulator::runtime::trace::{Trace, TraceEvent};
use emulator::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};

use crate::counters::Counters;
use crate::design::{Axes, VolumeOptions};
use crate::dma::Finding;
use crate::holders::stale::StaleWatch;
use crate::inode::{Ino, Inode};
use crate::process::{Pid, Process};
use crate::volume::journal::Journal;
use crate::volume::mount::Mount;
use crate::volume::{Allocator, Orphans, Shares};
use crate::waits::{Deadlock, WaitGraph};

/// Rules broken on purpose, to prove that the oracle sees it. Everything false in every real run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// Pins of a file range are not rechecked against the inode's generation.
    pub no_recheck: bool,
    /// Layout changes free blocks without closing their pages to pins first.
    pub free_without_close: bool,
    /// Exclusive leases don't stand against requests for others.
    pub no_lease_conflict: bool,
    /// A break's time is never over.
    pub no_break_timeout: bool,
    /// A break is told to whoever holds the open file, instead of to the process that took the lease.
    pub signal_to_holder: bool,
    /// Releases that a release schedules are forgotten.
    pub no_nested_release: bool,
    /// A zombie lease lets long-term pins through.
    pub zombie_lets_pin: bool,
    /// Layout changes neither unmap guests that pin nothing nor wait for them.
    pub no_unmap: bool,
}

/// How a kernel is set up.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The design, by its axes.
    pub axes: Axes,
    /// Options of the volume.
    pub options: VolumeOptions,
    /// `RLIMIT_MEMLOCK` of every process, in pages.
    pub memlock_pages: u64,
    /// Rules broken on purpose.
    pub sabotage: Sabotage,
}

impl Config {
    /// A kernel under `axes`, everything else as by default: no limit on locked memory, nothing broken.
    pub fn new(axes: Axes) -> Config {
        Config { axes, options: VolumeOptions::default(), memlock_pages: u64::MAX / 2, sabotage: Sabotage::default() }
    }
}

/// See the module.
pub struct Kernel {
    pub(crate) world: Arc<World>,
    pub(crate) device: Device,
    pub(crate) pins: PinTable,
    pub(crate) ledger: Ledger,
    pub(crate) allocator: Allocator,
    pub(crate) orphans: Orphans,
    pub(crate) shares: Shares,
    pub(crate) journal: Journal,
    pub(crate) mount: Mount,
    pub(crate) stale: StaleWatch,
    /// Inodes that are gone but for the pins on what were their blocks.
    pub(crate) ghosts: Registry<Ino, Arc<Inode>>,
    pub(crate) axes: Axes,
    pub(crate) options: VolumeOptions,
    pub(crate) memlock_pages: u64,
    pub(crate) sabotage: Sabotage,
    pub(crate) processes: Registry<Pid, Arc<Process>>,
    pub(crate) inodes: Registry<Ino, Arc<Inode>>,
    pub(crate) names: Mutex<BTreeMap<String, Arc<Inode>>>,
    pub(crate) waits: WaitGraph,
    pub(crate) deadlocks: Mutex<Vec<Deadlock>>,
    /// What the kernel counts about itself.
    pub counters: Counters,
    pub(crate) findings: Mutex<Vec<Finding>>,
    pub(crate) violations: Mutex<Vec<String>>,
    /// What the crates above keep for the machine as a whole, such as a NIC.
    drivers: Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    tracer: Trace,
    pub(crate) next_pid: AtomicU32,
    pub(crate) next_ino: AtomicU64,
    pub(crate) next_description: AtomicU64,
    pub(crate) next_lease: AtomicU64,
    pub(crate) next_holder: AtomicU64,
    pub(crate) next_waiter: AtomicU64,
    next_number: AtomicU64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("axes", &self.axes).finish_non_exhaustive()
    }
}

/// How many violations are kept in words; a run with one has failed already.
const VIOLATIONS_MAX: usize = 64;

impl Kernel {
    /// A kernel on `device`, with an empty volume over all of it.
    ///
    /// # Errors
    /// The pin words or the ledger could not be mapped.
    pub fn new(world: Arc<World>, device: Device, config: Config) -> std::io::Result<Arc<Kernel>> {
        let pages = device.pages();
        Ok(Arc::new(Kernel {
            pins: PinTable::new(pages)?,
            ledger: Ledger::new(pages)?,
            allocator: Allocator::new(pages),
            orphans: Orphans::default(),
            shares: Shares::default(),
            journal: Journal::default(),
            mount: Mount::default(),
            stale: StaleWatch::default(),
            ghosts: Registry::new(),
            world,
            device,
            axes: config.axes,
            options: config.options,
            memlock_pages: config.memlock_pages,
            sabotage: config.sabotage,
            processes: Registry::new(),
            inodes: Registry::new(),
            names: Mutex::new(BTreeMap::new()),
            waits: WaitGraph::default(),
            deadlocks: Mutex::new(Vec::new()),
            counters: Counters::default(),
            findings: Mutex::new(Vec::new()),
            violations: Mutex::new(Vec::new()),
            drivers: Mutex::new(BTreeMap::new()),
            tracer: Trace::new(),
            next_pid: AtomicU32::new(1),
            next_ino: AtomicU64::new(1),
            next_description: AtomicU64::new(1),
            next_lease: AtomicU64::new(1),
            next_holder: AtomicU64::new(1),
            next_waiter: AtomicU64::new(1),
            next_number: AtomicU64::new(1),
        }))
    }

    /// The world it runs in.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The device under the volume: its file, for mapping pieces of it elsewhere. Whoever writes through it is watched by nobody.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The design it runs under.
    pub fn axes(&self) -> &Axes {
        &self.axes
    }

    /// This machine's one `T`, such as its NIC; made by `make` when first asked for. `make` must touch nothing of this kernel.
    pub fn driver<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let driver = {
            let mut drivers = self.drivers.lock();
            let slot = drivers.entry(TypeId::of::<T>());
            Arc::clone(slot.or_insert_with(|| Arc::new(make())))
        };
        driver.downcast::<T>().expect("what stands under the TypeId of T was made as a T")
    }

    /// A number for what has none of its own kind. Never used again within a run.
    pub(crate) fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The stale accesses found, the first [`crate::dma::FINDINGS_MAX`] of them.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().clone()
    }

    /// The broken invariants found so far, in words.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    /// Records a broken invariant.
    #[cold]
    pub(crate) fn violated(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(what);
        }
    }

    /// Notes an event for the traces of findings: `actor` and `ino` as numbers, and the first pages concerned.
    pub(crate) fn trace(&self, kind: &'static str, actor: u64, ino: u64, pages: Option<PageRange>) {
        self.tracer.record(self.world.now(), kind, actor, ino, pages);
    }

    pub(crate) fn trace_about(&self, pages: PageRange) -> Vec<TraceEvent> {
        self.tracer.about(pages, 32)
    }
}
