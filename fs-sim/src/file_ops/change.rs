//! The driver of layout changes: ticket, leases, doors, verdict, publication, release of blocks.
//!
//! It owns the order of SEMANTICS section 4. Invariants: a change that fails was never visible; a block goes to the
//! allocator only with a token that proves its pages frozen (the `proceed` choices forge one); no lock is held over a wait;
//! after every wait everything is judged again. Kernel counterpart: `xfs_break_layouts` and `dax_layout_busy_page` around
//! `xfs_setattr_size`, `xfs_file_fallocate`.

use emulator::ledger::Ownership;
use emulator::pin::{Closing, Frozen, Orphaned, PageRange};
use emulator::race_point;
use emulator::sync::{Arc, thread};
use emulator::wait::{Sleep, WaitFor};

use crate::Kernel;
use crate::design::ChangeRule;
use crate::errno::Errno;
use crate::extent_map::Layout;
use crate::holders::{Holder, HolderId};
use crate::inode::{Inode, TicketGuard};
use crate::lease::settle::Settled;
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::waits::{Ended, Look, Need};

/// What a change wants, judged against one layout.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The file blocks that are looked at for pins.
    pub(crate) range: BlockRange,
    /// The file blocks that leases must agree about. For [`Fate::TurnsUnwritten`] all of `range` once pins are met.
    pub(crate) touches: BlockRange,
    /// The device pages that are to be without pins when the change is published.
    pub(crate) leaving: Vec<PageRange>,
    /// What becomes of them.
    pub(crate) fate: Fate,
    /// How many new blocks are needed.
    pub(crate) blocks: u64,
}

/// What becomes of the pages that a plan names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They leave the file, or their place in it.
    Leaves,
    /// They stay, and turn unwritten.
    TurnsUnwritten,
}

impl Plan {
    /// Blocks are added, none leaves.
    pub(crate) fn growth(touches: BlockRange, blocks: u64) -> Plan {
        Plan { range: touches, touches, leaving: Vec::new(), fate: Fate::Leaves, blocks }
    }

    /// Blocks leave.
    pub(crate) fn departure(touches: BlockRange, leaving: Vec<PageRange>) -> Plan {
        Plan { range: touches, touches, leaving, fate: Fate::Leaves, blocks: 0 }
    }
}

/// What a change is given when everybody has agreed.
pub(crate) struct Ready<'a> {
    /// The new blocks.
    pub(crate) fresh: &'a [PageRange],
    /// The pages that meet their fate: for [`Fate::TurnsUnwritten`] without those that pins keep written.
    pub(crate) gone: &'a [PageRange],
}

/// A layout change. Judged by effect: the same call can be one or not.
pub(crate) trait Change {
    /// What it would do to `layout`; none if that is nothing.
    ///
    /// # Errors
    /// Whatever the call can fail with before anything is decided.
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno>;

    /// The layout after it. Everybody has agreed, the pages that leave are shut, and it can't fail any more: the place to
    /// prepare blocks that nobody else can reach yet.
    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout;
}

/// Whether a change may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For the ticket, leases and pins, interruptibly.
    Waits,
    /// For nothing: a fault or a pin that must allocate gets ETXTBSY under a conflict.
    Never,
}

/// How many separate runs of pages one change may shut: half of what the marks in a parent's word can count, so that two
/// such changes can go on at once under one 1 GiB folio. A file in more pieces is taken down in steps.
pub(crate) const CLOSINGS_MAX: usize = 1 << 14;

/// What the committed holders of the leaving pages come to under the design.
#[derive(Debug, Default)]
struct Verdict {
    /// Everybody who was judged: whoever else appears makes it void.
    judged: Vec<HolderId>,
    wait_for: Vec<Arc<Holder>>,
    revoke: Vec<Arc<Holder>>,
    /// Pages that are freed although pinned.
    forged: Vec<PageRange>,
    /// Pages that are kept for their holders.
    orphaned: Vec<PageRange>,
}

/// Pages on their way out.
enum Departing<'t> {
    Freed(Frozen<'t>),
    Orphaned(PageRange, Orphaned<'t>),
}

/// Everything that leaves, ready to go; the inode's pinners are told that doors are shut until it is gone.
struct Cleared<'t> {
    departing: Vec<Departing<'t>>,
    /// Pages that would have turned unwritten, were they not pinned: overwritten with zeros instead.
    kept: Vec<PageRange>,
    _doors: Option<Doors<'t>>,
}

/// New blocks for a change; given back if it does not come to that.
struct Fresh<'k> {
    kernel: &'k Kernel,
    inode: &'k Inode,
    pages: Vec<PageRange>,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for pages in self.pages.drain(..) {
            self.kernel.free_unreached(self.inode, pages);
        }
    }
}

/// Pages that are shut, and how they are to leave.
struct Doors<'t> {
    inode: &'t Inode,
    free: Vec<Closing<'t>>,
    orphan: Vec<Closing<'t>>,
}

impl Drop for Doors<'_> {
    fn drop(&mut self) {
        self.free.clear();
        self.orphan.clear();
        self.inode.ticket.door_reopened();
    }
}

impl Task {
    /// Runs a layout change. True if it changed anything.
    pub(crate) fn change(&self, inode: &Arc<Inode>, change: &dyn Change, patience: Patience) -> Result<bool, Errno> {
        let kernel = self.kernel();
        if inode.layout(|layout| change.plan(layout))?.is_none() {
            return Ok(false);
        }
        let ticket = match patience {
            Patience::Waits => inode.ticket.take(self)?,
            Patience::Never => inode.ticket.take_unless_waiting(self)?,
        };
        let generation = inode.generation();
        let outcome = self.change_under(&ticket, inode, change, patience);
        inode.leases.change_over();
        if outcome.is_err() && inode.generation() != generation {
            kernel.violated(format!("invariant 8: a failed change of inode {} was visible", inode.ino().0));
        }
        outcome
    }

    fn change_under(
        &self,
        ticket: &TicketGuard<'_>,
        inode: &Arc<Inode>,
        change: &dyn Change,
        patience: Patience,
    ) -> Result<bool, Errno> {
        let kernel = self.kernel();
        loop {
            let Some(mut plan) = inode.layout(|layout| change.plan(layout))? else {
                return Ok(false);
            };
            if plan.fate == Fate::TurnsUnwritten && !inode.holders.holding(plan.range, &plan.leaving).is_empty() {
                plan.touches = plan.range;
            }
            if patience == Patience::Never {
                self.settle_without_waiting(inode, &plan)?;
            } else if let Settled::InTheWay(leases) = self.settle(inode, ticket, plan.touches, &plan.leaving)? {
                self.wait_for_leases(inode, &leases)?;
                continue;
            }
            race_point!("change: settled, not shut");
            let mut fresh = kernel.fresh(inode, plan.blocks)?;
            let Some(cleared) = self.clear_pages(inode, ticket, &plan)? else {
                continue;
            };
            race_point!("change: shut, not published");
            for pages in &cleared.kept {
                // The pages are the volume's own: the device has them.
                let _in_range = kernel.device.zero(*pages);
            }
            let gone = without(&plan.leaving, &cleared.kept);
            {
                let ready = Ready { fresh: &fresh.pages, gone: &gone };
                let _publishing = inode.map_lock.lock();
                let next = inode.layout(|layout| change.apply(kernel, layout, &ready));
                inode.publish(next);
            }
            fresh.pages.clear();
            race_point!("change: published, not freed");
            kernel.depart(inode, cleared, plan.fate);
            kernel.trace("layout changed", self.pid().0.into(), inode.ino().0, plan.leaving.first().copied());
            return Ok(true);
        }
    }

    /// A fault's way through the leases: any conflict refuses it, and nobody is signalled.
    fn settle_without_waiting(&self, inode: &Inode, plan: &Plan) -> Result<(), Errno> {
        if self.leases_conflict(inode, plan.touches) { Err(Errno::ETXTBSY) } else { Ok(()) }
    }

    /// Shuts the pages that leave and lets the design judge the pins found. None: something was waited for, settle again.
    fn clear_pages<'t>(
        &'t self,
        inode: &'t Inode,
        ticket: &TicketGuard<'_>,
        plan: &Plan,
    ) -> Result<Option<Cleared<'t>>, Errno> {
        let kernel = self.kernel();
        if plan.leaving.is_empty() {
            return Ok(Some(Cleared { departing: Vec::new(), kept: Vec::new(), _doors: None }));
        }
        if plan.leaving.len() > CLOSINGS_MAX {
            return Err(Errno::ENOMEM);
        }
        let axes = &kernel.axes;
        // Nothing that only turns unwritten is freed, so there is nothing to go blindly about.
        let leaves = plan.fate == Fate::Leaves;
        let blind = leaves && axes.stranger_change == ChangeRule::Proceed && axes.holder_change == ChangeRule::Proceed;
        let mut expected = if blind { Verdict::default() } else { self.decide(inode, plan)? };
        if !expected.wait_for.is_empty() {
            inode.set_waiting(ticket, plan.touches);
            self.wait_for_holders(inode, plan, &expected.wait_for)?;
            return Ok(None);
        }
        if blind || (leaves && kernel.sabotage.free_without_close) {
            let forged = plan.leaving.iter().map(|pages| Departing::Freed(kernel.pins.forge(*pages)));
            return Ok(Some(Cleared { departing: forged.collect(), kept: Vec::new(), _doors: None }));
        }
        if plan.touches.is_empty() && !expected.judged.is_empty() {
            // Pins came since the plan was made: now it is a change, and the leases are to be asked.
            return Ok(None);
        }
        let Some(mut doors) = self.shut(inode, plan, &expected) else {
            if self.waiter().interrupted(Sleep::Interruptible) {
                return Err(Errno::EINTR);
            }
            thread::yield_now();
            return Ok(None);
        };
        if doors.free.iter().chain(&doors.orphan).any(|closing| !closing.census().is_zero()) {
            kernel.counters.closes_met_pin.add(1);
        }
        if !expected.revoke.is_empty() {
            // Their accesses in flight take their time.
            inode.set_waiting(ticket, plan.touches);
        }
        if !self.drain(inode, plan, &expected, &doors)? {
            return Ok(None);
        }
        let mut departing = Vec::with_capacity(plan.leaving.len());
        for closing in doors.free.drain(..) {
            match closing.freeze() {
                Ok(frozen) => departing.push(Departing::Freed(frozen)),
                // Pinned for a file that the pages belonged to before: only where somebody may proceed.
                Err(closing) if kernel.tolerates_pins() => expected.forged.push(closing.range()),
                // A pin that came, met the door and is about to undo itself: look again.
                Err(_) => return Ok(None),
            }
        }
        let mut kept = Vec::new();
        match plan.fate {
            Fate::TurnsUnwritten => {
                kept.append(&mut expected.orphaned);
                kept.append(&mut expected.forged);
            }
            Fate::Leaves => {
                for closing in doors.orphan.drain(..) {
                    departing.push(Departing::Orphaned(closing.range(), closing.orphan()));
                }
                departing.extend(expected.forged.iter().map(|pages| Departing::Freed(kernel.pins.forge(*pages))));
            }
        }
        Ok(Some(Cleared { departing, kept, _doors: Some(doors) }))
    }

    /// Judges the committed holders of the leaving pages.
    fn decide(&self, inode: &Inode, plan: &Plan) -> Result<Verdict, Errno> {
        let kernel = self.kernel();
        let mut verdict = Verdict::default();
        let mut waits_for_itself = false;
        for holder in inode.holders.holding(plan.range, &plan.leaving) {
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
                ChangeRule::Orphan => verdict.orphaned.extend(common(&holder.pages, &plan.leaving)),
                ChangeRule::Proceed => verdict.forged.extend(common(&holder.pages, &plan.leaving)),
            }
        }
        if waits_for_itself {
            kernel.counters.deadlocks.add(1);
            return Err(Errno::EDEADLK);
        }
        merge(&mut verdict.orphaned);
        merge(&mut verdict.forged);
        // A page that one holder keeps is kept.
        verdict.forged = without(&verdict.forged, &verdict.orphaned);
        Ok(verdict)
    }

    /// Shuts all pages that are to be frozen or orphaned. None if another closing is in the way for the moment.
    fn shut<'t>(&'t self, inode: &'t Inode, plan: &Plan, verdict: &Verdict) -> Option<Doors<'t>> {
        let pins = &self.kernel().pins;
        inode.ticket.shut_door();
        let mut doors = Doors { inode, free: Vec::new(), orphan: Vec::new() };
        let kept_or_forged: Vec<PageRange> = verdict.orphaned.iter().chain(&verdict.forged).copied().collect();
        for pages in without(&plan.leaving, &kept_or_forged) {
            doors.free.push(pins.close(pages).ok()?);
            race_point!("change: some pages shut");
        }
        for pages in &verdict.orphaned {
            doors.orphan.push(pins.close(*pages).ok()?);
        }
        Some(doors)
    }

    /// With the doors shut: revokes what is to be revoked, and waits until short-term pins (and those revoked) are gone.
    /// False if a holder appeared or left meanwhile whom the verdict did not know: judge again.
    fn drain(&self, inode: &Inode, plan: &Plan, expected: &Verdict, doors: &Doors<'_>) -> Result<bool, Errno> {
        let kernel = self.kernel();
        for holder in &expected.revoke {
            kernel.revoke(holder);
        }
        let unknown = || {
            let holders = inode.holders.holding(plan.range, &plan.leaving);
            holders.iter().any(|holder| !expected.judged.contains(&holder.id))
        };
        // Where somebody may go on over pins, those of nobody's judging are left alone: they can be of another file's holder.
        let shorts_only = kernel.tolerates_pins();
        let revoked_left = || {
            let holders = inode.holders.holding(plan.range, &plan.leaving);
            holders.iter().any(|holder| expected.revoke.iter().any(|revoked| revoked.id == holder.id))
        };
        let how = WaitFor::interruptible("pins draining");
        let outcome = self.block_on(kernel.pins.drained(), how, || {
            if unknown() {
                return Look::Ready(false);
            }
            let busy = (shorts_only && revoked_left())
                || doors.free.iter().any(|closing| closing.flag_waiter(shorts_only))
                || doors.orphan.iter().any(|closing| closing.flag_waiter(true));
            if busy { Look::Blocked(Vec::new()) } else { Look::Ready(true) }
        });
        match outcome {
            Ok(drained) => Ok(drained),
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
        }
    }

    /// With the doors open: waits until none of `holders` is left.
    fn wait_for_holders(&self, inode: &Inode, plan: &Plan, holders: &[Arc<Holder>]) -> Result<(), Errno> {
        let kernel = self.kernel();
        kernel.counters.waits_for_long_term_pin.add(1);
        let awaited: Vec<HolderId> = holders.iter().map(|holder| holder.id).collect();
        let how = WaitFor::interruptible("long-term pins");
        let outcome = self.block_on(&inode.holders.changed, how, || {
            let left = inode.holders.holding(plan.range, &plan.leaving);
            let left: Vec<_> = left.iter().filter(|holder| awaited.contains(&holder.id)).collect();
            if left.is_empty() {
                return Look::Ready(());
            }
            Look::Blocked(left.iter().map(|holder| Need::any_of(holder.object.describe().processes)).collect())
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Interrupted | Ended::TimedOut) => Err(Errno::EINTR),
            Err(Ended::Deadlock) => Err(Errno::EDEADLK),
        }
    }
}

impl Kernel {
    /// Whether somebody may go on over pins: then pages can carry pins of files they no longer belong to.
    fn tolerates_pins(&self) -> bool {
        self.axes.stranger_change == ChangeRule::Proceed || self.axes.holder_change == ChangeRule::Proceed
    }

    /// Stamps and lets go of pages that have left a file.
    fn depart(&self, inode: &Inode, cleared: Cleared<'_>, fate: Fate) {
        for pages in cleared.departing {
            match pages {
                Departing::Freed(frozen) if fate == Fate::TurnsUnwritten => drop(frozen),
                Departing::Freed(frozen) => self.free(frozen),
                Departing::Orphaned(pages, orphaned) => self.leave_behind(inode, pages, orphaned),
            }
        }
    }

    /// Pages without a file that are pinned: listed once the door is open, so that no reaper meets it, and then looked at,
    /// whatever the reopening says: those that nothing pins have nobody else to free them.
    fn leave_behind(&self, inode: &Inode, pages: PageRange, orphaned: Orphaned<'_>) {
        self.ledger.stamp(pages, Ownership::Orphaned);
        self.trace("orphaned", inode.ino().0, inode.ino().0, Some(pages));
        let _last_left_meanwhile = orphaned.reopen();
        self.orphans.insert(pages);
        self.reap_orphans(pages);
    }

    /// Gives blocks to the allocator; invariant 1 is checked here.
    pub(crate) fn free(&self, frozen: Frozen<'_>) {
        let pages = frozen.range();
        self.ledger.stamp(pages, Ownership::Changed);
        self.trace("freed", 0, 0, Some(pages));
        // Behind a door that is really shut a count can only be a refused pin on its way to undo itself.
        if !self.tolerates_pins() && frozen.is_forged() && !self.pins.census(pages).is_zero() {
            self.violated(format!(
                "invariant 1: device pages {}..{} went to the allocator while pinned",
                pages.start(),
                pages.end()
            ));
        }
        self.allocator.free(frozen);
    }

    /// New blocks for a change of `inode`, near its others.
    fn fresh<'k>(&'k self, inode: &'k Inode, blocks: u64) -> Result<Fresh<'k>, Errno> {
        let pages = match blocks {
            0 => Vec::new(),
            // Refused before it takes what is left away from everybody for a moment.
            _ if blocks > self.allocator.free_blocks() => return Err(Errno::ENOSPC),
            _ => self.allocator.alloc(blocks, crate::volume::GroupHint(inode.ino().0)).map_err(|_| Errno::ENOSPC)?,
        };
        Ok(Fresh { kernel: self, inode, pages })
    }

    /// Gives back blocks that no file ever reached.
    fn free_unreached(&self, inode: &Inode, pages: PageRange) {
        match self.depart_unconditionally(pages) {
            Departing::Freed(frozen) => self.free(frozen),
            // Somebody with a map of long ago is just about to undo a pin.
            Departing::Orphaned(pages, orphaned) => self.leave_behind(inode, pages, orphaned),
        }
    }

    /// Frees what was orphaned in `pages` and is pinned no longer.
    pub(crate) fn reap_orphans(&self, pages: PageRange) {
        self.orphans.reap(pages, &self.pins, |frozen| self.free(frozen));
    }

    /// Evicts an inode without a name and without an open file. Never fails nor waits: what is pinned becomes orphaned
    /// (unless the design lets strangers proceed).
    pub(crate) fn evict(self: &Arc<Self>, inode: &Arc<Inode>) {
        let leaving: Vec<PageRange> =
            inode.layout(|layout| layout.extents().map(|extent| crate::gup::pages_of(&extent)).collect());
        self.trace("evicted", inode.ino().0, inode.ino().0, leaving.first().copied());
        inode.ticket.shut_door();
        {
            let _publishing = inode.map_lock.lock();
            inode.publish(Layout::default());
        }
        // Nobody has the file open: what still pins it is long-term, or about to find the map changed. One range at a time, so
        // that no number of extents is too many.
        for pages in leaving {
            let departing = match self.axes.stranger_change {
                ChangeRule::Proceed => Departing::Freed(self.pins.forge(pages)),
                _ => self.depart_unconditionally(pages),
            };
            let cleared = Cleared { departing: vec![departing], kept: Vec::new(), _doors: None };
            self.depart(inode, cleared, Fate::Leaves);
        }
        inode.ticket.door_reopened();
        self.inodes.remove(inode.ino());
    }

    fn depart_unconditionally(&self, pages: PageRange) -> Departing<'_> {
        loop {
            // Contended only by a reaper or by a change elsewhere under the same folio, which is about to finish.
            let Ok(closing) = self.pins.close(pages) else {
                thread::yield_now();
                continue;
            };
            return match closing.freeze() {
                Ok(frozen) => Departing::Freed(frozen),
                Err(closing) => Departing::Orphaned(pages, closing.orphan()),
            };
        }
    }
}

/// The pages that both lists name.
fn common(held: &[PageRange], leaving: &[PageRange]) -> Vec<PageRange> {
    held.iter().flat_map(|held| leaving.iter().filter_map(|pages| held.intersect(*pages))).collect()
}

/// Sorts and joins overlapping and touching ranges.
fn merge(ranges: &mut Vec<PageRange>) {
    ranges.sort_unstable_by_key(|range| range.start());
    let mut merged: Vec<PageRange> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = PageRange::new(last.start(), last.end().max(range.end()) - last.start());
            }
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

/// `ranges` without whatever `taken` names.
fn without(ranges: &[PageRange], taken: &[PageRange]) -> Vec<PageRange> {
    let mut left: Vec<PageRange> = ranges.to_vec();
    for hole in taken {
        left = left
            .into_iter()
            .flat_map(|range| {
                let Some(cut) = range.intersect(*hole) else {
                    return [Some(range), None];
                };
                let head = PageRange::new(range.start(), cut.start() - range.start());
                let tail = PageRange::new(cut.end(), range.end() - cut.end());
                [Some(head).filter(|r| !r.is_empty()), Some(tail).filter(|r| !r.is_empty())]
            })
            .flatten()
            .collect();
    }
    left
}
