//! The differences between Linux and the simulation that are known, each with its reason.
//!
//! It owns which steps a sequence leaves out because of one. Invariant: a difference is in use only
//! if the kernel shows it at the start of the run, in a scenario that states what the simulation
//! does: on a kernel that does the same its steps are taken again. Kernel counterpart: xfstests'
//! `_require` rules, which a test has for what a kernel lacks.

use std::rc::Rc;

use super::config::MetException;
use super::view::{AgreedView, AgreementStep};
use crate::input::Source;
use crate::language::Scenario;
use crate::language::condition::{DesignSubject, LinuxSubject};
use crate::machines::linux::{Host, LinuxMachine};
use crate::ops::{Op, Verb};
use crate::suite::run::{self, StepResult};

/// A known difference.
pub(super) struct NamedException {
    name: &'static str,
    why: &'static str,
    /// A scenario that fails on a kernel with the difference.
    scenario: &'static str,
    /// What such a kernel does there. Any other failure is no known difference.
    does: &'static str,
    /// Which kernels may have it.
    may_have: fn(&LinuxSubject) -> bool,
    /// Whether a step would meet it.
    meets: fn(&AgreedView, &AgreementStep) -> bool,
}

/// All of them.
const EXCEPTIONS: [NamedException; 6] = [
    NamedException {
        name: "a process that waits for itself",
        why: "the simulation reports EDEADLK where Linux waits until it is killed, or for ever",
        scenario: "# X1: a process truncates a page that its own pipe holds\nlinux dax\nfile data 64KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 64KiB\nA: p = vmsplice m 0 4KiB\n\
                   A: ftruncate f 0 => EDEADLK\n",
        does: "blocks",
        may_have: |_| true,
        meets: |view, step| view.holds(&step.process) && waits_for_pages(view, step),
    },
    NamedException {
        name: "fallocate on ext4",
        why: "ext4 waits for held pages only where it frees or moves blocks, XFS in every fallocate",
        scenario: "# X2: a stranger allocates in a file with a held page\nlinux dax\nfile data 64KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 64KiB\nA: p = vmsplice m 0 4KiB\n\
                   B: g = open data rw\nB: fallocate g 64KiB 4KiB keep_size => blocks\nA: drain p\nB: returns -> ok\n",
        does: "ok",
        may_have: |linux| linux.file_system == "ext4",
        meets: |view, step| view.pages_are_held() && step.op.verb() == Verb::Fallocate,
    },
    NamedException {
        name: "held pages of a file that is not mapped",
        why: "Linux before 6.15 looks for held pages only while the file is mapped (dax_layout_busy_page_range)",
        scenario: "# X3: a pipe holds a page of a file that is not mapped any more\nlinux dax\nfile data 64KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 64KiB\nA: p = vmsplice m 0 4KiB\nA: munmap m\n\
                   B: truncate data 0 => blocks\nA: drain p\nB: returns -> ok\n",
        does: "ok",
        may_have: |linux| linux.version < (6, 15),
        meets: |view, step| view.pages_are_held() && view.is_mapped_once() && step.op.verb() == Verb::Munmap,
    },
    NamedException {
        name: "the offset in a page of an on-demand access",
        why: "rdma_rxe of 7.3 ignores it: what is written at 512 lands at 0 (rxe_odp_do_copy)",
        scenario: "# X4: a write into the middle of a page of an on-demand region\nlinux dax\nfile data 64KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 64KiB\nA: c = rdma_open\n\
                   A: r = reg_mr c m 0 64KiB on_demand\nB: d = rdma_open\nB: q = connect d c\n\
                   B: rdma_write q r 512B 8B x\nA: load m 0 1KiB => ok a:512B,x:8B,a:504B\n",
        does: "ok x:8B,a:1016B",
        may_have: |_| true,
        meets: |view, step| match &step.op {
            Op::RdmaRead { remote, range, .. } | Op::RdmaWrite { remote, range, .. } => {
                let on_demand = view.regions.get(&remote.0).is_some_and(|region| region.on_demand);
                on_demand && !range.offset.is_multiple_of(fs_sim::BLOCK)
            }
            _ => false,
        },
    },
    NamedException {
        name: "a held page that is faulted in again while a change waits",
        why: "since 6.15 a mapping counts as a reference of the page (dax_page_is_idle), so the release of the hold wakes no change",
        scenario: "# X8: a held page is loaded while a change waits, then let go\nlinux dax\nfile data 16KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 16KiB\nA: p = vmsplice m 8KiB 4KiB\n\
                   B: g = open data rw\nB: ftruncate g 4KiB => blocks\nA: load m 8KiB 4KiB -> ok a\nA: drain p\n\
                   B: returns => ok\n",
        does: "blocks",
        may_have: |linux| linux.version >= (6, 15),
        meets: |view, step| {
            let faults = matches!(step.op.verb(), Verb::Load | Verb::Store | Verb::Vmsplice);
            faults && view.processes.values().any(|known| known.blocked)
        },
    },
    NamedException {
        name: "an on-demand region over a private mapping",
        why: "the simulation copies every page at the registration, Linux at the access that writes",
        scenario: "# X7: an on-demand region past the end of a private mapping's file\nlinux dax\nfile data 4KiB\n\n\
                   A: f = open data rw\nA: m = mmap f 0 64KiB private\nA: c = rdma_open\n\
                   A: r = reg_mr c m 0 64KiB on_demand => EFAULT\n",
        does: "ok",
        may_have: |_| true,
        meets: |view, step| match &step.op {
            Op::RegMr { map, flags, .. } => flags.on_demand && view.private_maps.contains(&map.0),
            _ => false,
        },
    },
];

/// A scenario that can run if the kernel has a NIC for calls of verbs.
pub(super) const VERBS: &str = "# X5: a NIC\nlinux\nfile data 4KiB\n\nA: c = rdma_open => ok\n";
/// A scenario that can run if that NIC has on-demand regions.
pub(super) const ON_DEMAND: &str = "# X6: an on-demand region\nlinux\nfile data 4KiB\n\nA: c = rdma_open\n\
                                    A: m = mmap_anon 4KiB\nA: r = reg_mr c m 0 4KiB on_demand => ok\n";

/// How often a scenario of this module runs whose outcome could not be told.
const ATTEMPTS: u32 = 3;

/// What waits for held pages of the file, in a process of `view` or in others.
fn waits_for_pages(view: &AgreedView, step: &AgreementStep) -> bool {
    match &step.op {
        Op::Open { flags, .. } => flags.trunc,
        // They wait for the inode, which a change keeps while it waits.
        Op::Read { .. } | Op::Write { .. } => view.processes.values().any(|known| known.blocked),
        Op::Truncate { .. } | Op::Ftruncate { .. } => true,
        op => RANGES.contains(&op.verb()),
    }
}

/// The calls of `fallocate` on a range.
const RANGES: [Verb; 5] = [Verb::Fallocate, Verb::Punch, Verb::Zero, Verb::Collapse, Verb::Insert];

impl NamedException {
    /// Whether a step would meet it.
    pub(super) fn meets(&self, view: &AgreedView, step: &AgreementStep) -> bool {
        (self.meets)(view, step)
    }
}

/// The differences that this kernel shows, and how it showed them. A scenario that can't run on it
/// shows none: no sequence there can meet the difference either.
///
/// # Errors
/// The kernel was too busy to tell.
pub(super) fn shown(
    host: &Rc<Host>,
    subject: &DesignSubject,
) -> Result<Vec<(&'static NamedException, MetException)>, String> {
    let mut all = Vec::new();
    let may = |exception: &&NamedException| subject.linux.as_ref().is_none_or(exception.may_have);
    for exception in EXCEPTIONS.iter().filter(may) {
        match result(host, subject, exception.scenario)? {
            Some(StepResult::Failed(failure)) if failure.got == exception.does => {
                let shown = format!("{}: {}, in the simulation {}", failure.text, failure.got, failure.expected);
                let met = MetException { name: exception.name.to_owned(), why: exception.why.to_owned(), shown };
                all.push((exception, met));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Whether a scenario of this module passes on this kernel.
///
/// # Errors
/// As [`shown`].
pub(super) fn can(host: &Rc<Host>, subject: &DesignSubject, text: &str) -> Result<bool, String> {
    Ok(matches!(result(host, subject, text)?, Some(StepResult::Passed { .. })))
}

fn result(host: &Rc<Host>, subject: &DesignSubject, text: &str) -> Result<Option<StepResult>, String> {
    let scenario = scenario(text);
    let mut unclear = String::new();
    for _ in 0..ATTEMPTS {
        let Ok(machine) = LinuxMachine::new(host, &scenario.setup, &[]) else { return Ok(None) };
        match run::run(&scenario, subject, Box::new(machine)) {
            Ok(StepResult::Inconclusive(why)) => unclear = why,
            other => return Ok(other.ok()),
        }
    }
    Err(format!("whether the kernel has a known difference can't be told ({}): {unclear}", scenario.title))
}

fn scenario(text: &str) -> Scenario {
    Scenario::parse(&Source::new("known-difference.scn", text), &[])
        .unwrap_or_else(|error| panic!("a scenario of this module: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::simulated::Simulation;
    use fs_sim::design::preset;

    /// The scenario of an exception states what the simulation does.
    #[test]
    fn the_simulation_passes_every_exceptions_scenario() {
        let subject = DesignSubject {
            name: "mainline".to_owned(),
            axes: preset("mainline").expect("a preset").axes,
            linux: None,
        };
        for exception in &EXCEPTIONS {
            let scenario = scenario(exception.scenario);
            let machine = Simulation::new(&scenario.setup, subject.axes).expect("a machine");
            let result = run::run(&scenario, &subject, Box::new(machine));
            assert!(matches!(result, Ok(StepResult::Passed { .. })), "{}: {result:?}", exception.name);
        }
    }
}
