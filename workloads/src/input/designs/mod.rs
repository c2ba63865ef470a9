//! Designs as users write them: TOML files, and the list after `--design`.
//!
//! [`parse`] reads the designs of one file; a [`DesignCatalogue`] holds the presets and the designs
//! of the files that were loaded, and resolves names; [`to_toml`] writes a design that [`parse`]
//! reads back. The values themselves are [`fs_sim::design`].
//!
//! Invariant: every design that leaves this module passed [`fs_sim::design::Axes::check`].

mod catalogue;
mod entry;
mod parse;
#[cfg(test)]
mod tests;

use fs_sim::design::{Axis, Design};
use toml::Value;

pub use catalogue::DesignCatalogue;
pub use entry::DesignEntry;
pub use parse::parse;

/// The design as a TOML document that [`parse`] reads back, each axis with its choices beside it.
pub fn to_toml(design: &Design) -> String {
    let mut text = format!("name = {}\n\n", Value::from(design.name.as_str()));
    for axis in Axis::ALL {
        let setting = format!("{} = \"{}\"", axis.name(), design.axes.get(axis));
        text.push_str(&format!("{setting:<42} # {}\n", axis.choices().join(" · ")));
    }
    text
}
