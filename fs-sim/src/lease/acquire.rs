//! Taking a layout lease: the grant tables, conversion, downgrade.
//!
//! It owns the decision whether a request is granted, refused, or must break others first. Invariants: a request that
//! fails has changed nothing of the caller's; conversion on one description is atomic; while a break is pending nobody else
//! is let in. Kernel counterpart: `generic_add_lease` (fs/locks.c) for the shape; the tables are the proposals'.

use emulator::pin::gate::Gate;
use emulator::sync::atomic::Ordering;
use emulator::sync::{Arc, MutexGuard};
use emulator::wait::WaitFor;

use super::table::{Asking, BreakTo, Entry, State};
use super::unlock::reopen_gates;
use super::{Kind, Lease, LeaseId, Mode};
use crate::Kernel;
use crate::design::LeaseRules;
use crate::errno::Errno;
use crate::inode::Inode;
use crate::process::description::{Access, Description};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::waits::{Ended, Look, Need};

/// What one entry in the way says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Grant,
    Refuse,
    Break(BreakTo),
}

/// The grant table of `man-page` rules: held by another open file, asked, overlapping.
fn man_page_answer(held: Kind, asked: Kind) -> Answer {
    match (held.mode, held.unbreakable, asked.mode) {
        (Mode::Read, _, Mode::Read) => Answer::Grant,
        (Mode::Read, false, Mode::Write) => Answer::Break(BreakTo::Nothing),
        (Mode::Read, true, Mode::Write) => Answer::Refuse,
        (Mode::Write, false, Mode::Read) => Answer::Break(BreakTo::Read),
        (Mode::Write, false, Mode::Write) => Answer::Break(BreakTo::Nothing),
        (Mode::Write, true, _) => Answer::Refuse,
    }
}

/// Whether an entry still stands in the way of a request for `asked`.
fn stands_in_way(entry: &Entry, range: BlockRange, asked: Kind) -> bool {
    entry.range.overlaps(range) && man_page_answer(entry.kind, asked) != Answer::Grant
}

/// Whether a request would give a lease that is being broken new life: its holder may only convert it to what the break
/// leaves, or unlock it.
fn renews_what_is_broken(entry: &Entry, request: &Request<'_>) -> bool {
    let State::Breaking { to, .. } = entry.state else { return false };
    let own = entry.file == request.description.id() && entry.range.overlaps(request.range);
    own && !(to == BreakTo::Read && request.kind == Kind::READ)
}

impl Kernel {
    pub(crate) fn new_lease(&self) -> Arc<Lease> {
        Arc::new(Lease { id: LeaseId(self.next_lease.fetch_add(1, Ordering::Relaxed)), gate: Gate::new() })
    }
}

/// Whether a change that is not over has settled on the request's range.
fn is_settled(request: &Request<'_>, entries: &MutexGuard<'_, Vec<Entry>>) -> bool {
    request.inode.leases.settled_on(entries).overlaps(request.range)
}

/// A request, checked.
struct Request<'a> {
    inode: &'a Arc<Inode>,
    description: &'a Arc<Description>,
    kind: Kind,
    range: BlockRange,
}

impl Task {
    /// Takes a layout lease of `kind` on `range` of the file open as `fd` (`fcntl(F_SETLEASE, F_LAYOUT|…)` of the
    /// proposals), or converts what the same description holds there. Waits where the rules say so.
    ///
    /// # Errors
    /// EBADF, EINVAL (no layout leases in this design, +U under `chinner` rules, an empty range, not a file), EACCES (access
    /// mode), ETXTBSY (an exclusive lease is in the way), EAGAIN (a break or a change is pending), EBUSY or EDEADLK
    /// (conversion that weakens a pinned lease), EINTR.
    pub fn lease(&self, fd: Fd, kind: Kind, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            self.check_request(kind, range, access)?;
            self.acquire(&Request { inode, description, kind, range })
        })
    }

    /// As [`Task::lease`], on an open description that need not be in the caller's table.
    pub(crate) fn lease_file(
        &self,
        description: &Arc<Description>,
        inode: &Arc<Inode>,
        kind: Kind,
        range: BlockRange,
    ) -> Result<(), Errno> {
        self.check_request(kind, range, Access::BOTH)?;
        self.acquire(&Request { inode, description, kind, range })
    }

    fn check_request(&self, kind: Kind, range: BlockRange, access: Access) -> Result<(), Errno> {
        let rules = self.kernel().axes.lease_rules;
        let known = match rules {
            LeaseRules::None => false,
            LeaseRules::ManPage => true,
            LeaseRules::Chinner => !kind.unbreakable,
        };
        if !known || range.is_empty() {
            return Err(Errno::EINVAL);
        }
        let allowed = if kind.is_exclusive(rules) { access.write } else { access.read };
        if allowed { Ok(()) } else { Err(Errno::EACCES) }
    }

    fn acquire(&self, request: &Request<'_>) -> Result<(), Errno> {
        let mut shut = Vec::new();
        let outcome = self.try_acquire(request, &mut shut);
        if outcome.is_err() {
            reopen_gates(request.inode, &shut);
        }
        outcome
    }

    /// As [`Task::acquire`]; the gates of the leases in `shut` were shut on the way, for a conversion.
    fn try_acquire(&self, request: &Request<'_>, shut: &mut Vec<Arc<Lease>>) -> Result<(), Errno> {
        let kernel = self.kernel();
        let mut broken_by_us: Vec<LeaseId> = Vec::new();
        // First come, first served: who would get in the way of one that waits already comes too late.
        let overtakes = |asking: &Asking| {
            let at_odds = |a, b| man_page_answer(a, b) != Answer::Grant;
            asking.range.overlaps(request.range)
                && (at_odds(asking.kind, request.kind) || at_odds(request.kind, asking.kind))
        };
        let man_page = kernel.axes.lease_rules == LeaseRules::ManPage;
        if man_page && request.inode.leases.is_behind(request.description.id(), overtakes) {
            return Err(Errno::EAGAIN);
        }
        loop {
            self.await_pending_change(request)?;
            let mut owners = Vec::new();
            {
                let mut entries = request.inode.leases.lock();
                if is_settled(request, &entries) {
                    drop(entries);
                    self.wait_out_change(request)?;
                    continue;
                }
                if entries.iter().any(|entry| renews_what_is_broken(entry, request)) {
                    return Err(Errno::EAGAIN);
                }
                match kernel.axes.lease_rules {
                    LeaseRules::Chinner => self.judge_chinner(&entries, request)?,
                    LeaseRules::ManPage | LeaseRules::None => {
                        self.judge_man_page(&mut entries, request, &mut broken_by_us, &mut owners)?;
                    }
                }
                let clear = !entries.iter().any(|entry| {
                    broken_by_us.contains(&entry.lease.id) && stands_in_way(entry, request.range, request.kind)
                });
                if clear {
                    let installed = self.enter(&mut entries, request);
                    drop(entries);
                    match installed {
                        Installed::Done(lost) => {
                            self.granted(request, &lost);
                            return Ok(());
                        }
                        Installed::Pinned(leases) => {
                            self.settle_pinned_leases(request.inode, &leases)?;
                            shut.extend(leases);
                            continue;
                        }
                    }
                }
            }
            let (file, kind, range) = (request.description.id(), request.kind, request.range);
            let _in_line = request.inode.leases.waits(Asking { file, kind, range });
            kernel.tell_owners(request.inode, &owners);
            self.wait_for_break(request.inode, &broken_by_us, |entry| {
                stands_in_way(entry, request.range, request.kind)
            })?;
        }
    }

    /// While a layout change waits, overlapping requests get EAGAIN; under `chinner` rules they wait for it to finish.
    fn await_pending_change(&self, request: &Request<'_>) -> Result<(), Errno> {
        let kernel = self.kernel();
        let pending = || request.inode.ticket.waiting_on().is_some_and(|ranges| ranges.overlaps(request.range));
        if !pending() {
            return Ok(());
        }
        if kernel.axes.lease_rules != LeaseRules::Chinner {
            return Err(Errno::EAGAIN);
        }
        let own_pins = || {
            let holders = &request.inode.holders;
            let own_in = |range| holders.registered_in(range).iter().any(|holder| holder.pid == self.pid());
            request.inode.ticket.waiting_on().is_some_and(|ranges| ranges.iter().any(own_in))
        };
        let how = WaitFor::interruptible("layout change that broke the lease");
        let outcome = self.block_on(request.inode.ticket.changed(), how, || {
            if !pending() {
                Look::Ready(Ok(()))
            } else if own_pins() {
                self.note_self_deadlock("layout change that broke the lease");
                Look::Ready(Err(Errno::EDEADLK))
            } else {
                let changer = request.inode.ticket.holder();
                Look::Blocked(changer.map(Need::task).into_iter().collect())
            }
        });
        match outcome {
            Ok(result) => result,
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
        }
    }

    /// A change has settled with the leases that were there and is about to be published: a lease that came now would be
    /// neither told nor heeded, so it comes after the change.
    fn wait_out_change(&self, request: &Request<'_>) -> Result<(), Errno> {
        let inode = request.inode;
        let how = WaitFor::interruptible("layout change under way");
        let outcome = self.block_on(&inode.leases.changed, how, || {
            let settled = is_settled(request, &inode.leases.lock());
            if settled && inode.ticket.waiting_on().is_none() {
                let changer = inode.ticket.holder();
                Look::Blocked(changer.map(Need::task).into_iter().collect())
            } else {
                Look::Ready(())
            }
        });
        outcome.map_err(|ended| if ended == Ended::Deadlock { Errno::EDEADLK } else { Errno::EINTR })
    }

    /// `chinner` rules: leases of different processes coexist, but for write against write.
    fn judge_chinner(&self, entries: &[Entry], request: &Request<'_>) -> Result<(), Errno> {
        let refused = request.kind.mode == Mode::Write
            && !self.kernel().sabotage.no_lease_conflict
            && entries.iter().any(|entry| {
                entry.kind.mode == Mode::Write && entry.pid != self.pid() && entry.range.overlaps(request.range)
            });
        if refused { Err(Errno::ETXTBSY) } else { Ok(()) }
    }

    /// `man-page` rules: refusals first, then the breaks that this request must begin.
    fn judge_man_page(
        &self,
        entries: &mut [Entry],
        request: &Request<'_>,
        broken_by_us: &mut Vec<LeaseId>,
        owners: &mut Vec<crate::process::Pid>,
    ) -> Result<(), Errno> {
        let foreign =
            |entry: &&mut Entry| entry.file != request.description.id() && entry.range.overlaps(request.range);
        let blind = self.kernel().sabotage.no_lease_conflict;
        let refuses = |e: &mut Entry| !blind && man_page_answer(e.kind, request.kind) == Answer::Refuse;
        if entries.iter_mut().filter(foreign).any(refuses) {
            return Err(Errno::ETXTBSY);
        }
        // A break whose time is over, left behind by a breaker that gave up, is carried on by whoever asks next.
        let now = self.kernel().world.now();
        let pending_elsewhere = entries.iter_mut().filter(foreign).any(|e| match e.state {
            State::Breaking { deadline, .. } => {
                deadline.is_none_or(|deadline| now < deadline) && !broken_by_us.contains(&e.lease.id)
            }
            State::Held | State::Zombie => false,
        });
        if pending_elsewhere {
            return Err(Errno::EAGAIN);
        }
        for entry in entries.iter_mut().filter(foreign) {
            if let Answer::Break(to) = man_page_answer(entry.kind, request.kind) {
                owners.extend(self.kernel().begin_break(entry, to));
                if !broken_by_us.contains(&entry.lease.id) {
                    broken_by_us.push(entry.lease.id);
                }
            }
        }
        Ok(())
    }

    /// Converts what the description holds in the range and adds what is missing. Where pins live under a lease that would
    /// lose strength or be split, `unlock_while_pinned` decides: unless it says `release`, nothing is done.
    fn enter(&self, entries: &mut Vec<Entry>, request: &Request<'_>) -> Installed {
        let kernel = self.kernel();
        let rules = kernel.axes.lease_rules;
        let own = |e: &Entry| {
            e.file == request.description.id() && e.state != State::Zombie && e.range.overlaps(request.range)
        };
        let unchanged = |e: &Entry| e.kind == request.kind && e.state == State::Held;
        let diminished = |e: &Entry| {
            let weaker = e.kind.is_exclusive(rules) && !request.kind.is_exclusive(rules);
            !unchanged(e) && (weaker || !request.range.contains(e.range))
        };
        if !kernel.unlock_releases() {
            let pinned = entries.iter().filter(|e| own(e) && diminished(e) && e.is_pinned());
            let pinned: Vec<Arc<Lease>> = pinned.map(|e| Arc::clone(&e.lease)).collect();
            if !pinned.is_empty() {
                return Installed::Pinned(pinned);
            }
        }
        let mut lost = Vec::new();
        let mut missing = vec![request.range];
        let mut kept = Vec::with_capacity(entries.len() + 1);
        for mut entry in entries.drain(..) {
            if !own(&entry) {
                kept.push(entry);
            } else if !diminished(&entry) && !entry.lease.gate.is_closed() {
                missing = missing.iter().flat_map(|part| part.minus(entry.range)).collect();
                entry.kind = request.kind;
                entry.state = State::Held;
                kept.push(entry);
            } else {
                // The parts outside the request go on as leases of their own; pins of the old one have lost it.
                for range in entry.range.minus(request.range) {
                    kept.push(Entry { lease: kernel.new_lease(), range, ..entry.clone() });
                }
                if entry.lease.gate.close().0 > 0 {
                    lost.push(entry.lease);
                }
            }
        }
        for range in missing {
            kept.push(Entry {
                lease: kernel.new_lease(),
                file: request.description.id(),
                custody: Arc::clone(request.description.custody()),
                pid: self.pid(),
                kind: request.kind,
                range,
                state: State::Held,
            });
        }
        *entries = kept;
        Installed::Done(lost)
    }

    fn granted(&self, request: &Request<'_>, lost: &[Arc<Lease>]) {
        let kernel = self.kernel();
        request.inode.leases.changed.wake_all();
        for lease in lost {
            kernel.lease_lost(request.inode, lease);
        }
        if request.kind.is_exclusive(kernel.axes.lease_rules) {
            let broken = request.inode.holders.registered_in(request.range);
            let outlived = |lease: &Arc<Lease>| lease.gate.is_closed();
            if broken.iter().any(|holder| holder.pid != self.pid() && holder.leases.iter().any(outlived)) {
                kernel.counters.broken_exclusivity.add(1);
            }
        }
        kernel.trace("lease granted", self.pid().0.into(), request.inode.ino().0, None);
    }

    /// Turns a write lease into read+U, as proposed after `fallocate`, atomically and without letting anybody in between.
    ///
    /// # Errors
    /// EINVAL unless the rules are `man-page`; EAGAIN unless the description holds unbroken write leases over all of `range`.
    pub fn downgrade_lease(&self, fd: Fd, range: BlockRange) -> Result<(), Errno> {
        self.with_file(fd, |description, inode, access| {
            self.check_request(Kind::READ_U, range, access)?;
            let request = Request { inode, description, kind: Kind::READ_U, range };
            let mut entries = inode.leases.lock();
            let unbroken = entries.iter().filter(|entry| {
                entry.file == description.id() && entry.kind.mode == Mode::Write && entry.state == State::Held
            });
            if !range.is_covered_by(unbroken.map(|entry| entry.range)) {
                return Err(Errno::EAGAIN);
            }
            let installed = self.enter(&mut entries, &request);
            drop(entries);
            match installed {
                Installed::Done(lost) => {
                    self.granted(&request, &lost);
                    Ok(())
                }
                // A downgrade never waits: a lease that must be split first is unlocked in parts first.
                Installed::Pinned(_) => Err(Errno::EBUSY),
            }
        })
    }
}

/// What came of putting a granted request into the table.
enum Installed {
    /// Done; these leases were lost although pins live under them.
    Done(Vec<Arc<Lease>>),
    /// Nothing done: pins live under these leases, which would lose strength or be split.
    Pinned(Vec<Arc<Lease>>),
}
