//! What this program does at the limits of the machine.
//!
//! It owns the choice that a limit is an error with a message and an exit code, and not a signal
//! that ends the program without a word. Kernel counterpart: setrlimit(2).

/// From now on a write beyond RLIMIT_FSIZE fails with EFBIG. By default its signal (SIGXFSZ) kills
/// the process.
pub(crate) fn report_as_errors() {
    // SAFETY: to ignore a signal runs no code of this program.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
