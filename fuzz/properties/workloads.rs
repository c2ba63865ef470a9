//! What the fuzzers `job_toml`, `design_toml` and `scenario_text` run: any bytes as what a user
//! writes.
//!
//! It owns the properties. An error points into the text, and renders. A job means the same after
//! its TOML was written again, draws within its bounds, and scales to any number of actors. A
//! design reads back from what `to_toml` writes. A scenario that parses runs to its end under
//! presets that exist, and a run of its steps in any state leaves no invariant broken. The fuzzers
//! and `workloads/tests/fuzz_corpus.rs` include this file.
#![allow(dead_code, reason = "each fuzzer uses one of the functions")]

use emulator::device::FOLIO;
use emulator::sync::OnceLock;
use reports::scenarios::{self, CellVerdict};
use workloads::input::designs::{self, DesignCatalogue, DesignEntry};
use workloads::input::{InputError, Source};
use workloads::language::{Action, Scenario};
use workloads::machines::machine::{Machine, Trouble};
use workloads::machines::simulated::Simulation;
use workloads::race::job::{ACTORS_MAX, Distribution, Job, Role};
use workloads::suite;

/// What an input is cut off at.
const INPUT_MAX: usize = 16 << 10;
/// The largest device that a scenario is run on, in bytes.
const DEVICE_MAX: u64 = 16 << 20;
/// The most steps of a scenario that is run.
const STEPS_MAX: usize = 128;
/// How often each distribution of a job is drawn from.
const DRAWS: usize = 8;

/// The input as a text; none if it is not UTF-8, which only [`Source::read`] meets.
fn source(name: &'static str, data: &[u8]) -> Option<Source> {
    let text = std::str::from_utf8(&data[..data.len().min(INPUT_MAX)]).ok()?;
    Some(Source::new(name, text))
}

/// An error points into the text that was read, and renders as one excerpt of it.
fn check_error(error: &InputError, source: &Source) {
    let (plain, styled) = (error.to_string(), error.styled());
    assert!(!error.title().is_empty() && !styled.is_empty());
    assert_eq!(error.source_name(), Some(source.name()), "{plain}");
    assert!(!plain.chars().any(|c| c.is_control() && c != '\n'), "a control character in {plain:?}");
    let Some(span) = error.span() else {
        assert_eq!((error.line(), error.column()), (None, None));
        return;
    };
    assert!(source.text().get(span.clone()).is_some(), "{span:?} in {} bytes", source.text().len());
    let (line, column) = source.line_column(span.start);
    assert_eq!((error.line(), error.column()), (Some(line), Some(column)));
    let found = source.text().split('\n').nth(line - 1).expect("the line is in the text");
    assert!(column <= found.chars().count() + 1, "column {column} of {found:?}");
    assert!(plain.contains(&format!("{}:{line}:{column}", source.name())), "{plain}");
}

/// An input as a job file.
///
/// # Panics
/// When a property does not hold.
pub(crate) fn job_toml(data: &[u8]) {
    let Some(source) = source("job.toml", data) else { return };
    let job = match Job::parse(&source) {
        Ok(job) => job,
        Err(error) => return check_error(&error, &source),
    };
    let table: toml::Table = source.text().parse().expect("a job is TOML");
    let written = toml::to_string(&table).expect("TOML");
    let again = Job::parse(&Source::new("job.toml", written)).expect("the same TOML is the same job");
    assert_eq!(again, job);
    assert_eq!(job.quick().duration, job.quick_duration);
    let actors: u32 = Role::ALL.iter().map(|role| job.count(*role)).sum();
    assert!(job.actors().len() == actors as usize && actors <= ACTORS_MAX);
    for threads in [2, 3, 7, actors.max(2), ACTORS_MAX] {
        let scaled = job.with_threads(threads).expect("from 2 to ACTORS_MAX");
        let roles = scaled.actors();
        assert_eq!(roles.len(), threads as usize);
        assert!(roles.contains(&Role::Registrant) && roles.iter().any(|role| role.changes_layouts()), "{roles:?}");
    }
    assert!(job.with_threads(1).is_err() && job.with_threads(ACTORS_MAX + 1).is_err());
    draws(&job);
}

fn draws(job: &Job) {
    let (registrants, files) = (&job.registrants, job.files.size);
    let drawn: [(&Distribution, u64); 12] = [
        (&registrants.region_length, files),
        (&registrants.region_lifetime, u64::MAX),
        (&registrants.dma_burst, u64::MAX),
        (&registrants.dma_length, files),
        (&registrants.pause, u64::MAX),
        (&job.truncaters.size, files),
        (&job.truncaters.pause, u64::MAX),
        (&job.punchers.length, files),
        (&job.direct_io.length, files),
        (&job.direct_io.pause, u64::MAX),
        (&job.extenders.length, files),
        (&job.extenders.pause, u64::MAX),
    ];
    let mut rng = emulator::runtime::rng::stream(1, "job", 0);
    for (distribution, most) in drawn {
        assert!(distribution.min() <= distribution.max() && distribution.max() <= most, "{distribution:?} of {most}");
        for _ in 0..DRAWS {
            let value = distribution.draw(&mut rng);
            assert!((distribution.min()..=distribution.max()).contains(&value), "{value} of {distribution:?}");
        }
    }
}

/// An input as a file of designs.
///
/// # Panics
/// When a property does not hold.
pub(crate) fn design_toml(data: &[u8]) {
    let Some(source) = source("design.toml", data) else { return };
    let read = match designs::parse(&source) {
        Ok(read) => read,
        Err(error) => return check_error(&error, &source),
    };
    assert!(!read.is_empty());
    for design in &read {
        assert!(design.axes.check().is_ok(), "{design:?}");
        let written = designs::to_toml(design);
        let again = designs::parse(&Source::new("design.toml", written)).expect("what was written is read");
        assert_eq!(again, std::slice::from_ref(design));
    }
    let mut catalogue = DesignCatalogue::default();
    assert_eq!(catalogue.add(&source).expect("what parses is added").len(), read.len());
    for design in &read {
        let named = catalogue.resolve(&design.name).expect("its name names it");
        assert_eq!(named.iter().map(|entry| &entry.design).collect::<Vec<_>>(), [design]);
    }
}

/// The presets that scenarios run under, and every name that a condition may use.
fn presets() -> &'static (Vec<DesignEntry>, Vec<String>) {
    static PRESETS: OnceLock<(Vec<DesignEntry>, Vec<String>)> = OnceLock::new();
    PRESETS.get_or_init(|| {
        let catalogue = DesignCatalogue::default();
        (catalogue.entries().to_vec(), catalogue.names().map(str::to_owned).collect())
    })
}

/// An input as a scenario.
///
/// # Panics
/// When a property does not hold.
pub(crate) fn scenario_text(data: &[u8]) {
    let Some(source) = source("scenario.scn", data) else { return };
    let (entries, names) = presets();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let scenario = match Scenario::parse(&source, &names) {
        Ok(scenario) => scenario,
        Err(error) => return check_error(&error, &source),
    };
    let Some(scenario) = bounded(scenario) else { return };
    // The preset is chosen by the input's length: the corpus has all of them.
    let entry = &entries[data.len() / 2 % entries.len()];
    match data.len() % 2 {
        0 => play(&scenario, entry),
        _ => judge(&source, &scenario, entry),
    }
}

/// Runs it as `daxlab scenario run` does, and prints the result in each format.
fn judge(source: &Source, scenario: &Scenario, entry: &DesignEntry) {
    match suite::scenarios::run_simulated_on(std::slice::from_ref(scenario), std::slice::from_ref(entry), 1) {
        Err(error) => check_error(&error, source),
        Ok(report) => {
            assert_eq!(report.count(CellVerdict::Inconclusive), 0, "{}", scenarios::text(&report, 120));
            assert!(scenarios::text(&report, 0).ends_with('\n'));
            scenarios::junit(&report).expect("JUnit");
            serde_json::to_string(&report).expect("JSON");
        }
    }
}

/// The scenario on a device that is just large enough, since the making of a large one takes longer
/// than most scenarios; none if it needs a large device or has many steps.
fn bounded(mut scenario: Scenario) -> Option<Scenario> {
    let files = scenario.setup.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size)).min(DEVICE_MAX);
    let needed = (files + files / 2).checked_next_multiple_of(FOLIO)?.max(FOLIO);
    scenario.setup.device = scenario.setup.device.min(needed);
    (scenario.setup.device <= DEVICE_MAX && scenario.steps.len() <= STEPS_MAX).then_some(scenario)
}

/// Makes each step that can be made, whatever comes of the others, and ends every process: nothing
/// that must hold at rest may be broken.
fn play(scenario: &Scenario, entry: &DesignEntry) {
    let Ok(mut machine) = Simulation::new(&scenario.setup, entry.design.axes) else { return };
    for step in &scenario.steps {
        let made = match &step.action {
            Action::Perform { actor, op, bind } => machine.perform(actor, op, bind.as_deref()).map(drop),
            Action::Returns(actor) | Action::Stuck(actor) => machine.progress(actor).map(drop),
            Action::Kill { process, signal } => machine.kill(process, signal),
            Action::Advance(span) => machine.advance(*span),
            Action::Expect(query) => machine.ask(query).map(drop),
        };
        match made {
            // A step may need what an earlier one did not bring about.
            Ok(()) | Err(Trouble::Script(_)) => {}
            Err(Trouble::CannotRun(_)) => return,
            Err(Trouble::Inconclusive(why)) => panic!("under {}: {why}", entry.design.name),
        }
    }
    let state = machine.state();
    let wrong = Box::new(machine).finish();
    assert!(wrong.is_empty(), "under {}: {wrong:#?} after {state:#?}", entry.design.name);
}
