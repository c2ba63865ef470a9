//! Taking a layout lease: the grant tables, conversion, downgrade.
//!
//! It owns the decision whether a request is granted, refused, or must first break other leases.
//! Invariants: a request that fails has changed no lease of the caller's; a conversion on one open
//! file is atomic; while a break is pending no third request is granted in its range. Kernel
//! counterpart: `generic_add_lease` (fs/locks.c) for the order of steps; the grant tables are the
//! proposals'.

use emulator::sync::{Arc, MutexGuard};
use emulator::wait::{WaitFor, WaiterId};

use crate::base::errno::Errno;
use crate::base::numbers::LeaseId;
use crate::base::range::BlockRange;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::Need;
use crate::design::LeaseRules;
use crate::holders::lease_gate::Lease;
use crate::holders::list::pin_holders;
use crate::leases::layout::breaking::{begin_break, leases_lost, wait_for_break};
use crate::leases::layout::kind::{LeaseKind, LeaseMode};
use crate::leases::layout::state::{LeaseEvent, LeaseState, change_state};
use crate::leases::layout::table::{BreakTo, LeaseEntry, LeaseTable, WaitingRequest, new_lease};
use crate::leases::layout::unlock::{reopen_gates, unlock_releases, wait_for_pinned_leases};
use crate::vfs::inode::Inode;
use crate::vfs::open_file::{AccessMode, Description};
use crate::vfs::signal_owner::BreakNotice;
use crate::vfs::task::Task;

/// What one lease in the way means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GrantAnswer {
    Grant,
    Refuse,
    Break(BreakTo),
}

/// The grant table of `man-page` rules, for a lease held by another open file and an overlapping
/// request.
fn man_page_answer(held: LeaseKind, asked: LeaseKind) -> GrantAnswer {
    match (held.mode, held.unbreakable, asked.mode) {
        (LeaseMode::Read, _, LeaseMode::Read) => GrantAnswer::Grant,
        (LeaseMode::Read, false, LeaseMode::Write) => GrantAnswer::Break(BreakTo::Nothing),
        (LeaseMode::Read, true, LeaseMode::Write) => GrantAnswer::Refuse,
        (LeaseMode::Write, false, LeaseMode::Read) => GrantAnswer::Break(BreakTo::Read),
        (LeaseMode::Write, false, LeaseMode::Write) => GrantAnswer::Break(BreakTo::Nothing),
        (LeaseMode::Write, true, _) => GrantAnswer::Refuse,
    }
}

/// Whether a lease still stands in the way of a request for `asked`.
fn stands_in_way(entry: &LeaseEntry, range: BlockRange, asked: LeaseKind) -> bool {
    entry.range.overlaps(range) && man_page_answer(entry.kind, asked) != GrantAnswer::Grant
}

/// Whether a request would renew a lease that is being broken. Its holder may only convert it to
/// what the break leaves, or unlock it.
fn renews_what_is_broken(entry: &LeaseEntry, request: &LeaseRequest<'_>) -> bool {
    if !entry.state().is_breaking() {
        return false;
    }
    let own = entry.file == request.description.id() && entry.range.overlaps(request.range);
    own && !(entry.state().leaves_read() && request.kind == LeaseKind::READ)
}

/// The tasks whose layout changes are not over and have finished judging leases in the request's
/// range.
fn settled_by(request: &LeaseRequest<'_>, entries: &MutexGuard<'_, Vec<LeaseEntry>>) -> Vec<WaiterId> {
    LeaseTable::of(request.inode).settled_in(entries, request.range)
}

/// A request whose arguments were checked.
pub(crate) struct LeaseRequest<'a> {
    pub(crate) inode: &'a Arc<Inode>,
    pub(crate) description: &'a Arc<Description>,
    pub(crate) kind: LeaseKind,
    pub(crate) range: BlockRange,
}

/// As the system call, on an open file that need not be in the caller's descriptor table.
pub(crate) fn lease_file(
    task: &Task,
    description: &Arc<Description>,
    inode: &Arc<Inode>,
    kind: LeaseKind,
    range: BlockRange,
) -> Result<(), Errno> {
    check_request(task, kind, range, AccessMode::BOTH)?;
    acquire(task, &LeaseRequest { inode, description, kind, range })
}

pub(crate) fn check_request(task: &Task, kind: LeaseKind, range: BlockRange, access: AccessMode) -> Result<(), Errno> {
    let rules = task.kernel().axes.lease_rules;
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

pub(crate) fn acquire(task: &Task, request: &LeaseRequest<'_>) -> Result<(), Errno> {
    let mut closed = Vec::new();
    let outcome = try_acquire(task, request, &mut closed);
    if outcome.is_err() && !closed.is_empty() {
        reopen_gates(request.inode, request.description.id());
    }
    outcome
}

/// As [`acquire`]. Collects in `closed` the leases whose gates it closed on the way, for a
/// conversion.
fn try_acquire(task: &Task, request: &LeaseRequest<'_>, closed: &mut Vec<Arc<Lease>>) -> Result<(), Errno> {
    let kernel = task.kernel();
    let mut broken_by_us: Vec<LeaseId> = Vec::new();
    let (file, kind, range) = (request.description.id(), request.kind, request.range);
    let waiting = WaitingRequest { task: task.waiter().id(), file, kind, range };
    let mut in_line = None;
    // First come, first served: a request that would conflict with one that already waits gets
    // EAGAIN.
    let overtakes = |asking: &WaitingRequest| {
        let at_odds = |a, b| man_page_answer(a, b) != GrantAnswer::Grant;
        asking.range.overlaps(request.range)
            && (at_odds(asking.kind, request.kind) || at_odds(request.kind, asking.kind))
    };
    let man_page = kernel.axes.lease_rules == LeaseRules::ManPage;
    if man_page && LeaseTable::of(request.inode).is_behind(request.description.id(), overtakes) {
        return Err(Errno::EAGAIN);
    }
    loop {
        if !only_weakens(request) {
            await_pending_change(task, request)?;
        }
        let mut notices = Vec::new();
        {
            let mut entries = LeaseTable::of(request.inode).lock();
            if !settled_by(request, &entries).is_empty() {
                drop(entries);
                wait_out_change(task, request)?;
                continue;
            }
            if entries.iter().any(|entry| renews_what_is_broken(entry, request)) {
                return Err(Errno::EAGAIN);
            }
            match kernel.axes.lease_rules {
                LeaseRules::Chinner => judge_chinner(task, &entries, request)?,
                LeaseRules::ManPage | LeaseRules::None => {
                    judge_man_page(task, &mut entries, request, &mut broken_by_us, &mut notices)?;
                }
            }
            let clear = !entries.iter().any(|entry| {
                broken_by_us.contains(&entry.lease.id) && stands_in_way(entry, request.range, request.kind)
            });
            if clear {
                let installed = install_lease(task, &mut entries, request);
                drop(entries);
                match installed {
                    InstallOutcome::Done(lost) => {
                        lease_granted(task, request, &lost);
                        return Ok(());
                    }
                    InstallOutcome::Pinned(leases) => {
                        wait_for_pinned_leases(task, request.inode, request.description.id(), &leases)?;
                        closed.extend(leases);
                        continue;
                    }
                }
            }
            // Before any owner can answer, and until the grant: a change that comes meanwhile comes
            // after it.
            in_line.get_or_insert_with(|| LeaseTable::of(request.inode).waits(waiting));
        }
        kernel.send_notices(request.inode.ino(), &notices);
        wait_for_break(task, request.inode, &broken_by_us, |entry| stands_in_way(entry, request.range, request.kind))?;
    }
}

/// Whether a request only weakens leases that its open file holds: it needs not wait for a change
/// that waits for just these leases.
fn only_weakens(request: &LeaseRequest<'_>) -> bool {
    let entries = LeaseTable::of(request.inode).lock();
    let own = || {
        let own = |entry: &&LeaseEntry| entry.file == request.description.id() && entry.state() == LeaseState::Held;
        entries.iter().filter(own).filter(|entry| entry.range.overlaps(request.range))
    };
    let weaker = |held: LeaseKind| {
        let mode = request.kind.mode == LeaseMode::Read || held.mode == LeaseMode::Write;
        request.kind != held && mode && (held.unbreakable || !request.kind.unbreakable)
    };
    own().all(|entry| weaker(entry.kind)) && request.range.is_covered_by(own().map(|entry| entry.range))
}

/// While a layout change waits, an overlapping request gets EAGAIN; under `chinner` rules it waits
/// for the change to finish.
fn await_pending_change(task: &Task, request: &LeaseRequest<'_>) -> Result<(), Errno> {
    let kernel = task.kernel();
    let pending = || request.inode.turn.refuses_in(request.range);
    if !pending() {
        return Ok(());
    }
    if kernel.axes.lease_rules != LeaseRules::Chinner {
        return Err(Errno::EAGAIN);
    }
    let own_pins = || {
        let holders = pin_holders(request.inode);
        let own_in = |range: BlockRange| holders.registered_in(range).iter().any(|holder| holder.pid == task.pid());
        request.inode.turn.refused_in(request.range).iter().any(own_in)
    };
    let how = WaitFor::interruptible("layout change that broke the lease");
    let outcome = task.block_on(request.inode.turn.changed(), how, || {
        if !pending() {
            WaitPoll::Ready(Ok(()))
        } else if task.is_alone() && own_pins() {
            task.note_self_deadlock("layout change that broke the lease");
            WaitPoll::Ready(Err(Errno::EDEADLK))
        } else {
            let changers = request.inode.turn.refusing_in(request.range);
            WaitPoll::Blocked(changers.into_iter().map(|task| Need::task(task).into()).collect())
        }
    });
    match outcome {
        Ok(result) => result,
        Err(WaitFailure::Deadlock) => Err(Errno::EDEADLK),
        Err(WaitFailure::Interrupted | WaitFailure::TimedOut) => Err(Errno::EINTR),
    }
}

/// A change has judged the leases that were there and is about to publish. A lease granted now
/// would be neither broken nor judged by it, so the request waits until the change is over.
fn wait_out_change(task: &Task, request: &LeaseRequest<'_>) -> Result<(), Errno> {
    let inode = request.inode;
    let how = WaitFor::interruptible("layout change under way");
    let outcome = task.block_on(&LeaseTable::of(inode).changed, how, || {
        let changers = settled_by(request, &LeaseTable::of(inode).lock());
        if changers.is_empty() || (inode.turn.refuses_in(request.range) && !only_weakens(request)) {
            WaitPoll::Ready(())
        } else {
            WaitPoll::Blocked(changers.into_iter().map(|task| Need::task(task).into()).collect())
        }
    });
    outcome.map_err(|ended| if ended == WaitFailure::Deadlock { Errno::EDEADLK } else { Errno::EINTR })
}

/// `chinner` rules: leases of different processes coexist, except write against write.
fn judge_chinner(task: &Task, entries: &[LeaseEntry], request: &LeaseRequest<'_>) -> Result<(), Errno> {
    let refused = request.kind.mode == LeaseMode::Write
        && !task.kernel().sabotage.no_lease_conflict
        && entries.iter().any(|entry| {
            entry.kind.mode == LeaseMode::Write && entry.pid != task.pid() && entry.range.overlaps(request.range)
        });
    if refused { Err(Errno::ETXTBSY) } else { Ok(()) }
}

/// `man-page` rules: first the refusals, then the breaks that this request must begin.
fn judge_man_page(
    task: &Task,
    entries: &mut [LeaseEntry],
    request: &LeaseRequest<'_>,
    broken_by_us: &mut Vec<LeaseId>,
    notices: &mut Vec<BreakNotice>,
) -> Result<(), Errno> {
    let foreign =
        |entry: &&mut LeaseEntry| entry.file != request.description.id() && entry.range.overlaps(request.range);
    let blind = task.kernel().sabotage.no_lease_conflict;
    let refuses = |e: &mut LeaseEntry| !blind && man_page_answer(e.kind, request.kind) == GrantAnswer::Refuse;
    if entries.iter_mut().filter(foreign).any(refuses) {
        return Err(Errno::ETXTBSY);
    }
    // A break that timed out and whose breaker gave up is carried out by the next request.
    let now = task.kernel().world.now();
    let pending_elsewhere = entries.iter_mut().filter(foreign).any(|e| {
        let in_time = e.deadline.is_none_or(|deadline| now < deadline);
        e.state().is_breaking() && in_time && !broken_by_us.contains(&e.lease.id)
    });
    if pending_elsewhere {
        return Err(Errno::EAGAIN);
    }
    for entry in entries.iter_mut().filter(foreign) {
        if let GrantAnswer::Break(to) = man_page_answer(entry.kind, request.kind) {
            notices.extend(begin_break(task.kernel(), entry, to));
            if !broken_by_us.contains(&entry.lease.id) {
                broken_by_us.push(entry.lease.id);
            }
        }
    }
    Ok(())
}

/// Converts what the open file holds in the range and adds what is missing. Where pins live under
/// a lease that would be weakened or split, `unlock_while_pinned` decides: unless it says
/// `release`, nothing is done.
pub(crate) fn install_lease(task: &Task, entries: &mut Vec<LeaseEntry>, request: &LeaseRequest<'_>) -> InstallOutcome {
    let kernel = task.kernel();
    let rules = kernel.axes.lease_rules;
    let own = |e: &LeaseEntry| {
        e.file == request.description.id() && e.state() != LeaseState::Zombie && e.range.overlaps(request.range)
    };
    let unchanged = |e: &LeaseEntry| e.kind == request.kind && e.state() == LeaseState::Held;
    let diminished = |e: &LeaseEntry| {
        let weaker = e.kind.is_exclusive(rules) && !request.kind.is_exclusive(rules);
        !unchanged(e) && (weaker || !request.range.contains(e.range))
    };
    if !unlock_releases(kernel) {
        let pinned = entries.iter().filter(|e| own(e) && diminished(e) && e.is_pinned());
        let pinned: Vec<Arc<Lease>> = pinned.map(|e| Arc::clone(&e.lease)).collect();
        if !pinned.is_empty() {
            return InstallOutcome::Pinned(pinned);
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
            change_state(kernel, &mut entry, LeaseEvent::Convert);
            kept.push(entry);
        } else {
            // The parts outside the request become leases of their own; pins taken under the old
            // lease have lost it.
            for range in entry.range.minus(request.range) {
                kept.push(LeaseEntry { lease: new_lease(kernel), range, ..entry.clone() });
            }
            change_state(kernel, &mut entry, LeaseEvent::Unlock);
            if entry.lease.gate.close().0 > 0 {
                lost.push(Arc::clone(&entry.lease));
            }
        }
    }
    for range in missing {
        kept.push(LeaseEntry {
            lease: new_lease(kernel),
            file: request.description.id(),
            fd_holders: Arc::clone(request.description.fd_holders()),
            signal_owner: Arc::clone(request.description.signal_owner()),
            pid: task.pid(),
            kind: request.kind,
            range,
            is_part: false,
            state: LeaseState::START,
            deadline: None,
        });
    }
    *entries = kept;
    InstallOutcome::Done(lost)
}

pub(crate) fn lease_granted(task: &Task, request: &LeaseRequest<'_>, lost: &[Arc<Lease>]) {
    let kernel = task.kernel();
    LeaseTable::of(request.inode).changed.wake_all();
    leases_lost(kernel, request.inode, lost);
    if request.kind.is_exclusive(kernel.axes.lease_rules) {
        let broken = pin_holders(request.inode).registered_in(request.range);
        let outlived = |lease: &Arc<Lease>| lease.gate.is_closed();
        if broken.iter().any(|holder| holder.pid != task.pid() && holder.leases.any(outlived)) {
            kernel.counters.broken_exclusivity.add(1);
        }
    }
    kernel.trace("lease granted", task.pid().0.into(), request.inode.ino().0, None);
}

/// The result of putting a granted request into the table.
pub(crate) enum InstallOutcome {
    /// It is in the table; these leases were lost although pins taken under them live.
    Done(Vec<Arc<Lease>>),
    /// Nothing was done: pins live under these leases, which would be weakened or split.
    Pinned(Vec<Arc<Lease>>),
}

/// Converts the write leases over the request's range to the weaker kind that it asks for. Never
/// waits.
///
/// # Errors
/// EAGAIN unless the open file holds unbroken write leases over all of the range, or while a layout
/// change that has judged the leases there is not over; EBUSY if pins live under a lease that would
/// be split.
pub(crate) fn downgrade(task: &Task, request: &LeaseRequest<'_>) -> Result<(), Errno> {
    let mut entries = LeaseTable::of(request.inode).lock();
    if !settled_by(request, &entries).is_empty() {
        // The change was judged against the write lease, and the weaker one might forbid it.
        return Err(Errno::EAGAIN);
    }
    let unbroken = entries.iter().filter(|entry| {
        entry.file == request.description.id()
            && entry.kind.mode == LeaseMode::Write
            && entry.state() == LeaseState::Held
    });
    if !request.range.is_covered_by(unbroken.map(|entry| entry.range)) {
        return Err(Errno::EAGAIN);
    }
    let installed = install_lease(task, &mut entries, request);
    drop(entries);
    match installed {
        InstallOutcome::Done(lost) => {
            lease_granted(task, request, &lost);
            Ok(())
        }
        // A downgrade never waits. The holder must first unlock the part of a pinned lease that
        // would be split off.
        InstallOutcome::Pinned(_) => Err(Errno::EBUSY),
    }
}
