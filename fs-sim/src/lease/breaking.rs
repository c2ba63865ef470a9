//! Breaking leases: mark pending, tell the owner, wait, and what happens when the time is over.
//!
//! It owns the life of a break. Invariants: every break begun has somebody who waits for it or has given up; its deadline is
//! sampled when it starts; a lease whose time is over is handled by whoever waits for it, exactly once, under the table's
//! lock. Kernel counterpart: `__break_lease`, `time_out_leases` (fs/locks.c).

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use super::table::{BreakTo, Entry, State};
use super::{Kind, Lease, LeaseId, Mode};
use crate::Kernel;
use crate::design::{BreakTimeout, LeaseLost};
use crate::errno::Errno;
use crate::holders::Holder;
use crate::inode::Inode;
use crate::process::Pid;
use crate::process::signals::{Delivery, SigInfo, Signal};
use crate::process::task::Task;
use crate::waits::{Ended, Look, Need};

impl Kernel {
    /// The deadline of a break that starts now.
    fn break_deadline(&self) -> Option<Nanos> {
        let never = self.axes.break_timeout == BreakTimeout::Never
            || self.options.lease_break_time.is_zero()
            || self.sabotage.no_break_timeout;
        (!never).then(|| self.world.now().after(self.options.lease_break_time))
    }

    /// Marks an entry as being broken; the owner to be told, unless it was told of as much before.
    pub(crate) fn begin_break(&self, entry: &mut Entry, to: BreakTo) -> Option<Pid> {
        match entry.state {
            State::Held => {}
            State::Breaking { to: BreakTo::Read, .. } if to == BreakTo::Nothing => {}
            State::Breaking { .. } | State::Zombie => return None,
        }
        entry.state = State::Breaking { to, deadline: self.break_deadline(), killed: false };
        self.counters.lease_breaks.add(1);
        self.counters.notices_owed.add(1);
        match self.sabotage.signal_to_holder {
            true => entry.releasers().first().copied(),
            false => Some(entry.pid),
        }
    }

    /// Tells lease owners that their lease is being broken or was removed.
    pub(crate) fn tell_owners(self: &Arc<Self>, inode: &Inode, owners: &[Pid]) {
        for pid in owners {
            let info = SigInfo { signal: Signal::Sigio, ino: Some(inode.ino()) };
            let told = self.processes.get(*pid).is_some_and(|process| !process.is_dying());
            if told {
                self.counters.sigio_sent.add(1);
                if self.send_signal(*pid, info) == Delivery::Fatal {
                    self.trace("killed by SIGIO", pid.0.into(), inode.ino().0, None);
                }
            } else {
                self.counters.sigio_unsent.add(1);
            }
        }
    }

    /// A lease is gone although pins taken under it may live.
    pub(crate) fn lease_lost(self: &Arc<Self>, inode: &Inode, lease: &Arc<Lease>) {
        if self.axes.on_lease_lost == Some(LeaseLost::Abort) {
            for holder in inode.holders.under_lease(lease) {
                self.revoke(&holder);
            }
        }
    }

    /// A registration has been committed: a lease that went after its gate was passed and before anybody could name the new
    /// holder is lost for it as for the others.
    pub(crate) fn revoke_if_lease_lost(self: &Arc<Self>, inode: &Inode, holder: &Holder) {
        if self.axes.on_lease_lost != Some(LeaseLost::Abort) {
            return;
        }
        let lost = {
            let entries = inode.leases.lock();
            holder.leases.iter().any(|lease| !entries.iter().any(|entry| Arc::ptr_eq(&entry.lease, lease)))
        };
        if lost {
            self.revoke(holder);
        }
    }

    /// Takes away what was not given back in time: all entries in `targets` whose deadline has passed.
    fn time_out(self: &Arc<Self>, inode: &Inode, targets: &[LeaseId]) {
        let now = self.world.now();
        let mut lost = Vec::new();
        let mut to_kill = Vec::new();
        {
            let mut entries = inode.leases.lock();
            let restart = self.break_deadline();
            entries.retain_mut(|entry| {
                let State::Breaking { to, deadline: Some(deadline), killed } = entry.state else { return true };
                if deadline > now || !targets.contains(&entry.lease.id) {
                    return true;
                }
                if self.axes.break_timeout == BreakTimeout::Kill && !killed {
                    to_kill.push(entry.pid);
                    entry.state = State::Breaking { to, deadline: restart, killed: true };
                    return true;
                }
                self.counters.lease_timeouts.add(1);
                if to == BreakTo::Read {
                    entry.kind = Kind { mode: Mode::Read, ..entry.kind };
                    entry.state = State::Held;
                    return true;
                }
                let _count = entry.lease.gate.close();
                lost.push(Arc::clone(&entry.lease));
                false
            });
        }
        inode.leases.changed.wake_all();
        for pid in to_kill {
            self.send_signal(pid, SigInfo { signal: Signal::Sigkill, ino: Some(inode.ino()) });
        }
        for lease in lost {
            self.lease_lost(inode, &lease);
        }
    }
}

impl Task {
    /// Waits, interruptibly, until none of the leases `targets` stands in the way any more (`in_way` judges an entry),
    /// taking them by the design's rule when their time is over.
    pub(crate) fn wait_for_break(
        &self,
        inode: &Inode,
        targets: &[LeaseId],
        in_way: impl Fn(&Entry) -> bool,
    ) -> Result<(), Errno> {
        let kernel = self.kernel();
        loop {
            let pending = |entry: &&Entry| targets.contains(&entry.lease.id) && in_way(entry);
            let deadline = inode
                .leases
                .lock()
                .iter()
                .filter(pending)
                .filter_map(|entry| match entry.state {
                    State::Breaking { deadline, .. } => deadline,
                    State::Held | State::Zombie => None,
                })
                .min();
            let how = WaitFor::interruptible("lease break").until(deadline);
            let outcome = self.block_on(&inode.leases.changed, how, || {
                let held: Vec<Entry> = inode.leases.lock().iter().filter(pending).cloned().collect();
                let needs: Vec<Need> = held.iter().map(|entry| Need::any_of(entry.releasers())).collect();
                if needs.is_empty() { Look::Ready(()) } else { Look::Blocked(needs) }
            });
            match outcome {
                Ok(()) => return Ok(()),
                Err(Ended::TimedOut) => kernel.time_out(inode, targets),
                Err(Ended::Interrupted) => return Err(Errno::EINTR),
                Err(Ended::Deadlock) => return Err(Errno::EDEADLK),
            }
        }
    }
}
