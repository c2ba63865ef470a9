//! Breaking ordinary leases: signalling the owners, and waiting until they release or the break
//! times out.
//!
//! It owns the wait of a task that opens a file, or changes what a delegation is told of.
//! Invariants: a break outlives the task that gave up; its deadline is sampled when it begins; the
//! next task that finds a break timed out carries it out, under the lock of the inode's books.
//! Kernel counterpart: `__break_lease`, `lease_break_callback` (fs/locks.c), `try_break_deleg`,
//! `break_deleg_wait` (include/linux/filelock.h).

use std::collections::BTreeMap;

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::Pid;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::holders::in_flight_io::able_to_end;
use crate::leases::posix::table::{LeaseBreaker, PosixLease, PosixLeaseBooks, PosixLeases};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::names::mounted_names;
use crate::vfs::signal_owner::BreakNotice;
use crate::vfs::task::Task;

/// The reason of the sleep of an opener, or of a truncate by path.
const LEASE_REASON: &str = "base lease break";
/// The reason of the sleep of a change that delegations are told of.
const DELEGATION_REASON: &str = "delegation break";

/// Carries out the breaks of an inode that timed out.
pub(crate) fn time_out_posix_leases(kernel: &Kernel, inode: &Inode) {
    let forced = PosixLeases::of(inode).lock().time_out(kernel.world.now());
    if forced > 0 {
        kernel.counters.lease_timeouts.add(forced);
        PosixLeases::of(inode).changed.wake_all();
    }
}

/// Signals the owners of leases that are being broken.
fn signal_posix_owners(kernel: &Arc<Kernel>, inode: &Inode, notices: &[BreakNotice]) {
    let owed = notices.len() as u64;
    kernel.counters.lease_breaks.add(owed);
    kernel.counters.notices_owed.add(owed);
    kernel.send_notices(inode.ino(), notices);
}

/// The processes that could release an ordinary lease: those with a descriptor of the open file or
/// one unread in their inbox; if only mappings are left, those that map it; if only direct I/O in
/// flight is left, those that submitted it.
pub(crate) fn posix_lease_releasers(kernel: &Kernel, entry: &PosixLease) -> Vec<Pid> {
    able_to_end(kernel, &entry.fd_holders, entry.file)
}

/// Breaks the leases that stand in the way of `breaker`, the caller's own too, and waits
/// interruptibly until none does. A caller that opens the file has counted its open.
///
/// # Errors
/// EAGAIN (`nonblock`: the break stays pending), EINTR; EDEADLK where breaks never time out and
/// the wait would close a cycle **\[chosen\]** (Linux would hang).
pub(crate) fn break_posix_leases(
    task: &Task,
    inode: &Inode,
    breaker: LeaseBreaker,
    nonblock: bool,
) -> Result<(), Errno> {
    let kernel = task.kernel();
    time_out_posix_leases(kernel, inode);
    let span = kernel.options.lease_break_time;
    let deadline = (!span.is_zero()).then(|| kernel.world.now().after(span));
    let reason = if breaker.is_change() { DELEGATION_REASON } else { LEASE_REASON };
    let (notices, in_the_way) = {
        let mut books = PosixLeases::of(inode).lock();
        (books.begin_break(breaker, deadline), books.in_the_way(breaker).next().is_some())
    };
    if !notices.is_empty() {
        // A task that waits already has another deadline now.
        PosixLeases::of(inode).changed.wake_all();
    }
    signal_posix_owners(kernel, inode, &notices);
    if nonblock && in_the_way {
        // Decided by the leases as they were: an owner that its signal kills releases too late for
        // a non-blocking open.
        return Err(Errno::EAGAIN);
    }
    loop {
        let look = |books: &PosixLeaseBooks| -> (bool, Option<Nanos>) {
            let forced_at = books.in_the_way(breaker).filter_map(|entry| entry.forced_at(breaker)).min();
            (books.in_the_way(breaker).next().is_some(), forced_at)
        };
        let (blocked, forced_at) = look(&PosixLeases::of(inode).lock());
        if !blocked {
            return Ok(());
        }
        let outcome =
            task.block_on(&PosixLeases::of(inode).changed, WaitFor::interruptible(reason).until(forced_at), || {
                let in_the_way: Vec<PosixLease> = {
                    let books = PosixLeases::of(inode).lock();
                    if look(&books) != (true, forced_at) {
                        return WaitPoll::Ready(());
                    }
                    books.in_the_way(breaker).cloned().collect()
                };
                let released_by = |entry: PosixLease| {
                    let kernel = Arc::clone(kernel);
                    Awaited::ask(move || Need::any_of(posix_lease_releasers(&kernel, &entry)))
                };
                WaitPoll::Blocked(in_the_way.into_iter().map(released_by).collect())
            });
        match outcome {
            Ok(()) => {}
            Err(WaitFailure::TimedOut) => time_out_posix_leases(kernel, inode),
            Err(WaitFailure::Interrupted) => return Err(Errno::EINTR),
            Err(WaitFailure::Deadlock) => return Err(Errno::EDEADLK),
        }
    }
}

/// A change may not be made yet.
pub(crate) enum ChangeHeldUp {
    /// It fails.
    Failed(Errno),
    /// A delegation of this inode must be broken first.
    Delegated(Arc<Inode>),
}

impl From<Errno> for ChangeHeldUp {
    fn from(errno: Errno) -> ChangeHeldUp {
        ChangeHeldUp::Failed(errno)
    }
}

/// Whether a delegation of the inode stands in the way of a change of its attributes or names. To
/// be asked with the names locked, and no longer believed afterwards.
pub(crate) fn is_delegated(inode: &Inode) -> bool {
    PosixLeases::of(inode).lock().in_the_way(LeaseBreaker::CHANGE).next().is_some()
}

/// # Errors
/// [`ChangeHeldUp::Delegated`]: see [`is_delegated`]. Kernel: `try_break_deleg`.
pub(crate) fn check_delegations(inode: &Arc<Inode>) -> Result<(), ChangeHeldUp> {
    if is_delegated(inode) { Err(ChangeHeldUp::Delegated(Arc::clone(inode))) } else { Ok(()) }
}

/// Makes a change with the names locked. While a delegation stands in its way, breaks that with the
/// names unlocked, and tries again. Kernel: the label `retry_deleg` in fs/namei.c and fs/open.c.
///
/// # Errors
/// Those of the change; ENODEV (not mounted, or the device is gone), EINTR; EDEADLK as for
/// [`break_posix_leases`].
pub(crate) fn change_names<R>(
    task: &Task,
    mut change: impl FnMut(&mut BTreeMap<String, Arc<Inode>>) -> Result<R, ChangeHeldUp>,
) -> Result<R, Errno> {
    loop {
        let changed = change(&mut *mounted_names(task.kernel())?);
        match changed {
            Ok(value) => return Ok(value),
            Err(ChangeHeldUp::Failed(errno)) => return Err(errno),
            Err(ChangeHeldUp::Delegated(inode)) => break_posix_leases(task, &inode, LeaseBreaker::CHANGE, false)?,
        }
    }
}
