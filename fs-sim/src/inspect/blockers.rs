//! Who blocks whom: for one file, everything that stands against a change of its layout, and every
//! task that waits.
//!
//! It owns no state and decides nothing: each lease and pin is judged by the same function as in a
//! layout change, once for the change in progress, and once for a change by a process that has
//! nothing to do with the file (so that a refusal, after which no task waits, has its reason named
//! too). The processes named as releasers are those that could release *now*, whether or not the
//! process that took the lease or registered the pin still lives. An answer is a snapshot, exact
//! while no task runs. Kernel counterpart: none, which was one of the objections of 2019 ("lsof
//! can't tell"); /proc/locks names an inode only.

use std::fmt;

use emulator::pin::PageRange;
use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaiterId;
use serde::Serialize;

use crate::base::numbers::{Ino, Pid};
use crate::base::page_sets::{merge, without};
use crate::base::range::{BlockRange, BlockRanges};
use crate::base::units::{BLOCK, ShownBytes};
use crate::deadlock::need::Participant;
use crate::design::ChangeRule;
use crate::extent_map::lookup::{mapped, pages_of};
use crate::holders::block_layout::{BlockLayout, BlockLayouts};
use crate::holders::holder::Holder;
use crate::holders::in_flight_io::{HeldFor, SeenIo, io_on};
use crate::holders::list::{notify_only, pin_holders};
use crate::layout_change::busy::busy_pages_of;
use crate::leases::layout::break_layouts::{LeaseVerdict, judge, others_write};
use crate::leases::layout::state::LeaseState;
use crate::leases::layout::table::{LeaseEntry, LeaseTable};
use crate::vfs::change_state::ChangeState;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;

/// A range of file blocks; no end means infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FileBlocks {
    /// First block.
    pub start: u64,
    /// One past the last block.
    pub end: Option<u64>,
}

impl From<BlockRange> for FileBlocks {
    fn from(range: BlockRange) -> FileBlocks {
        FileBlocks { start: range.start, end: (range.end != u64::MAX).then_some(range.end) }
    }
}

impl fmt::Display for FileBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |blocks: u64| ShownBytes(blocks.saturating_mul(BLOCK));
        match self.end {
            Some(end) => {
                write!(f, "blocks {}..{end} ({})", self.start, bytes(end.saturating_sub(self.start)))
            }
            None if self.start == 0 => f.write_str("all blocks"),
            None => write!(f, "blocks {}.. (from {} on)", self.start, bytes(self.start)),
        }
    }
}

/// What a lease, a pin, a client's layout or I/O in flight does to the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The change fails.
    Refuses,
    /// The change waits until it is gone.
    WaitedFor,
    /// It is being broken or recalled, or will be: the change waits, for a time that the design
    /// may bound.
    Broken,
    /// It is taken away; the change waits only for accesses in flight.
    Revoked,
    /// The change proceeds and leaves the pinned blocks behind.
    Orphaned,
    /// The change proceeds as if it were not there.
    Ignored,
}

impl Effect {
    /// Whether it stops the change.
    pub fn blocks(self) -> bool {
        matches!(self, Effect::Refuses | Effect::WaitedFor | Effect::Broken)
    }

    /// What pins meet under a rule.
    fn of_pin(rule: ChangeRule) -> Effect {
        match rule {
            ChangeRule::Fail => Effect::Refuses,
            ChangeRule::Wait => Effect::WaitedFor,
            ChangeRule::Revoke => Effect::Revoked,
            ChangeRule::Orphan => Effect::Orphaned,
            ChangeRule::Proceed => Effect::Ignored,
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Refuses => "refuses",
            Effect::WaitedFor => "is waited for",
            Effect::Broken => "is broken",
            Effect::Revoked => "is revoked",
            Effect::Orphaned => "is left its blocks",
            Effect::Ignored => "is ignored",
        })
    }
}

/// A process that could release it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Releaser {
    /// The process.
    pub pid: u32,
    /// Its lowest descriptor of the open file, the context or the socket; `None` if it has only a
    /// mapping.
    pub fd: Option<u32>,
}

/// What stands against a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Cause {
    /// A layout lease.
    Lease {
        /// Its number.
        lease: u64,
        /// Its kind, such as `read+U`.
        kind: String,
        /// `held`, `breaking` or `zombie`.
        state: &'static str,
        /// The process that took it.
        taker: u32,
        /// The pins that were taken under it or keep its open file, by number: they keep a zombie.
        pins: Vec<u64>,
    },
    /// A long-term pin, or what a guest has mapped instead.
    Pin {
        /// Its number.
        holder: u64,
        /// Its kind, such as `RDMA region`.
        kind: &'static str,
        /// The process that registered it.
        registrant: u32,
        /// The context it belongs to.
        context: Option<u64>,
        /// The region's key.
        region: Option<u32>,
        /// The leases that admitted it, by number.
        leases: Vec<u64>,
        /// The virtual machine that has it mapped, in words.
        #[serde(skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
        /// It pins nothing, and must be told before its pages change.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        told: bool,
    },
    /// Direct I/O in flight, with its short-term pins.
    DirectIo {
        /// The process that submitted it.
        process: u32,
    },
    /// Pages in a pipe (`vmsplice`), pinned short-term.
    PipePages {
        /// The process that has the pipe.
        process: u32,
    },
    /// The buffer of direct I/O of another file or of a disk, pinned short-term.
    IoBuffer {
        /// The process that submitted the I/O.
        process: u32,
    },
    /// Pages that are being sent without a copy, pinned short-term until the peer acknowledges
    /// them.
    SentPages {
        /// The process that sent them.
        process: u32,
    },
    /// The layout of a block-layout client.
    BlockLayout {
        /// The client's process.
        client: u32,
        /// The client was told to return it.
        recalled: bool,
    },
}

/// One thing that stands against a change, and the processes that could release it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// What it is.
    #[serde(flatten)]
    pub cause: Cause,
    /// The inode.
    pub ino: u64,
    /// The file blocks it is about.
    pub range: FileBlocks,
    /// What it does to the change.
    pub effect: Effect,
    /// When its time is over, in nanoseconds of the kernel's clock.
    pub deadline_ns: Option<u64>,
    /// The processes that could release it now.
    pub releasers: Vec<Releaser>,
    /// How many socket queues hold it unread.
    pub queued: u32,
}

/// A task that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingTask {
    /// The task.
    pub task: u64,
    /// Its process.
    pub pid: u32,
    /// The reason of its wait.
    pub reason: String,
    /// What it needs, all of it, in words.
    pub needs: Vec<String>,
    /// When it gives up or acts, in nanoseconds of the kernel's clock.
    pub deadline_ns: Option<u64>,
}

/// A layout change that is in progress and waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockedChange {
    /// The task that waits.
    pub who: WaitingTask,
    /// The file blocks it waits on.
    pub range: FileBlocks,
    /// What stands against it.
    pub blockers: Vec<Blocker>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blockers {
    /// The inode.
    pub ino: u64,
    /// The change that waits for leases, pins, clients or guests, if one does; of several the one
    /// that came first.
    pub blocked: Option<BlockedChange>,
    /// The others that do, in order of arrival: of other ranges of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_blocked: Vec<BlockedChange>,
    /// The changes that queue behind changes that overlap them, or behind lease requests, in order
    /// of arrival.
    pub queued: Vec<WaitingTask>,
    /// All other tasks that wait for something of this file: lease requests, unlocks, closes.
    pub others: Vec<WaitingTask>,
    /// What a change of `asked` by a stranger would meet.
    pub stranger: Vec<Blocker>,
    /// The range that was asked about.
    pub asked: FileBlocks,
}

impl Blockers {
    /// Of what a stranger's change would meet, what would refuse it or make it wait.
    pub fn against_stranger(&self) -> impl Iterator<Item = &Blocker> {
        self.stranger.iter().filter(|blocker| blocker.effect.blocks())
    }
}

/// The pages mapped in a range, sorted.
fn pages_in(inode: &Inode, range: BlockRange) -> Vec<PageRange> {
    let mut pages = inode.layout(|layout| mapped(layout, range).map(|extent| pages_of(&extent)).collect());
    merge(&mut pages);
    pages
}

/// No process: for the question what a stranger would meet.
const STRANGER: Pid = Pid(0);

impl Kernel {
    /// Who blocks changes of the whole of `ino`; `None` if there is no such inode. An evicted
    /// inode is found as long as pins hold its former blocks (which block no change).
    pub fn blockers(&self, ino: Ino) -> Option<Blockers> {
        self.blockers_of(ino, BlockRange::ALL)
    }

    /// Who blocks changes of `ino`: what is in progress, and what a stranger's change of `range`
    /// would meet.
    pub fn blockers_of(&self, ino: Ino, range: BlockRange) -> Option<Blockers> {
        let inode = self.inodes.get(ino).or_else(|| self.ghosts.get(ino))?;
        let line = inode.turn.line();
        let mut waiting = waiting_tasks(self);
        let mut take = |task: WaiterId| {
            let at = waiting.iter().position(|(waiter, _)| *waiter == task)?;
            Some(waiting.remove(at).1)
        };
        let holders: Vec<_> = pin_holders(&inode).all().into_iter().chain(notify_only(&inode).all()).collect();
        let (queue, under_way): (Vec<_>, Vec<_>) =
            line.into_iter().partition(|change| change.state == ChangeState::Queued);
        let mut waiting_changes = under_way.into_iter().filter_map(|change| {
            let ranges = change.waiting?;
            let who = take(change.task)?;
            let known = |holder: &&Arc<Holder>| change.pins.holders.contains(&holder.id);
            let met: Vec<_> = holders.iter().filter(known).cloned().collect();
            let blockers = judged(self, &inode, &ranges, &met, &change.pins.io_pages, Pid(who.pid));
            Some(BlockedChange { who, range: ranges.hull().into(), blockers })
        });
        let blocked = waiting_changes.next();
        let also_blocked = waiting_changes.collect();
        let queued = queue.into_iter().filter_map(|change| take(change.task)).collect();
        let queues = [
            &LeaseTable::of(&inode).changed,
            &pin_holders(&inode).changed,
            &notify_only(&inode).changed,
            inode.turn.changed(),
            &BlockLayouts::of(&inode).changed,
        ];
        let others = queues.into_iter().flat_map(|queue| queue.waiting()).filter_map(&mut take).collect();
        let own = pages_in(&inode, range);
        let beside = without(&busy_pages_of(&self.axes, &inode, &range.into(), true), &own);
        let waits_for = |holder: &Arc<Holder>| {
            let blocks = Effect::of_pin(self.axes.stranger_change).blocks();
            holder.holds_any_of(&own) || (blocks && holder.holds_any_of(&beside))
        };
        let met: Vec<_> = holders.into_iter().filter(waits_for).collect();
        let stranger = judged(self, &inode, &range.into(), &met, &beside, STRANGER);
        Some(Blockers { ino: ino.0, blocked, also_blocked, queued, others, stranger, asked: range.into() })
    }
}

/// Every blocked task.
pub(crate) fn waiting_tasks(kernel: &Kernel) -> Vec<(WaiterId, WaitingTask)> {
    let sleepers = kernel.world.sleepers();
    let waiting = |blocked: Participant| {
        let sleeper = sleepers.iter().find(|sleeper| sleeper.waiter == blocked.task);
        let waiting = WaitingTask {
            task: blocked.task.0,
            pid: blocked.pid.0,
            reason: blocked.reason.to_owned(),
            needs: blocked.needs.iter().map(ToString::to_string).collect(),
            deadline_ns: sleeper.and_then(|sleeper| sleeper.deadline).map(|Nanos(ns)| ns),
        };
        (blocked.task, waiting)
    };
    kernel.waits.blocked().into_iter().map(waiting).collect()
}

/// What a change of `ranges` by `changer` meets: leases, the pins `met`, clients, I/O in flight
/// there and on the pages `beside`, in this order.
pub(crate) fn judged(
    kernel: &Kernel,
    inode: &Inode,
    ranges: &BlockRanges,
    met: &[Arc<Holder>],
    beside: &[PageRange],
    changer: Pid,
) -> Vec<Blocker> {
    let entries = LeaseTable::of(inode).lock().clone();
    let holders = pin_holders(inode).all();
    let touched = || entries.iter().filter(|entry| ranges.overlaps(entry.range));
    let others_write = others_write(&entries, ranges, changer);
    let mut blockers: Vec<Blocker> = touched()
        .map(|entry| {
            let effect = judge(&kernel.axes, entry, changer, others_write).effect();
            lease_blocker(kernel, inode, entry, &holders, effect)
        })
        .collect();
    blockers.extend(met.iter().map(|holder| {
        let own = holder.pid == changer;
        let rule = if own { kernel.axes.holder_change } else { kernel.axes.stranger_change };
        let effect = if holder.notify_only { Effect::Revoked } else { Effect::of_pin(rule) };
        pin_blocker(kernel, inode, holder, effect)
    }));
    let layouts = BlockLayouts::of(inode).all();
    let clients = layouts.iter().filter(|layout| ranges.overlaps(layout.range()) && layout.pid() != changer);
    blockers.extend(clients.map(|layout| layout_blocker(kernel, inode, layout)));
    let mut pages: Vec<PageRange> = ranges.iter().flat_map(|range| pages_in(inode, range)).collect();
    pages.extend(beside);
    merge(&mut pages);
    blockers.extend(io_on(kernel, &pages).iter().map(|io| io_blocker(kernel, io)));
    blockers
}

fn lease_blocker(
    kernel: &Kernel,
    inode: &Inode,
    entry: &LeaseEntry,
    holders: &[Arc<Holder>],
    effect: Effect,
) -> Blocker {
    let under = |holder: &&Arc<Holder>| {
        let through = holder.leases.contains(&entry.lease);
        through || holder.holds_file == Some(entry.file)
    };
    let pins: Vec<&Arc<Holder>> = holders.iter().filter(under).collect();
    let (state, deadline) = match entry.state() {
        state if state.is_breaking() => ("breaking", entry.deadline),
        LeaseState::Zombie => ("zombie", None),
        _ => ("held", None),
    };
    let mut releasers = releasers_of(kernel, &entry.fd_holders);
    if releasers.is_empty() {
        releasers = mappers_of(kernel, entry);
    }
    let mut queued = entry.fd_holders.queued();
    if releasers.is_empty() && queued == 0 {
        // Only pins keep it: those that hold its open file, else all of those under it (a zombie,
        // or a close that waits).
        let holds = |pin: &Arc<Holder>| pin.holds_file == Some(entry.file);
        let held = pins.iter().any(|pin| holds(pin));
        for pin in pins.iter().filter(|pin| !held || holds(pin)) {
            queued += pin.object.fd_holders().map_or(0, |fd_holders| fd_holders.queued());
            for releaser in releasers_of_pin(kernel, pin) {
                if !releasers.contains(&releaser) {
                    releasers.push(releaser);
                }
            }
        }
    }
    let cause = Cause::Lease {
        lease: entry.lease.id.0,
        kind: entry.kind.to_string(),
        state,
        taker: entry.pid.0,
        pins: pins.iter().map(|holder| holder.id.0).collect(),
    };
    let deadline_ns = deadline.map(|Nanos(ns)| ns);
    Blocker { cause, ino: inode.ino().0, range: entry.range.into(), effect, deadline_ns, releasers, queued }
}

fn pin_blocker(kernel: &Kernel, inode: &Inode, holder: &Arc<Holder>, effect: Effect) -> Blocker {
    let info = holder.object.describe();
    let cause = Cause::Pin {
        holder: holder.id.0,
        kind: info.kind,
        registrant: holder.pid.0,
        context: info.context,
        region: info.region,
        leases: holder.leases.all().iter().map(|lease| lease.id.0).collect(),
        guest: info.guest,
        told: holder.notify_only,
    };
    let queued = holder.object.fd_holders().map_or(0, |fd_holders| fd_holders.queued());
    let releasers = releasers_of_pin(kernel, holder);
    let range = holder.range.into();
    Blocker { cause, ino: inode.ino().0, range, effect, deadline_ns: None, releasers, queued }
}

fn layout_blocker(kernel: &Kernel, inode: &Inode, layout: &BlockLayout) -> Blocker {
    let recall = layout.recall();
    let cause = Cause::BlockLayout { client: layout.pid().0, recalled: recall.is_some() };
    let deadline_ns = recall.and_then(|recall| recall.deadline).map(|Nanos(ns)| ns);
    let releasers = layout.fd_holders().map(|fd_holders| releasers_of(kernel, fd_holders)).unwrap_or_default();
    let range = layout.range().into();
    Blocker { cause, ino: inode.ino().0, range, effect: Effect::Broken, deadline_ns, releasers, queued: 0 }
}

fn io_blocker(kernel: &Kernel, io: &SeenIo) -> Blocker {
    let process = io.pid.0;
    let cause = match io.held_for {
        HeldFor::DirectIo => Cause::DirectIo { process },
        HeldFor::Buffer => Cause::IoBuffer { process },
        HeldFor::Pipe => Cause::PipePages { process },
        HeldFor::Send => Cause::SentPages { process },
    };
    let effect = if kernel.ignores_pins() { Effect::Ignored } else { Effect::WaitedFor };
    // Another process that has the file open can't complete it.
    let process = kernel.processes.get(io.pid);
    let fd = io.fd_holders.as_ref().and_then(|fd_holders| process?.fd_of(fd_holders));
    let releaser = Releaser { pid: io.pid.0, fd: fd.map(|fd| fd.0) };
    let releasers = if io.ends_by_itself { Vec::new() } else { vec![releaser] };
    Blocker { cause, ino: io.ino.0, range: io.range.into(), effect, deadline_ns: None, releasers, queued: 0 }
}

/// The processes that hold this open file, and their descriptors.
fn releasers_of(kernel: &Kernel, fd_holders: &Arc<FdHolders>) -> Vec<Releaser> {
    let releaser = |pid: Pid| {
        let fd = kernel.processes.get(pid).and_then(|process| process.fd_of(fd_holders));
        Releaser { pid: pid.0, fd: fd.map(|fd| fd.0) }
    };
    fd_holders.processes().into_iter().map(releaser).collect()
}

/// The processes that map the open file of a lease.
fn mappers_of(kernel: &Kernel, entry: &LeaseEntry) -> Vec<Releaser> {
    let processes = kernel.processes.snapshot().into_iter();
    let mappers = processes.filter(|(_, process)| process.mm.lock().maps(entry.file));
    mappers.map(|(pid, _)| Releaser { pid: pid.0, fd: None }).collect()
}

fn releasers_of_pin(kernel: &Kernel, holder: &Holder) -> Vec<Releaser> {
    if let Some(fd_holders) = holder.object.fd_holders() {
        return releasers_of(kernel, &fd_holders);
    }
    // It names its processes, and the descriptor of the first of them.
    let info = holder.object.describe();
    let fds = [info.fd].into_iter().chain(std::iter::repeat(None));
    let named = info.processes.iter().zip(fds);
    named.map(|(pid, fd)| Releaser { pid: pid.0, fd: fd.map(|fd| fd.0) }).collect()
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Lease { lease, kind, state, taker, pins } => {
                write!(f, "{state} {kind} lease {lease} of process {taker}")?;
                if !pins.is_empty() {
                    let numbers: Vec<String> = pins.iter().map(u64::to_string).collect();
                    let pins = if pins.len() == 1 { "pin number" } else { "pins number" };
                    write!(f, ", {pins} {}", numbers.join(", "))?;
                }
            }
            Cause::Pin { holder, kind, registrant, context, region, guest, told, .. } => {
                write!(f, "{kind}")?;
                if let Some(region) = region {
                    write!(f, " {region:#x}")?;
                }
                if let Some(context) = context {
                    write!(f, " of context {context}")?;
                }
                if let Some(guest) = guest {
                    write!(f, " ({guest})")?;
                }
                write!(f, ", {} number {holder} of process {registrant}", if *told { "mapping" } else { "pin" })?;
            }
            Cause::DirectIo { process } => write!(f, "direct I/O in flight of process {process}")?,
            Cause::PipePages { process } => write!(f, "pages in a pipe of process {process}")?,
            Cause::IoBuffer { process } => write!(f, "the buffer of direct I/O of process {process}")?,
            Cause::SentPages { process } => write!(f, "pages in a zero-copy send of process {process}")?,
            Cause::BlockLayout { client, recalled } => {
                write!(f, "{}block layout of client {client}", if *recalled { "recalled " } else { "" })?;
            }
        }
        write!(f, ", {}: {}", self.range, self.effect)?;
        let can: Vec<String> = self
            .releasers
            .iter()
            .map(|releaser| match releaser.fd {
                Some(fd) => format!("process {} (fd {fd})", releaser.pid),
                None => format!("process {}", releaser.pid),
            })
            .chain((self.queued > 0).then(|| format!("a process that reads it from {} queue(s)", self.queued)))
            .collect();
        match can.is_empty() {
            true => f.write_str("; no process could release it"),
            false => write!(f, "; {} could release it", can.join(", ")),
        }
    }
}

impl fmt::Display for WaitingTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} of process {}: {}", self.task, self.pid, self.reason)
    }
}

impl fmt::Display for Blockers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "inode {}", self.ino)?;
        for blocked in self.blocked.iter().chain(&self.also_blocked) {
            writeln!(f, "  blocked change of {}, {}", blocked.range, blocked.who)?;
            for blocker in &blocked.blockers {
                writeln!(f, "    {blocker}")?;
            }
        }
        for waiting in &self.queued {
            writeln!(f, "  queued change, {waiting}")?;
        }
        for waiting in &self.others {
            writeln!(f, "  waiting, {waiting}")?;
        }
        writeln!(
            f,
            "  a stranger's change of {} meets{}",
            self.asked,
            if self.stranger.is_empty() { " nothing" } else { "" }
        )?;
        for blocker in &self.stranger {
            writeln!(f, "    {blocker}")?;
        }
        Ok(())
    }
}

impl LeaseVerdict {
    /// What it means for the change.
    pub(crate) fn effect(self) -> Effect {
        match self {
            LeaseVerdict::Fail(_) => Effect::Refuses,
            LeaseVerdict::WaitFor => Effect::WaitedFor,
            LeaseVerdict::Break => Effect::Broken,
            LeaseVerdict::Remove | LeaseVerdict::Cut => Effect::Revoked,
            LeaseVerdict::Ignore => Effect::Ignored,
        }
    }
}
