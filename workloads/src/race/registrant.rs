//! Registrants: programs that lease, map and register file ranges, let the NIC work on them, and
//! start anew as another process whenever one ends.
//!
//! It owns one process at a time, with its open files, regions and contexts. A step comes from the
//! op stream ([`RegistrantStep`]). Three things are done between steps: deregistrations that are
//! due by the clock, the answer to a signal that a lease is being broken, and the receipt of passed
//! contexts. The registrant does not look at what the design allows, with one exception: it takes
//! the kind of lease that the design's gate asks for, as a program follows its system's manual.

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::base::numbers::{Fd, Pid};
use fs_sim::design::{Axes, LeaseRules, PinGate};
use fs_sim::leases::layout::kind::LeaseKind;
use fs_sim::syscalls::descriptors::Received;
use fs_sim::syscalls::fallocate::FallocateMode as Fallocate;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::vfs::signals::{Disposition, SigInfo, Signal};
use fs_sim::{BLOCK, BlockRange, Errno};
use rdma_sim::{AccessFlags, Context, Mr};

use super::endpoint::{BurstResult, Endpoint, LocalBuffer};
use super::inbox::{INBOX_MAX, PassedContext};
use super::op_stream::{DmaRequests, RegistrantAct, RegistrantStep, Share};
use super::region::RegionHandle;
use super::shared::{RaceProcess, RaceShared};
use super::stats::{ActorStats, TimedCall};

/// The most files that a process keeps open. For a further one it closes the oldest.
const FILES_MAX: usize = 3;
/// The most contexts of other registrants that a process holds. For a further one it closes the
/// oldest.
const BORROWED_MAX: usize = 2;

/// An open file of the process.
struct RegistrantFile {
    fd: Fd,
    index: u64,
    ino: u64,
    leases: Vec<(LeaseKind, BlockRange)>,
    /// Mappings: address and length.
    maps: Vec<(u64, u64)>,
}

/// A region that this process registered.
struct OwnRegion {
    handle: RegionHandle,
    due: Nanos,
}

/// A context that another registrant passed.
struct BorrowedContext {
    fd: Fd,
    endpoint: Endpoint,
    handles: Vec<RegionHandle>,
    due: Nanos,
}

/// One process, from its first call to its end.
struct RegistrantProcess {
    task: RaceProcess,
    context_fd: Fd,
    endpoint: Endpoint,
    buffer: LocalBuffer,
    files: Vec<RegistrantFile>,
    regions: Vec<OwnRegion>,
    borrowed: Vec<BorrowedContext>,
}

/// Whether the process goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterStep {
    Continues,
    Ends,
}

/// The actor; see the module.
pub(super) struct Registrant {
    shared: Arc<RaceShared>,
    actor: usize,
    life: Option<RegistrantProcess>,
}

impl Registrant {
    pub(super) fn new(shared: &Arc<RaceShared>, actor: usize) -> Registrant {
        Registrant { shared: Arc::clone(shared), actor, life: None }
    }

    /// Does what is due, then one step.
    pub(super) fn step(&mut self, stats: &mut ActorStats, step: &RegistrantStep) {
        let mut life = match self.life.take() {
            Some(life) => life,
            None => match RegistrantProcess::begin(&self.shared, self.actor, step.skips_cleanup, stats) {
                Ok(life) => life,
                // The process was killed during its set-up.
                Err(_) => return,
            },
        };
        let place = ActorPlace { shared: &self.shared, actor: self.actor };
        let mut after = life.handle_due(stats, place, step);
        if after == AfterStep::Continues {
            after = life.act(stats, place, step);
        }
        let over = after == AfterStep::Ends || life.task.process().is_dying() || life.endpoint.context.is_aborted();
        if over {
            life.end(stats, place);
        } else {
            self.shared.pause(&life.task, step.pause);
            self.life = Some(life);
        }
    }

    /// The end of the race: the process exits with everything open.
    pub(super) fn finish(&mut self, stats: &mut ActorStats) {
        if let Some(life) = self.life.take() {
            life.end(stats, ActorPlace { shared: &self.shared, actor: self.actor });
        }
    }
}

/// The actor's number, and the race it belongs to.
#[derive(Clone, Copy)]
struct ActorPlace<'a> {
    shared: &'a Arc<RaceShared>,
    actor: usize,
}

/// The kind of lease to take before a registration. None if the design has no layout leases, or if
/// its gate needs none and the draw says that the program does not want to hear of changes.
pub(super) fn lease_for(axes: &Axes, draw: Share) -> Option<LeaseKind> {
    /// The probabilities of a lease that the gate does not need, and of the stronger kind. A third
    /// of the latter is the probability of an exclusive lease that the gate does not need.
    const CURIOUS: f64 = 0.3;
    const STRONG: f64 = 0.12;
    let strong = draw.falls_below(STRONG);
    match (axes.pin_gate, axes.lease_rules) {
        (_, LeaseRules::None) | (PinGate::Refuse, _) => None,
        (PinGate::Unbreakable, LeaseRules::ManPage) => {
            Some(if strong { LeaseKind::WRITE_U } else { LeaseKind::READ_U })
        }
        (PinGate::Unbreakable, LeaseRules::Chinner) => Some(LeaseKind::WRITE),
        (PinGate::Lease | PinGate::Reference, _) => Some(if strong { LeaseKind::WRITE } else { LeaseKind::READ }),
        (PinGate::Open | PinGate::Fault, _) if draw.falls_below(STRONG / 3.0) => {
            Some(if axes.lease_rules == LeaseRules::ManPage { LeaseKind::READ_U } else { LeaseKind::WRITE })
        }
        (PinGate::Open | PinGate::Fault, _) => draw.falls_below(CURIOUS).then_some(LeaseKind::READ),
    }
}

impl RegistrantProcess {
    fn begin(
        shared: &Arc<RaceShared>,
        actor: usize,
        skips_cleanup: bool,
        stats: &mut ActorStats,
    ) -> Result<RegistrantProcess, Errno> {
        let task = shared.spawn();
        let answer = if skips_cleanup { Disposition::Ignore } else { Disposition::Handler };
        task.process().set_disposition(Signal::Sigio, answer);
        // SIGUSR1 says that a context has been passed; it ends any interruptible wait of this
        // process.
        task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
        let (context_fd, context) = stats.call(Context::open(&task))?;
        let pd = context.alloc_pd(&task)?;
        let buffer = LocalBuffer::map(&task)?;
        let endpoint = Endpoint::new(&task, context, pd, buffer.clone())?;
        let slot = &shared.slots[actor];
        slot.inbox.lock().retain(|passed| passed.to == task.pid());
        slot.pid.store(task.pid().0, Ordering::SeqCst);
        Ok(RegistrantProcess {
            task,
            context_fd,
            endpoint,
            buffer,
            files: Vec::new(),
            regions: Vec::new(),
            borrowed: Vec::new(),
        })
    }

    /// The process exits with everything open.
    fn end(self, stats: &mut ActorStats, place: ActorPlace<'_>) {
        place.shared.slots[place.actor].pid.store(0, Ordering::SeqCst);
        self.task.exit();
        let ended = self.regions.iter().filter(|region| !region.handle.mr.is_revoked()).count();
        stats.counters.deregistrations += ended as u64;
    }

    /// Handles signals, passed contexts, and deregistrations that are due.
    fn handle_due(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) -> AfterStep {
        for signal in self.task.take_signals() {
            if let (Signal::Sigio, Some(ino)) = (signal.signal, signal.ino) {
                self.release_for_break(stats, ino.0);
            }
        }
        let now = place.shared.kernel.world().now();
        self.deregister(stats, |region| region.due <= now);
        while self.borrowed.first().is_some_and(|borrowed_context| borrowed_context.due <= now) {
            self.close_borrowed(stats, 0);
        }
        self.receive(stats, place, step);
        let over = self.task.process().is_dying() || self.endpoint.context.is_aborted();
        if over { AfterStep::Ends } else { AfterStep::Continues }
    }

    /// A lease on `ino` is being broken: deregisters the regions of that file and unlocks its
    /// leases.
    fn release_for_break(&mut self, stats: &mut ActorStats, ino: u64) {
        self.deregister(stats, |region| region.handle.ino == ino);
        for file in self.files.iter_mut().filter(|file| file.ino == ino && !file.leases.is_empty()) {
            if stats.call(self.task.unlock(file.fd, BlockRange::ALL)).is_ok() {
                file.leases.clear();
            }
        }
    }

    /// Deregisters the regions that `which` selects.
    fn deregister(&mut self, stats: &mut ActorStats, which: impl Fn(&OwnRegion) -> bool) {
        let (go, stay) = std::mem::take(&mut self.regions).into_iter().partition(which);
        self.regions = stay;
        for region in go {
            self.end_region(stats, &region.handle);
        }
    }

    /// Deregisters a region, after its window was unbound, and unmaps its memory.
    fn end_region(&mut self, stats: &mut ActorStats, region: &RegionHandle) {
        let task = &self.task;
        let mut gone = false;
        if let Some(window) = &region.window {
            gone = window.kind.meets_busy && self.endpoint.deregister_bound(stats, task, &region.mr);
            self.endpoint.unbind(stats, task, &region.mr, window);
        }
        if !gone {
            // It fails only if the context or the process has just ended, which ended the region
            // too.
            let context = &self.endpoint.context;
            let _gone = stats.timed(TimedCall::Deregister, task, || context.dereg_mr(task, &region.mr));
        }
        let map = (region.mr.va(), region.mr.len());
        // Closing a file has removed its mappings already.
        if let Some(file) = self.files.iter_mut().find(|file| file.maps.contains(&map)) {
            file.maps.retain(|other| *other != map);
            let _unmapped = stats.call(task.munmap(map.0, map.1));
        }
    }

    fn act(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) -> AfterStep {
        let done = match step.act {
            RegistrantAct::Register => self.register(stats, place, step),
            RegistrantAct::Dma => {
                self.burst(stats, place, step);
                Ok(())
            }
            RegistrantAct::Change => self.change(stats, step),
            RegistrantAct::Unlock => self.unlock(stats, step),
            RegistrantAct::Close => self.close_one(stats, step),
            RegistrantAct::Pass => self.pass(stats, place, step),
            RegistrantAct::Fork => self.fork(stats, place, step),
            RegistrantAct::Exit => return AfterStep::Ends,
            RegistrantAct::Kill => {
                stats.chosen_kills += u64::from(!self.task.process().is_dying());
                // A process that kills itself gets no return value.
                let _dead = stats.call(self.task.kill(self.task.pid(), Signal::Sigkill));
                return AfterStep::Ends;
            }
        };
        // A refusal is counted and the process goes on. The caller checks whether the process still
        // lives.
        done.map_or(AfterStep::Continues, |()| AfterStep::Continues)
    }

    /// Leases, maps and registers a range of a file.
    fn register(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let job = &place.shared.job;
        if self.regions.len() >= job.registrants.regions_max as usize {
            let soonest = self.regions.iter().map(|region| region.due).min();
            self.deregister(stats, |region| Some(region.due) == soonest);
        }
        let at = self.open(stats, step.file)?;
        let fd = self.files[at].fd;
        let length = step.length / 8 * 8;
        let mut size = stats.call(self.task.stat(fd))?.size;
        if size < length {
            // The file grows first, by unwritten blocks or by a hole at its end.
            size = job.files.size;
            if step.punches {
                stats.call(self.task.fallocate(fd, Fallocate::Allocate { keep_size: false }, 0, size))?;
                stats.counters.extends += 1;
            } else {
                stats.timed(TimedCall::Truncate, &self.task, || self.task.ftruncate(fd, size))?;
            }
        }
        let offset = step.place.below((size - length) / BLOCK + 1) * BLOCK;
        let blocks = BlockRange::of_bytes(offset, length);
        // An on-demand region pins nothing, so it needs no lease.
        let kind = lease_for(place.shared.kernel.axes(), step.lease).filter(|_| !step.kind.on_demand);
        if let Some(kind) = kind {
            let range = if step.whole_file { BlockRange::ALL } else { blocks };
            self.lease(stats, at, kind, range)?;
        }
        let writable = !step.read_only;
        let va = stats.call(self.task.mmap(fd, offset, length, writable))?;
        let access = match writable {
            true => AccessFlags::ALL,
            false => AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ },
        };
        let access = if step.kind.on_demand { access.on_demand() } else { access };
        let access = if step.kind.window.is_some() { access.mw_bind() } else { access };
        let Some(mr) = self.register_mapped(stats, (va, length), access) else {
            return stats.call(self.task.munmap(va, length));
        };
        self.files[at].maps.push((va, length));
        let window = step.kind.window.and_then(|kind| {
            // Without a window, if binding it failed, the region is reached by its own key.
            self.endpoint.bind(stats, &self.task, (&mr, writable), kind).ok().map(Arc::new)
        });
        let ino = self.files[at].ino;
        let file = place.shared.payload_file(step.file, ino);
        let handle = RegionHandle { mr, ino, file, offset, writable, on_demand: step.kind.on_demand, window };
        let due = Nanos(place.shared.kernel.world().now().0 + step.lifetime);
        self.regions.push(OwnRegion { handle, due });
        Ok(())
    }

    /// Registers mapped memory, an on-demand region under its own name too.
    fn register_mapped(
        &self,
        stats: &mut ActorStats,
        (va, length): (u64, u64),
        access: AccessFlags,
    ) -> Option<Arc<Mr>> {
        let (task, Endpoint { context, pd, .. }) = (&self.task, &self.endpoint);
        let also = access.on_demand.then_some(TimedCall::RegisterOnDemand);
        let register = || context.reg_mr(task, pd, va, length, access);
        stats.timed_as(TimedCall::Register, also, task, register).ok()
    }

    /// Opens file number `index` if it is not open; returns its place in the list.
    fn open(&mut self, stats: &mut ActorStats, index: u64) -> Result<usize, Errno> {
        if let Some(at) = self.files.iter().position(|file| file.index == index) {
            return Ok(at);
        }
        if self.files.len() >= FILES_MAX {
            let oldest = self.files[0].ino;
            self.deregister(stats, |region| region.handle.ino == oldest);
            self.close(stats, 0)?;
        }
        let fd = stats.call(self.task.open(&RaceShared::file_name(index), OpenFlags::open(AccessMode::BOTH)))?;
        let ino = self.task.inode(fd)?.ino().0;
        self.files.push(RegistrantFile { fd, index, ino, leases: Vec::new(), maps: Vec::new() });
        Ok(self.files.len() - 1)
    }

    fn lease(&mut self, stats: &mut ActorStats, at: usize, kind: LeaseKind, range: BlockRange) -> Result<(), Errno> {
        let file = &mut self.files[at];
        let held = file.leases.iter().filter(|(held, _)| *held == kind).map(|(_, range)| *range);
        if range.is_covered_by(held) {
            return Ok(());
        }
        stats.call(self.task.lease(file.fd, kind, range))?;
        // The new lease has converted the leases that it overlaps.
        file.leases.retain(|(held, old)| *held == kind || !old.overlaps(range));
        file.leases.push((kind, range));
        Ok(())
    }

    fn burst(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) {
        let borrowed: usize = self.borrowed.iter().map(|borrowed_context| borrowed_context.handles.len()).sum();
        let mut pick = step.pick.below((self.regions.len() + borrowed) as u64) as usize;
        let requests = DmaRequests::new(&place.shared.job, step.burst_seed);
        let writer = (&place.shared.payloads, place.actor as u8);
        if let Some(region) = self.regions.get(pick) {
            let ended = self.endpoint.burst(stats, &self.task, writer, &region.handle, requests, step.burst);
            if ended == BurstResult::Failed && region.handle.mr.is_revoked() {
                let region = self.regions.remove(pick).handle;
                if let Some(window) = &region.window {
                    self.endpoint.unbind(stats, &self.task, &region.mr, window);
                }
            }
            return;
        }
        pick = pick.saturating_sub(self.regions.len());
        for at in 0..self.borrowed.len() {
            let borrowed_context = &mut self.borrowed[at];
            if let Some(handle) = borrowed_context.handles.get(pick) {
                let ended = borrowed_context.endpoint.burst(stats, &self.task, writer, handle, requests, step.burst);
                if ended != BurstResult::Done {
                    // The passing registrant has deregistered the region or lost it.
                    self.close_borrowed(stats, at);
                }
                return;
            }
            pick -= borrowed_context.handles.len();
        }
    }

    /// Changes the layout of an open file, preferably of one in which this process has a region.
    fn change(&mut self, stats: &mut ActorStats, step: &RegistrantStep) -> Result<(), Errno> {
        let Some(at) =
            self.pick_file(step.pick, |life, file| life.regions.iter().any(|region| region.handle.ino == file.ino))
        else {
            return Ok(());
        };
        let (fd, ino) = (self.files[at].fd, self.files[at].ino);
        let region = self.regions.iter().find(|region| region.handle.ino == ino);
        let (offset, length) = region.map_or((0, BLOCK), |region| (region.handle.offset, region.handle.mr.len()));
        if step.punches {
            let blocks = length.div_ceil(BLOCK);
            let first = step.keep.below(blocks);
            let punched = (offset + first * BLOCK, (blocks - first) * BLOCK);
            stats.timed(TimedCall::Punch, &self.task, || {
                self.task.fallocate(fd, Fallocate::PunchHole, punched.0, punched.1)
            })
        } else {
            let size = (offset + step.keep.below(length)) / 8 * 8;
            stats.timed(TimedCall::Truncate, &self.task, || self.task.ftruncate(fd, size))
        }
    }

    /// One of the open files that `wanted` accepts; any open file if it accepts none.
    fn pick_file(&self, pick: Share, wanted: impl Fn(&RegistrantProcess, &RegistrantFile) -> bool) -> Option<usize> {
        let liked: Vec<usize> = (0..self.files.len()).filter(|at| wanted(self, &self.files[*at])).collect();
        match liked.is_empty() {
            false => Some(liked[pick.below(liked.len() as u64) as usize]),
            true if self.files.is_empty() => None,
            true => Some(pick.below(self.files.len() as u64) as usize),
        }
    }

    fn unlock(&mut self, stats: &mut ActorStats, step: &RegistrantStep) -> Result<(), Errno> {
        let leased = |_: &RegistrantProcess, file: &RegistrantFile| !file.leases.is_empty();
        let Some(at) = self.pick_file(step.pick, leased) else { return Ok(()) };
        if self.files[at].leases.is_empty() {
            return Ok(());
        }
        stats.call(self.task.unlock(self.files[at].fd, BlockRange::ALL))?;
        self.files[at].leases.clear();
        Ok(())
    }

    fn close_one(&mut self, stats: &mut ActorStats, step: &RegistrantStep) -> Result<(), Errno> {
        match self.pick_file(step.pick, |_, _| true) {
            Some(at) => self.close(stats, at),
            None => Ok(()),
        }
    }

    /// Unmaps and closes a file, whatever regions are live.
    fn close(&mut self, stats: &mut ActorStats, at: usize) -> Result<(), Errno> {
        let file = self.files.remove(at);
        for (va, length) in file.maps {
            stats.call(self.task.munmap(va, length))?;
        }
        stats.call(self.task.close(file.fd))
    }

    /// Passes the context to another registrant: puts a record into its inbox, sends the
    /// descriptor, and sends SIGUSR1.
    fn pass(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let shared = place.shared;
        let registrants = shared.job.count(super::job::Role::Registrant) as u64;
        if registrants < 2 {
            return Ok(());
        }
        let other = (place.actor as u64 + 1 + step.partner.below(registrants - 1)) % registrants;
        let slot = &shared.slots[other as usize];
        let to = Pid(slot.pid.load(Ordering::SeqCst));
        if to.0 == 0 {
            return Ok(());
        }
        let context = self.endpoint.context.number();
        let handles = self.regions.iter().map(|region| region.handle.for_others()).collect();
        {
            let mut inbox = slot.inbox.lock();
            if inbox.len() >= INBOX_MAX {
                return Ok(());
            }
            inbox.push(PassedContext { to, context, pd: Arc::clone(&self.endpoint.pd), handles });
        }
        if let Err(errno) = stats.call(self.task.send_fd(to, self.context_fd)) {
            slot.inbox.lock().retain(|passed| passed.to != to || passed.context != context);
            return Err(errno);
        }
        // The kernel sends the signal, as for an owned socket. It arrives even if the sender dies
        // at this moment, so the receiver does not sleep while its inbox holds a record.
        shared.kernel.send_signal(to, SigInfo::of(Signal::Sigusr1));
        Ok(())
    }

    /// Receives the contexts that were passed to this process.
    fn receive(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) {
        let me = self.task.pid();
        let inbox = || place.shared.slots[place.actor].inbox.lock();
        while inbox().iter().any(|passed| passed.to == me) {
            // The record arrives before the descriptor. If no descriptor is there, it is still on
            // its way or the design refused to send it.
            let received = match self.task.recv_fd() {
                Ok(received) => received,
                Err(_) => return,
            };
            stats.counters.operations += 1;
            let Received::Fd(fd) = received else {
                // The kernel does not say which descriptor it dropped. The oldest record is dropped
                // with it.
                let mut inbox = inbox();
                if let Some(at) = inbox.iter().position(|passed| passed.to == me) {
                    inbox.remove(at);
                }
                continue;
            };
            let number = Context::of(&self.task, fd).map(|context| context.number());
            let passed = {
                let mut inbox = inbox();
                let at = inbox.iter().position(|passed| passed.to == me && Ok(passed.context) == number);
                at.map(|at| inbox.remove(at))
            };
            if passed.is_none_or(|passed| self.accept_context(fd, passed, place, step).is_err()) {
                let _closed = stats.call(self.task.close(fd));
            }
        }
    }

    /// Makes an endpoint on a passed context.
    fn accept_context(
        &mut self,
        fd: Fd,
        passed: PassedContext,
        place: ActorPlace<'_>,
        step: &RegistrantStep,
    ) -> Result<(), Errno> {
        if self.borrowed.len() >= BORROWED_MAX {
            let oldest = self.borrowed.remove(0);
            self.task.close(oldest.fd)?;
        }
        let context = Context::of(&self.task, fd)?;
        let endpoint = Endpoint::new(&self.task, context, passed.pd, self.buffer.clone())?;
        let due = Nanos(place.shared.kernel.world().now().0 + step.lifetime);
        self.borrowed.push(BorrowedContext { fd, endpoint, handles: passed.handles, due });
        Ok(())
    }

    /// Closes a passed context.
    fn close_borrowed(&mut self, stats: &mut ActorStats, at: usize) {
        let borrowed_context = self.borrowed.remove(at);
        // It fails only if this process has just died.
        let _closed = stats.call(self.task.close(borrowed_context.fd));
    }

    /// Forks a child. The child closes what it inherited, or exits with it open.
    fn fork(&mut self, stats: &mut ActorStats, place: ActorPlace<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let child = place.shared.adopt(stats.call(self.task.fork())?);
        if step.child_closes {
            for file in &self.files {
                for (va, length) in &file.maps {
                    stats.call(child.munmap(*va, *length))?;
                }
                stats.call(child.close(file.fd))?;
            }
        }
        child.exit();
        Ok(())
    }
}
