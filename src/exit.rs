//! Exit codes, and how errors are reported.
//!
//! It owns the mapping from what went wrong to the exit codes of the command line. Invariant: an
//! error message says what was asked, what was found and what to do; its code says whether the
//! input or the machine must change.

use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

/// Shown by `--help`.
pub(crate) const CODES: &str = "Exit codes: 0 fine; 1 a violation or failed expectation was found; 2 wrong usage or input; \
                         3 could not run (missing program, no permission).";

/// A violation or a failed expectation was found.
pub(crate) const FOUND: u8 = 1;
/// Wrong usage or input.
pub(crate) const USAGE: u8 = 2;
/// Could not run.
pub(crate) const CANNOT: u8 = 3;

/// The machine could not do what was asked although the request was sound.
#[derive(Debug)]
pub(crate) struct CannotRun(pub(crate) String);

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotRun {}

/// Prints an error on stderr and returns its exit code: [`USAGE`], except for [`CannotRun`]. A
/// closed stdout is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
    {
        return ExitCode::SUCCESS;
    }
    let text = error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match () {
            () if text.is_empty() => cause,
            // Many errors tell their cause themselves.
            () if text.contains(&cause) => text,
            () => format!("{text}: {cause}"),
        }
    });
    let prefix = if text.starts_with("error") { "" } else { "error: " };
    note(&format!("{prefix}{text}"));
    let cannot = error.chain().any(|cause| cause.is::<CannotRun>());
    ExitCode::from(if cannot { CANNOT } else { USAGE })
}

/// Writes a line to stderr. A closed stderr is no error, and no reason for a panic, which
/// `eprintln!` would make of it.
pub(crate) fn note(line: &str) {
    use std::io::Write;
    let _unread = writeln!(std::io::stderr(), "{line}");
}

/// Writes a result to stdout. A reader that went away is success.
///
/// # Errors
/// Whatever else stdout says.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Into::into),
    }
}
