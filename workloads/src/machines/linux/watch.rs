//! Where a process sleeps.
//!
//! It owns the judgement of a process that does not answer: whether it sleeps interruptibly in one
//! certain system call and is not exiting. A wake-up changes the sleeper's state before the waker
//! continues. So a process that is still seen asleep after the waker has answered was not woken by
//! it. Kernel counterpart: fs/proc/base.c (`proc_pid_syscall`), fs/proc/array.c.

use std::fs::File;

use rustix::io::Errno;

/// The flag `PF_EXITING`: the process is exiting.
const PF_EXITING: u64 = 4;

/// A system call in which a process may sleep: its number, and its first argument where that
/// matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SleepPlace {
    pub(super) number: libc::c_long,
    pub(super) first: Option<u64>,
}

/// A process's /proc/PID/syscall and /proc/PID/stat, kept open.
#[derive(Debug)]
pub(super) struct SleepWatch {
    syscall: File,
    stat: File,
}

impl SleepWatch {
    /// Opens the files of a living process.
    pub(super) fn of(pid: i32) -> std::io::Result<SleepWatch> {
        let watch = SleepWatch {
            syscall: File::open(format!("/proc/{pid}/syscall"))?,
            stat: File::open(format!("/proc/{pid}/stat"))?,
        };
        read(&watch.syscall)?;
        Ok(watch)
    }

    /// Whether the process sleeps in that system call.
    ///
    /// # Errors
    /// The files can't be read: the process is gone.
    pub(super) fn sleeps_in(&self, place: SleepPlace) -> Result<bool, Errno> {
        let stat = read(&self.stat)?;
        if !asleep(&stat) {
            return Ok(false);
        }
        let syscall = read(&self.syscall)?;
        let mut words = syscall.split_ascii_whitespace();
        let number = words.next().and_then(|word| word.parse::<libc::c_long>().ok());
        let first = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
        Ok(number == Some(place.number) && place.first.is_none_or(|wanted| first == Some(wanted)))
    }
}

fn read(file: &File) -> Result<String, Errno> {
    let mut buffer = [0; 1024];
    let len = rustix::io::pread(file, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// Parses `/proc/PID/stat`: state `S` and not exiting. The command's name stands in parentheses and
/// may hold any text.
fn asleep(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut words = rest.split_ascii_whitespace();
    let state = words.next();
    let flags = words.nth(5).and_then(|word| word.parse::<u64>().ok());
    state == Some("S") && flags.is_some_and(|flags| flags & PF_EXITING == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_flags_of_a_stat_line() {
        assert!(asleep("12 (a) b) S 1 12 12 0 -1 4194560 106 0"));
        assert!(!asleep("12 (S) R 1 12 12 0 -1 4194560 106 0"));
        assert!(!asleep("12 (a) S 1 12 12 0 -1 4194564 106 0"), "exiting");
        assert!(!asleep(""));
    }
}
