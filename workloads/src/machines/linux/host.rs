//! What the driver needs of the host: the zygote that makes processes, and a directory for files.
//!
//! It owns the zygote, and what was learned about this kernel and this file system. Invariant: a
//! [`Host`] that exists has seen its file system grant a lease, and can read where its processes
//! sleep. Kernel counterpart: none.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::break_time::BreakTime;
use super::child::wire::{self, ChildFailure, ChildReply, ChildRequest, ChildValue};
use super::spawn::start;
use super::watch::SleepWatch;
use crate::machines::machine::Trouble;

/// The longest time the zygote may take to answer.
const ANSWER_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The parameters of a [`Host`].
#[derive(Clone, Debug)]
pub struct LinuxConfig {
    /// The program that calls [`child::main`](super::child::main) for the argument
    /// `scenario-child`: `daxlab` itself.
    pub program: PathBuf,
    /// Where temporary directories are made. Their file system is the one that is tested.
    pub dir: PathBuf,
    /// The shortened break time, for scenarios in which time passes.
    pub break_time: Option<BreakTime>,
}

impl LinuxConfig {
    /// This program itself, and the system's directory for temporary files.
    pub fn new() -> LinuxConfig {
        LinuxConfig { program: PathBuf::from("/proc/self/exe"), dir: std::env::temp_dir(), break_time: None }
    }
}

impl Default for LinuxConfig {
    fn default() -> Self {
        LinuxConfig::new()
    }
}

/// The zygote and the directory; see the module. It must be dropped, together with its machines, on
/// the thread that made it: the zygote dies with that thread.
#[derive(Debug)]
pub struct Host {
    config: LinuxConfig,
    file_system: FileSystem,
    control: OwnedFd,
    zygote: Child,
    root: bool,
    machines: Cell<u64>,
    dir: tempfile::TempDir,
}

/// What the machine needs to know about a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// `ext4`, `tmpfs`, `xfs`, or the magic number.
    pub name: String,
    /// Whether it supports zero, collapse and insert range.
    pub moves_ranges: bool,
    /// Whether its files are accessed by DAX (`STATX_ATTR_DAX` of statx(2)).
    pub dax: bool,
}

impl Host {
    /// Starts a zygote and probes what the host supports.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: no directory, no leases in it, no program, or /proc/PID/syscall
    /// can't be read.
    pub fn start(config: LinuxConfig) -> Result<Rc<Host>, Trouble> {
        let at = config.dir.display().to_string();
        let cannot = |error: std::io::Error| Trouble::CannotRun(format!("no temporary directory in {at}: {error}"));
        let dir = tempfile::Builder::new().prefix("daxlab-").tempdir_in(&config.dir).map_err(cannot)?;
        open_to_all(dir.path()).map_err(cannot)?;
        let file_system = probe_leases(dir.path())?;
        let (control, theirs) = wire::pair().map_err(|errno| Trouble::CannotRun(format!("no socket: {errno}")))?;
        let zygote = start(&config.program, "scenario-child", theirs)?;
        let host = Host {
            config,
            file_system,
            control,
            zygote,
            root: rustix::process::geteuid().is_root(),
            machines: Cell::new(0),
            dir,
        };
        // The first process's answer proves that the program is the right one, and that its
        // processes can be watched.
        let (_ours, theirs) = wire::pair().map_err(|errno| Trouble::CannotRun(format!("no socket: {errno}")))?;
        let pid = host.spawn(theirs.as_fd(), theirs.as_fd())?;
        SleepWatch::of(pid).map(drop).map_err(|error| {
            Trouble::CannotRun(format!(
                "the system call that a process sleeps in can't be read (/proc/{pid}/syscall): {error}"
            ))
        })?;
        Ok(Rc::new(host))
    }

    /// Its file system.
    pub fn file_system(&self) -> &FileSystem {
        &self.file_system
    }

    /// A folder whose files are in page cache: that of temporary files, if files of a scenario in
    /// `dir` are not.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: the folder for temporary files is in a file system that has none.
    pub(super) fn page_cache_dir(&self, dir: &Path) -> Result<PathBuf, Trouble> {
        if !self.file_system.dax {
            return Ok(dir.to_owned());
        }
        let folder = std::env::temp_dir();
        let cannot = |why: String| {
            let folder = folder.display();
            Trouble::CannotRun(format!(
                "no file in page cache can be made: the folder for temporary files, {folder}, {why}"
            ))
        };
        let has = |error: Errno| cannot(format!("can't be examined: {error}"));
        let magic = rustix::fs::statfs(&folder).map_err(has)?.f_type;
        let told =
            rustix::fs::statx(rustix::fs::CWD, &folder, AtFlags::empty(), StatxFlags::BASIC_STATS).map_err(has)?;
        if magic == libc::TMPFS_MAGIC {
            return Err(cannot("is on tmpfs".to_owned()));
        }
        match told.stx_attributes.contains(StatxAttributes::DAX) {
            true => Err(cannot("is used with DAX".to_owned())),
            false => Ok(folder),
        }
    }

    /// Whether processes can change their user.
    pub(super) fn is_root(&self) -> bool {
        self.root
    }

    pub(super) fn break_time(&self) -> Option<&BreakTime> {
        self.config.break_time.as_ref()
    }

    /// Makes a directory for one machine.
    pub(super) fn new_dir(&self) -> Result<PathBuf, Trouble> {
        let number = self.machines.get();
        self.machines.set(number + 1);
        let dir = self.dir.path().join(number.to_string());
        let made = std::fs::create_dir(&dir).and_then(|()| open_to_all(&dir));
        made.map(|()| dir).map_err(|error| Trouble::CannotRun(format!("no temporary directory: {error}")))
    }

    /// Makes a process with these sockets; returns its pid.
    pub(super) fn spawn(&self, control: BorrowedFd<'_>, inbox: BorrowedFd<'_>) -> Result<i32, Trouble> {
        let program = self.config.program.display();
        let gone = || Trouble::CannotRun(format!("{program} scenario-child gives no answer"));
        wire::send(self.control.as_fd(), &ChildRequest::Spawn, &[control, inbox]).map_err(|_| gone())?;
        let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&ANSWER_MAX))) {
            Ok(1..) => {}
            _ => return Err(gone()),
        }
        match wire::receive(self.control.as_fd(), RecvFlags::DONTWAIT) {
            Ok(Some((ChildReply::Done { result: Ok(ChildValue::Number(pid)), .. }, _))) => {
                i32::try_from(pid).map_err(|_| gone())
            }
            Ok(Some((ChildReply::Done { result: Err(ChildFailure::Errno(errno)), .. }, _))) => {
                Err(Trouble::CannotRun(format!("no process: {}", Errno::from_raw_os_error(errno))))
            }
            _ => Err(gone()),
        }
    }
}

impl Drop for Host {
    /// Kills the zygote, which ends all remaining processes.
    fn drop(&mut self) {
        // The zygote may have ended already. The directory is removed in any case.
        let _ = self.zygote.kill();
        let _ = self.zygote.wait();
    }
}

/// Every process has full access to a scenario's directory, as on the simulated machine.
fn open_to_all(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
}

/// Takes a lease on a file in `dir`, and identifies the file system.
fn probe_leases(dir: &Path) -> Result<FileSystem, Trouble> {
    let path = dir.join("probe");
    let probe = || -> std::io::Result<(i64, bool, std::io::Result<()>)> {
        std::fs::write(&path, b"")?;
        let file = std::fs::File::open(&path)?;
        let magic = rustix::fs::fstatfs(&file)?.f_type;
        let told = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let dax = told.stx_attributes.contains(StatxAttributes::DAX);
        // SAFETY: F_SETLEASE takes a number; the descriptor is open.
        let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        let leased = if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        drop(file);
        std::fs::remove_file(&path)?;
        Ok((magic, dax, leased))
    };
    let (magic, dax, leased) =
        probe().map_err(|error| Trouble::CannotRun(format!("no file in {}: {error}", dir.display())))?;
    let file_system = FileSystem {
        name: match magic {
            libc::EXT4_SUPER_MAGIC => "ext4".to_owned(),
            libc::TMPFS_MAGIC => "tmpfs".to_owned(),
            libc::XFS_SUPER_MAGIC => "xfs".to_owned(),
            other => format!("file system {other:#x}"),
        },
        moves_ranges: matches!(magic, libc::EXT4_SUPER_MAGIC | libc::XFS_SUPER_MAGIC),
        dax,
    };
    leased.map(|()| file_system.clone()).map_err(|error| {
        Trouble::CannotRun(format!("{} in {} gives no leases: {error}", file_system.name, dir.display()))
    })
}
