//! Where a process sleeps.
//!
//! It owns the judgement of a process that does not answer: whether it sleeps in one certain system
//! call and is not exiting. Where the sleep is uninterruptible, it must be in one of the functions
//! known to wait for another process: any other sleep of state D is one for a disk. An exiting
//! process may wait likewise. A wake-up changes the sleeper's state before the waker continues. So
//! a process that is still seen asleep after the waker has answered was not woken by it. Kernel
//! counterpart: fs/proc/base.c (`proc_pid_syscall`, `proc_pid_wchan`), fs/proc/array.c.

use std::fs::File;

use rustix::io::Errno;

use super::spin::{ProcessorTime, may_spin};

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

/// Where an exiting process waits for its own I/O in flight. When that has ended it stays there for
/// a moment, until RCU lets it go on.
const EXIT_WITH_IO: &str = "exit_aio";
/// Where an exiting process that has the last descriptor of an unlinked file waits for its pages.
const EXIT_WITH_FILE: &str = "dax_break_layout_final";

/// A process's /proc/PID/syscall, /proc/PID/stat and /proc/PID/wchan, kept open.
#[derive(Debug)]
pub(super) struct SleepWatch {
    pid: i32,
    syscall: File,
    stat: File,
    wchan: File,
}

impl SleepWatch {
    /// Opens the files of a living process.
    pub(super) fn of(pid: i32) -> std::io::Result<SleepWatch> {
        let watch = SleepWatch {
            pid,
            syscall: File::open(format!("/proc/{pid}/syscall"))?,
            stat: File::open(format!("/proc/{pid}/stat"))?,
            wchan: File::open(format!("/proc/{pid}/wchan"))?,
        };
        read(&watch.syscall)?;
        Ok(watch)
    }

    /// The process's state and the function that it sleeps in, for people.
    pub(super) fn whereabouts(&self) -> String {
        let Some(stat) = self.stat() else { return "gone".to_owned() };
        let exiting = if stat.exiting { ", exiting" } else { "" };
        let place = read(&self.wchan).unwrap_or_default();
        let place = if place.is_empty() || place == "0" { String::new() } else { format!(" in {place}") };
        format!("state {}{place}{exiting}", stat.state)
    }

    /// Whether the process sleeps in that system call.
    ///
    /// # Errors
    /// The files can't be read: the process is gone.
    pub(super) fn sleeps_in(&self, place: SleepPlace) -> Result<bool, Errno> {
        match Stat::parse(&read(&self.stat)?).filter(|stat| !stat.exiting).map(|stat| stat.state) {
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

    /// Whether the process is exiting.
    pub(super) fn exits(&self) -> bool {
        self.stat().is_some_and(|stat| stat.exiting)
    }

    /// Whether the process is exiting and waits for held pages, or for I/O of which `has_io` says
    /// that it is in flight.
    pub(super) fn waits_in_exit(&self, has_io: bool) -> bool {
        self.stat().is_some_and(|stat| stat.exiting && stat.state == 'D')
            && read(&self.wchan).is_ok_and(|place| place == EXIT_WITH_FILE || has_io && place == EXIT_WITH_IO)
    }

    /// The processor time of a process that is where it may spin; none: it is elsewhere, or
    /// /proc/PID/stack can't be read.
    pub(super) fn spinning(&self) -> Option<ProcessorTime> {
        let stat = self.stat().filter(|stat| !stat.exiting && stat.state == 'R')?;
        let stack = std::fs::read_to_string(format!("/proc/{}/stack", self.pid)).ok()?;
        may_spin(&stack).then_some(stat.used)
    }

    fn stat(&self) -> Option<Stat> {
        Stat::parse(&read(&self.stat).ok()?)
    }
}

fn read(file: &File) -> Result<String, Errno> {
    let mut buffer = [0; 1024];
    let len = rustix::io::pread(file, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// A line of `/proc/PID/stat`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    exiting: bool,
    used: ProcessorTime,
}

impl Stat {
    /// The command's name stands in parentheses and may hold any text.
    fn parse(line: &str) -> Option<Stat> {
        let (_, rest) = line.rsplit_once(')')?;
        let mut words = rest.split_ascii_whitespace();
        let state = words.next()?.chars().next()?;
        let mut numbers = words.map(|word| word.parse::<u64>().ok());
        let flags = numbers.nth(5)??;
        let (user, kernel) = (numbers.nth(4)??, numbers.next()??);
        Some(Stat { state, exiting: flags & PF_EXITING != 0, used: ProcessorTime { user, kernel } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_flags_and_times_of_a_stat_line() {
        let stat = |state, exiting, user, kernel| Some(Stat { state, exiting, used: ProcessorTime { user, kernel } });
        assert_eq!(Stat::parse("12 (a) b) S 1 12 12 0 -1 4194560 106 0 0 0 3 5 0 0"), stat('S', false, 3, 5));
        assert_eq!(Stat::parse("12 (S) R 1 12 12 0 -1 4194560 106 0 0 0 0 7 0 0"), stat('R', false, 0, 7));
        assert_eq!(Stat::parse("12 (a) D 1 12 12 0 -1 4194564 106 0 0 0 1 2 0 0"), stat('D', true, 1, 2));
        assert_eq!(Stat::parse("12 (a) D 1 12 12 0 -1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
