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
                         3 could not run, or could not write results (missing program, no permission, full disk).";

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

/// Runs `handler` on its own thread whenever Ctrl-C is pressed or SIGTERM comes.
///
/// # Errors
/// [`CannotRun`], if the machine gives no thread or no descriptor for that.
pub(crate) fn on_interrupt(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(handler).map_err(|error| {
        let why = match error {
            ctrlc::Error::System(why) => why.to_string(),
            other => other.to_string(),
        };
        let what = "Ctrl-C can't be waited for: no thread or descriptor for it";
        CannotRun(format!("{what}: {why}; raise the limits of processes (`ulimit -u`) and descriptors (`ulimit -n`)"))
            .into()
    })
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
/// [`CannotRun`], if stdout takes it not, or not all of it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CannotRun(format!(
            "stdout could not be written: {error}; make room where it goes, or send it elsewhere"
        ))
        .into()),
        Ok(()) => Ok(()),
    }
}

/// The exit code of a command that has its results. What was `found` decides first: a violation is
/// told although results could not be printed or written. The errors of that are reported here.
///
/// # Errors
/// The last error of `outputs`, if nothing was found.
pub(crate) fn after_results(
    found: bool,
    outputs: impl IntoIterator<Item = anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    let mut last = None;
    for error in outputs.into_iter().filter_map(Result::err) {
        if let Some(earlier) = last.replace(error) {
            let _reported = report(&earlier);
        }
    }
    match (found, last) {
        (true, Some(error)) => {
            let _reported = report(&error);
            Ok(ExitCode::from(FOUND))
        }
        (true, None) => Ok(ExitCode::from(FOUND)),
        (false, Some(error)) => Err(error),
        (false, None) => Ok(ExitCode::SUCCESS),
    }
}
