//! Where a process sleeps.
//!
//! It owns the judgement of a process that does not answer: whether it sleeps in one certain system
//! call and is not exiting. Where the sleep is uninterruptible, it must be in one of the functions
//! known to wait for another process: any other sleep of state D is one for a disk. A wake-up
//! changes the sleeper's state before the waker continues. So a process that is still seen asleep
//! after the waker has answered was not woken by it. Kernel counterpart: fs/proc/base.c
//! (`proc_pid_syscall`, `proc_pid_wchan`), fs/proc/array.c.

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

/// Where a process waits uninterruptibly for another one's I/O, pipe or inode lock: the functions
/// that /proc/PID/wchan tells, on XFS and ext4 of Linux 6.12 and 7.3.
const UNINTERRUPTIBLE: [&str; 7] = [
    "dax_break_layout_final",
    "do_truncate",
    "xfs_ilock",
    "ext4_file_read_iter",
    "ext4_file_write_iter",
    "ext4_fallocate",
    "ext4_punch_hole",
];

/// A process's /proc/PID/syscall, /proc/PID/stat and /proc/PID/wchan, kept open.
#[derive(Debug)]
pub(super) struct SleepWatch {
    syscall: File,
    stat: File,
    wchan: File,
}

impl SleepWatch {
    /// Opens the files of a living process.
    pub(super) fn of(pid: i32) -> std::io::Result<SleepWatch> {
        let watch = SleepWatch {
            syscall: File::open(format!("/proc/{pid}/syscall"))?,
            stat: File::open(format!("/proc/{pid}/stat"))?,
            wchan: File::open(format!("/proc/{pid}/wchan"))?,
        };
        read(&watch.syscall)?;
        Ok(watch)
    }

    /// The process's state and the function that it sleeps in, for people.
    pub(super) fn whereabouts(&self) -> String {
        let state =
            read(&self.stat).ok().and_then(|stat| sleeps(&stat)).map_or_else(|| "exiting".to_owned(), String::from);
        let place = read(&self.wchan).unwrap_or_default();
        if place.is_empty() || place == "0" { format!("state {state}") } else { format!("state {state} in {place}") }
    }

    /// Whether the process sleeps in that system call.
    ///
    /// # Errors
    /// The files can't be read: the process is gone.
    pub(super) fn sleeps_in(&self, place: SleepPlace) -> Result<bool, Errno> {
        match sleeps(&read(&self.stat)?) {
            Some('S') => {}
            Some('D') if UNINTERRUPTIBLE.contains(&read(&self.wchan)?.as_str()) => {}
            _ => return Ok(false),
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

/// Parses `/proc/PID/stat`: the state of a process that is not exiting. The command's name stands
/// in parentheses and may hold any text.
fn sleeps(stat: &str) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    let state = words.next()?.chars().next();
    let flags = words.nth(5).and_then(|word| word.parse::<u64>().ok())?;
    state.filter(|_| flags & PF_EXITING == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_flags_of_a_stat_line() {
        assert_eq!(sleeps("12 (a) b) S 1 12 12 0 -1 4194560 106 0"), Some('S'));
        assert_eq!(sleeps("12 (S) R 1 12 12 0 -1 4194560 106 0"), Some('R'));
        assert_eq!(sleeps("12 (S) D 1 12 12 0 -1 4194560 106 0"), Some('D'));
        assert_eq!(sleeps("12 (a) S 1 12 12 0 -1 4194564 106 0"), None, "exiting");
        assert_eq!(sleeps(""), None);
    }
}
