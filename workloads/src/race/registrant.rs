//! Registrants: programs that lease, map and register file ranges, let the NIC work on them, and live many lives.
//!
//! It owns one process at a time, its open files, regions and contexts. A step is a choice ([`RegistrantStep`]); what is due
//! by the clock (a region's deregistration), by a signal (a lease is being broken) or by mail (a context was passed) is done
//! between steps. Nothing here looks at what a design allows, but for the kind of lease that its gate asks for: a program
//! reads its system's manual, and then sees what happens.

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::design::{Axes, LeaseRules, PinGate};
use fs_sim::file_ops::fallocate::Mode as Fallocate;
use fs_sim::file_ops::open::Flags;
use fs_sim::lease::Kind;
use fs_sim::process::Pid;
use fs_sim::process::description::Access;
use fs_sim::process::fd_table::Fd;
use fs_sim::process::signals::{Disposition, SigInfo, Signal};
use fs_sim::process::task::Received;
use fs_sim::range::BlockRange;
use fs_sim::{BLOCK, Errno};
use rdma_sim::{AccessFlags, Context, Pd};

use super::arena::{Arena, Proc};
use super::endpoint::{Buffer, Burst, Endpoint, Window};
use super::tally::{Tally, Timed};
use crate::choices::{Act, RegistrantStep, Requests, Share};

/// Files that a process keeps open; for a further one the oldest is closed.
const FILES_MAX: usize = 3;
/// Contexts of others that a process holds; for a further one the oldest is closed.
const GUESTS_MAX: usize = 2;
/// Letters that wait for one registrant.
const MAIL_MAX: usize = 64;

/// The letter that goes with a passed context: what its receiver needs to use it.
pub(super) struct Passed {
    /// The process it was sent to.
    to: Pid,
    /// The context's number.
    context: u64,
    pd: Arc<Pd>,
    windows: Vec<Window>,
}

impl std::fmt::Debug for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passed").field("to", &self.to).field("context", &self.context).finish_non_exhaustive()
    }
}

/// A file that is open.
struct OpenFile {
    fd: Fd,
    index: u64,
    ino: u64,
    leases: Vec<(Kind, BlockRange)>,
    /// Mappings: address and length.
    maps: Vec<(u64, u64)>,
}

/// A region of this process's own.
struct Region {
    window: Window,
    due: Nanos,
}

/// A context of somebody else's.
struct Guest {
    fd: Fd,
    endpoint: Endpoint,
    windows: Vec<Window>,
    due: Nanos,
}

/// One process, from its first call to its end.
struct Life {
    task: Proc,
    context_fd: Fd,
    endpoint: Endpoint,
    buffer: Buffer,
    files: Vec<OpenFile>,
    regions: Vec<Region>,
    guests: Vec<Guest>,
}

/// Whether the process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Onward {
    Lives,
    Ends,
}

/// See the module.
pub(super) struct Registrant {
    arena: Arc<Arena>,
    actor: usize,
    life: Option<Life>,
}

impl Registrant {
    pub(super) fn new(arena: &Arc<Arena>, actor: usize) -> Registrant {
        Registrant { arena: Arc::clone(arena), actor, life: None }
    }

    /// What is due, then one step.
    pub(super) fn step(&mut self, tally: &mut Tally, step: &RegistrantStep) {
        let mut life = match self.life.take() {
            Some(life) => life,
            None => match Life::begin(&self.arena, self.actor, step.rude, tally) {
                Ok(life) => life,
                // Killed while it was setting itself up.
                Err(_) => return,
            },
        };
        let place = Place { arena: &self.arena, actor: self.actor };
        let mut onward = life.attend(tally, place, step);
        if onward == Onward::Lives {
            onward = life.act(tally, place, step);
        }
        let over = onward == Onward::Ends || life.task.process().is_dying() || life.endpoint.context.is_aborted();
        if over {
            life.end(tally, place);
        } else {
            self.arena.pause(&life.task, step.pause);
            self.life = Some(life);
        }
    }

    /// The end of the race: the process exits with whatever it has.
    pub(super) fn finish(&mut self, tally: &mut Tally) {
        if let Some(life) = self.life.take() {
            life.end(tally, Place { arena: &self.arena, actor: self.actor });
        }
    }
}

/// Where in the race somebody stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    arena: &'a Arc<Arena>,
    actor: usize,
}

/// The lease to take before a registration; none where the design knows none, or its gate needs none and the program does
/// not care to hear of changes.
fn lease_for(axes: &Axes, draw: Share) -> Option<Kind> {
    /// Shares of those who take what they don't need, of the stronger kind, and of exclusive leases nobody asked for.
    const CURIOUS: f64 = 0.3;
    const STRONG: f64 = 0.12;
    let strong = draw.falls_below(STRONG);
    match (axes.pin_gate, axes.lease_rules) {
        (_, LeaseRules::None) | (PinGate::Refuse, _) => None,
        (PinGate::Unbreakable, LeaseRules::ManPage) => Some(if strong { Kind::WRITE_U } else { Kind::READ_U }),
        (PinGate::Unbreakable, LeaseRules::Chinner) => Some(Kind::WRITE),
        (PinGate::Lease, _) => Some(if strong { Kind::WRITE } else { Kind::READ }),
        (PinGate::Open | PinGate::Fault, _) if draw.falls_below(STRONG / 3.0) => {
            Some(if axes.lease_rules == LeaseRules::ManPage { Kind::READ_U } else { Kind::WRITE })
        }
        (PinGate::Open | PinGate::Fault, _) => draw.falls_below(CURIOUS).then_some(Kind::READ),
    }
}

impl Life {
    fn begin(arena: &Arc<Arena>, actor: usize, rude: bool, tally: &mut Tally) -> Result<Life, Errno> {
        let task = arena.spawn();
        let answer = if rude { Disposition::Ignore } else { Disposition::Handler };
        task.process().set_disposition(Signal::Sigio, answer);
        // Rings when a context has been passed: it ends whatever this process waits for.
        task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
        let (context_fd, context) = tally.call(Context::open(&task))?;
        let pd = context.alloc_pd(&task)?;
        let buffer = Buffer::map(&task)?;
        let endpoint = Endpoint::new(&task, context, pd, buffer.clone())?;
        let slot = &arena.slots[actor];
        slot.mail.lock().retain(|letter| letter.to == task.pid());
        slot.pid.store(task.pid().0, Ordering::SeqCst);
        Ok(Life { task, context_fd, endpoint, buffer, files: Vec::new(), regions: Vec::new(), guests: Vec::new() })
    }

    /// Exits with everything that is open.
    fn end(self, tally: &mut Tally, place: Place<'_>) {
        place.arena.slots[place.actor].pid.store(0, Ordering::SeqCst);
        self.task.exit();
        let ended = self.regions.iter().filter(|region| !region.window.mr.is_revoked()).count();
        tally.counters.deregistrations += ended as u64;
    }

    /// Signals, mail, and what is due by the clock.
    fn attend(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) -> Onward {
        for signal in self.task.take_signals() {
            if let (Signal::Sigio, Some(ino)) = (signal.signal, signal.ino) {
                self.give_way(tally, ino.0);
            }
        }
        let now = place.arena.kernel.world().now();
        self.deregister(tally, |region| region.due <= now);
        while self.guests.first().is_some_and(|guest| guest.due <= now) {
            self.dismiss(tally, 0);
        }
        self.receive(tally, place, step);
        let over = self.task.process().is_dying() || self.endpoint.context.is_aborted();
        if over { Onward::Ends } else { Onward::Lives }
    }

    /// A lease on `ino` is being broken: lets go of what stands under it.
    fn give_way(&mut self, tally: &mut Tally, ino: u64) {
        self.deregister(tally, |region| region.window.ino == ino);
        for file in self.files.iter_mut().filter(|file| file.ino == ino && !file.leases.is_empty()) {
            if tally.call(self.task.unlock(file.fd, BlockRange::ALL)).is_ok() {
                file.leases.clear();
            }
        }
    }

    /// Deregisters the regions that `which` chooses.
    fn deregister(&mut self, tally: &mut Tally, which: impl Fn(&Region) -> bool) {
        let (task, context, files) = (&self.task, &self.endpoint.context, &mut self.files);
        self.regions.retain(|region| {
            let goes = which(region);
            if goes {
                // Refused only if the context or the process has just ended, and the region with it.
                let _gone = tally.timed(Timed::Deregister, task, || context.dereg_mr(task, &region.window.mr));
                let map = (region.window.mr.va(), region.window.mr.len());
                // A file that was closed has taken its mappings along.
                if let Some(file) = files.iter_mut().find(|file| file.maps.contains(&map)) {
                    file.maps.retain(|other| *other != map);
                    let _unmapped = tally.call(task.munmap(map.0, map.1));
                }
            }
            !goes
        });
    }

    fn act(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) -> Onward {
        let done = match step.act {
            Act::Register => self.register(tally, place, step),
            Act::Dma => {
                self.burst(tally, place, step);
                Ok(())
            }
            Act::Change => self.change(tally, step),
            Act::Unlock => self.unlock(tally, step),
            Act::Close => self.close_one(tally, step),
            Act::Pass => self.pass(tally, place, step),
            Act::Fork => self.fork(tally, place, step),
            Act::Exit => return Onward::Ends,
            Act::Kill => {
                tally.chosen_kills += u64::from(!self.task.process().is_dying());
                // A process that kills itself has no return value to look at.
                let _dead = tally.call(self.task.kill(self.task.pid(), Signal::Sigkill));
                return Onward::Ends;
            }
        };
        // A refusal is counted and lived with; whether the process still lives is looked at by the caller.
        done.map_or(Onward::Lives, |()| Onward::Lives)
    }

    /// Leases, maps and registers a range of a file.
    fn register(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let job = &place.arena.job;
        if self.regions.len() >= job.registrants.regions_max as usize {
            let soonest = self.regions.iter().map(|region| region.due).min();
            self.deregister(tally, |region| Some(region.due) == soonest);
        }
        let at = self.open(tally, step.file)?;
        let fd = self.files[at].fd;
        let length = step.length / 8 * 8;
        let mut size = tally.call(self.task.stat(fd))?.size;
        if size < length {
            // The file grows first: blocks without contents, or a hole at its end.
            size = job.files.size;
            if step.punches {
                tally.call(self.task.fallocate(fd, Fallocate::Allocate { keep_size: false }, 0, size))?;
                tally.counters.extends += 1;
            } else {
                tally.timed(Timed::Truncate, &self.task, || self.task.ftruncate(fd, size))?;
            }
        }
        let offset = step.place.below((size - length) / BLOCK + 1) * BLOCK;
        let blocks = BlockRange::of_bytes(offset, length);
        if let Some(kind) = lease_for(place.arena.kernel.axes(), step.lease) {
            let range = if step.whole_file { BlockRange::ALL } else { blocks };
            self.lease(tally, at, kind, range)?;
        }
        let writable = !step.read_only;
        let va = tally.call(self.task.mmap(fd, offset, length, writable))?;
        let access = match writable {
            true => AccessFlags::ALL,
            false => AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ },
        };
        let (task, Endpoint { context, pd, .. }) = (&self.task, &self.endpoint);
        let registered = tally.timed(Timed::Register, task, || context.reg_mr(task, pd, va, length, access));
        let Ok(mr) = registered else {
            return tally.call(self.task.munmap(va, length));
        };
        self.files[at].maps.push((va, length));
        let window = Window { mr, ino: self.files[at].ino, offset, writable };
        let due = Nanos(place.arena.kernel.world().now().0 + step.lifetime);
        self.regions.push(Region { window, due });
        Ok(())
    }

    /// File number `index`, open; where it stands in the list.
    fn open(&mut self, tally: &mut Tally, index: u64) -> Result<usize, Errno> {
        if let Some(at) = self.files.iter().position(|file| file.index == index) {
            return Ok(at);
        }
        if self.files.len() >= FILES_MAX {
            let oldest = self.files[0].ino;
            self.deregister(tally, |region| region.window.ino == oldest);
            self.close(tally, 0)?;
        }
        let fd = tally.call(self.task.open(&Arena::file_name(index), Flags::open(Access::BOTH)))?;
        let ino = self.task.inode(fd)?.ino().0;
        self.files.push(OpenFile { fd, index, ino, leases: Vec::new(), maps: Vec::new() });
        Ok(self.files.len() - 1)
    }

    fn lease(&mut self, tally: &mut Tally, at: usize, kind: Kind, range: BlockRange) -> Result<(), Errno> {
        let file = &mut self.files[at];
        let held = file.leases.iter().filter(|(held, _)| *held == kind).map(|(_, range)| *range);
        if range.is_covered_by(held) {
            return Ok(());
        }
        tally.call(self.task.lease(file.fd, kind, range))?;
        // What overlaps was converted with it.
        file.leases.retain(|(held, old)| *held == kind || !old.overlaps(range));
        file.leases.push((kind, range));
        Ok(())
    }

    fn burst(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) {
        let guests: usize = self.guests.iter().map(|guest| guest.windows.len()).sum();
        let mut pick = step.pick.below((self.regions.len() + guests) as u64) as usize;
        let requests = Requests::new(&place.arena.job, step.burst_seed);
        let writer = place.actor as u8;
        if let Some(region) = self.regions.get(pick) {
            let ended = self.endpoint.burst(tally, &self.task, writer, &region.window, requests, step.burst);
            if ended == Burst::Failed && region.window.mr.is_revoked() {
                self.regions.remove(pick);
            }
            return;
        }
        pick = pick.saturating_sub(self.regions.len());
        for at in 0..self.guests.len() {
            let guest = &mut self.guests[at];
            if let Some(window) = guest.windows.get(pick) {
                let ended = guest.endpoint.burst(tally, &self.task, writer, window, requests, step.burst);
                if ended != Burst::Done {
                    // The one it came from has deregistered it, or has lost it.
                    self.dismiss(tally, at);
                }
                return;
            }
            pick -= guest.windows.len();
        }
    }

    /// Changes the layout of a file of its own, by preference one in which it has a region.
    fn change(&mut self, tally: &mut Tally, step: &RegistrantStep) -> Result<(), Errno> {
        let Some(at) =
            self.pick_file(step.pick, |life, file| life.regions.iter().any(|region| region.window.ino == file.ino))
        else {
            return Ok(());
        };
        let (fd, ino) = (self.files[at].fd, self.files[at].ino);
        let region = self.regions.iter().find(|region| region.window.ino == ino);
        let (offset, length) = region.map_or((0, BLOCK), |region| (region.window.offset, region.window.mr.len()));
        if step.punches {
            let blocks = length.div_ceil(BLOCK);
            let first = step.keep.below(blocks);
            let punched = (offset + first * BLOCK, (blocks - first) * BLOCK);
            tally
                .timed(Timed::Punch, &self.task, || self.task.fallocate(fd, Fallocate::PunchHole, punched.0, punched.1))
        } else {
            let size = (offset + step.keep.below(length)) / 8 * 8;
            tally.timed(Timed::Truncate, &self.task, || self.task.ftruncate(fd, size))
        }
    }

    /// One of the open files that `wanted` likes; any if it likes none.
    fn pick_file(&self, pick: Share, wanted: impl Fn(&Life, &OpenFile) -> bool) -> Option<usize> {
        let liked: Vec<usize> = (0..self.files.len()).filter(|at| wanted(self, &self.files[*at])).collect();
        match liked.is_empty() {
            false => Some(liked[pick.below(liked.len() as u64) as usize]),
            true if self.files.is_empty() => None,
            true => Some(pick.below(self.files.len() as u64) as usize),
        }
    }

    fn unlock(&mut self, tally: &mut Tally, step: &RegistrantStep) -> Result<(), Errno> {
        let leased = |_: &Life, file: &OpenFile| !file.leases.is_empty();
        let Some(at) = self.pick_file(step.pick, leased) else { return Ok(()) };
        if self.files[at].leases.is_empty() {
            return Ok(());
        }
        tally.call(self.task.unlock(self.files[at].fd, BlockRange::ALL))?;
        self.files[at].leases.clear();
        Ok(())
    }

    fn close_one(&mut self, tally: &mut Tally, step: &RegistrantStep) -> Result<(), Errno> {
        match self.pick_file(step.pick, |_, _| true) {
            Some(at) => self.close(tally, at),
            None => Ok(()),
        }
    }

    /// Unmaps and closes, whatever regions live.
    fn close(&mut self, tally: &mut Tally, at: usize) -> Result<(), Errno> {
        let file = self.files.remove(at);
        for (va, length) in file.maps {
            tally.call(self.task.munmap(va, length))?;
        }
        tally.call(self.task.close(file.fd))
    }

    /// Passes the context to another registrant, with a letter and a signal.
    fn pass(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let arena = place.arena;
        let registrants = arena.job.count(crate::job::Role::Registrant) as u64;
        if registrants < 2 {
            return Ok(());
        }
        let other = (place.actor as u64 + 1 + step.partner.below(registrants - 1)) % registrants;
        let slot = &arena.slots[other as usize];
        let to = Pid(slot.pid.load(Ordering::SeqCst));
        if to.0 == 0 {
            return Ok(());
        }
        let context = self.endpoint.context.number();
        let windows = self.regions.iter().map(|region| region.window.clone()).collect();
        {
            let mut mail = slot.mail.lock();
            if mail.len() >= MAIL_MAX {
                return Ok(());
            }
            mail.push(Passed { to, context, pd: Arc::clone(&self.endpoint.pd), windows });
        }
        if let Err(errno) = tally.call(self.task.send_fd(to, self.context_fd)) {
            slot.mail.lock().retain(|letter| letter.to != to || letter.context != context);
            return Err(errno);
        }
        // As by an owned socket: the bell rings even if the sender dies at this moment, so nobody sleeps on unread mail.
        arena.kernel.send_signal(to, SigInfo { signal: Signal::Sigusr1, ino: None });
        Ok(())
    }

    /// Takes contexts that were passed to this process.
    fn receive(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) {
        let me = self.task.pid();
        let mail = || place.arena.slots[place.actor].mail.lock();
        while mail().iter().any(|letter| letter.to == me) {
            // The letter comes before the descriptor: nothing there means that it is on its way, or was refused.
            let received = match self.task.recv_fd() {
                Ok(received) => received,
                Err(_) => return,
            };
            tally.counters.operations += 1;
            let Received::Fd(fd) = received else {
                // Which one was dropped is not told; the oldest letter is no use to anybody any more.
                let mut mail = mail();
                if let Some(at) = mail.iter().position(|letter| letter.to == me) {
                    mail.remove(at);
                }
                continue;
            };
            let number = Context::of(&self.task, fd).map(|context| context.number());
            let letter = {
                let mut mail = mail();
                let at = mail.iter().position(|letter| letter.to == me && Ok(letter.context) == number);
                at.map(|at| mail.remove(at))
            };
            if letter.is_none_or(|letter| self.admit(fd, letter, place, step).is_err()) {
                let _closed = tally.call(self.task.close(fd));
            }
        }
    }

    /// Makes itself at home on a context of somebody else's.
    fn admit(&mut self, fd: Fd, letter: Passed, place: Place<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        if self.guests.len() >= GUESTS_MAX {
            let oldest = self.guests.remove(0);
            self.task.close(oldest.fd)?;
        }
        let context = Context::of(&self.task, fd)?;
        let endpoint = Endpoint::new(&self.task, context, letter.pd, self.buffer.clone())?;
        let due = Nanos(place.arena.kernel.world().now().0 + step.lifetime);
        self.guests.push(Guest { fd, endpoint, windows: letter.windows, due });
        Ok(())
    }

    /// Closes a context of somebody else's.
    fn dismiss(&mut self, tally: &mut Tally, at: usize) {
        let guest = self.guests.remove(at);
        // It fails only if this process has just died.
        let _closed = tally.call(self.task.close(guest.fd));
    }

    /// Forks a child that closes what it inherited, or exits with it.
    fn fork(&mut self, tally: &mut Tally, place: Place<'_>, step: &RegistrantStep) -> Result<(), Errno> {
        let child = place.arena.adopt(tally.call(self.task.fork())?);
        if step.child_closes {
            for file in &self.files {
                for (va, length) in &file.maps {
                    tally.call(child.munmap(*va, *length))?;
                }
                tally.call(child.close(file.fd))?;
            }
        }
        child.exit();
        Ok(())
    }
}
