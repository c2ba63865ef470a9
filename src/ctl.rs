//! `daxlab ctl`: asking a running race who leases, who pins, who blocks.
//!
//! It owns the command's arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use workloads::control::protocol::{Request, Response};
use workloads::control::{ControlError, ask};

use crate::exit;

/// Ask a running `daxlab race --control SOCKET`
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The socket it listens at
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Who stands against a layout change of a file, and who waits for whom
    Blockers {
        /// The file's name, or its inode's number
        file: String,
    },
    /// The layout leases of a file, or of all files
    Leases {
        /// The file's name, or its inode's number
        file: Option<String>,
    },
    /// The long-term pins of a file, or of all files
    Pins {
        /// The file's name, or its inode's number
        file: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// Nobody listens there (exit code 3); the question can't be answered (exit code 2).
pub(crate) fn run(args: CtlArgs) -> anyhow::Result<ExitCode> {
    let request = match args.question {
        Question::Blockers { file } => Request::Blockers { file },
        Question::Leases { file } => Request::Leases { file },
        Question::Pins { file } => Request::Pins { file },
    };
    let answer = ask(&args.socket, &request).map_err(|error| match error {
        ControlError::Answer(_) | ControlError::TooLong => anyhow::Error::from(error),
        ControlError::Connect { ref error, ref path } if error.kind() == std::io::ErrorKind::InvalidInput => {
            anyhow::anyhow!("{}: {error}; a socket's path has at most 107 bytes", path.display())
        }
        other => exit::CannotRun(other.to_string()).into(),
    })?;
    match answer {
        Response::Answer { data, .. } if args.json => exit::print(&(serde_json::to_string_pretty(&data)? + "\n"))?,
        Response::Answer { text, .. } => exit::print(&text)?,
        Response::Refused { why } => anyhow::bail!(why),
    }
    Ok(ExitCode::SUCCESS)
}
