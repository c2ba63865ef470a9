//! File names made of the names of designs and operations.

use std::collections::BTreeSet;

/// Longest part of a file name that comes from a design's or an operation's name, in bytes.
const STEM_MAX: usize = 80;

/// File names given out so far, in lower case: also a file system that ignores case must keep them apart.
#[derive(Default)]
pub(super) struct FileNames {
    used: BTreeSet<String>,
}

impl FileNames {
    /// A name like `rfc-v2-truncate.hgrm`, different from all given out before.
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

/// A name reduced to letters, digits, dot, dash and underscore; never empty, hidden or longer than [`STEM_MAX`].
fn sanitised(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut clean: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).take(STEM_MAX).collect();
    if clean.is_empty() || clean.starts_with(['.', '-']) {
        clean.insert(0, '_');
    }
    clean
}
