//! The driver of layout changes: ticket, leases, doors, verdict, publication, release of blocks.
//!
//! It owns the order of SEMANTICS section 4, for changes of one file and of two at once. Invariants: a change that fails was
//! never visible; a block goes to the allocator only with a token that proves its pages frozen (the `proceed` choices forge
//! one); no lock is held over a wait; after every wait everything is judged again; two files are always gone through in the
//! order of their inodes' numbers. Kernel counterpart: `xfs_break_layouts` and `dax_layout_busy_page` around
//! `xfs_setattr_size`, `xfs_file_fallocate`, `xfs_file_remap_range`.
//!
//! # Stamps
//! Pages that leave are stamped after the map is published and before the allocator has them. Pages that *move* (to another
//! offset or file, or that become shared, which gives them an owner more **\[chosen\]**) stay shut until the new map is there,
//! and are stamped before it is published: whoever pins them by the new map draws his read point after the stamp, or finds
//! the generation changed.

use emulator::ledger::Ownership;
use emulator::pin::{Closing, PageRange};
use emulator::race_point;
use emulator::sync::{Arc, thread};
use emulator::wait::{SleepKind, WaitFor};

use super::departing::Departing;
use super::pages::{common, merge, without};
use super::plan::{Fate, Work};
use crate::Kernel;
use crate::design::ChangeRule;
use crate::errno::Errno;
use crate::extent_map::Layout;
use crate::holders::{Holder, HolderId};
use crate::inode::{Inode, TicketGuard};
use crate::lease::settle::Settled;
use crate::process::Pid;
use crate::process::task::Task;
use crate::range::BlockRanges;
use crate::waits::{Ended, Look, Need};

pub(crate) use super::plan::Plan;

/// What a change is given when everybody has agreed.
pub(crate) struct Ready<'a> {
    /// The new blocks that the plan asked for.
    pub(crate) fresh: &'a [PageRange],
    /// Of the pages that turn unwritten, those that pins don't keep written.
    pub(crate) gone: &'a [PageRange],
}

/// A layout change of one file. Judged by effect: the same call can be one or not.
pub(crate) trait Change {
    /// What it would do to `layout`; none if that is nothing.
    ///
    /// # Errors
    /// Whatever the call can fail with before anything is decided.
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno>;

    /// The layout after it. Everybody has agreed, the pages that leave are shut, what it writes is the file's alone, and it
    /// can't fail any more: the place to prepare blocks that nobody else can reach yet.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout;
}

/// A layout change of one or two files, given in the order of their inodes' numbers.
pub(crate) trait Joint {
    /// As [`Change::plan`], one for each file.
    ///
    /// # Errors
    /// As for [`Change::plan`].
    fn plan(&self, kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<Plan>>, Errno>;

    /// Whether it is still to be done, now that nobody can write what it looks at. Since it was planned, unwritten blocks may
    /// have turned written, and nothing else has changed.
    ///
    /// # Errors
    /// EIO: what it looks at is poisoned.
    fn holds(&self, _kernel: &Kernel, _planned: &[Layout], _layouts: &[Layout]) -> Result<Holds, Errno> {
        Ok(Holds::Yes)
    }

    /// As [`Change::apply`], one for each file.
    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &Ready<'_>) -> Vec<Layout>;
}

/// What a change finds when everything is shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// It is to be done.
    Yes,
    /// There is nothing to be done.
    No,
    /// It is to be planned again.
    Again,
}

/// A change of one file as the driver sees it.
struct Single<'a>(&'a dyn Change);

impl Joint for Single<'_> {
    fn plan(&self, _kernel: &Kernel, layouts: &[Layout]) -> Result<Option<Vec<Plan>>, Errno> {
        Ok(self.0.plan(&layouts[0])?.map(|plan| vec![plan]))
    }

    fn apply(&self, kernel: &Kernel, layouts: &[Layout], ready: &Ready<'_>) -> Vec<Layout> {
        vec![self.0.apply(kernel, &layouts[0], ready)]
    }
}

/// Whether a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For the ticket, leases and pins, interruptibly.
    Waits,
    /// For nothing but what is about to finish: a fault or a pin that must allocate gets ETXTBSY under a conflict.
    Never,
}

impl Patience {
    fn drains(self) -> WaitFor {
        match self {
            Patience::Waits => WaitFor::interruptible(DRAINING),
            // A fault has no way to report an interruption.
            Patience::Never => WaitFor::killable(DRAINING),
        }
    }
}

/// Why a change waits with its doors shut.
const DRAINING: &str = "pins draining";

/// How many separate runs of pages one change may shut: half of what the marks in a parent's word can count, so that two
/// such changes can go on at once under one 1 GiB folio. A file in more pieces is taken down in steps.
pub(crate) const CLOSINGS_MAX: usize = 1 << 14;

/// What the committed holders of the judged pages come to under the design.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Everybody who was judged: whoever else appears makes it void.
    judged: Vec<HolderId>,
    wait_for: Vec<Arc<Holder>>,
    pub(super) revoke: Vec<Arc<Holder>>,
    /// Pages that are freed or moved although pinned.
    forged: Vec<PageRange>,
    /// Pages that are kept for their holders.
    orphaned: Vec<PageRange>,
}

/// A part of the work behind a shut door.
struct Shut<'t> {
    closing: Closing<'t>,
    fate: Fate,
    /// Its long-term pins stay.
    orphan: bool,
}

/// Pages that are shut, and how they are to leave; the inode's pinners are told until it is gone.
struct Doors<'t> {
    inode: &'t Inode,
    shut: Vec<Shut<'t>>,
}

impl Drop for Doors<'_> {
    fn drop(&mut self) {
        self.shut.clear();
        self.inode.ticket.door_reopened();
    }
}

/// Everything that leaves one file, ready to go.
struct Cleared<'t> {
    departing: Vec<Departing<'t>>,
    /// Pages that would have turned unwritten, were they not pinned: overwritten with zeros instead.
    kept: Vec<PageRange>,
    /// Pages that stay behind for their holders.
    orphaned: Vec<PageRange>,
    _doors: Option<Doors<'t>>,
}

impl Task {
    /// Runs a layout change. True if it changed anything.
    pub(crate) fn change(&self, inode: &Arc<Inode>, change: &dyn Change, patience: Patience) -> Result<bool, Errno> {
        if inode.layout(|layout| change.plan(layout))?.is_none() {
            return Ok(false);
        }
        self.change_jointly(&[inode], &Single(change), patience)
    }

    /// Runs a layout change of one or two files, which are in the order of their numbers. True if it changed anything.
    pub(crate) fn change_jointly(
        &self,
        inodes: &[&Arc<Inode>],
        change: &dyn Joint,
        patience: Patience,
    ) -> Result<bool, Errno> {
        let kernel = self.kernel();
        let mut tickets: Vec<TicketGuard<'_>> = Vec::with_capacity(inodes.len());
        for inode in inodes {
            let ticket = match (patience, tickets.is_empty()) {
                (Patience::Never, _) => inode.ticket.take_unless_waiting(self)?,
                (Patience::Waits, true) => inode.ticket.take(self)?,
                (Patience::Waits, false) => match inode.ticket.try_take(self.waiter().id()) {
                    Some(ticket) => ticket,
                    None => {
                        // Who has it may wait for long: faults must not wait for us in front of the first file meanwhile.
                        tickets
                            .iter()
                            .zip(inodes)
                            .for_each(|(held, inode)| inode.set_waiting(held, &BlockRanges::default(), &[]));
                        inode.ticket.take(self)?
                    }
                },
            };
            tickets.push(ticket);
        }
        let sides: Vec<(&Inode, &TicketGuard<'_>)> = inodes.iter().map(|inode| inode.as_ref()).zip(&tickets).collect();
        let generations: Vec<u64> = inodes.iter().map(|inode| inode.generation()).collect();
        let outcome = self.change_under(&sides, change, patience);
        for (inode, generation) in inodes.iter().zip(generations) {
            inode.leases.change_over();
            if outcome.is_err() && inode.generation() != generation {
                kernel.violated(format!("invariant 8: a failed change of inode {} was visible", inode.ino().0));
            }
        }
        outcome
    }

    fn change_under(
        &self,
        sides: &[(&Inode, &TicketGuard<'_>)],
        change: &dyn Joint,
        patience: Patience,
    ) -> Result<bool, Errno> {
        let kernel = self.kernel();
        loop {
            // Each time: it may have been removed while this change waited.
            kernel.device_stays()?;
            let layouts: Vec<Layout> = sides.iter().map(|(inode, _)| inode.layout(Layout::clone)).collect();
            let Some(plans) = change.plan(kernel, &layouts)? else {
                return Ok(false);
            };
            let planned = plans.into_iter().zip(&layouts).zip(sides);
            let works: Vec<Work<'_>> =
                planned.map(|((plan, layout), side)| Work::new(plan, layout, &kernel.shares, *side)).collect();
            if works.iter().map(Work::closings).sum::<usize>() > CLOSINGS_MAX {
                return Err(Errno::ENOMEM);
            }
            works.iter().try_for_each(|work| work.check_copies(kernel))?;
            // A hint, before anybody is told or asked; what is free when it is needed decides.
            if works.iter().map(|work| work.blocks).sum::<u64>() > kernel.allocator.free_blocks() {
                return Err(Errno::ENOSPC);
            }
            if !self.settle_all(&works, patience)? {
                continue;
            }
            if !self.recall_layouts(&works, patience)? {
                continue;
            }
            race_point!("change: settled, not shut");
            let Some(verdicts) = self.decide_all(&works)? else { continue };
            if !self.unmap_guests(&works, &verdicts, patience)? {
                continue;
            }
            let needed = works.iter().zip(&verdicts).map(|(work, verdict)| work.blocks_with(&verdict.orphaned)).sum();
            let mut fresh = kernel.fresh(sides[0].0, needed)?;
            if !self.end_own_layouts(&works)? {
                continue;
            }
            let Some(cleared) = self.clear_pages(&works, verdicts, patience)? else {
                continue;
            };
            kernel.device_stays()?;
            race_point!("change: shut, not published");
            match kernel.publish(change, &layouts, &works, &cleared, &fresh.pages)? {
                Holds::Yes => {}
                Holds::No => return Ok(false),
                Holds::Again => continue,
            }
            fresh.pages.clear();
            race_point!("change: published, not freed");
            for (work, cleared) in works.iter().zip(cleared) {
                for departing in cleared.departing {
                    kernel.depart(work.inode, departing);
                }
                for pages in &work.released {
                    kernel.release_shared(work.inode, *pages);
                }
                let first = work.judged.first().copied();
                kernel.trace("layout changed", self.pid().0.into(), work.inode.ino().0, first);
            }
            return Ok(true);
        }
    }

    /// Asks every lease that has a say. False: something was waited for, plan again.
    fn settle_all(&self, works: &[Work<'_>], patience: Patience) -> Result<bool, Errno> {
        if patience == Patience::Never {
            // A fault's way: any conflict refuses it, and nobody is signalled.
            let conflict = works.iter().any(|work| self.leases_conflict(work.inode, &work.touches));
            return if conflict { Err(Errno::ETXTBSY) } else { Ok(true) };
        }
        let holders = |work: &Work<'_>| work.inode.holders.holding(work.range, &work.judged);
        if works.len() > 1 {
            // Whoever refuses does so before anybody is told, whichever file it is about.
            for work in works {
                self.may_settle(work.inode, &work.touches, &holders(work))?;
            }
        }
        let mut in_the_way = Vec::new();
        for work in works {
            match self.settle(work.inode, work.ticket, &work.touches, &holders(work))? {
                Settled::Clear => {}
                Settled::InTheWay(leases) => in_the_way.push((work.inode, leases)),
            }
        }
        if !in_the_way.is_empty() {
            say_waiting(works, |n| holders(&works[n]));
        }
        for (inode, leases) in &in_the_way {
            self.wait_for_leases(inode, leases)?;
        }
        Ok(in_the_way.is_empty())
    }

    /// Lets the design judge the pins on all pages concerned. None: some were waited for, plan again.
    fn decide_all(&self, works: &[Work<'_>]) -> Result<Option<Vec<Verdict>>, Errno> {
        let verdicts = works.iter().map(|work| self.decide(work)).collect::<Result<Vec<Verdict>, Errno>>()?;
        for (work, verdict) in works.iter().zip(&verdicts) {
            if !verdict.wait_for.is_empty() {
                say_waiting(works, |n| verdicts[n].wait_for.clone());
                self.wait_for_holders(work, &verdict.wait_for)?;
                return Ok(None);
            }
            if work.touches.is_empty() && !verdict.judged.is_empty() {
                // Pins came since the plan was made: now it is a change, and the leases are to be asked.
                return Ok(None);
            }
        }
        Ok(Some(verdicts))
    }

    /// Judges the committed holders of one file's pages.
    fn decide(&self, work: &Work<'_>) -> Result<Verdict, Errno> {
        let kernel = self.kernel();
        let mut verdict = Verdict::default();
        let blind = kernel.goes_blindly();
        let judged = if blind { &work.turning } else { &work.judged };
        if blind {
            verdict.forged = [&work.leaving[..], &work.moving].concat();
        }
        let mut waits_for_itself = false;
        for holder in work.inode.holders.holding(work.range, judged) {
            verdict.judged.push(holder.id);
            let own = holder.pid == self.pid();
            let rule = if own { kernel.axes.holder_change } else { kernel.axes.stranger_change };
            match rule {
                ChangeRule::Fail => return Err(Errno::ETXTBSY),
                ChangeRule::Wait => {
                    waits_for_itself |= own && holder.object.describe().processes == [self.pid()];
                    verdict.wait_for.push(holder);
                }
                ChangeRule::Revoke => verdict.revoke.push(holder),
                ChangeRule::Orphan => verdict.orphaned.extend(common(&holder.pages, judged)),
                ChangeRule::Proceed => verdict.forged.extend(common(&holder.pages, judged)),
            }
        }
        if waits_for_itself {
            self.note_self_deadlock("long-term pins");
            return Err(Errno::EDEADLK);
        }
        merge(&mut verdict.orphaned);
        // A page that one holder keeps is kept.
        verdict.forged = without(&verdict.forged, &verdict.orphaned);
        Ok(verdict)
    }

    /// Shuts all pages concerned and waits until those that must be are without pins. None: look again.
    fn clear_pages<'t>(
        &'t self,
        works: &[Work<'t>],
        verdicts: Vec<Verdict>,
        patience: Patience,
    ) -> Result<Option<Vec<Cleared<'t>>>, Errno> {
        let kernel = self.kernel();
        let mut doors: Vec<Option<Doors<'t>>> = Vec::with_capacity(works.len());
        for (work, verdict) in works.iter().zip(&verdicts) {
            let Some(shut) = kernel.shut(work, verdict) else {
                if patience == Patience::Waits && self.waiter().interrupted(SleepKind::Interruptible) {
                    return Err(Errno::EINTR);
                }
                drop(doors);
                thread::yield_now();
                return Ok(None);
            };
            doors.push(shut);
        }
        let all_shut = || doors.iter().flatten().flat_map(|doors| &doors.shut);
        if all_shut().any(|shut| !shut.closing.census().is_zero()) {
            kernel.counters.closes_met_pin.add(1);
        }
        if verdicts.iter().any(|verdict| !verdict.revoke.is_empty()) {
            // Their accesses in flight take their time.
            say_waiting(works, |n| verdicts[n].revoke.clone());
        }
        if all_shut().next().is_some() && !self.drain(works, &verdicts, &doors, patience)? {
            return Ok(None);
        }
        let sides = works.iter().zip(verdicts).zip(doors);
        Ok(sides.map(|((work, verdict), doors)| kernel.freeze(work, verdict, doors)).collect())
    }

    /// With the doors shut: revokes what is to be revoked, and waits until short-term pins (and those revoked) are gone.
    /// False if a holder appeared or left meanwhile whom the verdict did not know: judge again.
    fn drain(
        &self,
        works: &[Work<'_>],
        verdicts: &[Verdict],
        doors: &[Option<Doors<'_>>],
        patience: Patience,
    ) -> Result<bool, Errno> {
        let kernel = self.kernel();
        for holder in verdicts.iter().flat_map(|verdict| &verdict.revoke) {
            kernel.revoke(holder);
        }
        // Where somebody may go on over pins, those of nobody's judging are left alone: they can be of another file's holder.
        let shorts_only = kernel.tolerates_pins();
        let outcome = self.block_on(kernel.pins.drained(), patience.drains(), || {
            let mut busy = false;
            for (work, verdict) in works.iter().zip(verdicts) {
                let judged = if kernel.goes_blindly() { &work.turning } else { &work.judged };
                let holders = work.inode.holders.holding(work.range, judged);
                if holders.iter().any(|holder| !verdict.judged.contains(&holder.id)) {
                    return Look::Ready(Ok(false));
                }
                let revoked = |id: HolderId| verdict.revoke.iter().any(|revoked| revoked.id == id);
                busy |= shorts_only && holders.iter().any(|holder| revoked(holder.id));
            }
            for shut in doors.iter().flatten().flat_map(|doors| &doors.shut) {
                busy = busy || shut.closing.flag_waiter(shut.orphan || shorts_only);
            }
            if busy { self.drains_behind(works, doors) } else { Look::Ready(Ok(true)) }
        });
        match outcome {
            Ok(drained) => drained,
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
        }
    }

    /// Who could end the pins behind the doors: calls and DMA in progress end by themselves, direct I/O is its process's to
    /// complete. Ready with EDEADLK if only this very task could, whatever its patience.
    fn drains_behind(&self, works: &[Work<'_>], doors: &[Option<Doors<'_>>]) -> Look<Result<bool, Errno>> {
        for work in works {
            work.ticket.set_draining(work.concerns_clients());
        }
        let mut pages: Vec<PageRange> =
            doors.iter().flatten().flat_map(|doors| &doors.shut).map(|shut| shut.closing.range()).collect();
        merge(&mut pages);
        let mut pids: Vec<Pid> = self.kernel().io_on(&pages).iter().map(|io| io.pid).collect();
        pids.dedup();
        if pids.contains(&self.pid()) && self.process().waiters.lock().len() == 1 {
            self.note_self_deadlock(DRAINING);
            return Look::Ready(Err(Errno::EDEADLK));
        }
        Look::Blocked(pids.into_iter().map(|pid| Need::any_of(vec![pid])).collect())
    }

    /// With the doors open: waits until none of `holders` is left.
    fn wait_for_holders(&self, work: &Work<'_>, holders: &[Arc<Holder>]) -> Result<(), Errno> {
        self.kernel().counters.waits_for_long_term_pin.add(1);
        let awaited: Vec<HolderId> = holders.iter().map(|holder| holder.id).collect();
        let how = WaitFor::interruptible("long-term pins");
        let outcome = self.block_on(&work.inode.holders.changed, how, || {
            let left = work.inode.holders.holding(work.range, &work.judged);
            let left: Vec<_> = left.iter().filter(|holder| awaited.contains(&holder.id)).collect();
            if left.is_empty() {
                return Look::Ready(());
            }
            Look::Blocked(left.iter().map(|holder| Need::of_holder(holder)).collect())
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
        }
    }
}

/// Says of every file of a change that it waits, whichever of them it is for: new leases and long-term pins in its way are
/// refused, and a fault that must allocate there doesn't wait behind it.
/// `met` are the pins in the way of the `n`th.
pub(super) fn say_waiting(works: &[Work<'_>], met: impl Fn(usize) -> Vec<Arc<Holder>>) {
    for (n, work) in works.iter().enumerate() {
        work.inode.set_waiting(work.ticket, &work.touches, &met(n));
    }
}

impl Kernel {
    /// Whether nobody's pins have a say about blocks that leave or move. (Nothing that only turns unwritten is freed, so there
    /// is nothing to go blindly about.)
    pub(crate) fn goes_blindly(&self) -> bool {
        self.axes.stranger_change == ChangeRule::Proceed && self.axes.holder_change == ChangeRule::Proceed
    }

    /// Shuts all pages of one file that are to be frozen or orphaned. None if another closing is in the way for the moment;
    /// no doors if there is nothing to shut.
    fn shut<'t>(&'t self, work: &Work<'t>, verdict: &Verdict) -> Option<Option<Doors<'t>>> {
        if work.judged.is_empty() && work.losing_mark.is_empty() {
            return Some(None);
        }
        work.inode.ticket.shut_door();
        let mut doors = Doors { inode: work.inode, shut: Vec::new() };
        let apart = [&verdict.orphaned[..], &verdict.forged].concat();
        let fates = [
            (Fate::Leaves, &work.leaving),
            (Fate::Moves, &work.moving),
            (Fate::TurnsUnwritten, &work.turning),
            (Fate::LosesMark, &work.losing_mark),
        ];
        for (fate, pages) in fates {
            if self.sabotage.free_without_close && matches!(fate, Fate::Leaves | Fate::Moves) {
                continue;
            }
            for pages in without(pages, &apart) {
                doors.shut.push(Shut { closing: self.pins.close(pages).ok()?, fate, orphan: false });
                race_point!("change: some pages shut");
            }
            for pages in common(pages, &verdict.orphaned) {
                doors.shut.push(Shut { closing: self.pins.close(pages).ok()?, fate, orphan: true });
            }
        }
        Some(Some(doors))
    }

    /// Turns what is shut into what is ready to go. None if a pin that met the door is about to undo itself.
    fn freeze<'t>(&'t self, work: &Work<'_>, verdict: Verdict, mut doors: Option<Doors<'t>>) -> Option<Cleared<'t>> {
        let mut forged = verdict.forged;
        let (mut departing, mut held) = (Vec::new(), Vec::new());
        for shut in doors.iter_mut().flat_map(|doors| doors.shut.drain(..)) {
            let Shut { closing, fate, orphan } = shut;
            match fate {
                Fate::Leaves | Fate::Moves if orphan => {
                    departing.push(Departing::Orphaned(closing.range(), closing.orphan()));
                    continue;
                }
                // Zeroed behind the door instead, under its long-term pins.
                Fate::TurnsUnwritten | Fate::LosesMark if orphan => {
                    held.push(Shut { closing, fate, orphan });
                    continue;
                }
                _ => {}
            }
            match closing.freeze() {
                Ok(frozen) if fate == Fate::Leaves => departing.push(Departing::Freed(frozen)),
                Ok(frozen) => departing.push(Departing::Stays(frozen)),
                // Pinned for a file that the pages belonged to before: only where somebody may proceed.
                Err(closing) if self.tolerates_pins() => forged.push(closing.range()),
                Err(_) => return None,
            }
        }
        if let Some(doors) = &mut doors {
            doors.shut = held;
        }
        let freed =
            if self.sabotage.free_without_close { work.leaving.clone() } else { common(&work.leaving, &forged) };
        departing.extend(freed.iter().map(|pages| Departing::Freed(self.pins.forge(*pages))));
        let mut kept = common(&work.turning, &verdict.orphaned);
        kept.extend(common(&work.turning, &forged));
        Some(Cleared { departing, kept, orphaned: verdict.orphaned, _doors: doors })
    }

    /// Publishes and commits what a change makes of its files, if it still holds: everything is shut that has to be.
    ///
    /// The locks of two maps are taken in the order of their files and held together, so that no state turns in the one while
    /// the other is made from it, and nobody commits the one, by such a turn, without the other; nothing is waited for under
    /// them.
    ///
    /// # Errors
    /// EIO: what has to be copied or compared is poisoned. Nothing is published then.
    fn publish(
        &self,
        change: &dyn Joint,
        planned: &[Layout],
        works: &[Work<'_>],
        cleared: &[Cleared<'_>],
        fresh: &[PageRange],
    ) -> Result<Holds, Errno> {
        let _publishing: Vec<_> = works.iter().map(|work| work.inode.map_lock.lock()).collect();
        let layouts: Vec<Layout> = works.iter().map(|work| work.inode.layout(Layout::clone)).collect();
        let holds = change.holds(self, planned, &layouts)?;
        if holds != Holds::Yes {
            return Ok(holds);
        }
        let mut supply = super::pages::Supply::new(fresh);
        let sides = works.iter().zip(cleared).zip(&layouts);
        let prepared = sides
            .map(|((work, cleared), layout)| work.prepare(self, layout, &cleared.orphaned, &mut supply))
            .collect::<Result<Vec<Layout>, Errno>>()?;
        let mut gone = Vec::new();
        for (work, cleared) in works.iter().zip(cleared) {
            for pages in &cleared.kept {
                // The pages are the volume's own: the device has them.
                let _in_range = self.device.zero(*pages);
            }
            gone.extend(without(&work.turning, &cleared.kept));
        }
        let fresh = supply.rest();
        let next = change.apply(self, &prepared, &Ready { fresh: &fresh, gone: &gone });
        for (work, cleared) in works.iter().zip(cleared) {
            for pages in without(&work.moving, &cleared.orphaned) {
                self.ledger.stamp(pages, Ownership::Changed);
                self.trace("moved", work.inode.ino().0, work.inode.ino().0, Some(pages));
            }
        }
        for (work, next) in works.iter().zip(next) {
            work.inode.publish(next);
        }
        race_point!("change: published, not committed");
        let changed: Vec<&Inode> = works.iter().map(|work| work.inode).collect();
        self.journal.commit(&changed);
        Ok(Holds::Yes)
    }
}
