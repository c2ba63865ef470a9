//! The host's lease break time, shortened for the length of a run.
//!
//! It owns `/proc/sys/fs/lease-break-time`. Invariants: a separate guardian process writes the
//! shortened value, and writes the old one back when the last [`BreakTime`] is dropped, however
//! this process ends. A run that shortens the value holds the file's lock exclusively; a run that
//! relies on a long value holds it shared ([`LongBreakTime`]). Kernel counterpart: fs/locks.c
//! (`lease_break_time`).

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

use super::child::wire;
use super::spawn::start;
use crate::machines::machine::Trouble;

const SETTING: &str = "/proc/sys/fs/lease-break-time";
/// How long to wait for other runs that hold the lock.
const LOCK_WAIT: Timespec = Timespec { tv_sec: 120, tv_nsec: 0 };
/// The shortened value.
const SHORT: Duration = Duration::from_secs(1);

/// The shortened break time. It holds while one clone of this value exists.
#[derive(Clone, Debug)]
pub struct BreakTime(#[allow(dead_code, reason = "it is held, and acts when it is dropped")] Arc<Guardian>);

#[derive(Debug)]
struct Guardian {
    /// Closing it tells the guardian process to end.
    control: OwnedFd,
    process: Child,
}

impl BreakTime {
    /// Shortens the break time, by `program`'s hidden subcommand `lease-break-time`.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: the setting can't be written, or another run does not release its
    /// lock.
    pub fn shorten(program: &Path) -> Result<BreakTime, Trouble> {
        let cannot = |why: String| Trouble::CannotRun(format!("{SETTING} can't be changed: {why}"));
        // Opened here only to learn the reason of a failure: the guardian's report is short.
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
            _ => Err(cannot("its guardian process ended".to_owned())),
        }
    }

    /// The break time that holds now.
    pub fn length(&self) -> Duration {
        SHORT
    }
}

/// While this value exists, no run shortens the break time.
#[derive(Debug)]
pub struct LongBreakTime {
    _lock: File,
}

impl LongBreakTime {
    /// Waits until no run has shortened the break time.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`] if the setting does not exist.
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
    /// Returns when the old value is written back.
    fn drop(&mut self) {
        // Both calls fail only if the guardian has already ended.
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// The body of the guardian process, called by the hidden subcommand `lease-break-time`. It returns
/// when the other end of `control` is closed.
///
/// # Errors
/// The setting could not be read or written.
pub fn guard(control: OwnedFd) -> std::io::Result<()> {
    // The guardian survives the signals by which a terminal or a supervisor ends the run. The run's
    // end closes the socket.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let shortened = shorten();
    let told: Result<(), String> = shortened.as_ref().map(drop).map_err(ToString::to_string);
    // If the driver can't be told, it has gone, and the next call reports that.
    let _ = wire::send(control.as_fd(), &told, &[]);
    let Ok((lock, old)) = shortened else { return Ok(()) };
    // The driver never sends a message; the loop ends when it closes the socket.
    while let Err(Errno::INTR | Errno::BADMSG) | Ok(Some(_)) = wire::receive::<()>(control.as_fd(), RecvFlags::empty())
    {
    }
    write(&lock, &old)
}

/// Locks the setting and writes the short value; returns the old one.
fn shorten() -> std::io::Result<(File, String)> {
    let file = File::options().read(true).write(true).open(SETTING)?;
    retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
    let old = std::fs::read_to_string(SETTING)?;
    write(&file, &SHORT.as_secs().to_string())?;
    Ok((file, old.trim().to_owned()))
}

/// A sysctl accepts a value only in one write at offset 0.
fn write(file: &File, value: &str) -> std::io::Result<()> {
    rustix::io::pwrite(file, format!("{value}\n").as_bytes(), 0)?;
    Ok(())
}
