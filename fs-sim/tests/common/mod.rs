//! The test lab: a simulated kernel on a small device, actors, calls that block, and a stand-in for
//! a NIC.
//!
//! It owns no behaviour of its own. "Blocked" is a fact read from the kernel's register of
//! sleepers, never a guess by time. Time stands still until a test moves it ([`Lab::advance`]). A
//! lab that ends ([`Lab::end`]) has every process exit and checks everything that must hold at
//! rest.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

pub(crate) mod changes;
pub(crate) mod stops;
pub(crate) mod watchdog;

use std::any::Any;
use std::time::Duration;

use emulator::World;
use emulator::device::Device;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::base::numbers::Fd;
use fs_sim::design::{Axes, BreakTimeout, ChangeRule, LeaseRules, PinGate, VolumeOptions, presets};
use fs_sim::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use fs_sim::inspect::books::LeaseInfo;
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::leases::posix::request::PosixLeaseRequest;
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::on_demand::OnDemand;
use fs_sim::pinning::registration::{PinRequest, Pinned, Registration};
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::vfs::inode::Inode;
use fs_sim::vfs::open_file::{AccessMode, Deferred, OpenObject, Passing};
use fs_sim::vfs::signals::{Disposition, SigInfo, Signal};
use fs_sim::{BLOCK, BlockRange, Errno, Kernel, KernelConfig, Sabotage, Task};
use watchdog::{Spawned, observe, spawn, watch};

/// The bytes of the device under a lab, unless it asks for another: 1024 blocks.
pub(crate) const DEVICE: u64 = 4 << 20;
/// The break time of every lab.
pub(crate) const BREAK_TIME: Duration = Duration::from_millis(20);

/// The reason of a pinner that waits for closed pages.
pub(crate) const CLOSED_PAGES: &str = "pages of a layout change";

pub(crate) fn preset(name: &str) -> Axes {
    presets().iter().find(|preset| preset.name == name).unwrap_or_else(|| panic!("no preset {name}")).axes
}

/// Runs `dialogue` under every preset; a failing test's output names the one that failed last.
pub(crate) fn every_preset(dialogue: impl Fn(Axes)) {
    for preset in presets() {
        eprintln!("under {}", preset.name);
        dialogue(preset.axes);
    }
}

/// Runs `dialogue` under every preset for which `holds`.
pub(crate) fn every_preset_where(holds: fn(Axes) -> bool, dialogue: impl Fn(Axes)) {
    every_preset(|axes| {
        if holds(axes) {
            dialogue(axes);
        }
    });
}

/// Runs `dialogue` under every preset whose lease rules are these.
pub(crate) fn every_preset_with(rules: LeaseRules, dialogue: impl Fn(Axes)) {
    every_preset(|axes| {
        if axes.lease_rules == rules {
            dialogue(axes);
        }
    });
}

/// A kind of lease that is exclusive under these rules and lets a long-term pin through any gate.
pub(crate) fn exclusive(axes: Axes) -> LeaseKind {
    match axes.lease_rules {
        LeaseRules::Chinner => LeaseKind::WRITE,
        LeaseRules::ManPage | LeaseRules::None => LeaseKind::READ_U,
    }
}

/// Whether a file range can be pinned at all, given the lease that the design wants.
pub(crate) fn can_pin(axes: Axes) -> bool {
    !matches!(axes.pin_gate, PinGate::Refuse | PinGate::Fault)
}

/// Whether the gate asks for a lease.
pub(crate) fn needs_lease(axes: Axes) -> bool {
    matches!(axes.pin_gate, PinGate::Lease | PinGate::Unbreakable)
}

pub(crate) struct Lab {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) world: Arc<World>,
}

impl Lab {
    pub(crate) fn new(axes: Axes) -> Lab {
        Lab::with(axes, |_| {})
    }

    /// A lab and `N` processes of it that handle every signal.
    pub(crate) fn cast<const N: usize>(axes: Axes) -> (Lab, [Actor; N]) {
        let lab = Lab::new(axes);
        let actors = std::array::from_fn(|_| lab.actor());
        (lab, actors)
    }

    /// A lab and its file "data" of `blocks`, pinned in `pinned`; see [`pinned_file`].
    pub(crate) fn pinned(axes: Axes, blocks: u64, pinned: std::ops::Range<u64>) -> Option<(Lab, PinnedFile)> {
        let lab = Lab::new(axes);
        let file = pinned_file(&lab, "data", blocks, pinned)?;
        Some((lab, file))
    }

    /// A lab whose configuration is changed by `adjust`.
    pub(crate) fn with(axes: Axes, adjust: impl FnOnce(&mut KernelConfig)) -> Lab {
        Lab::on(DEVICE, axes, adjust)
    }

    /// A lab on a device of `bytes`.
    pub(crate) fn on(bytes: u64, axes: Axes, adjust: impl FnOnce(&mut KernelConfig)) -> Lab {
        let options = VolumeOptions { lease_break_time: BREAK_TIME, ..VolumeOptions::default() };
        let mut config = KernelConfig::new(axes);
        config.options = options;
        adjust(&mut config);
        let world = Arc::new(World::manual(0x0dd5_eed5));
        let device = Device::memory(bytes).expect("a device of memory");
        let kernel = Kernel::new(Arc::clone(&world), device, config).expect("a kernel");
        Lab::over(kernel, world)
    }

    /// A lab around a kernel that is there already. Its clock is virtual.
    pub(crate) fn over(kernel: Arc<Kernel>, world: Arc<World>) -> Lab {
        watch(&world, &kernel, true);
        Lab { kernel, world }
    }

    /// A process that handles every signal.
    pub(crate) fn actor(&self) -> Actor {
        Actor::adopt(self.kernel.spawn()).handling()
    }

    /// A process that leaves every signal to its default action.
    pub(crate) fn fragile(&self) -> Actor {
        Actor::adopt(self.kernel.spawn())
    }

    /// Lets virtual time pass.
    pub(crate) fn advance(&self, span: Duration) {
        self.world.advance(span);
    }

    /// Has every process exit and checks that `kernel.check_at_rest` finds nothing wrong. All
    /// actors are passed, so that none is forgotten.
    pub(crate) fn end<const N: usize>(self, actors: [&Actor; N]) {
        for actor in actors {
            actor.exit();
        }
        assert_eq!(self.kernel.check_at_rest(), Vec::<String>::new());
        assert_eq!(self.kernel.counters.stale_dma.get(), 0, "invariant 2");
    }

    pub(crate) fn stale(&self) -> u64 {
        self.kernel.counters.stale_dma.get()
    }
}

/// A task and the process it belongs to.
#[derive(Clone)]
pub(crate) struct Actor(pub(crate) Arc<Task>);

impl std::ops::Deref for Actor {
    type Target = Task;
    fn deref(&self) -> &Task {
        &self.0
    }
}

impl Actor {
    pub(crate) fn adopt(task: Task) -> Actor {
        Actor(Arc::new(task))
    }

    pub(crate) fn handling(self) -> Actor {
        for signal in [Signal::Sigio, Signal::Sigterm, Signal::Sigusr1] {
            self.process().set_disposition(signal, Disposition::Handler);
        }
        self
    }

    /// A second thread of the process.
    pub(crate) fn another_thread(&self) -> Actor {
        Actor::adopt(self.0.thread())
    }

    pub(crate) fn child(&self) -> Actor {
        Actor::adopt(self.0.fork().expect("fork"))
    }

    pub(crate) fn creates(&self, name: &str) -> Fd {
        self.0.open(name, OpenFlags::create()).expect("create")
    }

    pub(crate) fn opens(&self, name: &str) -> Fd {
        self.0.open(name, OpenFlags::open(AccessMode::BOTH)).expect("open")
    }

    /// A file of `blocks` written blocks, block `n` filled with `tag + n`.
    pub(crate) fn writes_file(&self, name: &str, blocks: u64, tag: u8) -> Fd {
        let fd = self.creates(name);
        for block in 0..blocks {
            self.fills(fd, block, tag.wrapping_add(block as u8)).expect("write");
        }
        fd
    }

    /// Writes "data", two blocks, and holds an ordinary lease on it through its only descriptor,
    /// which is open for reading.
    pub(crate) fn reads_under(&self, lease: PosixLeaseRequest) -> Fd {
        let writer = self.writes_file("data", 2, 1);
        self.0.close(writer).expect("close");
        let fd = self.0.open("data", OpenFlags::open(AccessMode::READ)).expect("open");
        self.0.set_base_lease(fd, lease).expect("base lease");
        fd
    }

    pub(crate) fn fills(&self, fd: Fd, block: u64, byte: u8) -> Result<usize, Errno> {
        self.0.write(fd, block * BLOCK, &[byte; BLOCK as usize])
    }

    /// The first byte of every block of the file.
    pub(crate) fn bytes_of(&self, fd: Fd) -> Vec<u8> {
        let size = self.0.stat(fd).unwrap().size;
        let mut all = vec![0xee; size as usize];
        assert_eq!(self.0.read(fd, 0, &mut all), Ok(size as usize));
        all.chunks(BLOCK as usize)
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]), "a block of mixed bytes");
                block[0]
            })
            .collect()
    }

    /// Everything that can be seen of a file.
    pub(crate) fn state_report(&self, fd: Fd) -> Portrait {
        let stat = self.0.stat(fd).unwrap();
        let mut bytes = vec![0xee; stat.size as usize];
        assert_eq!(self.0.read(fd, 0, &mut bytes), Ok(bytes.len()));
        Portrait { size: stat.size, blocks: stat.blocks, extents: self.0.fiemap(fd, BlockRange::ALL).unwrap(), bytes }
    }

    pub(crate) fn inode_of(&self, fd: Fd) -> Arc<Inode> {
        self.0.inode(fd).expect("a file")
    }

    pub(crate) fn leases(&self, fd: Fd) -> Vec<LeaseInfo> {
        self.inode_of(fd).leases()
    }

    /// The kinds and ranges of the leases on the file.
    pub(crate) fn held(&self, fd: Fd) -> Vec<(LeaseKind, BlockRange)> {
        let mut held: Vec<_> = self.leases(fd).iter().map(|lease| (lease.kind, lease.range)).collect();
        held.sort_by_key(|(_, range)| *range);
        held
    }

    /// The signals that came since the last look.
    pub(crate) fn signals(&self) -> Vec<Signal> {
        self.0.take_signals().iter().map(|info: &SigInfo| info.signal).collect()
    }

    /// Starts a call that blocks; returns once it does, for the stated reason.
    pub(crate) fn blocks<R: Send + 'static>(
        &self,
        reason: &'static str,
        call: impl FnOnce(&Task) -> R + Send + 'static,
    ) -> Blocked<R> {
        let task = Arc::clone(&self.0);
        let blocked = Blocked { task: Arc::clone(&self.0), thread: spawn(move || call(&task)) };
        blocked.expect_blocked(reason);
        blocked
    }

    /// Why this task sleeps, once it has evaluated its condition and is in the wait graph. A wait
    /// for closed pages is never in the graph.
    fn sleeps_on(&self) -> Option<&'static str> {
        let kernel = self.0.kernel();
        let id = self.0.waiter().id();
        let sleeper = kernel.world().sleepers().into_iter().find(|sleeper| sleeper.waiter == id)?;
        let listed = format!("task {} of process {}: {}", id.0, self.0.pid(), sleeper.reason);
        let blocked = sleeper.reason == CLOSED_PAGES || kernel.blocked().iter().any(|line| line.starts_with(&listed));
        blocked.then_some(sleeper.reason)
    }
}

/// Size, allocation, extents, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portrait {
    size: u64,
    blocks: u64,
    extents: Vec<fs_sim::extent_map::FiemapExtent>,
    bytes: Vec<u8>,
}

/// A call in progress that waits.
pub(crate) struct Blocked<R> {
    task: Arc<Task>,
    thread: Spawned<R>,
}

impl<R> Blocked<R> {
    /// Waits until the call sleeps for this reason (it is on its way there).
    pub(crate) fn expect_blocked(&self, reason: &'static str) {
        let actor = Actor(Arc::clone(&self.task));
        observe(reason, || {
            let found = actor.sleeps_on() == Some(reason);
            assert!(found || !self.thread.is_over(), "the call returned instead of blocking on {reason:?}");
            found
        });
    }

    /// Whether the call has returned.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_over()
    }

    /// The call's result: what it waited for has happened.
    pub(crate) fn finish(self) -> R {
        self.thread.join()
    }
}

/// What a fake NIC's region holds.
enum Slot {
    /// Registration is under way.
    Coming,
    Pinned(Pinned),
    OnDemand(OnDemand),
    Gone,
}

/// A region of the fake NIC: the pins of one registration.
pub(crate) struct Region {
    fd_holders: Arc<FdHolders>,
    slot: Mutex<Slot>,
    pub(crate) revoked: AtomicBool,
    /// A revoked region drops its pins only when told to: its DMA is still in flight.
    pub(crate) dma_in_flight: AtomicBool,
}

impl PinHolder for Region {
    fn describe(&self) -> HolderInfo {
        let processes = self.fd_holders.processes();
        HolderInfo { kind: "test region", processes, fd: None, context: None, region: None, guest: None }
    }

    fn fd_holders(&self) -> Option<Arc<FdHolders>> {
        Some(Arc::clone(&self.fd_holders))
    }

    fn revoke(&self, kernel: &Arc<Kernel>, _reason: RevokeReason) {
        self.revoked.store(true, Ordering::SeqCst);
        if !self.dma_in_flight.load(Ordering::SeqCst) {
            self.release(kernel);
        }
    }
}

impl Region {
    fn take(&self) -> Option<Pinned> {
        let mut slot = self.slot.lock();
        match std::mem::replace(&mut *slot, Slot::Gone) {
            Slot::Pinned(pinned) => Some(pinned),
            Slot::Coming => {
                *slot = Slot::Coming;
                None
            }
            Slot::OnDemand(_) | Slot::Gone => None,
        }
    }

    /// Unpins, from whatever context.
    pub(crate) fn release(&self, kernel: &Arc<Kernel>) {
        if let Some(pinned) = self.take() {
            let mut deferred = Deferred::default();
            pinned.release(kernel, &mut deferred);
            kernel.run_deferred(deferred);
        }
    }

    /// `dereg_mr`.
    pub(crate) fn dereg(&self, actor: &Task) {
        self.release(actor.kernel());
        *self.slot.lock() = Slot::Gone;
    }

    pub(crate) fn is_pinned(&self) -> bool {
        matches!(&*self.slot.lock(), Slot::Pinned(_))
    }

    /// A DMA into the region; EFAULT once it is gone.
    pub(crate) fn dma_write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        match &*self.slot.lock() {
            Slot::Pinned(pinned) => pinned.dma_write(kernel, offset, from),
            Slot::OnDemand(region) => region.dma_write(kernel, offset, from),
            Slot::Coming | Slot::Gone => Err(Errno::EFAULT),
        }
    }

    /// A DMA out of the region; EFAULT once it is gone.
    pub(crate) fn dma_read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match &*self.slot.lock() {
            Slot::Pinned(pinned) => pinned.dma_read(kernel, offset, into),
            Slot::OnDemand(region) => region.dma_read(kernel, offset, into),
            Slot::Coming | Slot::Gone => Err(Errno::EFAULT),
        }
    }
}

/// A stand-in for an RDMA context: a descriptor whose release drops the pins of its regions.
pub(crate) struct Nic {
    fd_holders: Arc<FdHolders>,
    regions: Mutex<Vec<Arc<Region>>>,
}

impl OpenObject for Nic {
    fn release(&self, kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        let regions: Vec<_> = self.regions.lock().drain(..).collect();
        for region in regions {
            if let Some(pinned) = region.take() {
                pinned.release(kernel, deferred);
            }
            *region.slot.lock() = Slot::Gone;
        }
    }

    fn may_pass(&self, _kernel: &Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Nic {
    pub(crate) fn open(actor: &Task) -> (Fd, Arc<Nic>) {
        let (fd, object) = actor
            .install_object(|fd_holders| Arc::new(Nic { fd_holders, regions: Mutex::new(Vec::new()) }))
            .expect("a context");
        let nic = object.as_any().downcast::<Nic>().unwrap_or_else(|_| panic!("not a Nic"));
        (fd, nic)
    }

    /// `reg_mr` by `actor` of `len` bytes at `va`.
    pub(crate) fn register(&self, actor: &Task, want: PinRequest) -> Result<Arc<Region>, Errno> {
        let region = Arc::new(Region {
            fd_holders: Arc::clone(&self.fd_holders),
            slot: Mutex::new(Slot::Coming),
            revoked: AtomicBool::new(false),
            dma_in_flight: AtomicBool::new(false),
        });
        let slot = match actor.register(want, Arc::clone(&region) as Arc<dyn PinHolder>)? {
            Registration::Pinned(pinned) => Slot::Pinned(pinned),
            Registration::OnDemand(region) => Slot::OnDemand(region),
            Registration::Anonymous(_) => Slot::Gone,
        };
        *region.slot.lock() = slot;
        self.regions.lock().push(Arc::clone(&region));
        if region.revoked.load(Ordering::SeqCst) || actor.process().is_dying() {
            // The revocation came during the registration, or the context was released before it
            // knew of the region.
            region.release(actor.kernel());
        }
        Ok(region)
    }

    /// A registration that the device may write through, of blocks `blocks` of the file open as
    /// `fd`.
    pub(crate) fn pins(&self, actor: &Task, fd: Fd, blocks: std::ops::Range<u64>) -> Result<Arc<Region>, Errno> {
        let len = (blocks.end - blocks.start) * BLOCK;
        let va = actor.mmap(fd, blocks.start * BLOCK, len, true)?;
        let region = self.register(actor, PinRequest { va, len, write: true, user: LongTermUser::Rdma });
        actor.munmap(va, len)?;
        region
    }

    /// As [`Nic::pins`], for reading only.
    pub(crate) fn pins_for_reading(
        &self,
        actor: &Task,
        fd: Fd,
        blocks: std::ops::Range<u64>,
    ) -> Result<Arc<Region>, Errno> {
        let len = (blocks.end - blocks.start) * BLOCK;
        let va = actor.mmap(fd, blocks.start * BLOCK, len, false)?;
        let region = self.register(actor, PinRequest { va, len, write: false, user: LongTermUser::Rdma });
        actor.munmap(va, len)?;
        region
    }
}

/// A file of written blocks that `who` holds a long-term pin on, under the lease that the design
/// wants.
pub(crate) struct PinnedFile {
    pub(crate) who: Actor,
    pub(crate) fd: Fd,
    pub(crate) nic_fd: Fd,
    pub(crate) nic: Arc<Nic>,
    pub(crate) region: Arc<Region>,
}

/// The setup of most scenarios: `who` writes a file of `blocks`, leases it as the gate wants, and
/// pins `pinned`. None where the design refuses long-term pins.
pub(crate) fn pinned_file(lab: &Lab, name: &str, blocks: u64, pinned: std::ops::Range<u64>) -> Option<PinnedFile> {
    let axes = *lab.kernel.axes();
    if !can_pin(axes) {
        return None;
    }
    let who = lab.actor();
    let fd = who.writes_file(name, blocks, 1);
    if needs_lease(axes) {
        who.lease(fd, exclusive(axes), BlockRange::ALL).expect("lease");
    }
    let (nic_fd, nic) = Nic::open(&who);
    let region = nic.pins(&who, fd, pinned).expect("pin");
    Some(PinnedFile { who, fd, nic_fd, nic, region })
}

pub(crate) fn sabotaged(no_recheck: bool, free_without_close: bool) -> Sabotage {
    Sabotage { no_recheck, free_without_close, ..Sabotage::default() }
}

/// The rule for a change by the pin holder itself (`own`) or by a stranger.
pub(crate) fn rule_of(axes: Axes, own: bool) -> ChangeRule {
    if own { axes.holder_change } else { axes.stranger_change }
}

/// The same axes with breaks that never time out.
pub(crate) fn patient(axes: Axes) -> Axes {
    Axes { break_timeout: BreakTimeout::Never, ..axes }
}
