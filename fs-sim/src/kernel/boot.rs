//! Boot: a kernel is built from its parts.
//!
//! It owns the wiring. Invariant: a kernel starts with an empty volume over all of its device.
//! Kernel counterpart: `start_kernel`, `fill_super`.

use std::collections::BTreeMap;

use emulator::World;
use emulator::device::Device;
use emulator::ledger::Ledger;
use emulator::pin::PinTable;
use emulator::runtime::registry::Registry;
use emulator::runtime::trace::Trace;
use emulator::sync::atomic::{AtomicU32, AtomicU64};
use emulator::sync::{Arc, Mutex};

use crate::base::counters::KernelCounters;
use crate::deadlock::graph::WaitGraph;
use crate::kernel::lifecycle::Layers;
use crate::vfs::attachments::Attachments;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::{Kernel, KernelConfig};
use crate::volume::caches::CpuCaches;
use crate::volume::journal::Journal;
use crate::volume::mount::Mount;
use crate::volume::{Allocator, Orphans, Shares};

impl Kernel {
    /// A kernel on `device`, with an empty volume over all of it.
    ///
    /// # Errors
    /// The pin words, the ledger or the durable image could not be mapped.
    pub fn new(world: Arc<World>, device: Device, config: KernelConfig) -> std::io::Result<Arc<Kernel>> {
        let caches = CpuCaches::new(config.options.platform, &device).map_err(std::io::Error::other)?;
        Kernel::boot(world, device, caches, config)
    }

    /// As [`Kernel::new`], with the caches of a machine whose bytes are those of `device`.
    pub(crate) fn boot(
        world: Arc<World>,
        device: Device,
        caches: CpuCaches,
        config: KernelConfig,
    ) -> std::io::Result<Arc<Kernel>> {
        let pages = device.pages();
        Ok(Arc::new(Kernel {
            pins: PinTable::new(pages)?,
            ledger: Ledger::new(pages)?,
            allocator: Allocator::new(pages),
            orphans: Orphans::default(),
            shares: Shares::default(),
            journal: Journal::default(),
            mount: Mount::default(),
            attached: Attachments::default(),
            lifecycle: &Layers,
            ghosts: Registry::new(),
            world,
            device,
            caches,
            axes: config.axes,
            options: config.options,
            memlock_pages: config.memlock_pages,
            sabotage: config.sabotage,
            processes: Registry::new(),
            inodes: Registry::new(),
            names: Mutex::new(BTreeMap::new()),
            directory: Arc::new(Inode::directory()),
            waits: WaitGraph::default(),
            deadlocks: Mutex::new(Vec::new()),
            counters: KernelCounters::default(),
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
}
