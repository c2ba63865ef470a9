//! What is compared, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use fs_sim::design::Axes;

use serde::{Deserialize, Serialize};

use crate::machines::linux::LinuxConfig;

/// What to compare.
#[derive(Clone, Debug)]
pub struct AgreementConfig {
    /// The number of sequences.
    pub sequences: u64,
    /// The seed of all sequences.
    pub seed: u64,
    /// The real machine.
    pub linux: LinuxConfig,
    /// The simulated machine's design; without one, the preset that stands for the kernel. It
    /// matters where pages of a file with DAX are held.
    pub axes: Option<Axes>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementReport {
    /// Sequences that were started.
    pub run: u64,
    /// Sequences on which both machines agreed to the end.
    pub agreed: u64,
    /// Sequences in which the driver could not decide whether a call was blocked.
    pub inconclusive: u64,
    /// Why, of the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unclear: Vec<String>,
    /// How often each outcome of an operation occurred, such as `open blocks`, and how often other
    /// observations did: `signals SIGIO`, `lease none`.
    pub outcomes: BTreeMap<String, u64>,
    /// The known differences that this kernel has. No sequence meets one.
    pub exceptions: Vec<MetException>,
    /// Why no sequence, or no further sequence, could be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
    /// The first difference. No sequence is run after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

impl AgreementReport {
    /// Whether the machines differ, or more than 0.1 % of the sequences were inconclusive.
    pub fn failed(&self) -> bool {
        self.difference.is_some() || self.inconclusive * 1000 > self.run
    }
}

/// The comparisons with several kernels; serialised, the JSON format of `scenario random`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementReports {
    /// The name of the format: `daxlab-agreement`.
    pub schema: String,
    /// The version of the format.
    pub version: u32,
    /// The seed of all sequences.
    pub seed: u64,
    /// One for each kernel and file system.
    pub kernels: Vec<KernelAgreement>,
}

/// The comparison with one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelAgreement {
    /// Kernel and file system.
    pub kernel: String,
    /// What came of it.
    #[serde(flatten)]
    pub report: AgreementReport,
}

impl AgreementReports {
    /// The comparisons under one seed.
    pub fn new(seed: u64, kernels: Vec<KernelAgreement>) -> AgreementReports {
        AgreementReports { schema: "daxlab-agreement".to_owned(), version: 1, seed, kernels }
    }
}

impl fmt::Display for AgreementReports {
    /// For people: a line for each kernel, the known differences, the new one as a scenario.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for KernelAgreement { kernel, report } in &self.kernels {
            writeln!(
                f,
                "{kernel}: {} sequences, {} agreed, {} inconclusive (seed {})",
                report.run, report.agreed, report.inconclusive, self.seed
            )?;
            for MetException { name, why, shown } in &report.exceptions {
                writeln!(f, "  left out: {name}: {why}\n    {shown}")?;
            }
            for why in &report.unclear {
                writeln!(f, "  inconclusive: {why}")?;
            }
            if let Some(why) = &report.not_run {
                writeln!(f, "  not run: {why}")?;
            }
            if let Some(difference) = &report.difference {
                let Difference { index, scenario, linux, simulation } = difference;
                writeln!(f, "  sequence {index} differs: {linux} on {kernel}, {simulation} in the simulation")?;
                for line in scenario.lines() {
                    writeln!(f, "    {line}")?;
                }
            }
        }
        Ok(())
    }
}

/// A known difference, as this kernel showed it before the first sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetException {
    /// Its name.
    pub name: String,
    /// What differs, and why.
    pub why: String,
    /// What the kernel did, and what the simulation does.
    pub shown: String,
}

/// A sequence on which the machines differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The index of the sequence under its seed.
    pub index: u64,
    /// The shortest sequence found that shows the difference, as a scenario that states what the
    /// real kernel does.
    pub scenario: String,
    /// The real kernel's answer to the last step.
    pub linux: String,
    /// The simulation's answer.
    pub simulation: String,
}
