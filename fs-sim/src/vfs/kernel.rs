//! The state that all processes of a simulated kernel share: one machine, one volume, one design.
//!
//! It owns the tables of processes, inodes and names, the counters and the traces. Invariant: the
//! kernel reads a design's axes, never its name. Kernel counterpart: the global tables of Linux
//! (`super_block`, pid and inode hashes).

use std::any::{Any, TypeId};
use std::collections::BTreeMap;

use emulator::World;
use emulator::device::Device;
use emulator::ledger::Ledger;
use emulator::pin::{PageRange, PinTable};
use emulator::race_point;
use emulator::runtime::registry::Registry;
use emulator::runtime::trace::{Trace, TraceEvent};
use emulator::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use emulator::sync::{Arc, Mutex};
use emulator::wait::{Waiter, WaiterId};

use crate::base::counters::KernelCounters;
use crate::base::errno::Errno;
use crate::base::numbers::{DescriptionId, Ino, Pid};
use crate::deadlock::graph::{DEADLOCKS_MAX, WaitGraph};
use crate::deadlock::need::{Deadlock, Participant};
use crate::design::{Axes, ChangeRule, EvictRule, VolumeOptions};
use crate::vfs::attachments::{Attachment, Attachments};
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::Lifecycle;
use crate::vfs::open_file::{Description, OpenTarget};
use crate::vfs::process::Process;
use crate::vfs::task::Task;
use crate::volume::caches::CpuCaches;
use crate::volume::journal::Journal;
use crate::volume::mount::Mount;
use crate::volume::{Allocator, Orphans, Shares};

/// See the module.
pub struct Kernel {
    pub(crate) world: Arc<World>,
    pub(crate) device: Device,
    pub(crate) caches: CpuCaches,
    pub(crate) pins: PinTable,
    pub(crate) ledger: Ledger,
    pub(crate) allocator: Allocator,
    pub(crate) orphans: Orphans,
    pub(crate) shares: Shares,
    pub(crate) journal: Journal,
    pub(crate) mount: Mount,
    /// Evicted inodes whose former blocks are still pinned.
    pub(crate) ghosts: Registry<Ino, Arc<Inode>>,
    /// What the layers above keep with the kernel.
    pub(crate) attached: Attachments,
    /// What the layers above do when a file, a process or an inode ends.
    pub(crate) lifecycle: &'static dyn Lifecycle,
    pub(crate) axes: Axes,
    pub(crate) options: VolumeOptions,
    pub(crate) memlock_pages: u64,
    pub(crate) sabotage: Sabotage,
    pub(crate) processes: Registry<Pid, Arc<Process>>,
    pub(crate) inodes: Registry<Ino, Arc<Inode>>,
    pub(crate) names: Mutex<BTreeMap<String, Arc<Inode>>>,
    /// The inode of the directory that holds all names.
    pub(crate) directory: Arc<Inode>,
    pub(crate) waits: WaitGraph,
    pub(crate) deadlocks: Mutex<Vec<Deadlock>>,
    /// What the kernel counts about itself.
    pub counters: KernelCounters,
    pub(crate) violations: Mutex<Vec<String>>,
    /// What the crates above keep for the machine as a whole, such as a NIC.
    pub(crate) drivers: Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    pub(crate) tracer: Trace,
    pub(crate) next_pid: AtomicU32,
    pub(crate) next_ino: AtomicU64,
    pub(crate) next_description: AtomicU64,
    pub(crate) next_lease: AtomicU64,
    pub(crate) next_holder: AtomicU64,
    pub(crate) next_waiter: AtomicU64,
    pub(crate) next_number: AtomicU64,
}

impl Kernel {
    /// The file and file block that a device page belongs to now: a walk over all inodes, for
    /// findings and questions.
    pub fn owner_of(&self, page: u64) -> Option<(Ino, u64)> {
        self.inodes.snapshot().into_iter().find_map(|(ino, inode)| {
            inode.layout(|layout| {
                layout
                    .extents()
                    .find(|extent| extent.block <= page && page - extent.block < u64::from(extent.len))
                    .map(|extent| (ino, extent.file_block + (page - extent.block)))
            })
        })
    }

    /// Whether pins of no process are judged when blocks leave or move. (A block that only turns
    /// unwritten is not freed, so its pins are judged.)
    pub(crate) fn ignores_pins(&self) -> bool {
        self.axes.stranger_change == ChangeRule::Proceed && self.axes.holder_change == ChangeRule::Proceed
    }

    /// Whether the design lets some change proceed over pins: then pages can carry pins of files
    /// they no longer belong to, and changes ignore those.
    pub(crate) fn tolerates_pins(&self) -> bool {
        self.axes.stranger_change == ChangeRule::Proceed || self.axes.holder_change == ChangeRule::Proceed
    }

    /// Whether the design frees pages although they are pinned, by a change or by an eviction.
    pub(crate) fn frees_pinned(&self) -> bool {
        self.tolerates_pins() || self.axes.evict_while_pinned == EvictRule::Proceed
    }

    /// What a layer above keeps with it.
    pub(crate) fn attached<A: Attachment>(&self) -> &A {
        self.attached.get()
    }

    /// The world it runs in.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The device under the volume: its file, for mapping pieces of it elsewhere. Stores through
    /// such a mapping are not checked.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The design it runs under.
    pub fn axes(&self) -> &Axes {
        &self.axes
    }

    /// This machine's one `T`, such as its NIC; `make` makes it when it is first asked for. `make`
    /// must not call this kernel.
    pub fn driver<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let driver = {
            let mut drivers = self.drivers.lock();
            let slot = drivers.entry(TypeId::of::<T>());
            Arc::clone(slot.or_insert_with(|| Arc::new(make())))
        };
        driver.downcast::<T>().expect("what stands under the TypeId of T was made as a T")
    }

    /// A number for an object without a numbering of its own. Never used again within a run.
    pub(crate) fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
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

    /// Notes an event for the traces of findings: `actor` and `ino` as numbers, and the first
    /// pages concerned.
    pub(crate) fn trace(&self, kind: &'static str, actor: u64, ino: u64, pages: Option<PageRange>) {
        self.tracer.record(self.world.now(), kind, actor, ino, pages);
    }

    pub(crate) fn trace_about(&self, pages: PageRange) -> Vec<TraceEvent> {
        self.tracer.about(pages, 32)
    }

    /// A waiter for work that no task does.
    pub(crate) fn new_waiter(&self) -> Arc<Waiter> {
        Waiter::new(WaiterId(self.next_waiter.fetch_add(1, Ordering::Relaxed)))
    }

    /// A new process with one task.
    pub fn spawn(self: &Arc<Self>) -> Task {
        let process = self.new_process();
        let task = self.spawn_task(Arc::clone(&process));
        self.born(&process);
        task
    }

    pub(crate) fn spawn_task(self: &Arc<Self>, process: Arc<Process>) -> Task {
        let waiter = self.new_waiter();
        process.waiters.lock().push(Arc::clone(&waiter));
        Task { kernel: Arc::clone(self), process, waiter, waited: AtomicBool::new(false) }
    }

    pub(crate) fn new_description(&self, open: OpenTarget, fd_holders: Arc<FdHolders>) -> Arc<Description> {
        Description::new(DescriptionId(self.next_description.fetch_add(1, Ordering::Relaxed)), open, fd_holders)
    }

    /// Every inode that exists, and the evicted ones whose former blocks are still pinned.
    pub(crate) fn all_inodes(&self) -> Vec<Arc<Inode>> {
        let all = self.inodes.snapshot().into_iter().chain(self.ghosts.snapshot());
        all.map(|(_, inode)| inode).collect()
    }

    /// Whether a change can still be made to last. No longer once the removal of the device has
    /// begun, although accesses in flight may keep the device for a while: a waiting change then
    /// fails whichever pin goes last.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn device_stays(&self) -> Result<(), Errno> {
        if self.mount.is_lost() { Err(Errno::EIO) } else { self.device_there() }
    }

    /// Whether the device is there.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn device_there(&self) -> Result<(), Errno> {
        if self.device.poison().is_gone() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// The processes that can close what `fd_holders` counts: those with a descriptor of it, or
    /// with one unread in their inbox, which only they can receive.
    pub(crate) fn able_to_close(&self, fd_holders: &Arc<FdHolders>) -> Vec<Pid> {
        loop {
            let arrivals = fd_holders.arrivals();
            // The processes first: a sender has a descriptor until the message is in the inbox.
            let mut able = fd_holders.processes();
            if fd_holders.is_queued() {
                race_point!("descriptor: tables asked, inboxes not asked");
                let processes = self.processes.snapshot().into_iter();
                able.extend(processes.filter(|(_, process)| process.inbox.holds(fd_holders)).map(|(pid, _)| pid));
            }
            if fd_holders.arrivals() == arrivals {
                return able;
            }
            // A descriptor has moved meanwhile, perhaps from an inbox that was not asked yet to a
            // table that was asked already.
        }
    }

    /// The processes that could end the leases of an open file: those that can close it; if only
    /// mappings are left, those that map it.
    pub(crate) fn able_to_end(&self, fd_holders: &Arc<FdHolders>, file: DescriptionId) -> Vec<Pid> {
        let mut able = self.able_to_close(fd_holders);
        if able.is_empty() {
            let mappers = self.processes.snapshot().into_iter().filter(|(_, process)| process.mm.lock().maps(file));
            able.extend(mappers.map(|(pid, _)| pid));
        }
        able
    }

    /// Whether the process `pid` is there: it has not exited. One that a signal has ended is there
    /// until its last task has left its call.
    pub fn exists(&self, pid: Pid) -> bool {
        self.processes.get(pid).is_some()
    }

    /// The tasks that can act for `pid`; none if it is about to release everything. A dying process
    /// does that only when no task of it is in a wait that SIGKILL does not end.
    pub(crate) fn tasks_of(&self, pid: Pid) -> Vec<WaiterId> {
        let Some(process) = self.processes.get(pid) else { return Vec::new() };
        let mut tasks: Vec<WaiterId> = process.waiters.lock().iter().map(|waiter| waiter.id()).collect();
        if process.is_dying() {
            tasks.retain(|task| self.waits.is_unendable(*task));
        }
        tasks
    }

    /// The cycles of waits that were refused with EDEADLK, with their participants: the first
    /// [`DEADLOCKS_MAX`] of them. All are counted in [`KernelCounters::deadlocks`].
    pub fn deadlocks(&self) -> Vec<Deadlock> {
        self.deadlocks.lock().clone()
    }

    /// The tasks that wait without a deadline for what only others of them could do: the greatest
    /// such set. Empty unless some of them are in waits that can't be refused (see
    /// [`Participant::uninterruptible`]); then those may be stuck, and others behind them.
    pub fn stuck(&self) -> Vec<Participant> {
        self.waits.stuck(|pid| self.tasks_of(pid))
    }

    /// The tasks that form a cycle of waits, of which one should have been refused with EDEADLK,
    /// and those behind them. Empty in a right kernel. Waits that can't be refused count as waits
    /// that end.
    pub fn unrefused_deadlock(&self) -> Vec<Participant> {
        self.waits.unrefused(|pid| self.tasks_of(pid))
    }

    /// Whether `task` is blocked and waits, directly or not, for a task of `pid`.
    pub(crate) fn waits_for(&self, task: WaiterId, pid: Pid) -> bool {
        self.waits.waits_for(task, pid, |pid| self.tasks_of(pid))
    }

    /// `pid` can no longer end a wait that it could: see [`crate::deadlock::graph`].
    pub(crate) fn helper_gone(&self, pid: Pid) {
        self.waits.gone(pid, |pid| self.tasks_of(pid));
    }

    pub(crate) fn note_deadlock(&self, deadlock: Deadlock) {
        self.counters.deadlocks.add(1);
        let mut deadlocks = self.deadlocks.lock();
        if deadlocks.len() < DEADLOCKS_MAX {
            deadlocks.push(deadlock);
        }
    }
}

/// Rules of the kernel that a test breaks, to show that the oracle detects it. Only
/// [`KernelConfig::sabotaged_for_tests`] can break one.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// Pins of a file range are not rechecked against the inode's generation.
    pub no_recheck: bool,
    /// Layout changes free blocks without closing their pages to pins first.
    pub free_without_close: bool,
    /// Exclusive leases don't stand against other requests.
    pub no_lease_conflict: bool,
    /// A break never times out.
    pub no_break_timeout: bool,
    /// A break is signalled to a process with a descriptor of the open file, instead of to the
    /// process that took the lease.
    pub signal_to_holder: bool,
    /// Releases that a release schedules are dropped.
    pub no_nested_release: bool,
    /// A zombie lease admits long-term pins.
    pub zombie_lets_pin: bool,
    /// Layout changes neither unmap guests that pin nothing nor wait for them.
    pub no_unmap: bool,
}

/// How a kernel is set up.
#[derive(Clone, Copy, Debug)]
pub struct KernelConfig {
    /// The design, by its axes.
    pub axes: Axes,
    /// Options of the volume.
    pub options: VolumeOptions,
    /// `RLIMIT_MEMLOCK` of every process, in pages.
    pub memlock_pages: u64,
    /// The rules that a test breaks.
    pub(crate) sabotage: Sabotage,
}

impl KernelConfig {
    /// A kernel under `axes`, everything else as by default: no limit on locked memory, no rule
    /// broken.
    pub fn new(axes: Axes) -> KernelConfig {
        KernelConfig {
            axes,
            options: VolumeOptions::default(),
            memlock_pages: u64::MAX / 2,
            sabotage: Sabotage::default(),
        }
    }

    /// The same kernel with rules broken. Only tests call it.
    #[doc(hidden)]
    #[must_use]
    pub fn sabotaged_for_tests(self, sabotage: Sabotage) -> KernelConfig {
        KernelConfig { sabotage, ..self }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("axes", &self.axes).finish_non_exhaustive()
    }
}

/// How many violations are kept in words.
const VIOLATIONS_MAX: usize = 64;
