//! A QEMU with a guest kernel and the guest's programs.
//!
//! It owns what is made on this host of what was fetched: the initramfs, and QEMU as a program to
//! be found in a `PATH`. Invariant: a file that another process may be reading is replaced whole.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use emulator::sync::OnceLock;

use crate::initramfs;

/// [`GuestMachine::qemu`] for a shell.
const LAUNCHER: &str = r#"#!/bin/sh
qemu=$(dirname "$0")/../qemu
export QEMU_MODULE_DIR="$qemu/modules"
exec "$qemu/lib/ld-linux-x86-64.so.2" --library-path "$qemu/lib" --argv0 qemu-system-x86_64 "$qemu/qemu-system-x86_64" -L "$qemu/share" "$@"
"#;

/// The largest initramfs in bytes: the kernel has the archive and its files in memory at once, and
/// the smallest guest has 256 MiB.
const INITRAMFS_MAX: usize = 96 << 20;

/// What runs a guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's own processors (`-accel kvm`).
    Kvm,
    /// Translated code, which works everywhere (`-accel tcg`).
    Tcg,
}

/// See the module.
#[derive(Debug)]
pub struct GuestMachine {
    name: String,
    versions: String,
    /// QEMU and programs, as `scripts/guest-packages` lays them out.
    dir: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// What [`GuestMachine::accel`] found; why KVM does not work, if that was tried.
    pub(super) accel: OnceLock<Result<Accel, String>>,
}

/// What a machine can't be made of.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is no such kernel, or no such folder of modules.
    #[error("{what} `{}`: {error}", path.display())]
    Input {
        /// What it is for.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// What was fetched is not whole.
    #[error("`{}`: {error}; remove the folder `{}`, which is fetched anew then", path.display(), dir.display())]
    Package {
        /// What is missing or can't be used.
        path: PathBuf,
        /// The folder of the package.
        dir: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// The initramfs does not fit into a guest.
    #[error("the first file system of the guest is {} MiB large, and may be {} MiB: install the kernel's modules stripped (`make modules_install INSTALL_MOD_STRIP=1`)", .0 >> 20, INITRAMFS_MAX >> 20)]
    TooLarge(usize),
    /// The initramfs can't be made or written.
    #[error("the first file system of the guest: {0}")]
    Initramfs(#[from] io::Error),
    /// `DAXLAB_ACCEL` has another value.
    #[error("DAXLAB_ACCEL is `{0}`: it can be `tcg` or `kvm`")]
    Accel(String),
}

impl GuestMachine {
    /// The machine in a folder of the package called `name`, which has QEMU, programs and a kernel.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn fetched(name: &str, versions: &str, dir: &Path) -> Result<GuestMachine, MachineError> {
        let kernel = dir.join("kernel");
        GuestMachine::with_kernel((name, versions), dir, &kernel.join("vmlinuz"), &kernel.join("modules"), dir)
    }

    /// QEMU and programs of the folder `dir` with another kernel, whose modules are below
    /// `modules`. The initramfs is written to `place`. `name` and versions are for messages.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn with_kernel(
        (name, versions): (&str, &str),
        dir: &Path,
        kernel: &Path,
        modules: &Path,
        place: &Path,
    ) -> Result<GuestMachine, MachineError> {
        let input = |what, path: &Path| {
            let path = path.to_owned();
            move |error| MachineError::Input { what, path, error }
        };
        // QEMU's own message names neither.
        file_with_content(kernel).map_err(input("the kernel image", kernel))?;
        fs::read_dir(modules).map_err(input("the kernel's modules", modules))?;
        check_package(dir)?;
        let machine = GuestMachine {
            name: name.to_owned(),
            versions: versions.to_owned(),
            dir: dir.to_owned(),
            kernel: kernel.to_owned(),
            initramfs: place.join("initramfs"),
            accel: OnceLock::new(),
        };
        if let Ok(accel) = std::env::var("DAXLAB_ACCEL")
            && !matches!(accel.as_str(), "tcg" | "kvm")
        {
            return Err(MachineError::Accel(accel));
        }
        let initramfs = initramfs::build(&dir.join("tools"), modules)?;
        if initramfs.len() > INITRAMFS_MAX {
            return Err(MachineError::TooLarge(initramfs.len()));
        }
        replace(&machine.initramfs, &initramfs, 0o600)?;
        fs::create_dir_all(dir.join("bin"))?;
        replace(&dir.join("bin/qemu-system-x86_64"), LAUNCHER.as_bytes(), 0o755)?;
        Ok(machine)
    }

    /// Its name, such as `current`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it consists of, for people.
    pub fn versions(&self) -> &str {
        &self.versions
    }

    /// The folder of its QEMU and programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs one of the guest's own programs on the host, as `debugfs` and `e2fsck` on an image:
    /// `program` is looked for in the machine's `tools/sbin`, and neither it nor its libraries are
    /// the host's.
    pub fn tool(&self, program: &str) -> Command {
        let tools = self.dir.join("tools");
        let mut command = Command::new(tools.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(tools.join("lib")).arg(tools.join("sbin").join(program)).stdin(Stdio::null());
        command
    }

    /// QEMU, ready for arguments. Run by its own loader: its libraries are not the host's.
    pub fn qemu(&self) -> Command {
        let qemu = self.dir.join("qemu");
        let mut command = Command::new(qemu.join("lib/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(qemu.join("lib")).args(["--argv0", "qemu-system-x86_64"]);
        command.arg(qemu.join("qemu-system-x86_64")).arg("-L").arg(qemu.join("share"));
        command.env("QEMU_MODULE_DIR", qemu.join("modules"));
        command
    }

    /// A `PATH` on which this machine's QEMU is the first `qemu-system-x86_64`.
    pub fn search_path(&self) -> OsString {
        let mut path = self.dir.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }

    /// An ext4 image at `path` that has what is below `content`, of so many MiB.
    ///
    /// # Errors
    /// What making it said.
    pub fn ext4_image(&self, content: &Path, path: &Path, mib: u64) -> io::Result<()> {
        let mut make = self.tool("mke2fs");
        make.args(["-q", "-t", "ext4", "-b", "4096", "-F", "-d"]).arg(content).arg(path).arg(format!("{mib}M"));
        let made = make.output()?;
        if made.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("mke2fs: {}", String::from_utf8_lossy(&made.stderr).trim())))
        }
    }

    pub(super) fn kernel(&self) -> &Path {
        &self.kernel
    }

    pub(super) fn initramfs(&self) -> &Path {
        &self.initramfs
    }
}

/// Checks that a file can be read, and has something in it.
fn file_with_content(path: &Path) -> io::Result<()> {
    let about = fs::File::open(path)?.metadata()?;
    match (about.is_file(), about.len()) {
        (false, _) => Err(io::Error::other("this is no file")),
        (true, 0) => Err(io::Error::other("the file is empty")),
        (true, _) => Ok(()),
    }
}

/// Checks that QEMU with its loader, and the guests' programs, are where they were laid.
fn check_package(dir: &Path) -> Result<(), MachineError> {
    let check = |name: &str, good: fn(&Path) -> io::Result<()>| {
        let path = dir.join(name);
        good(&path).map_err(|error| MachineError::Package { path, dir: dir.to_owned(), error })
    };
    let executable = |path: &Path| {
        file_with_content(path)?;
        match fs::metadata(path)?.permissions().mode() & 0o111 {
            0 => Err(io::Error::other("the file can't be executed")),
            _ => Ok(()),
        }
    };
    check("qemu/lib/ld-linux-x86-64.so.2", executable)?;
    check("qemu/qemu-system-x86_64", executable)?;
    check("tools", |path| fs::read_dir(path).map(drop))
}

/// Writes a file, whole or not at all: another process may be reading it, and builds the same.
fn replace(place: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if fs::read(place).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let dir = place.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.persist(place)?;
    Ok(())
}
