//! Runs scenarios on the kernels of guests: Linux itself says what a call does on fsdax.
//!
//! It owns the choice of kernels, one boot a kernel and file system, and the report of them all.
//! This program itself runs in the guest, as [`super::linux`] does on the host. Invariants: a
//! scenario that no guest ran is reported as not run, with the reason; a guest that hangs ends with
//! its limit and the end of its console. Kernel counterpart: xfstests' `check` with a section for
//! each file system.

mod program_disk;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emulator::sync::atomic::{AtomicUsize, Ordering};
use emulator::sync::{Mutex, thread};
use guests::packages::{self, CURRENT, LINUX_BACKPORTS, LINUX_STABLE, Package, PackagesError};
pub use guests::vm::MachineError;
use guests::vm::{GuestError, GuestMachine, LinuxGuest};
use reports::scenarios::{CellFailure, CellVerdict, ScenarioCell, ScenarioReport};
use serde::Deserialize;

use crate::input::InputError;
use crate::language::Scenario;
use crate::suite::{linux, run, scenarios};

use program_disk::ProgramDisk;

/// A guest's memory in MiB: kernel, first file system and this program need a fifth of it.
const MEMORY_MIB: u32 = 512;
/// The size of a guest's persistent memory: mkfs.xfs makes none of less than 300 MiB.
const PMEM: u64 = 400 << 20;
/// How long a guest may take to make and mount its file system.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// How long all scenarios may take in one guest. They take seconds.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// How often a scenario runs whose outcome a busy machine did not let be told.
const ATTEMPTS: u32 = 3;
/// The status of the shell that tells of a missing command or device in [`prepare`].
const LACKS: i32 = 70;

/// Whose kernel runs the scenarios.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestKernels {
    /// Debian's generic kernels: of its backports, and of its stable release.
    Fetched,
    /// A kernel of the caller's own.
    Own {
        /// A bootable image (`arch/x86/boot/bzImage`).
        image: PathBuf,
        /// The folder below which its modules lie (`make modules_install INSTALL_MOD_PATH=DIR`).
        modules: PathBuf,
    },
}

/// A file system with DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxFileSystem {
    /// XFS, with reflink.
    Xfs,
    /// ext4.
    Ext4,
}

impl DaxFileSystem {
    /// Its name for mount(8).
    pub fn name(self) -> &'static str {
        match self {
            DaxFileSystem::Xfs => "xfs",
            DaxFileSystem::Ext4 => "ext4",
        }
    }

    fn make(self) -> &'static str {
        match self {
            DaxFileSystem::Xfs => "mkfs.xfs -q -f /dev/pmem0",
            DaxFileSystem::Ext4 => "mkfs.ext4 -q -F -b 4096 /dev/pmem0",
        }
    }
}

/// What is run on guests.
#[derive(Clone, Debug)]
pub struct GuestRun {
    /// Whose kernels.
    pub kernels: GuestKernels,
    /// Each of them is booted with each of these.
    pub file_systems: Vec<DaxFileSystem>,
    /// This program, which runs in the guests.
    pub program: PathBuf,
}

/// Why nothing ran.
#[derive(Debug, thiserror::Error)]
pub enum GuestRunError {
    /// A scenario is wrong.
    #[error(transparent)]
    Input(#[from] Box<InputError>),
    /// No guest can be had.
    #[error("no guest: {0}")]
    NoGuest(String),
    /// Nothing can be fetched.
    #[error("no guest: {0}")]
    Packages(#[from] PackagesError),
    /// The kernel or its modules can't be used.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file for the guests can't be made.
    #[error("the disk with this program for the guests: {0}")]
    Disk(#[from] io::Error),
}

/// One boot: a kernel and a file system.
struct GuestCase<'a> {
    machine: &'a GuestMachine,
    file_system: DaxFileSystem,
}

/// What a guest reported, or why it did not.
struct CaseResult {
    /// The column of the report: kernel and file system.
    name: String,
    cells: Result<BTreeMap<String, ScenarioCell>, String>,
}

/// What `scenario run --format json` prints, as far as it is read here.
#[derive(Deserialize)]
struct GuestReport {
    scenarios: Vec<GuestRow>,
}

#[derive(Deserialize)]
struct GuestRow {
    id: String,
    cells: Vec<ScenarioCell>,
}

/// Runs `scenarios` on guests' kernels. A column of the report is a kernel with a file system.
/// `tell` hears what takes long.
///
/// # Errors
/// [`GuestRunError`]: nothing ran.
pub fn run_on_guests(
    scenarios: &[Scenario],
    what: &GuestRun,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<ScenarioReport, GuestRunError> {
    let subject = linux::subject();
    for scenario in scenarios {
        linux::check(scenario).map_err(Box::new)?;
        run::check(scenario, std::slice::from_ref(&subject)).map_err(Box::new)?;
    }
    let work = tempfile::Builder::new().prefix("daxlab-guests-").tempdir()?;
    let machines = machines(&what.kernels, work.path(), tell)?;
    let disk = work.path().join("program.ext4");
    ProgramDisk { program: &what.program, scenarios }.write(&machines[0], work.path(), &disk)?;
    let cases: Vec<GuestCase<'_>> = machines
        .iter()
        .flat_map(|machine| {
            what.file_systems.iter().map(move |file_system| GuestCase { machine, file_system: *file_system })
        })
        .collect();
    // Boots take long, and each keeps a processor busy.
    let (next, done) = (AtomicUsize::new(0), Mutex::new(cases.iter().map(|_| None).collect::<Vec<_>>()));
    let boot_cases = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(n) else { return };
            let result = case.run(n, work.path(), &disk, scenarios, tell);
            done.lock()[n] = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::parallelism().min(cases.len()) {
            // Fewer threads take longer, and do the same.
            if thread::try_spawn_scoped(scope, boot_cases).is_err() {
                break;
            }
        }
        boot_cases();
    });
    let results: Vec<CaseResult> = std::mem::take(&mut *done.lock()).into_iter().flatten().collect();
    Ok(report(scenarios, results))
}

/// The machines whose kernels run the scenarios.
fn machines(
    kernels: &GuestKernels,
    work: &Path,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Vec<GuestMachine>, GuestRunError> {
    tell("looking for QEMU and kernels; what is missing is downloaded once");
    let fetched = |name: &str| {
        let package = packages::fetch(Some(name))?.into_iter().next();
        match package {
            Some(Package::Ready { dir, versions, .. }) => Ok((dir, versions)),
            Some(Package::NotRun { reason, .. }) => Err(GuestRunError::NoGuest(reason)),
            None => Err(GuestRunError::NoGuest(format!("nothing is known of {name}"))),
        }
    };
    let (current, qemu) = fetched(CURRENT)?;
    let qemu = qemu.split(',').next().unwrap_or_default().to_owned();
    let machine = |name: &str, versions: &str, kernel: &Path, modules: &Path| {
        let place = work.join(name);
        std::fs::create_dir(&place)?;
        let versions = format!("{qemu}, {versions}");
        Ok::<_, GuestRunError>(GuestMachine::with_kernel((name, &versions), &current, kernel, modules, &place)?)
    };
    match kernels {
        GuestKernels::Own { image, modules } => {
            Ok(vec![machine("own-kernel", "a kernel of your own", image, modules)?])
        }
        GuestKernels::Fetched => [LINUX_BACKPORTS, LINUX_STABLE]
            .into_iter()
            .map(|name| {
                let (dir, versions) = fetched(name)?;
                machine(name, &versions, &dir.join("kernel/vmlinuz"), &dir.join("kernel/modules"))
            })
            .collect(),
    }
}

impl GuestCase<'_> {
    /// Boots, runs all scenarios, and reads what they did.
    fn run(
        &self,
        number: usize,
        work: &Path,
        disk: &Path,
        scenarios: &[Scenario],
        tell: &(dyn Fn(&str) + Sync),
    ) -> CaseResult {
        let mut name = format!("{} {}", self.machine.versions(), self.file_system.name());
        tell(&format!("booting {name}"));
        let pmem = work.join(format!("pmem{number}"));
        let cells = self.cells(&pmem, disk, scenarios, &mut name);
        if let Err(why) = &cells {
            tell(&format!("{name}: {why}"));
        }
        // Its guest has ended; the next one needs the room.
        let _ = std::fs::remove_file(&pmem);
        CaseResult { name, cells }
    }

    fn cells(
        &self,
        pmem: &Path,
        disk: &Path,
        scenarios: &[Scenario],
        name: &mut String,
    ) -> Result<BTreeMap<String, ScenarioCell>, String> {
        let made = std::fs::File::create_new(pmem).and_then(|file| file.set_len(PMEM));
        made.map_err(|error| format!("{}: {error}", pmem.display()))?;
        let shown = |why: GuestError| why.to_string();
        let boot = self.machine.boot().memory(MEMORY_MIB).virtio_pmem(pmem, PMEM).read_only_disk(disk);
        let mut guest = boot.try_start().map_err(shown)?;
        let release = guest.try_run("uname -r", PREPARE_LIMIT).map_err(shown)?;
        *name = format!("{} {}", release.text.trim(), self.file_system.name());
        let prepared = guest.try_run(&prepare(self.file_system), PREPARE_LIMIT).map_err(shown)?;
        match prepared.status {
            0 => {}
            LACKS => return Err(prepared.text.trim().to_owned()),
            status => {
                return Err(format!("preparing ended with {status}: {}\n{}", prepared.text.trim(), guest.shown()));
            }
        }
        let mut cells = BTreeMap::new();
        let mut again: Vec<usize> = (0..scenarios.len()).collect();
        for _ in 0..ATTEMPTS {
            cells.extend(reported(&mut guest, &again)?);
            // The guest was too busy to tell; nothing was found against it.
            let unclear = |cell: &ScenarioCell| cell.verdict == CellVerdict::Inconclusive;
            again.retain(|number| cells.get(&scenarios[*number].id).is_some_and(unclear));
            if again.is_empty() {
                break;
            }
        }
        Ok(cells)
    }
}

/// Runs the scenarios with these numbers in a guest, and reads what it reports.
fn reported(guest: &mut LinuxGuest, scenarios: &[usize]) -> Result<Vec<(String, ScenarioCell)>, String> {
    let output = guest.try_run(&program_disk::run_script(scenarios), RUN_LIMIT).map_err(|why| why.to_string())?;
    let start = output.text.find('{').unwrap_or(output.text.len());
    // What the program said on stderr stands behind it.
    let first = serde_json::Deserializer::from_str(&output.text[start..]).into_iter::<GuestReport>().next();
    let report = first
        .and_then(Result::ok)
        .ok_or_else(|| format!("the program in the guest ended with {}: {}", output.status, output.text.trim()))?;
    Ok(report.scenarios.into_iter().filter_map(|row| Some((row.id, row.cells.into_iter().next()?))).collect())
}

/// Makes and mounts a file system in a guest, and the disk with this program: a shell script. With
/// the status [`LACKS`] it has said what the kernel lacks.
fn prepare(file_system: DaxFileSystem) -> String {
    let (name, make) = (file_system.name(), file_system.make());
    let (mounts, extras) = (program_disk::mount_script(LACKS), program_disk::prepare_extras());
    format!(
        "lacks() {{ echo \"the kernel $(uname -r) $1\"; exit {LACKS}; }}
        load {name}
        test -b /dev/pmem0 || lacks 'has no persistent memory: it needs CONFIG_VIRTIO_PMEM and CONFIG_BLK_DEV_PMEM, built in or as modules below the folder given'
        grep -qw {name} /proc/filesystems || lacks 'has no {name}'
        {make} || exit 1
        mount -t {name} -o dax=always /dev/pmem0 /mnt || lacks 'does not mount {name} with DAX: it needs CONFIG_FS_DAX'
        {mounts}
        {extras}"
    )
}

/// The report of all guests. A guest that did not run has its reason in every cell.
fn report(scenarios: &[Scenario], results: Vec<CaseResult>) -> ScenarioReport {
    let names: Vec<String> = results.iter().map(|result| result.name.clone()).collect();
    let mut report = ScenarioReport::new("guests' kernels", names);
    for scenario in scenarios {
        let cells = results.iter().map(|result| {
            let not_run = |why: String| ScenarioCell {
                design: result.name.clone(),
                verdict: CellVerdict::NotRun,
                outcome: String::new(),
                failure: Some(CellFailure { got: why, ..CellFailure::default() }),
            };
            match &result.cells {
                Err(why) => not_run(why.clone()),
                Ok(cells) => match cells.get(&scenario.id) {
                    Some(cell) => ScenarioCell { design: result.name.clone(), ..cell.clone() },
                    None => not_run("the guest reported nothing of it".to_owned()),
                },
            }
        });
        report.scenarios.push(scenarios::row(scenario, cells.collect()));
    }
    report
}
