//! The reference of the language: every operation and every thing to look at, each with an example
//! from a scenario that the tests run.
//!
//! It owns the choice of the examples. Invariant: each is a step of a built-in scenario, word for
//! word, so it cannot become wrong without a test that fails. Kernel counterpart: the section
//! EXAMPLES of a manual page.

use crate::language::{Action, Of, QuerySubject, STUCK, Scenario, Step};
use crate::ops::{RunsOn, Verb};

use super::scenarios::find;

/// Which built-in scenario shows which operations. A new operation goes to the scenario that plays
/// it best. Of several steps, the example is the first without `when`, and of those the first that
/// the scenario asks (`=>`).
const OPERATIONS: &[(&str, &[Verb])] = &[
    ("S08a", &[Verb::Write]),
    ("S11", &[Verb::Downgrade]),
    ("S11b", &[Verb::SubmitRead]),
    ("S14", &[Verb::RegMr, Verb::Truncate, Verb::Punch, Verb::RdmaOpen]),
    ("S16", &[Verb::SubmitWrite]),
    ("S17", &[Verb::Unlock]),
    ("S23", &[Verb::Send]),
    ("S24", &[Verb::Recv, Verb::Exit]),
    ("S34", &[Verb::Lease, Verb::Munmap, Verb::RdmaWrite]),
    ("S36a", &[Verb::MmapAnon, Verb::UmemReceive]),
    ("S36b", &[Verb::UmemRegister, Verb::FixedBuffers]),
    ("S36c", &[Verb::RingRead]),
    ("S37c", &[Verb::LayoutGet, Verb::LayoutWrite, Verb::LayoutReturn]),
    ("S38", &[Verb::MmapDevDax]),
    ("S38c", &[Verb::Memfd, Verb::Tmpfile]),
    ("S38d", &[Verb::MmapDevice]),
    ("S41", &[Verb::Unlink]),
    ("S42a", &[Verb::Reflink]),
    ("S42c", &[Verb::Dedupe]),
    ("S42d", &[Verb::Exchange]),
    ("S42e", &[Verb::Collapse, Verb::Insert]),
    ("S45b", &[Verb::MceKill, Verb::Poison, Verb::PoisonMap, Verb::ClearPoison]),
    ("S45c", &[Verb::PoisonMr]),
    ("S46a", &[Verb::PowerCut]),
    ("S46c", &[Verb::Persist, Verb::PersistMap, Verb::Msync, Verb::Fsync]),
    ("S46d", &[Verb::PersistMr]),
    ("S47a", &[Verb::Defragment]),
    ("S50", &[Verb::Close, Verb::Fork]),
    ("S51", &[Verb::Unmount]),
    ("S52a", &[Verb::RemoveDevice]),
    ("S58", &[Verb::SetOwn, Verb::SetSig]),
    ("S62a", &[Verb::Unshare]),
    ("S65a", &[Verb::Vmsplice, Verb::Drain]),
    ("S65b", &[Verb::SubmitReadInto, Verb::SubmitWriteFrom]),
    ("S65c", &[Verb::SendZeroCopy, Verb::Acknowledge]),
    ("S65d", &[Verb::RamDisk]),
    ("S68a", &[Verb::Chmod, Verb::Utime, Verb::SetDeleg, Verb::GetDeleg]),
    ("S68b", &[Verb::Open]),
    ("K01", &[Verb::SetLease]),
    ("K02", &[Verb::Credentials]),
    ("K04", &[Verb::Exec, Verb::End, Verb::GetLease]),
    ("K07", &[Verb::Rename, Verb::Link, Verb::Stat]),
    ("K16", &[Verb::Kill, Verb::Signal]),
    ("K17", &[Verb::Dup, Verb::Dup2]),
    ("K19", &[Verb::Fallocate, Verb::Fstat]),
    ("K21", &[Verb::Load, Verb::Store]),
    ("R01", &[Verb::DeregMr]),
    ("R03", &[Verb::ReregMr]),
    ("R04", &[Verb::FetchAdd, Verb::AtomicWrite, Verb::Flush]),
    ("R05", &[Verb::Memlock]),
    ("R06", &[Verb::Event]),
    ("R07", &[Verb::RdmaRead, Verb::Mmap]),
    ("R08", &[Verb::ModifyQp, Verb::PostWrite, Verb::PostRead]),
    ("R09", &[Verb::DestroyQp, Verb::PostFetchAdd, Verb::PostCas, Verb::PostAtomicWrite, Verb::PostFlush]),
    ("R10", &[Verb::Accept, Verb::RdmaSend, Verb::PostSend, Verb::PostRecv]),
    ("R11", &[Verb::Cas]),
    (
        "R12",
        &[
            Verb::AllocMw,
            Verb::BindMw,
            Verb::Invalidate,
            Verb::DeallocMw,
            Verb::SendInvalidate,
            Verb::PostSendInvalidate,
            Verb::Poll,
        ],
    ),
    ("R13", &[Verb::PostBindMw, Verb::PostInvalidate]),
    ("R14", &[Verb::Prefetch]),
    ("R15", &[Verb::ReregAccess, Verb::FlushRegion]),
    ("R16", &[Verb::Connect, Verb::RemoveNic]),
    ("V01", &[Verb::GuestAttach, Verb::GuestStore, Verb::GuestFlush, Verb::GuestDetach]),
    ("V02", &[Verb::Read, Verb::Ftruncate]),
    ("X503a", &[Verb::Complete]),
    ("X503b", &[Verb::Zero]),
];

/// The same for things to look at.
const LOOKS: &[(&str, &[QuerySubject])] = &[
    ("S13", &[QuerySubject::Leases]),
    ("S14", &[QuerySubject::Pins]),
    ("S16", &[QuerySubject::Stale, QuerySubject::Size]),
    ("S26", &[QuerySubject::Process]),
    ("S29", &[QuerySubject::BrokenExclusivity]),
    ("S30a", &[QuerySubject::Blockers]),
    ("S32", &[QuerySubject::Orphans]),
    ("S36c", &[QuerySubject::Locked]),
    ("S45b", &[QuerySubject::Poisoned, QuerySubject::Badblocks]),
    ("S46e", &[QuerySubject::Unflushed]),
    ("S58", &[QuerySubject::Signals]),
    ("S64b", &[QuerySubject::Blocks]),
    ("S65a", &[QuerySubject::Blocked]),
];

/// The scenario that shows an actor that is blocked for ever.
const SHOWS_STUCK: &str = "S62d";

/// An example has at most so many characters; of a longer one, the first outcome is shown.
const EXAMPLE_CHARS: usize = 120;

/// No scenario shows this word of the language as the table of examples says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` has no example: name a built-in scenario that has it in the tables of suite/reference.rs")]
pub struct ExampleMissing {
    /// The operation, or the thing to look at.
    pub word: String,
}

/// Every operation of scenarios as `docs/scenarios.md` lists it, in Markdown. `scenarios` are the
/// built-in ones.
///
/// # Errors
/// An operation without an example.
pub fn operations(scenarios: &[Scenario]) -> Result<String, ExampleMissing> {
    let mut page = String::new();
    let mut section = "";
    for verb in Verb::ALL.iter().copied().filter(|verb| verb.is_for_scripts()) {
        if verb.section() != section {
            section = verb.section();
            page += &format!("\n### {section}\n");
        }
        let is_it = |action: &Action| matches!(action, Action::Perform { op, .. } if op.verb() == verb);
        let example = example(scenarios, verb.name(), shown_by(OPERATIONS, verb), is_it)?;
        page += &entry(&verb.usage(), verb.on() != RunsOn::Simulation, verb.doc(), &example);
    }
    Ok(page)
}

/// Every thing that `expect` looks at, as `docs/scenarios.md` lists it, in Markdown.
///
/// # Errors
/// A thing without an example.
pub fn looks(scenarios: &[Scenario]) -> Result<String, ExampleMissing> {
    let mut page = String::new();
    for subject in QuerySubject::ALL {
        let (word, of, linux, doc) = subject.facts();
        let of = match of {
            Of::File => " FILE",
            Of::Process => " PROCESS",
            Of::Nothing => "",
        };
        let is_it = |action: &Action| matches!(action, Action::Expect(query) if query.subject == subject);
        let example = example(scenarios, word, shown_by(LOOKS, subject), is_it)?;
        page += &entry(&format!("expect {word}{of}"), linux, doc, &example);
    }
    let is_it = |action: &Action| matches!(action, Action::Stuck(_));
    let example = example(scenarios, STUCK, Some(SHOWS_STUCK), is_it)?;
    let doc = "Without an arrow: the actor's call is blocked for ever.";
    Ok(page + &entry(&format!("expect {STUCK} ACTOR"), false, doc, &example))
}

fn entry(usage: &str, linux: bool, doc: &str, example: &str) -> String {
    let linux = if linux { " · on Linux too" } else { "" };
    format!("\n`{usage}`{linux}\\\n{doc}\\\n{example}\n")
}

fn shown_by<T: PartialEq>(table: &[(&'static str, &[T])], item: T) -> Option<&'static str> {
    table.iter().find(|(_, items)| items.contains(&item)).map(|(id, _)| *id)
}

/// The example of `word` in the scenario `id`, with the id in front.
fn example(
    scenarios: &[Scenario],
    word: &str,
    id: Option<&str>,
    is_it: impl Fn(&Action) -> bool,
) -> Result<String, ExampleMissing> {
    let missing = || ExampleMissing { word: word.to_owned() };
    let scenario = find(scenarios, id.ok_or_else(missing)?).ok_or_else(missing)?;
    let steps = scenario.steps.iter().filter(|step| is_it(&step.action));
    let step = steps.min_by_key(|step| (step.guard.is_some(), !step.asks)).ok_or_else(missing)?;
    Ok(format!("{}: `{}`", scenario.id, shown(scenario, step)))
}

/// A step as its script has it, with one blank between words; without its further outcomes if it
/// is long.
fn shown(scenario: &Scenario, step: &Step) -> String {
    let words: Vec<&str> = scenario.source.text()[step.span.clone()].split_whitespace().collect();
    let text = words.join(" ");
    match text.split_once(" | ") {
        Some((first, _)) if text.chars().count() > EXAMPLE_CHARS => format!("{first} | …"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use crate::ops::{Arg, Param};
    use crate::suite::scenarios::built_in;

    fn scenarios() -> Vec<Scenario> {
        let presets: Vec<&str> = fs_sim::design::presets().iter().map(|preset| preset.name).collect();
        built_in(&presets).unwrap()
    }

    /// Compares what stands between the marks of the page `file`, or rewrites it.
    fn page_lists(file: &str, mark: &str, listed: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(&format!("<!-- {mark}: ")).unwrap();
        let (head, rest) = rest.split_once("\n").unwrap();
        let (found, after) = rest.split_once("\n<!-- end -->").unwrap();
        if std::env::var_os("DAXLAB_WRITE_REFERENCE").is_some() {
            let page = format!("{before}<!-- {mark}: {head}\n{}\n<!-- end -->{after}", listed.trim_end());
            std::fs::write(path, page).unwrap();
            return;
        }
        assert!(found == listed.trim_end(), "{file} is out of date: run this test with DAXLAB_WRITE_REFERENCE=1");
    }

    #[test]
    fn the_reference_pages_list_what_there_is() {
        let scenarios = scenarios();
        page_lists("scenarios.md", "operations", &operations(&scenarios).unwrap());
        page_lists("scenarios.md", "looks", &looks(&scenarios).unwrap());
        page_lists("attach-qemu.md", "requests", &crate::ops::server_reference());
    }

    #[test]
    fn an_operation_that_no_scenario_shows_is_told() {
        let mut scenarios = scenarios();
        let shows_end = shown_by(OPERATIONS, Verb::End).unwrap();
        let at = scenarios.iter().position(|scenario| scenario.id == shows_end).unwrap();
        scenarios[at]
            .steps
            .retain(|step| !matches!(&step.action, Action::Perform { op, .. } if op.verb() == Verb::End));
        assert_eq!(operations(&scenarios).unwrap_err().word, "end");
        assert_eq!(looks(&[]).unwrap_err().word, "signals");
    }

    /// Each operation stands in the table once, and each entry names the scenario that it is from.
    #[test]
    fn an_example_is_a_line_of_its_scenario() {
        let scenarios = scenarios();
        let page = operations(&scenarios).unwrap() + &looks(&scenarios).unwrap();
        let mut examples = 0;
        for line in page.lines().filter(|line| !line.starts_with('`') && line.ends_with('`')) {
            let (id, example) = line.split_once(": `").unwrap();
            let example = example.trim_end_matches('`').trim_end_matches(" | …");
            let text = scenarios.iter().find(|scenario| scenario.id == id).unwrap().source.text();
            let has = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(example);
            assert!(text.lines().any(has), "{line}");
            examples += 1;
        }
        let verbs: Vec<Verb> = OPERATIONS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        assert_eq!(verbs.iter().collect::<BTreeSet<_>>().len(), verbs.len(), "an operation stands twice");
        assert_eq!(examples, verbs.len() + QuerySubject::ALL.len() + 1);
    }

    /// The words of a parameter: which a script may leave out is a word of its own.
    fn words_of(syntax: Param, left_out: bool) -> Vec<&'static str> {
        match syntax {
            Param::Choice(words) | Param::Flags(words) => words.to_vec(),
            Param::Optional(_) => vec![if left_out { "left out" } else { "given" }],
            _ => Vec::new(),
        }
    }

    /// The suite plays every word and flag of every operation, and each optional argument both
    /// given and left out.
    #[test]
    fn the_suite_uses_every_word_of_every_operation() {
        let mut unused = BTreeSet::new();
        for verb in Verb::ALL.iter().copied().filter(|verb| verb.is_for_scripts()) {
            for parameter in verb.params() {
                let all = [true, false].into_iter().flat_map(|left_out| words_of(parameter.syntax, left_out));
                unused.extend(all.map(|word| (verb.name(), parameter.name, word)));
            }
        }
        let mut use_of = |verb: Verb, at: usize, word: &'static str| {
            unused.remove(&(verb.name(), verb.params()[at].name, word));
        };
        for step in scenarios().iter().flat_map(|scenario| &scenario.steps) {
            let Action::Perform { op, .. } = &step.action else { continue };
            for (at, arg) in op.args().into_iter().enumerate() {
                match arg {
                    Arg::Word(word) => use_of(op.verb(), at, word),
                    Arg::Words(words) => words.into_iter().for_each(|word| use_of(op.verb(), at, word)),
                    Arg::Absent => use_of(op.verb(), at, "left out"),
                    _ => use_of(op.verb(), at, "given"),
                }
            }
        }
        assert_eq!(unused, BTreeSet::new());
    }
}
