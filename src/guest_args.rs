//! What guests boot, for the commands that use Linux as the oracle.
//!
//! It owns these arguments, and where the program itself is found. Invariant: what the user gave is
//! told apart from a guest that can't be had.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use workloads::suite::guest_kernels::{DaxFileSystem, GuestKernels, GuestRun, GuestRunError, MachineError};

use crate::exit;

/// This program, which makes the processes of scenarios on a real kernel.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// What guests boot.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// With `--on guest`: this kernel instead of Debian's (bzImage); it needs --modules
    #[arg(long, value_name = "IMAGE", requires = "modules", value_hint = ValueHint::FilePath)]
    pub(crate) kernel: Option<PathBuf>,
    /// With `--kernel`: the folder below which its modules lie
    #[arg(long, value_name = "DIR", requires = "kernel", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    /// With `--on guest`: the file systems, each booted with each kernel [default: xfs,ext4]
    #[arg(long, value_name = "FS,…", value_enum, value_delimiter = ',')]
    pub(crate) file_system: Vec<FileSystemChoice>,
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
    GuestRun { kernels, file_systems, program: PathBuf::from(PROGRAM) }
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

/// The directory for files of this machine's own kernel.
pub(crate) fn dir_of(given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(std::env::temp_dir)
}
