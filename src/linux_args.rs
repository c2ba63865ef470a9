//! Which Linux is asked, for the commands that use it as the oracle: this machine's own kernel, or
//! kernels of guests.
//!
//! It owns these arguments. Invariants: what the user gave is told apart from a guest that can't be
//! had; an argument of one kind of machine is refused for another.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use emulator::sync::Arc;
use workloads::machines::linux::{DeviceDax, LinuxConfig};
use workloads::suite::guest_kernels::{BOOT_LIMIT, DaxFileSystem, GuestKernels, GuestRun, GuestRunError, MachineError};

use crate::{exit, numbers};

/// The longest time for a boot, in seconds.
const BOOT_SECONDS_MAX: u16 = 3600;

/// What this machine's own kernel is given.
#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    /// With `--on kernel`: the directory for temporary files, whose file system is tested [default:
    /// the system's]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// With `--on kernel`: the directory for files without DAX, where --dir has DAX
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    page_cache_dir: Option<PathBuf>,
    /// With `--on kernel`: a device-DAX device for scenarios that map one; its content is lost
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath)]
    device_dax: Option<PathBuf>,
    /// With `--on kernel`: this Linux is thrown away afterwards, as a guest is. Scenarios may leave
    /// processes that nothing can end, and overwrite RAM disks
    #[arg(long, hide = true)]
    disposable: bool,
}

/// What guests boot.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// With `--on guest`: this kernel instead of Debian's (bzImage); it needs --modules
    #[arg(long, value_name = "IMAGE", requires = "modules", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// With `--kernel`: the folder below which its modules lie
    #[arg(long, value_name = "DIR", requires = "kernel", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    /// With `--on guest`: the file systems, each booted with each kernel [default: xfs,ext4]
    #[arg(long, value_name = "FS,…", value_enum, value_delimiter = ',')]
    file_system: Vec<FileSystemChoice>,
    /// With `--on guest`: how many seconds a guest may take to boot [default: 180]
    #[arg(long, value_name = "SECONDS", value_parser = numbers::within(1..=BOOT_SECONDS_MAX, "a guest boots within some seconds by KVM, and within a minute without"))]
    boot_limit: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileSystemChoice {
    /// XFS mounted with dax=always
    Xfs,
    /// ext4 mounted with dax=always
    Ext4,
}

/// What runs on guests.
pub(crate) fn guest_run(args: &GuestArgs) -> GuestRun {
    let kernels = match (&args.kernel, &args.modules) {
        (Some(image), Some(modules)) => GuestKernels::Own { image: image.clone(), modules: modules.clone() },
        _ => GuestKernels::Fetched,
    };
    let mut file_systems: Vec<DaxFileSystem> = Vec::new();
    let chosen = if args.file_system.is_empty() { FileSystemChoice::value_variants() } else { &args.file_system };
    for file_system in chosen {
        let file_system = match file_system {
            FileSystemChoice::Xfs => DaxFileSystem::Xfs,
            FileSystemChoice::Ext4 => DaxFileSystem::Ext4,
        };
        if !file_systems.contains(&file_system) {
            file_systems.push(file_system);
        }
    }
    let boot_limit = args.boot_limit.map_or(BOOT_LIMIT, |seconds| Duration::from_secs(seconds.into()));
    GuestRun { kernels, file_systems, boot_limit, program: LinuxConfig::new().program }
}

/// What the user gave is told as such; all else means that there is no guest.
pub(crate) fn guest_error(error: GuestRunError) -> anyhow::Error {
    match error {
        GuestRunError::Input(error) => (*error).into(),
        GuestRunError::Machine(error @ (MachineError::Input { .. } | MachineError::TooLarge(_))) => {
            anyhow::Error::new(error)
        }
        other => exit::CannotRun(other.to_string()).into(),
    }
}

impl KernelArgs {
    /// Checks that nothing of it is given where no scenario runs on this machine's own kernel.
    pub(crate) fn check_unused(&self) -> anyhow::Result<()> {
        let KernelArgs { dir, page_cache_dir, device_dax, disposable } = self;
        let given = [
            (dir.is_some(), "--dir is where files of this machine's own kernel go"),
            (page_cache_dir.is_some(), "--page-cache-dir is where files of this machine's own kernel go"),
            (device_dax.is_some(), "--device-dax is a device of this machine's own kernel"),
            (*disposable, "--disposable is about this machine's own kernel"),
        ];
        refuse(given, "--on kernel")
    }

    /// This machine's own kernel.
    pub(crate) fn config(&self) -> LinuxConfig {
        let KernelArgs { dir, page_cache_dir, device_dax, disposable } = self;
        let config = LinuxConfig::new();
        LinuxConfig {
            dir: dir.clone().unwrap_or_else(|| config.dir.clone()),
            page_cache_dir: page_cache_dir.clone(),
            device_dax: device_dax.as_deref().map(|device| Arc::new(DeviceDax::new(device))),
            disposable: *disposable,
            ..config
        }
    }
}

impl GuestArgs {
    /// Checks that nothing of it is given where no guest boots.
    pub(crate) fn check_unused(&self) -> anyhow::Result<()> {
        let given = [
            (self.kernel.is_some(), "--kernel is what a guest boots"),
            (!self.file_system.is_empty(), "--file-system is what a guest mounts"),
            (self.boot_limit.is_some(), "--boot-limit is how long a guest may boot"),
        ];
        refuse(given, "--on guest")
    }
}

fn refuse<const N: usize>(given: [(bool, &str); N], needs: &str) -> anyhow::Result<()> {
    match given.into_iter().find(|(given, _)| *given) {
        Some((_, what)) => anyhow::bail!("{what}: it needs {needs}"),
        None => Ok(()),
    }
}
