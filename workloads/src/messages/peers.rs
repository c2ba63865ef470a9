//! Which users may connect at a socket.
//!
//! It owns the rule, and how often a refusal is told. Invariants: the user that this process runs
//! as and root may always connect; another user only if it was named. The mode of the socket's
//! file alone decides nothing: each peer is checked after accept(2). Kernel counterpart:
//! `SO_PEERCRED` of unix(7).

use std::time::Duration;

use emulator::runtime::clock::{Clock, Nanos};
use emulator::sync::Mutex;
use emulator::vhost_user::Peer;
use rustix::fs::Mode;

/// How often refusals at one socket are told.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The users that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPeers {
    /// The user of this process.
    own: u32,
    /// Those that were named.
    named: Vec<u32>,
}

impl AllowedPeers {
    /// The user of this process, root, and the users `named`.
    pub fn with(named: &[u32]) -> AllowedPeers {
        AllowedPeers { own: rustix::process::geteuid().as_raw(), named: named.to_vec() }
    }

    /// The mode of a socket's file: if other users were named, all may connect and are checked
    /// then.
    pub(super) fn mode(&self) -> Mode {
        let others = self.named.iter().any(|uid| *uid != self.own && *uid != 0);
        Mode::from_raw_mode(if others { 0o666 } else { 0o600 })
    }

    /// Whether `peer` may connect.
    ///
    /// # Errors
    /// It may not; who it is, and what to do, as text for both sides.
    pub fn admit(&self, peer: &Peer) -> Result<(), String> {
        if peer.uid == 0 || peer.uid == self.own || self.named.contains(&peer.uid) {
            return Ok(());
        }
        let mut allowed: Vec<u32> = self.named.iter().copied().chain([0, self.own]).collect();
        allowed.sort_unstable();
        allowed.dedup();
        let allowed: Vec<String> = allowed.iter().map(u32::to_string).collect();
        Err(format!(
            "user {} may not connect here, only {} {}; `daxlab serve --allow-uid {}` allows it",
            peer.uid,
            if allowed.len() == 1 { "user" } else { "users" },
            allowed.join(", "),
            peer.uid
        ))
    }
}

/// A peer, for people.
pub(crate) fn shown(pid: Option<u32>) -> String {
    pid.map_or("a process of another PID namespace".to_owned(), |pid| format!("process {pid}"))
}

/// Refusals, told at most every second: a refused user can connect again and again.
#[derive(Debug)]
pub(crate) struct RefusalLog {
    clock: Clock,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    next: Option<Nanos>,
    untold: u64,
}

impl RefusalLog {
    pub(crate) fn new() -> RefusalLog {
        RefusalLog { clock: Clock::real(), told: Mutex::default() }
    }

    /// One more refusal: if it is to be told, how it is said how many before it were not.
    pub(crate) fn met(&self) -> Option<String> {
        self.met_at(self.clock.now())
    }

    fn met_at(&self, now: Nanos) -> Option<String> {
        let mut told = self.told.lock();
        if told.next.is_some_and(|next| now < next) {
            told.untold += 1;
            return None;
        }
        told.next = Some(now.after(TELL_AGAIN));
        Some(match std::mem::take(&mut told.untold) {
            0 => String::new(),
            more => format!(" ({more} more were refused before)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_user_root_and_named_users_are_admitted_and_no_other() {
        let peer = |uid| Peer { pid: None, uid };
        let allowed = AllowedPeers { own: 7, named: vec![9] };
        for uid in [0, 7, 9] {
            assert_eq!(allowed.admit(&peer(uid)), Ok(()));
        }
        let why = allowed.admit(&peer(8)).unwrap_err();
        assert_eq!(why, "user 8 may not connect here, only users 0, 7, 9; `daxlab serve --allow-uid 8` allows it");
        assert_eq!(allowed.mode().as_raw_mode(), 0o666);
        assert_eq!(AllowedPeers { own: 7, named: vec![0, 7] }.mode().as_raw_mode(), 0o600);
    }

    #[test]
    fn refusals_are_told_once_a_second_and_counted() {
        let log = RefusalLog::new();
        let at = |ns| log.met_at(Nanos(ns));
        assert_eq!(at(5), Some(String::new()));
        assert_eq!((at(6), at(1_000_000_004)), (None, None));
        assert_eq!(at(1_000_000_005).unwrap(), " (2 more were refused before)");
        assert_eq!(at(3_000_000_000).unwrap(), "");
    }
}
