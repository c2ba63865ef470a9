//! Jobs: a TOML file that says what a race does. The form follows fio's job files: sections, and
//! values with units.
//!
//! It owns the reading and the checking of jobs. Invariant: a [`Job`] can be run: its files fit on
//! the device, its bounds are in order, each mix has a weight above zero, at least one actor
//! registers and at least one changes layouts. A key that the file leaves out has the value of the
//! built-in job (`jobs/default.toml`), which the same code reads.
//!
//! `docs/job-files.md` lists every key with its unit and default; a test compares it with the code.

mod check;
mod distribution;
mod given;
mod holders;
#[cfg(test)]
mod tests;
mod text;
mod types;

pub use check::BUILT_IN;
pub(crate) use check::DMA_BYTES_MAX;
pub use distribution::Distribution;
pub use types::{
    ACTORS_MAX, AddressIo, AddressIoMix, Collapsers, Defragmenters, DirectIo, DmaMix, Extenders, HolderParameters, Job,
    JobFiles, Popularity, Punchers, ReflinkMix, Reflinkers, RegistrantMix, Registrants, Role, Truncaters,
};
