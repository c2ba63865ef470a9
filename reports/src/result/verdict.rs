//! The verdict on a design, in one word.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict on a design: the worst that the race saw under it.
///
/// Only `Corrupts` means damage. `Stalls` and `Refuses` name the price at which a design keeps data
/// safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaceVerdict {
    /// No data was damaged, regions were registered, and no call waited for a long-term pin.
    Safe,
    /// DMA reached blocks that belonged to another file or file offset.
    Corrupts,
    /// A layout change, a close, an unlock or an eviction waited for a long-term pin.
    Stalls,
    /// Registrations were asked for, and not one was granted.
    Refuses,
}

impl RaceVerdict {
    /// All verdicts, the best first.
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
