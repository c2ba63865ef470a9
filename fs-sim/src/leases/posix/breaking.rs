//! Breaking ordinary leases: signalling the owners, and waiting until they release or the break
//! times out.
//!
//! It owns the wait of a task that opens a file. Invariants: a break outlives the opener that gave
//! up; its deadline is sampled when it begins; the next task that finds a break timed out carries
//! it out, under the lock of the inode's books. Kernel counterpart: `__break_lease`,
//! `lease_break_callback` (fs/locks.c).

use emulator::runtime::clock::Nanos;
use emulator::sync::Arc;
use emulator::wait::WaitFor;

use crate::base::errno::Errno;
use crate::base::numbers::Pid;
use crate::deadlock::graph::{WaitFailure, WaitPoll};
use crate::deadlock::need::{Awaited, Need};
use crate::leases::posix::request::PosixLeaseType;
use crate::leases::posix::table::{PosixLease, PosixLeaseBooks, PosixLeases};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::signal_owner::BreakNotice;
use crate::vfs::task::Task;

/// The reason of an opener's sleep.
const REASON: &str = "base lease break";

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
/// one unread in their inbox; if only mappings are left, those that map it.
pub(crate) fn posix_lease_releasers(kernel: &Kernel, entry: &PosixLease) -> Vec<Pid> {
    kernel.able_to_end(&entry.fd_holders, entry.file)
}

/// Breaks the leases that stand in the way of an open for `breaker`, the caller's own too, and
/// waits interruptibly until none does. The caller has counted its open.
///
/// # Errors
/// EAGAIN (`nonblock`; the break stays pending), EINTR; EDEADLK where breaks never time out and
/// the wait would close a cycle **\[chosen\]** (Linux would hang).
pub(crate) fn break_posix_leases(
    task: &Task,
    inode: &Inode,
    breaker: PosixLeaseType,
    nonblock: bool,
) -> Result<(), Errno> {
    let kernel = task.kernel();
    time_out_posix_leases(kernel, inode);
    let span = kernel.options.lease_break_time;
    let deadline = (!span.is_zero()).then(|| kernel.world.now().after(span));
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
            task.block_on(&PosixLeases::of(inode).changed, WaitFor::interruptible(REASON).until(forced_at), || {
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
