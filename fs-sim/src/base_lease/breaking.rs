//! Breaking base leases: telling the owners, and waiting for them or for force.
//!
//! It owns the wait of an opener. Invariants: a break outlives the opener that gave up; its deadline is sampled when it begins;
//! whoever finds a break's time over carries it out, under the books' lock. Kernel counterpart: `__break_lease`,
//! `lease_break_callback`, `send_sigio` (fs/locks.c, fs/fcntl.c).

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use super::Type;
use super::table::{Books, Entry, Notice};
use crate::Kernel;
use crate::errno::Errno;
use crate::inode::Inode;
use crate::process::Pid;
use crate::process::signals::{Delivery, SigInfo};
use crate::process::task::Task;
use crate::waits::{Ended, Look, Need};

/// Why an opener sleeps.
const REASON: &str = "base lease break";

impl Kernel {
    /// Carries out the breaks of an inode whose time is over.
    pub(crate) fn time_out_base_leases(&self, inode: &Inode) {
        let forced = inode.base.lock().time_out(self.world.now());
        if forced > 0 {
            self.counters.lease_timeouts.add(forced);
            inode.base.changed.wake_all();
        }
    }

    /// Tells the owners of leases that are being broken.
    fn tell_base_owners(self: &Arc<Self>, inode: &Inode, notices: &[Notice]) {
        let owed = notices.len() as u64;
        self.counters.lease_breaks.add(owed);
        self.counters.notices_owed.add(owed);
        for Notice { to, signal } in notices {
            let process = to.and_then(|(pid, uid)| self.processes.get(pid).map(|process| (process, uid)));
            // Who is signalled on behalf of another user is not (`sigio_perm`), unless that user is root.
            let told = process
                .as_ref()
                .is_some_and(|(process, uid)| !process.is_dying() && (*uid == 0 || *uid == process.credentials().uid));
            let Some((process, _)) = process.filter(|_| told) else {
                self.counters.sigio_unsent.add(1);
                continue;
            };
            self.counters.sigio_sent.add(1);
            let info = SigInfo { signal: *signal, ino: Some(inode.ino()) };
            if self.send_signal(process.pid(), info) == Delivery::Fatal {
                self.trace("killed by a lease's signal", process.pid().0.into(), inode.ino().0, None);
            }
        }
    }

    /// Those who could give a base lease back: whoever has a descriptor for the open file or is about to receive one, or, if
    /// only mappings are left, whoever maps it.
    pub(crate) fn base_releasers(&self, entry: &Entry) -> Vec<Pid> {
        let mut able = entry.custody.processes();
        if entry.custody.is_queued() {
            let receives = self.processes.snapshot().into_iter().filter(|(_, process)| process.inbox.has(entry.file));
            able.extend(receives.map(|(pid, _)| pid));
        }
        if able.is_empty() {
            let maps = self.processes.snapshot().into_iter().filter(|(_, process)| process.mm.lock().maps(entry.file));
            able.extend(maps.map(|(pid, _)| pid));
        }
        able
    }
}

impl Task {
    /// Breaks what stands in the way of opening the file as `breaker` does, the caller's own leases too, and waits
    /// interruptibly until nothing does. The caller has counted its open.
    ///
    /// # Errors
    /// EAGAIN (`nonblock`; the break goes on), EINTR; EDEADLK where breaks never time out and the wait would close a cycle
    /// **\[chosen\]** (Linux would hang).
    pub(crate) fn break_base_leases(&self, inode: &Inode, breaker: Type, nonblock: bool) -> Result<(), Errno> {
        let kernel = self.kernel();
        kernel.time_out_base_leases(inode);
        let span = kernel.options.lease_break_time;
        let deadline = (!span.is_zero()).then(|| kernel.world.now().after(span));
        let (notices, in_the_way) = {
            let mut books = inode.base.lock();
            (books.begin_break(breaker, deadline), books.in_the_way(breaker).next().is_some())
        };
        if !notices.is_empty() {
            // Who waits already has another deadline now.
            inode.base.changed.wake_all();
        }
        kernel.tell_base_owners(inode, &notices);
        if nonblock && in_the_way {
            // Decided by the leases as they were: an owner whom its signal kills gives way too late.
            return Err(Errno::EAGAIN);
        }
        loop {
            let look = |books: &Books| -> (bool, Option<Nanos>) {
                let forced_at = books.in_the_way(breaker).filter_map(|entry| entry.forced_at(breaker)).min();
                (books.in_the_way(breaker).next().is_some(), forced_at)
            };
            let (blocked, forced_at) = look(&inode.base.lock());
            if !blocked {
                return Ok(());
            }
            let outcome = self.block_on(&inode.base.changed, WaitFor::interruptible(REASON).until(forced_at), || {
                let in_the_way: Vec<Entry> = {
                    let books = inode.base.lock();
                    if look(&books) != (true, forced_at) {
                        return Look::Ready(());
                    }
                    books.in_the_way(breaker).cloned().collect()
                };
                Look::Blocked(in_the_way.iter().map(|entry| Need::any_of(kernel.base_releasers(entry))).collect())
            });
            match outcome {
                Ok(()) => {}
                Err(Ended::TimedOut) => kernel.time_out_base_leases(inode),
                Err(Ended::Interrupted) => return Err(Errno::EINTR),
                Err(Ended::Deadlock) => return Err(Errno::EDEADLK),
            }
        }
    }
}
