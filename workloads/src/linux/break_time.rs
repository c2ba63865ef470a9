//! The host's lease break time, shortened for a while.
//!
//! It owns `/proc/sys/fs/lease-break-time`. Invariants: a guardian process of its own writes the shortened value and writes the old
//! one back when the last [`BreakTime`] is gone, however this process ends; whoever shortens it holds the file's lock alone, and
//! whoever relies on its not being short holds it shared ([`LongBreakTime`]). Kernel counterpart: fs/locks.c (`lease_break_time`).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use emulator::sync::Arc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::RecvFlags;

use super::host::start;
use super::wire;
use crate::scenario::machine::Trouble;

const SETTING: &str = "/proc/sys/fs/lease-break-time";
/// How long others that have the setting's lock are waited for.
const LOCK_WAIT: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };
/// What it is shortened to.
const SHORT: Duration = Duration::from_secs(1);

/// The shortened break time: as long as one clone of this is there, it holds.
#[derive(Clone, Debug)]
pub struct BreakTime(#[allow(dead_code, reason = "it is held, and acts when it is dropped")] Arc<Guardian>);

#[derive(Debug)]
struct Guardian {
    /// Its end is the guardian process's cue.
    control: OwnedFd,
    process: Child,
}

impl BreakTime {
    /// Shortens it, by `program`'s hidden subcommand `lease-break-time`.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: the setting can't be written, or others don't let go of it.
    pub fn shorten(program: &Path) -> Result<BreakTime, Trouble> {
        let cannot = |why: String| Trouble::CannotRun(format!("{SETTING} can't be changed: {why}"));
        // Asked for here, so that the reason is known: the guardian can't tell much.
        File::options().write(true).open(SETTING).map_err(|error| cannot(error.to_string()))?;
        let (control, theirs) = wire::pair().map_err(|errno| cannot(errno.to_string()))?;
        let process = start(program, "lease-break-time", theirs)?;
        let guardian = Guardian { control, process };
        let mut fds = [PollFd::new(&guardian.control, PollFlags::IN)];
        let answered = retry_on_intr(|| poll(&mut fds, Some(&LOCK_WAIT))).unwrap_or(0);
        let answer: Result<Option<(Result<(), String>, _)>, _> = match answered {
            0 => return Err(cannot("another run uses it".to_owned())),
            _ => wire::receive(&guardian.control, RecvFlags::DONTWAIT),
        };
        match answer {
            Ok(Some((Ok(()), _))) => Ok(BreakTime(Arc::new(guardian))),
            Ok(Some((Err(why), _))) => Err(cannot(why)),
            _ => Err(cannot("its guardian went away".to_owned())),
        }
    }

    /// How long a break waits now.
    pub fn length(&self) -> Duration {
        SHORT
    }
}

/// Nobody shortens the break time while this is there.
#[derive(Debug)]
pub struct LongBreakTime {
    _lock: File,
}

impl LongBreakTime {
    /// Waits for those who have shortened it.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`] if there is no such setting.
    pub fn hold() -> Result<LongBreakTime, Trouble> {
        let lock = File::open(SETTING).and_then(|file| {
            retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared))?;
            Ok(file)
        });
        lock.map(|lock| LongBreakTime { _lock: lock })
            .map_err(|error| Trouble::CannotRun(format!("{SETTING} can't be read: {error}")))
    }
}

impl Drop for Guardian {
    /// Returns when the old value is back.
    fn drop(&mut self) {
        // Both fail only for one that has ended.
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// Runs as the guardian: what the hidden subcommand `lease-break-time` calls. Returns when `control` is closed at the other end.
///
/// # Errors
/// The setting could not be read or written.
pub fn guard(control: OwnedFd) -> std::io::Result<()> {
    // It outlives what a terminal or a supervisor sends to end the run: that closes the socket.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let shortened = shorten();
    let told: Result<(), String> = shortened.as_ref().map(drop).map_err(ToString::to_string);
    // A driver that can't be told is gone, as the next call sees.
    let _ = wire::send(control.as_fd(), &told, &[]);
    let Ok((lock, old)) = shortened else { return Ok(()) };
    // Nothing is ever said: what ends the loop is the end of the conversation.
    while let Err(Errno::INTR | Errno::BADMSG) | Ok(Some(_)) = wire::receive::<()>(control.as_fd(), RecvFlags::empty())
    {
    }
    write(&lock, &old)
}

/// Locks the setting and writes the short value; the old one.
fn shorten() -> std::io::Result<(File, String)> {
    let file = File::options().read(true).write(true).open(SETTING)?;
    retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
    let old = std::fs::read_to_string(SETTING)?;
    write(&file, &SHORT.as_secs().to_string())?;
    Ok((file, old.trim().to_owned()))
}

/// A sysctl takes a value only in one write at its start.
fn write(file: &File, value: &str) -> std::io::Result<()> {
    rustix::io::pwrite(file, format!("{value}\n").as_bytes(), 0)?;
    Ok(())
}
