//! What guests are made of: QEMUs, kernels and programs of Debian, fetched by a script.
//!
//! It owns the reading of what `scripts/guest-packages` prints. Invariant: a package that can't be
//! had has a reason. The script is part of the program, so that an installed `daxlab` needs no
//! source tree.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// QEMU 11.1 or newer, which can map memory of a vhost-user backend, and a kernel that asks for it.
pub const CURRENT: &str = "current";
/// QEMU and kernel of the host's own Debian release: persistent memory is QEMU's own device.
pub const DISTRIBUTION: &str = "distribution";
/// The generic kernel of Debian 13's backports.
pub const LINUX_BACKPORTS: &str = "linux-backports";
/// The generic kernel of Debian 13.
pub const LINUX_STABLE: &str = "linux-stable";

const SCRIPT: &str = include_str!("../../../scripts/guest-packages");

/// What there is of one set of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Package {
    /// It was fetched into this folder.
    Ready {
        /// Its name in the script.
        name: String,
        /// Where it lies.
        dir: PathBuf,
        /// What it consists of, for people: `QEMU 11.1.3, Linux 7.3.4`.
        versions: String,
    },
    /// It can't be had here.
    NotRun {
        /// Its name in the script.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Why nothing is known of the packages.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// The script did not start.
    #[error("bash can't be started, which runs the script that fetches guests: {0}")]
    NoShell(#[from] io::Error),
    /// The script failed.
    #[error("the script that fetches guests ended with {0}")]
    Failed(std::process::ExitStatus),
    /// The script printed something else than the lines that its head describes.
    #[error("the script that fetches guests said: {0}")]
    Unread(String),
}

impl Package {
    /// Its name in the script.
    pub fn name(&self) -> &str {
        match self {
            Package::Ready { name, .. } | Package::NotRun { name, .. } => name,
        }
    }

    /// A line of the script: `NAME ready FOLDER VERSIONS` or `NAME not-run REASON`.
    fn parse(line: &str) -> Option<Package> {
        let (name, rest) = line.split_once(' ')?;
        let name = name.to_owned();
        match rest.split_once(' ')? {
            ("not-run", reason) => Some(Package::NotRun { name, reason: reason.to_owned() }),
            ("ready", rest) => {
                // The folder's path may have spaces in it.
                let starts = ["QEMU ", "Linux "].iter().filter_map(|word| rest.find(&format!(" {word}")));
                let at = starts.min()?;
                let (dir, versions) = (PathBuf::from(&rest[..at]), rest[at + 1..].to_owned());
                Some(Package::Ready { name, dir, versions })
            }
            _ => None,
        }
    }
}

/// Fetches all packages, or the one called `only`, unless they are there. What the script says
/// beside its result goes to stderr.
///
/// # Errors
/// [`PackagesError`].
pub fn fetch(only: Option<&str>) -> Result<Vec<Package>, PackagesError> {
    let mut script = Command::new("bash");
    script.args(["-c", SCRIPT, "guest-packages"]).args(only).stdin(Stdio::null()).stderr(Stdio::inherit());
    let run = script.output()?;
    if !run.status.success() {
        return Err(PackagesError::Failed(run.status));
    }
    let said = String::from_utf8_lossy(&run.stdout);
    said.lines().map(|line| Package::parse(line).ok_or_else(|| PackagesError::Unread(line.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_lines_are_read() {
        let ready = |name: &str, dir: &str, versions: &str| Package::Ready {
            name: name.to_owned(),
            dir: dir.into(),
            versions: versions.to_owned(),
        };
        for (line, package) in [
            ("current ready /a b/c QEMU 11.1.3, Linux 7.3.4", ready("current", "/a b/c", "QEMU 11.1.3, Linux 7.3.4")),
            ("linux-stable ready /c Linux 6.12.117", ready("linux-stable", "/c", "Linux 6.12.117")),
            (
                "current not-run no mirror QEMU",
                Package::NotRun { name: "current".to_owned(), reason: "no mirror QEMU".to_owned() },
            ),
        ] {
            assert_eq!(Package::parse(line), Some(package), "{line}");
        }
        for line in ["", "current", "current ready", "current ready /a", "current is ready /a QEMU 1"] {
            assert_eq!(Package::parse(line), None, "{line}");
        }
    }
}
