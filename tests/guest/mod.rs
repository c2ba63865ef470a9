//! Real guests for tests: which machines there are, booting one, and running commands in it.
//!
//! Owns the way from `scripts/guest-packages` to a [`Machine`]: one script run a process, one trial
//! of KVM a machine. Invariant: a test either runs on a machine, or says `not run` with the reason;
//! a machine that was fetched and doesn't work is a failure.
//!
//! ```text
//! guest::each("what the test is about", |machine| {
//!     let mut guest = machine.boot().vhost_user_pmem(&socket).start();
//!     guest.ok("mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -o dax /dev/pmem0 /mnt");
//!     guest.reboot();
//!     assert_eq!(guest.run("mount -o dax /dev/pmem0 /mnt").status, 0);
//!     guest.poweroff();
//! });
//! ```

#![allow(dead_code, reason = "each test file uses its part")]

mod initramfs;
mod qemu;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io};

use emulator::sync::{OnceLock, thread};

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use qemu::{Accel, Boot, Guest, Output, Started};

/// A QEMU with a guest kernel and the guest's tools, fetched by `scripts/guest-packages`.
pub(crate) struct Machine {
    /// `current`: QEMU 11.1 or newer with a current kernel; `distribution`: those of this machine's
    /// Debian release.
    pub(crate) name: String,
    /// What it consists of, for messages.
    pub(crate) versions: String,
    dir: PathBuf,
    accel: OnceLock<Accel>,
}

/// QEMU >= 11.1 can map memory of a vhost-user backend, and its kernel asks for it.
pub(crate) const CURRENT: &str = "current";
/// QEMU and kernel of the machine's own Debian release: persistent memory is QEMU's own device.
pub(crate) const DISTRIBUTION: &str = "distribution";

/// Finds the disk of [`Machine::fio_disk`] among the guest's devices and mounts it, as a shell
/// script that defines the command `fio` and the variable `other`, the device that is not the disk.
pub(crate) const FIO: &str = "mkdir -p /fio
    test -x /fio/fio || for at in 0 1; do
        if mount -t ext4 -o ro /dev/pmem$at /fio 2>/dev/null; then
            if test -x /fio/fio; then echo /dev/pmem$((1 - at)) >/tmp/other; break; fi
            umount /fio
        fi
    done
    other=$(cat /tmp/other)
    fio() { /fio/lib/ld-linux-x86-64.so.2 --library-path /fio/lib /fio/fio \"$@\"; }\n";

/// [`Machine::qemu`] for a shell.
const LAUNCHER: &str = r#"#!/bin/sh
qemu=$(dirname "$0")/../qemu
export QEMU_MODULE_DIR="$qemu/modules"
exec "$qemu/lib/ld-linux-x86-64.so.2" --library-path "$qemu/lib" --argv0 qemu-system-x86_64 "$qemu/qemu-system-x86_64" -L "$qemu/share" "$@"
"#;

impl Machine {
    /// A boot of this machine, to be given devices and started.
    pub(crate) fn boot(&self) -> Boot<'_> {
        Boot::new(self)
    }

    /// The accelerator that runs guests' processors here: KVM if a guest really boots with it (the
    /// device may open and still not run one, as in some clouds), and TCG otherwise. Tried once a
    /// process; `DAXLAB_ACCEL=tcg` or `kvm` decides instead.
    fn accel(&self) -> Accel {
        *self.accel.get_or_init(|| match std::env::var("DAXLAB_ACCEL").as_deref() {
            Ok("tcg") => Accel::Tcg,
            Ok("kvm") => Accel::Kvm,
            Ok(other) => panic!("DAXLAB_ACCEL is {other}, not tcg or kvm"),
            Err(_) => match self.boot().accel(Accel::Kvm).limit(KVM_LIMIT).try_start() {
                Ok(_) => Accel::Kvm,
                Err(why) => {
                    tell(&format!("{} runs without KVM: {}", self.name, why.lines().next().unwrap_or_default()));
                    Accel::Tcg
                }
            },
        })
    }

    /// Runs one of the guest's own programs on the host, as `debugfs` and `e2fsck` on an image:
    /// `program` is looked for in the machine's `tools/sbin`, and neither it nor its libraries are
    /// the host's.
    pub(crate) fn tool(&self, program: &str) -> Command {
        let tools = self.dir.join("tools");
        let mut command = Command::new(tools.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(tools.join("lib")).arg(tools.join("sbin").join(program)).stdin(Stdio::null());
        command
    }

    /// QEMU, ready for arguments. Run by its own loader: its libraries are not the host's.
    pub(crate) fn qemu(&self) -> Command {
        let qemu = self.dir.join("qemu");
        let mut command = Command::new(qemu.join("lib/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(qemu.join("lib")).args(["--argv0", "qemu-system-x86_64"]);
        command.arg(qemu.join("qemu-system-x86_64")).arg("-L").arg(qemu.join("share"));
        command.env("QEMU_MODULE_DIR", qemu.join("modules"));
        command
    }

    /// A `PATH` on which this machine's QEMU is the first `qemu-system-x86_64`.
    pub(crate) fn search_path(&self) -> OsString {
        let mut path = self.dir.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }

    /// An ext4 image that has fio with its libraries, for [`FIO`].
    ///
    /// # Errors
    /// What making it said.
    pub(crate) fn fio_disk(&self, path: &Path) -> Result<(), String> {
        let make = self
            .tool("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-F", "-d"])
            .arg(self.dir.join("fio"))
            .arg(path)
            .arg("144M")
            .output();
        let made = make.map_err(|error| error.to_string())?;
        if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
    }

    fn kernel(&self) -> PathBuf {
        self.dir.join("kernel/vmlinuz")
    }

    fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// Writes what is made here of what was fetched: the initramfs, and QEMU as a program to be
    /// found in a `PATH`.
    fn build(&self) -> io::Result<()> {
        let initramfs = initramfs::build(&self.dir.join("tools"), &self.dir.join("kernel/modules"))?;
        self.place(&self.initramfs(), &initramfs, 0o600)?;
        fs::create_dir_all(self.dir.join("bin"))?;
        self.place(&self.dir.join("bin/qemu-system-x86_64"), LAUNCHER.as_bytes(), 0o755)
    }

    /// Writes a file, whole or not at all: another process may be reading it, and builds the same.
    fn place(&self, place: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        if fs::read(place).is_ok_and(|there| there == content) {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(content)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.persist(place)?;
        Ok(())
    }
}

/// What there is of one machine.
enum Found {
    Ready(Machine),
    NotRun { name: String, reason: String },
}

/// All machines, in the script's order. The script runs once a process.
fn machines() -> &'static [Found] {
    static MACHINES: OnceLock<Vec<Found>> = OnceLock::new();
    MACHINES.get_or_init(|| {
        if std::env::var_os("DAXLAB_GUESTS").is_none() {
            let reason = "set DAXLAB_GUESTS=1 (`make guests` does)";
            return [CURRENT, DISTRIBUTION].map(|name| Found::not_run(name, reason)).into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/guest-packages");
        let run = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("a script");
        assert!(run.status.success(), "{}: {}", script.display(), run.status);
        String::from_utf8_lossy(&run.stdout).lines().map(Found::parse).collect()
    })
}

impl Found {
    fn not_run(name: &str, reason: &str) -> Found {
        Found::NotRun { name: name.to_owned(), reason: reason.to_owned() }
    }

    /// A line of the script: `NAME ready FOLDER VERSIONS` or `NAME not-run REASON`.
    fn parse(line: &str) -> Found {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match rest.split_once(' ') {
            Some(("not-run", reason)) => Found::not_run(name, reason),
            Some(("ready", rest)) => {
                let (dir, versions) = rest.split_once(" QEMU ").unwrap_or((rest, ""));
                let machine = Machine {
                    name: name.to_owned(),
                    versions: format!("QEMU {versions}"),
                    dir: PathBuf::from(dir),
                    accel: OnceLock::new(),
                };
                machine.build().unwrap_or_else(|error| panic!("{}: {error}", machine.dir.display()));
                Found::Ready(machine)
            }
            _ => panic!("scripts/guest-packages said: {line}"),
        }
    }

    /// The machine, if it is there; the reason is told otherwise.
    fn told(&self, what: &str) -> Option<&Machine> {
        match self {
            Found::Ready(machine) => Some(machine),
            Found::NotRun { name, reason } => {
                tell(&format!("{what}, {name}: not run: {reason}"));
                None
            }
        }
    }
}

/// Prints a line for the person who runs the tests, also where the output of tests that pass is
/// kept back.
pub(crate) fn tell(line: &str) {
    // What can't be said is no failure of the test.
    let _ = writeln!(io::stderr(), "guests: {line}");
}

/// The machine of this name. `None`, and a line that says why, if it can't be had.
pub(crate) fn machine(name: &str, what: &str) -> Option<&'static Machine> {
    machines()
        .iter()
        .find(|found| match found {
            Found::Ready(machine) => machine.name == name,
            Found::NotRun { name: other, .. } => other == name,
        })
        .unwrap_or_else(|| panic!("scripts/guest-packages says nothing of {name}"))
        .told(what)
}

/// Runs a test on every machine, all at once. `what` names the test for the machines that can't be
/// had.
///
/// # Panics
/// If the test panics on a machine.
pub(crate) fn each(what: &str, test: impl Fn(&Machine) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        for machine in machines().iter().filter_map(|found| found.told(what)) {
            scope.spawn(move || test(machine));
        }
    });
}

/// How long a guest may take to boot or end. Minutes, because a busy machine without KVM is slow;
/// nothing is decided by it.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a command in a guest may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How long KVM may take to boot a guest. It needs about one second where it works.
const KVM_LIMIT: Duration = Duration::from_secs(15);
