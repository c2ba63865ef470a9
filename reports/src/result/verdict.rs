//! The verdict on a design, in one word.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The judgement on a design in one word.
///
/// Only `Corrupts` is about damage: `Stalls` and `Refuses` are how a design keeps data safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaceVerdict {
    /// Everybody's change and everybody's DMA went through, and no data was damaged.
    Safe,
    /// DMA reached blocks that belonged to somebody else.
    Corrupts,
    /// Callers were blocked until somebody else let go.
    Stalls,
    /// Callers were turned away.
    Refuses,
}

impl RaceVerdict {
    /// All verdicts, best first.
    pub const ALL: [RaceVerdict; 4] =
        [RaceVerdict::Safe, RaceVerdict::Refuses, RaceVerdict::Stalls, RaceVerdict::Corrupts];

    /// The word used in files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            RaceVerdict::Safe => "safe",
            RaceVerdict::Corrupts => "corrupts",
            RaceVerdict::Stalls => "stalls",
            RaceVerdict::Refuses => "refuses",
        }
    }
}

impl fmt::Display for RaceVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
