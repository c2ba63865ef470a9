//! Runs scenarios on the kernels of guests: Linux itself says what a call does on fsdax.
//!
//! It owns the choice of kernels, one boot a kernel and file system, and the report of them all.
//! This program itself runs in the guest, as [`super::linux`] does on the host. Invariants: a
//! scenario that no guest ran is reported as not run, with the reason; a guest that hangs ends with
//! its limit and the end of its console. Kernel counterpart: xfstests' `check` with a section for
//! each file system.

mod devices;
mod program_disk;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emulator::sync::atomic::{AtomicUsize, Ordering};
use emulator::sync::{Mutex, thread};
use guests::packages::{self, CURRENT, LINUX_BACKPORTS, LINUX_STABLE, Package, PackagesError};
pub use guests::vm::{BOOT_LIMIT, MachineError};
use guests::vm::{GuestError, GuestMachine, LinuxGuest, Output};
use reports::scenarios::{CellFailure, CellVerdict, DesignRanking, KernelRanking, ScenarioCell, ScenarioReport};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::input::InputError;
use crate::language::Scenario;
use crate::suite::agreement::{AgreementReport, AgreementReports, KernelAgreement};
use crate::suite::linux::{self, Statements};
use crate::suite::scenarios;

pub use devices::DaxFileSystem;
use devices::{GuestDevices, LACKS};
use program_disk::ProgramDisk;

/// A guest's memory in MiB: kernel, first file system and this program need a fifth of it.
const MEMORY_MIB: u32 = 512;
/// How long a guest may take to make and mount its file system.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// How long all scenarios may take in one guest. They take seconds.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// How much longer for each random sequence. It takes tens of milliseconds.
const SEQUENCE_LIMIT: Duration = Duration::from_millis(200);
/// How often a scenario runs whose outcome a busy machine did not let be told.
const ATTEMPTS: u32 = 3;

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

/// What is run on guests.
#[derive(Clone, Debug)]
pub struct GuestRun {
    /// Whose kernels.
    pub kernels: GuestKernels,
    /// Each of them is booted with each of these.
    pub file_systems: Vec<DaxFileSystem>,
    /// How long a guest may take to boot.
    pub boot_limit: Duration,
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
    boot_limit: Duration,
}

/// What a guest reported, or why it did not.
struct CaseResult<T> {
    /// Kernel and file system.
    name: String,
    outcome: Result<T, String>,
}

/// What `scenario run --format json` prints, as far as it is read here.
#[derive(Deserialize)]
struct GuestReport {
    designs: Vec<String>,
    scenarios: Vec<GuestRow>,
}

/// What it prints with `--which-design`.
#[derive(Deserialize)]
struct GuestRanking {
    kernels: Vec<GuestKernel>,
}

#[derive(Deserialize)]
struct GuestKernel {
    report: GuestReport,
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
    Ok(report(scenarios, results(scenarios, Statements::OfLinux, what, tell)?))
}

/// Runs `scenarios` on guests' kernels against what they state for each preset, and ranks the
/// presets for each kernel and file system.
///
/// # Errors
/// [`GuestRunError`]: nothing ran.
pub fn rank_designs_on_guests(
    scenarios: &[Scenario],
    what: &GuestRun,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<DesignRanking, GuestRunError> {
    let results = results(scenarios, Statements::OfPresets, what, tell)?;
    let ranking = |result: CaseResult<ScenarioReport>| match result.outcome {
        Ok(report) => KernelRanking::of(&result.name, report),
        Err(why) => KernelRanking::not_run(&result.name, why),
    };
    Ok(DesignRanking::new(results.into_iter().map(ranking).collect()))
}

/// Compares random sequences on guests' kernels with the simulation: one report for each kernel and
/// file system.
///
/// # Errors
/// [`GuestRunError`]: nothing ran.
pub fn agree_on_guests(
    sequences: u64,
    seed: u64,
    what: &GuestRun,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<AgreementReports, GuestRunError> {
    let script = program_disk::random_script(sequences, seed);
    let limit = RUN_LIMIT + SEQUENCE_LIMIT * u32::try_from(sequences).unwrap_or(u32::MAX);
    let results = in_every_guest(&[], what, tell, &|guest| {
        let output = guest.try_run(&script, limit).map_err(|why| why.to_string())?;
        let reports: Option<AgreementReports> = printed(&output.text);
        let report = reports.and_then(|reports| reports.kernels.into_iter().next());
        report.ok_or_else(|| ended(&output))
    })?;
    let report = |result: CaseResult<KernelAgreement>| {
        let not_run = |why| AgreementReport { not_run: Some(why), ..AgreementReport::default() };
        let report = result.outcome.map_or_else(not_run, |agreement| agreement.report);
        KernelAgreement { kernel: result.name, report }
    };
    Ok(AgreementReports::new(seed, results.into_iter().map(report).collect()))
}

/// One report for each kernel and file system.
fn results(
    scenarios: &[Scenario],
    statements: Statements,
    what: &GuestRun,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Vec<CaseResult<ScenarioReport>>, GuestRunError> {
    linux::check(scenarios, statements).map_err(Box::new)?;
    in_every_guest(scenarios, what, tell, &|guest| suite_report(guest, scenarios, statements))
}

/// Does something in a guest for each kernel and file system. `scenarios` are on the guests' disk.
fn in_every_guest<T: Send>(
    scenarios: &[Scenario],
    what: &GuestRun,
    tell: &(dyn Fn(&str) + Sync),
    body: &(dyn Fn(&mut LinuxGuest) -> Result<T, String> + Sync),
) -> Result<Vec<CaseResult<T>>, GuestRunError> {
    let work = tempfile::Builder::new().prefix("daxlab-guests-").tempdir()?;
    let machines = machines(&what.kernels, work.path(), tell)?;
    let disk = work.path().join("program.ext4");
    ProgramDisk { program: &what.program, scenarios }.write(&machines[0], work.path(), &disk)?;
    let cases: Vec<GuestCase<'_>> = machines
        .iter()
        .flat_map(|machine| {
            let case = |file_system| GuestCase { machine, file_system, boot_limit: what.boot_limit };
            what.file_systems.iter().copied().map(case)
        })
        .collect();
    // Boots take long, and each keeps a processor busy.
    let (next, done) = (AtomicUsize::new(0), Mutex::new(cases.iter().map(|_| None).collect::<Vec<_>>()));
    let boot_cases = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(n) else { return };
            let result = case.run(n, (work.path(), &disk), tell, body);
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
    let results = std::mem::take(&mut *done.lock()).into_iter().flatten().collect();
    Ok(results)
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
    /// Boots, and does something there.
    fn run<T>(
        &self,
        number: usize,
        (work, disk): (&Path, &Path),
        tell: &(dyn Fn(&str) + Sync),
        body: &(dyn Fn(&mut LinuxGuest) -> Result<T, String> + Sync),
    ) -> CaseResult<T> {
        let mut name = format!("{} {}", self.machine.versions(), self.file_system.name());
        tell(&format!("booting {name}"));
        let made = GuestDevices::make(self.machine, self.file_system, work, number);
        let outcome = made
            .map_err(|error| format!("the memory and the disks of the guest: {error}"))
            .and_then(|devices| body(&mut self.boot(&devices, disk, &mut name)?));
        if let Err(why) = &outcome {
            tell(&format!("{name}: {why}"));
        }
        CaseResult { name, outcome }
    }

    /// A guest with its file system and this program. It puts the kernel's release into `name`.
    fn boot(&self, devices: &GuestDevices, disk: &Path, name: &mut String) -> Result<LinuxGuest, String> {
        let shown = |why: GuestError| why.to_string();
        let boot = devices.add_to(self.machine.boot().memory(MEMORY_MIB).limit(self.boot_limit), disk);
        let mut guest = boot.try_start().map_err(shown)?;
        let release = guest.try_run("uname -r", PREPARE_LIMIT).map_err(shown)?;
        *name = format!("{} {}", release.text.trim(), self.file_system.name());
        let prepared = guest.try_run(&devices::prepare(self.file_system), PREPARE_LIMIT).map_err(shown)?;
        match prepared.status {
            0 => Ok(guest),
            LACKS => Err(prepared.text.trim().to_owned()),
            status => Err(format!("preparing ended with {status}: {}\n{}", prepared.text.trim(), guest.shown())),
        }
    }
}

/// Runs all scenarios in a guest. Those whose outcome could not be told run again.
fn suite_report(
    guest: &mut LinuxGuest,
    scenarios: &[Scenario],
    statements: Statements,
) -> Result<ScenarioReport, String> {
    let mut rows = BTreeMap::new();
    let mut designs = Vec::new();
    let mut again: Vec<usize> = (0..scenarios.len()).collect();
    for _ in 0..ATTEMPTS {
        let report = reported(guest, &again, statements)?;
        designs = report.designs;
        rows.extend(report.scenarios.into_iter().map(|row| (row.id, row.cells)));
        // The guest was too busy to tell; nothing was found against it.
        let unclear = |cell: &ScenarioCell| cell.verdict == CellVerdict::Inconclusive;
        again.retain(|number| rows.get(&scenarios[*number].id).is_some_and(|cells| cells.iter().any(unclear)));
        if again.is_empty() {
            break;
        }
    }
    let mut report = ScenarioReport::new("a guest's kernel", designs);
    for scenario in scenarios {
        let unreported = || not_run(&report.designs, "the guest reported nothing of it");
        let cells = rows.remove(&scenario.id).unwrap_or_else(unreported);
        report.scenarios.push(scenarios::row(scenario, cells));
    }
    Ok(report)
}

/// Runs the scenarios with these numbers in a guest, and reads what it reports.
fn reported(guest: &mut LinuxGuest, scenarios: &[usize], statements: Statements) -> Result<GuestReport, String> {
    let script = program_disk::run_script(scenarios, statements);
    let output = guest.try_run(&script, RUN_LIMIT).map_err(|why| why.to_string())?;
    let report = match statements {
        Statements::OfLinux => printed(&output.text),
        Statements::OfPresets => {
            let ranking: Option<GuestRanking> = printed(&output.text);
            ranking.and_then(|ranking| ranking.kernels.into_iter().next()).map(|kernel| kernel.report)
        }
    };
    report.ok_or_else(|| ended(&output))
}

/// The JSON that the program printed. What it said on stderr stands behind it.
fn printed<T: DeserializeOwned>(text: &str) -> Option<T> {
    let start = text.find('{')?;
    serde_json::Deserializer::from_str(&text[start..]).into_iter().next()?.ok()
}

fn ended(output: &Output) -> String {
    format!("the program in the guest ended with {}: {}", output.status, output.text.trim())
}

/// The report of all guests, a column each. A guest that did not run has its reason in every cell.
fn report(scenarios: &[Scenario], results: Vec<CaseResult<ScenarioReport>>) -> ScenarioReport {
    let names: Vec<String> = results.iter().map(|result| result.name.clone()).collect();
    let mut all = ScenarioReport::new("guests' kernels", names);
    for (n, scenario) in scenarios.iter().enumerate() {
        let cell = |result: &CaseResult<ScenarioReport>| {
            let cells = match &result.outcome {
                Err(why) => not_run(std::slice::from_ref(&result.name), why),
                Ok(report) => report.scenarios[n].cells.clone(),
            };
            cells.into_iter().next().map(|cell| ScenarioCell { design: result.name.clone(), ..cell })
        };
        all.scenarios.push(scenarios::row(scenario, results.iter().filter_map(cell).collect()));
    }
    all
}

/// A cell for each column, of a scenario that did not run.
fn not_run(columns: &[String], why: &str) -> Vec<ScenarioCell> {
    let cell = |design: &String| ScenarioCell {
        design: design.clone(),
        verdict: CellVerdict::NotRun,
        outcome: String::new(),
        failure: Some(CellFailure { got: why.to_owned(), ..CellFailure::default() }),
    };
    columns.iter().map(cell).collect()
}
