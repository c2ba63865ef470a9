//! Replays the corpus of a fuzzer. The file `tests/fuzz_corpus.rs` of each crate that has fuzzers
//! includes this file, so that every test run checks each input that a fuzzer found.

use std::path::Path;

/// Runs `property` on each input in `corpus/TARGET`, and on a few that are short.
///
/// # Panics
/// The property does not hold, or the corpus is gone.
pub(crate) fn replay(target: &str, property: fn(&[u8])) {
    for data in [&[][..], &[0], &[255; 3], &[0; 64], &[255; 64]] {
        property(data);
    }
    // Each crate lies in the folder that `fuzz` lies in.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let inputs = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = inputs.map(|entry| entry.expect("an input").path()).collect();
    files.sort();
    assert!(files.len() > 10, "{} holds {} files", folder.display(), files.len());
    for file in files {
        // Shown if the property does not hold.
        println!("{}", file.display());
        property(&std::fs::read(&file).expect("an input"));
    }
}
