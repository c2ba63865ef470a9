//! Real guests for tests: which machines there are, booting one, and running commands in it.
//!
//! It owns the choice of machines for a test. Invariant: a test either runs on a machine, or says
//! `not run` with the reason; a machine that was fetched and doesn't work is a failure.
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

use std::io::{self, Write as _};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use emulator::sync::{OnceLock, thread};
use guests::packages::{self, Package};
use guests::vm::Boot;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use guests::packages::{CURRENT, DISTRIBUTION};
pub(crate) use guests::vm::{GuestMachine as Machine, Output};

/// Finds the disk of [`fio_disk`] among the guest's devices and mounts it, as a shell script that
/// defines the command `fio` and the variable `other`, the device that is not the disk.
pub(crate) const FIO: &str = "mkdir -p /fio
    test -x /fio/fio || for at in 0 1; do
        if mount -t ext4 -o ro /dev/pmem$at /fio 2>/dev/null; then
            if test -x /fio/fio; then echo /dev/pmem$((1 - at)) >/tmp/other; break; fi
            umount /fio
        fi
    done
    other=$(cat /tmp/other)
    fio() { /fio/lib/ld-linux-x86-64.so.2 --library-path /fio/lib /fio/fio \"$@\"; }\n";

/// Makes an ext4 image that has fio with its libraries, for [`FIO`].
pub(crate) fn fio_disk(machine: &Machine, path: &Path) {
    machine.ext4_image(&machine.dir().join("fio"), path, 144).unwrap_or_else(|why| panic!("{why}"));
}

/// How long a command in a guest may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// A guest of a test: what it does not do is a panic.
pub(crate) struct Guest(guests::vm::LinuxGuest);

/// Boots that must succeed.
pub(crate) trait BootGuest {
    /// Starts the guest and waits until it takes commands.
    fn start(self) -> Guest;
}

impl BootGuest for Boot<'_> {
    fn start(self) -> Guest {
        Guest(self.try_start().unwrap_or_else(|why| panic!("{why}")))
    }
}

impl Deref for Guest {
    type Target = guests::vm::LinuxGuest;

    fn deref(&self) -> &guests::vm::LinuxGuest {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut guests::vm::LinuxGuest {
        &mut self.0
    }
}

impl Guest {
    /// Runs a shell script in the guest.
    pub(crate) fn run(&mut self, script: &str) -> Output {
        self.try_run(script, COMMAND_LIMIT).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs a shell script that must succeed, and gives what it said, without white space around
    /// it. As with `sh -e`, every command in it must.
    pub(crate) fn ok(&mut self, script: &str) -> String {
        let output = self.run(&format!("set -e\n{script}"));
        assert_eq!(output.status, 0, "in the guest: {script}\n{}\n{}", output.text, self.shown());
        output.text.trim().to_owned()
    }

    /// Restarts the guest in an orderly way as far as its disks go (`reboot -f` writes back), and
    /// waits until it takes commands.
    pub(crate) fn reboot(&mut self) {
        self.try_restart("reboot -f").unwrap_or_else(|why| panic!("{why}"));
    }

    /// Restarts the guest at once, with nothing written back, and waits until it takes commands.
    pub(crate) fn reset(&mut self) {
        self.try_restart("echo b >/proc/sysrq-trigger").unwrap_or_else(|why| panic!("{why}"));
    }

    /// Ends the guest from inside, with everything written back, and waits for QEMU's end.
    pub(crate) fn poweroff(self) {
        self.0.try_poweroff().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Ends the guest by SIGKILL of QEMU, and waits for the end of the process.
    pub(crate) fn kill(self) {
        self.0.kill();
    }
}

/// What there is of one machine.
enum Found {
    Ready(Machine),
    NotRun { name: String, reason: String },
}

/// The machines that have a QEMU, in the script's order. The script runs once a process.
fn machines() -> &'static [Found] {
    static MACHINES: OnceLock<Vec<Found>> = OnceLock::new();
    MACHINES.get_or_init(|| {
        let not_run = |name: &str, reason: &str| Found::NotRun { name: name.to_owned(), reason: reason.to_owned() };
        if std::env::var_os("DAXLAB_GUESTS").is_none() {
            return [CURRENT, DISTRIBUTION]
                .map(|name| not_run(name, "set DAXLAB_GUESTS=1 (`make guests` does)"))
                .into();
        }
        let packages = packages::fetch(None).unwrap_or_else(|why| panic!("{why}"));
        let machines = packages.iter().filter(|package| [CURRENT, DISTRIBUTION].contains(&package.name()));
        let machine = |package: &Package| match package {
            Package::NotRun { name, reason } => not_run(name, reason),
            Package::Ready { name, dir, versions } => {
                let machine = Machine::fetched(name, versions, dir).unwrap_or_else(|why| panic!("{why}"));
                if let Some(why) = machine.without_kvm() {
                    tell(&format!("{name} runs without KVM: {why}"));
                }
                Found::Ready(machine)
            }
        };
        machines.map(machine).collect()
    })
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Found::Ready(machine) => machine.name(),
            Found::NotRun { name, .. } => name,
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
    let found = machines().iter().find(|found| found.name() == name);
    found.unwrap_or_else(|| panic!("the script says nothing of {name}")).told(what)
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
