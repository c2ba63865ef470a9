//! One design of the catalogue, and the reserved name.

use fs_sim::design::{Design, Preset, further_presets, presets};
use serde::Serialize;

/// The word of `--design` that stands for the ten presets.
pub(super) const ALL: &str = "all";

/// A design and where it comes from. Serialises as `{name, axes{…}, about}`.
#[derive(Clone, Debug, Serialize)]
pub struct DesignEntry {
    /// The design.
    #[serde(flatten)]
    pub design: Design,
    /// Whose position it is, or which file defines it.
    pub about: String,
    /// Whether it is the built-in negative control, which must show stale DMA. A design from a file
    /// never is.
    pub negative_control: bool,
}

/// The entries of the ten presets, in the order of `docs/semantics.md`, section 5.
pub(super) fn preset_entries() -> Vec<DesignEntry> {
    presets().iter().map(DesignEntry::from).collect()
}

/// These, and the presets that are run only where they are named.
pub(super) fn all_preset_entries() -> Vec<DesignEntry> {
    presets().iter().chain(further_presets()).map(DesignEntry::from).collect()
}

impl From<&Preset> for DesignEntry {
    fn from(preset: &Preset) -> DesignEntry {
        DesignEntry {
            design: preset.design(),
            about: preset.about.to_owned(),
            negative_control: preset.negative_control,
        }
    }
}
