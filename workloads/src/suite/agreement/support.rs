//! What sequences consist of on a certain kernel.
//!
//! Invariant: both machines support what a sequence has. Kernel counterpart: xfstests' `_require`
//! rules.

use super::exceptions::NamedException;
use super::view::{AgreedView, AgreementStep};

/// What the file systems of both machines support, and what sequences leave out.
#[derive(Clone, Copy, Default)]
pub(super) struct Support<'m> {
    /// Whether they support zero, collapse and insert range.
    pub(super) moves_ranges: bool,
    /// Whether the files are accessed by DAX: then a change waits for held pages.
    pub(super) dax: bool,
    /// Whether scenarios can make calls of verbs.
    pub(super) verbs: bool,
    /// Whether the NIC has on-demand regions.
    pub(super) on_demand: bool,
    /// Known differences.
    pub(super) exceptions: &'m [&'m NamedException],
}

impl Support<'_> {
    pub(super) fn excludes(&self, view: &AgreedView, step: &AgreementStep) -> bool {
        self.exceptions.iter().any(|exception| exception.meets(view, step))
    }
}

/// The main subject of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceFlavour {
    /// Which process has which lease, and which process waits for which.
    Leases,
    /// The contents of a file, read and written through descriptors and mappings.
    Contents,
    /// Pages of one file that pipes hold, and who waits for them.
    HeldPages,
    /// What can be registered where, and access by a NIC.
    Registrations,
}
