//! The names in an output folder: fixed ones, and those made of the names of designs and
//! operations.

use std::collections::BTreeSet;

/// The page's file name in the output folder.
pub const REPORT_NAME: &str = "report.html";
/// The result's file name in the output folder.
pub const RESULT_NAME: &str = "result.json";
/// What the names of temporary folders begin with.
pub(super) const STAGING_PREFIX: &str = ".daxlab-run-";

/// The longest part of a file name that one design's or operation's name makes, in bytes.
const STEM_MAX: usize = 80;

/// The file names used so far, in lower case: they must differ on a filesystem that ignores case
/// too.
#[derive(Default)]
pub(super) struct FileNames {
    used: BTreeSet<String>,
}

impl FileNames {
    /// A name such as `rfc-v2-truncate.hgrm` that differs from all names returned before.
    pub(super) fn unique(&mut self, parts: &[&str], extension: &str) -> String {
        let stem = parts.iter().map(|part| sanitised(part)).collect::<Vec<_>>().join("-");
        let mut name = format!("{stem}.{extension}");
        let mut number = 1_u64;
        while !self.used.insert(name.to_ascii_lowercase()) {
            number += 1;
            name = format!("{stem}-{number}.{extension}");
        }
        name
    }
}

/// Replaces all characters except letters, digits, dot, dash and underscore. The result is never
/// empty, never starts with a dot or a dash, and has at most [`STEM_MAX`] + 1 bytes.
fn sanitised(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut clean: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).take(STEM_MAX).collect();
    if clean.is_empty() || clean.starts_with(['.', '-']) {
        clean.insert(0, '_');
    }
    clean
}
