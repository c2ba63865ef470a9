//! Starts the hidden subcommands of this program.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::child;
use crate::machines::machine::Trouble;

/// The descriptor number at which a started program finds its socket.
pub(super) const SOCKET: i32 = 0;
const _: () = assert!(SOCKET < child::CONTROL);

/// Starts the program's hidden subcommand with `socket` as its standard input, in a process group
/// that the terminal's signals don't reach.
pub(super) fn start(program: &Path, subcommand: &str, socket: OwnedFd) -> Result<Child, Trouble> {
    use std::os::unix::process::CommandExt;
    Command::new(program)
        .arg(subcommand)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| Trouble::CannotRun(format!("{} can't be started: {error}", program.display())))
}
