//! Conditions: for which designs an outcome is stated.
//!
//! It owns `@unsafe,odp`, `@stranger_change=wait&pin_gate=open`, `@!lease_rules=chinner`.
//! Invariant: a condition names only axes, values and designs that exist. A condition by axis holds
//! for a user's own design too; one by name only for the design of that name.

use std::ops::Range;

use crate::input::{InputError, Source, shown};
use fs_sim::design::{Axes, Axis};

/// Any of these lists, of which all must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition(Vec<Vec<Atom>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Atom {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Design(String),
    Axis(Axis, String),
    /// The option of the volume or of the machine: a real Linux.
    Linux,
    /// On a real Linux with this file system.
    LinuxOn(String),
    /// On a real Linux whose files lie on this kind of persistent memory.
    LinuxMemory(PmemKind),
    /// On a real Linux that is older than this version.
    LinuxBefore((u32, u32)),
}

/// What a condition is judged for.
#[derive(Clone, Debug)]
pub struct DesignSubject {
    /// The design's name.
    pub name: String,
    /// Its axes.
    pub axes: Axes,
    /// The real Linux that the machine is; none: a simulation.
    pub linux: Option<LinuxSubject>,
}

/// A real Linux, as far as conditions ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxSubject {
    /// The file system of the scenario's files, such as `xfs`.
    pub file_system: String,
    /// The persistent memory under them.
    pub memory: Option<PmemKind>,
    /// The kernel's version: the first two numbers of its release.
    pub version: (u32, u32),
}

/// Persistent memory, by how a guest gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmemKind {
    /// Described by ACPI (NFIT).
    Nvdimm,
    /// A virtio-pmem device, whose flush is a request.
    VirtioPmem,
}

impl PmemKind {
    const ALL: [PmemKind; 2] = [PmemKind::Nvdimm, PmemKind::VirtioPmem];

    /// How a condition names it.
    fn word(self) -> &'static str {
        match self {
            PmemKind::Nvdimm => "nvdimm",
            PmemKind::VirtioPmem => "virtio-pmem",
        }
    }
}

impl Condition {
    /// Parses what stands at `span` of `source`, without the `@`. `designs` are the names that
    /// exist.
    ///
    /// # Errors
    /// An unknown design, axis or value, pointed at.
    pub(super) fn parse(source: &Source, span: Range<usize>, designs: &[&str]) -> Result<Condition, InputError> {
        let text = &source.text()[span.clone()];
        let mut any = Vec::new();
        let mut at = span.start;
        for list in text.split(',') {
            let mut all = Vec::new();
            let mut atom_at = at;
            for word in list.split('&') {
                all.push(Atom::parse(source, atom_at..atom_at + word.len(), designs)?);
                atom_at += word.len() + 1;
            }
            any.push(all);
            at += list.len() + 1;
        }
        Ok(Condition(any))
    }

    /// Whether it holds on no real Linux, whatever else is true there.
    pub(super) fn excludes_linux(&self) -> bool {
        self.0.iter().all(|all| all.iter().any(|atom| atom.negated && matches!(atom.test, Test::Linux)))
    }

    /// Whether it holds.
    pub fn holds(&self, of: &DesignSubject) -> bool {
        self.0.iter().any(|all| all.iter().all(|atom| atom.holds(of)))
    }
}

impl Atom {
    fn parse(source: &Source, span: Range<usize>, designs: &[&str]) -> Result<Atom, InputError> {
        let text = &source.text()[span.clone()];
        let (negated, word) = match text.strip_prefix('!') {
            Some(word) => (true, word),
            None => (false, text),
        };
        let start = span.end - word.len();
        if word.is_empty() {
            return Err(source.error(span, "a condition is missing here").help(HELP));
        }
        if let Some(version) = word.strip_prefix("linux<") {
            let Some(version) = kernel_version(version) else {
                let title = format!("`{}` is no version of Linux", shown(version));
                return Err(source.error(span.end - version.len()..span.end, title).help("write it as `6.15`"));
            };
            return Ok(Atom { negated, test: Test::LinuxBefore(version) });
        }
        let Some((name, value)) = word.split_once('=') else {
            if word == "linux" {
                return Ok(Atom { negated, test: Test::Linux });
            }
            if !designs.contains(&word) {
                return Err(source.unknown_word(start..span.end, "design", word, designs.iter().copied()));
            }
            return Ok(Atom { negated, test: Test::Design(word.to_owned()) });
        };
        if name == "linux" {
            if let Some(kind) = PmemKind::ALL.into_iter().find(|kind| kind.word() == value) {
                return Ok(Atom { negated, test: Test::LinuxMemory(kind) });
            }
            if !FILE_SYSTEMS.contains(&value) {
                let words = FILE_SYSTEMS.into_iter().chain(PmemKind::ALL.map(PmemKind::word));
                return Err(source.unknown_word(span.end - value.len()..span.end, "file system", value, words));
            }
            return Ok(Atom { negated, test: Test::LinuxOn(value.to_owned()) });
        }
        let Some(axis) = Axis::from_name(name) else {
            let axes = Axis::ALL.iter().map(|axis| axis.name());
            return Err(source.unknown_word(start..start + name.len(), "axis", name, axes));
        };
        if !axis.choices().contains(&value) {
            return Err(source.unknown_word(span.end - value.len()..span.end, name, value, axis.choices()));
        }
        Ok(Atom { negated, test: Test::Axis(axis, value.to_owned()) })
    }

    fn holds(&self, of: &DesignSubject) -> bool {
        let holds = match &self.test {
            Test::Design(name) => of.name == *name,
            Test::Axis(axis, value) => of.axes.get(*axis) == value,
            Test::Linux => of.linux.is_some(),
            Test::LinuxOn(file_system) => of.linux.as_ref().is_some_and(|linux| linux.file_system == *file_system),
            Test::LinuxMemory(kind) => of.linux.as_ref().is_some_and(|linux| linux.memory == Some(*kind)),
            Test::LinuxBefore(version) => of.linux.as_ref().is_some_and(|linux| linux.version < *version),
        };
        holds != self.negated
    }
}

/// The first two numbers of a kernel's release, such as `6.12.117+deb13-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

/// The file systems that a condition can name.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "tmpfs"];

const HELP: &str = "write a design's name, `axis=value`, `linux`, `linux=ext4`, `linux=nvdimm` or `linux<6.15`; `!` negates, `&` is and, `,` is or";
