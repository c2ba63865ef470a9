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

use emulator::sync::Arc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::break_time::BreakTime;
use super::child::wire::{self, ChildFailure, ChildReply, ChildRequest, ChildValue};
use super::device_dax::{DeviceDax, DeviceDaxPart};
use super::spawn::start;
use super::watch::SleepWatch;
use crate::language::condition::PmemKind;
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
    /// Where files without DAX are made, on a file system of their own. None: in `dir`, if that has
    /// no DAX.
    pub page_cache_dir: Option<PathBuf>,
    /// The device-DAX device whose content scenarios may overwrite.
    pub device_dax: Option<Arc<DeviceDax>>,
    /// The shortened break time, for scenarios in which time passes.
    pub break_time: Option<BreakTime>,
    /// Whether this Linux is thrown away after the run, as a guest is: scenarios may leave
    /// processes that nothing can end, and overwrite RAM disks.
    pub disposable: bool,
}

impl LinuxConfig {
    /// This program itself, and the system's directory for temporary files.
    pub fn new() -> LinuxConfig {
        LinuxConfig {
            program: PathBuf::from("/proc/self/exe"),
            dir: std::env::temp_dir(),
            page_cache_dir: None,
            device_dax: None,
            break_time: None,
            disposable: false,
        }
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
    page_cache: Option<tempfile::TempDir>,
    keeps_dir: Cell<bool>,
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
    /// The persistent memory under it.
    pub memory: Option<PmemKind>,
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
        let page_cache = config.page_cache_dir.as_deref().map(without_dax).transpose()?;
        let (control, theirs) = wire::pair().map_err(|errno| Trouble::CannotRun(format!("no socket: {errno}")))?;
        let zygote = start(&config.program, "scenario-child", theirs)?;
        let host = Host {
            config,
            file_system,
            control,
            zygote,
            root: rustix::process::geteuid().is_root(),
            machines: Cell::new(0),
            page_cache,
            keeps_dir: Cell::new(false),
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

    /// Whether processes can change their user.
    pub(super) fn is_root(&self) -> bool {
        self.root
    }

    /// Whether this Linux may be spoiled; see [`LinuxConfig::disposable`].
    pub fn is_disposable(&self) -> bool {
        self.config.disposable
    }

    pub(super) fn break_time(&self) -> Option<&BreakTime> {
        self.config.break_time.as_ref()
    }

    /// Where a machine whose files are in `dir` makes a file without DAX.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: no such folder was given, and `dir` has DAX.
    pub(super) fn page_cache_folder(&self, dir: &Path) -> Result<String, Trouble> {
        let folder = match &self.page_cache {
            Some(folder) => folder.path(),
            None if !self.file_system.dax => dir,
            None => {
                let name = &self.file_system.name;
                let why = format!("{name} is used with DAX here: files without DAX need a folder (`--page-cache-dir`)");
                return Err(Trouble::CannotRun(why));
            }
        };
        let unwritten = || format!("the folder `{}` has a name that is not UTF-8", folder.display());
        folder.to_str().map(str::to_owned).ok_or_else(|| Trouble::CannotRun(unwritten()))
    }

    /// Takes a part of the device-DAX device.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: none was given, or it can't be used.
    pub(super) fn device_dax(&self, len: u64) -> Result<DeviceDaxPart, Trouble> {
        let none = "no device-DAX memory was given: `--device-dax DEVICE` names a device whose content may be lost";
        let device = self.config.device_dax.as_ref().ok_or_else(|| Trouble::CannotRun(none.to_owned()))?;
        device.take(len)
    }

    /// Leaves the directory at the end: it can't be removed.
    pub(super) fn keep_dir(&self) {
        self.keeps_dir.set(true);
    }

    /// Whether the directory is left at the end.
    pub(super) fn keeps_dir(&self) -> bool {
        self.keeps_dir.get()
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
    /// Kills the zygote, which ends all remaining processes, and removes the directory.
    fn drop(&mut self) {
        // The zygote may have ended already.
        let _ = self.zygote.kill();
        let _ = self.zygote.wait();
        self.dir.disable_cleanup(self.keeps_dir.get());
    }
}

/// Makes a folder in `dir`, whose file system must be without DAX.
fn without_dax(dir: &Path) -> Result<tempfile::TempDir, Trouble> {
    let cannot =
        |error: std::io::Error| Trouble::CannotRun(format!("no temporary directory in {}: {error}", dir.display()));
    let folder = tempfile::Builder::new().prefix("daxlab-").tempdir_in(dir).map_err(cannot)?;
    open_to_all(folder.path()).map_err(cannot)?;
    let probe = std::fs::File::create_new(folder.path().join("probe")).map_err(cannot)?;
    let tmpfs = rustix::fs::fstatfs(&probe).map_err(|errno| cannot(errno.into()))?.f_type == libc::TMPFS_MAGIC;
    let what = match (is_dax(&probe).map_err(cannot)?, tmpfs) {
        (true, _) => "has DAX",
        (_, true) => "is tmpfs, which writes nothing back",
        (false, false) => return Ok(folder),
    };
    Err(Trouble::CannotRun(format!("{} {what}: it can't be the folder for page cache", dir.display())))
}

/// The kind of a block device, by the bus that its way in sysfs goes over.
fn pmem_kind(device: u64) -> Option<PmemKind> {
    let about = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let way = std::fs::canonicalize(about).ok()?;
    let bus = way
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ndbus")))?;
    // What drivers/virtio/virtio_pmem.c and drivers/acpi/nfit/core.c call the bus.
    match std::fs::read_to_string(bus.join("provider")).ok()?.trim() {
        "virtio-pmem" => Some(PmemKind::VirtioPmem),
        "ACPI.NFIT" => Some(PmemKind::Nvdimm),
        _ => None,
    }
}

/// Whether a file is accessed by DAX.
fn is_dax(file: &std::fs::File) -> std::io::Result<bool> {
    let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(told.stx_attributes.contains(StatxAttributes::DAX))
}

/// Every process has full access to a scenario's directory, as on the simulated machine.
fn open_to_all(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
}

/// Takes a lease on a file in `dir`, and identifies the file system.
fn probe_leases(dir: &Path) -> Result<FileSystem, Trouble> {
    let path = dir.join("probe");
    let probe = || -> std::io::Result<(i64, bool, u64, std::io::Result<()>)> {
        std::fs::write(&path, b"")?;
        let file = std::fs::File::open(&path)?;
        let magic = rustix::fs::fstatfs(&file)?.f_type;
        let (dax, device) = (is_dax(&file)?, rustix::fs::fstat(&file)?.st_dev);
        // SAFETY: F_SETLEASE takes a number; the descriptor is open.
        let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        let leased = if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        drop(file);
        std::fs::remove_file(&path)?;
        Ok((magic, dax, device, leased))
    };
    let (magic, dax, device, leased) =
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
        memory: pmem_kind(device),
    };
    leased.map(|()| file_system.clone()).map_err(|error| {
        Trouble::CannotRun(format!("{} in {} gives no leases: {error}", file_system.name, dir.display()))
    })
}
