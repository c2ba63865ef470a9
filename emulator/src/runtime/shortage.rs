//! What a listener does where descriptors or memory run out.
//!
//! It owns the length of its waits, and when a shortage is told. Invariants: a wait lies between
//! [`PAUSE_MIN`] and [`PAUSE_MAX`], so that the listener neither spins nor sleeps for long; a
//! shortage is told once when it begins, at most every [`TELL_AGAIN`]. Kernel counterpart:
//! accept(2), whose errors EMFILE, ENFILE, ENOMEM and ENOBUFS leave the connection in the queue, so
//! that the next call fails at once again.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::runtime::clock::{Clock, Nanos};

/// The shortest wait after accept(2) failed.
pub const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest one: well below the time that an asker waits for its answer.
pub const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a shortage that comes and goes is told.
pub const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Whether `error` says that this process, or the machine, lacks something that it may have again.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS))
}

/// How long accept(2) has been failing.
#[derive(Debug)]
pub struct AcceptShortage {
    clock: Clock,
    pause: Duration,
    /// It was told, and has not been over since.
    is_told: bool,
    tell_from: Nanos,
}

impl Default for AcceptShortage {
    fn default() -> Self {
        AcceptShortage::new()
    }
}

impl AcceptShortage {
    /// No shortage so far.
    pub fn new() -> AcceptShortage {
        AcceptShortage { clock: Clock::real(), pause: PAUSE_MIN, is_told: false, tell_from: Nanos(0) }
    }

    /// accept(2) failed once more: how long to wait, and whether to tell. The wait grows as long as
    /// not even a refusal was possible.
    pub fn met(&mut self, refused: bool) -> (Duration, bool) {
        self.pause = if refused { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        let now = self.clock.now();
        let is_news = !self.is_told && now >= self.tell_from;
        if is_news {
            self.is_told = true;
            self.tell_from = now.after(TELL_AGAIN);
        }
        (self.pause, is_news)
    }

    /// accept(2) succeeded: whether that ends a shortage that was told.
    pub fn is_over(&mut self) -> bool {
        self.pause = PAUSE_MIN;
        std::mem::take(&mut self.is_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_once_and_its_waits_are_bounded() {
        let mut shortage = AcceptShortage::new();
        let waits: Vec<(Duration, bool)> = (0..20).map(|_| shortage.met(false)).collect();
        assert!(waits[0].1 && waits[1..].iter().all(|(_, news)| !news), "{waits:?}");
        assert!(waits.iter().all(|(wait, _)| (PAUSE_MIN..=PAUSE_MAX).contains(wait)), "{waits:?}");
        assert_eq!(waits[19].0, PAUSE_MAX);
        assert!(shortage.is_over() && !shortage.is_over());
        assert_eq!(shortage.met(true), (PAUSE_MIN, false), "not again within {TELL_AGAIN:?}");
    }

    #[test]
    fn only_what_may_come_again_is_a_shortage() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            assert!(is_shortage(&errno.into()), "{errno:?}");
        }
        for errno in [Errno::INVAL, Errno::BADF, Errno::CONNABORTED] {
            assert!(!is_shortage(&errno.into()), "{errno:?}");
        }
    }
}
