//! What is compared, and what came of it.

use std::collections::BTreeMap;

use fs_sim::design::Axes;

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
    /// The simulated machine's design. No operation of a sequence should depend on it.
    pub axes: Axes,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreementReport {
    /// Sequences that were started.
    pub run: u64,
    /// Sequences on which both machines agreed to the end.
    pub agreed: u64,
    /// Sequences in which the driver could not decide whether a call was blocked.
    pub inconclusive: u64,
    /// How often each outcome of an operation occurred, such as `open blocks`, and how often other
    /// observations did: `signals SIGIO`, `lease none`.
    pub outcomes: BTreeMap<String, u64>,
    /// Why no sequence, or no further sequence, could be run.
    pub not_run: Option<String>,
    /// The first difference. No sequence is run after it.
    pub difference: Option<Difference>,
}

impl AgreementReport {
    /// Whether the machines differ, or more than 0.1 % of the sequences were inconclusive.
    pub fn failed(&self) -> bool {
        self.difference.is_some() || self.inconclusive * 1000 > self.run
    }
}

/// A sequence on which the machines differ.
#[derive(Clone, Debug, PartialEq, Eq)]
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
