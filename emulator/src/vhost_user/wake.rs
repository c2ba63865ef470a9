//! How the threads of a connection wait: for file descriptors, and for one another.
//!
//! It owns an eventfd, and a clock with numbers for waiters. Invariants: a ring that is not cleared
//! yet makes the descriptor readable; rings add up to one. Counterpart: eventfd(2), fs/eventfd.c.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::runtime::clock::Nanos;
use crate::runtime::sync::Arc;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};
use crate::runtime::wait::{WaitFor, WaitQueue, Waiter, WaiterId};
use crate::runtime::world::World;

/// See the module.
#[derive(Debug)]
pub(super) struct WakeFd(OwnedFd);

impl WakeFd {
    pub(super) fn new() -> io::Result<WakeFd> {
        Ok(WakeFd(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread that waits, or that waits next.
    pub(super) fn ring(&self) {
        // Fails only where 2^64 - 2 rings are already waiting to be seen.
        let _rung_already = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets the rings so far. The caller checks the awaited state after this.
    pub(super) fn clear(&self) {
        let _none = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Blocks until one of `fds` can be read, or has its other end closed, or for `limit` of real time.
/// Returns which ones, in their order; none of them if the time is over.
pub(super) fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    wait_polled(&mut polled, limit)?;
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

/// Blocks until `fd` takes bytes, or for `limit` of real time; false if it takes none then.
pub(super) fn wait_writable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    wait_polled(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(limit))
}

/// Whether the other end of the stream socket `fd` is closed.
pub(super) fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    wait_polled(&mut polled, Some(Duration::ZERO)).unwrap_or(true)
}

/// Blocks until something of `polled` has come, or for `limit` of real time: then false. A signal
/// begins the time anew.
fn wait_polled(polled: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    loop {
        match rustix::event::poll(polled, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(found) => return Ok(found > 0),
        }
    }
}

/// Where threads that are no simulated tasks wait: a clock, and a number for each wait.
#[derive(Debug)]
pub(super) struct BackendWaits {
    world: Arc<World>,
    next: AtomicU64,
}

impl BackendWaits {
    pub(super) fn new(world: Arc<World>) -> BackendWaits {
        BackendWaits { world, next: AtomicU64::new(0) }
    }

    pub(super) fn now(&self) -> Nanos {
        self.world.now()
    }

    /// Blocks on `queue` until `ready` yields a value, or for `limit` of real time: then nothing.
    pub(super) fn until<T>(
        &self,
        queue: &WaitQueue,
        reason: &'static str,
        limit: Option<Duration>,
        ready: impl FnMut() -> Poll<T>,
    ) -> Option<T> {
        // ORDERING: relaxed; only that no two are the same matters.
        let waiter = Waiter::new(WaiterId(self.next.fetch_add(1, Ordering::Relaxed)));
        let deadline = limit.map(|limit| self.world.now().after(limit));
        queue.wait(&self.world, &waiter, WaitFor::uninterruptible(reason).until(deadline), ready).ok()
    }
}
