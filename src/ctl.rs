//! `daxlab ctl`: asking a running server or race who leases, who pins, who blocks; and steering a server.
//!
//! It owns the command's arguments.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use workloads::control::protocol::{Request, Response};
use workloads::control::{ControlError, ask};
use workloads::input::{Size, UnitError};

use crate::exit;

/// Ask and steer a running `daxlab serve`, or ask a `daxlab race --control SOCKET`
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The socket it listens at
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// A number of bytes, with its unit unless it is 0.
#[derive(Clone, Copy, Debug)]
struct Bytes(u64);

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Bytes, UnitError> {
        if text == "0" { Ok(Bytes(0)) } else { text.parse().map(|Size(bytes)| Bytes(bytes)) }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    /// Truncate a file, as a process of its own; waits as long as the design does, Ctrl-C gives up
    Truncate {
        /// The file's name
        file: String,
        /// Its new size, such as `64MiB` or `0`
        size: Bytes,
    },
    /// Punch a hole into a file, as a process of its own
    Punch {
        /// The file's name
        file: String,
        /// Where the hole begins
        offset: Bytes,
        /// How long it is
        len: Bytes,
    },
    /// Allocate a range of a file, as a process of its own
    Fallocate {
        /// The file's name
        file: String,
        /// Where the range begins
        offset: Bytes,
        /// How long it is
        len: Bytes,
    },
    /// The guests, and where each stands
    Guests,
    /// What the guests' devices counted: requests, flushes, failures, maps
    FlushStats,
    /// What guests have mapped that is no longer their file's
    Stale,
    /// Poison blocks of a file: the host and the NIC fail on them (a guest can't be told)
    Poison {
        /// The file's name, or its inode's number
        file: String,
        /// Where the range begins
        offset: Bytes,
        /// How long it is; whole blocks of 4 KiB are poisoned
        len: Bytes,
    },
    /// Cut the guests' power: what was not flushed survives line by line, by chance (needs `serve --power-cut-model`)
    PowerCut {
        /// What decides which lines survive; the server's own seed if not given
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
    },
    /// Make every flush fail, or no longer
    FailFlush {
        /// Whether they fail
        switch: Switch,
    },
    /// Take a file (without a name: all, or the image) from the guests that have it
    Revoke {
        /// The file's name
        file: Option<String>,
    },
    /// Register a file that a guest has as an RDMA region, in the process that has it for the guest
    RdmaReg {
        /// The file's name
        file: String,
    },
    /// Write into a region by RDMA, as a client of the NIC
    RdmaWrite {
        /// The region's number
        mr: u64,
        /// Where in the region
        offset: Bytes,
        /// What
        text: String,
    },
    /// Read from a region by RDMA, as a client of the NIC
    RdmaRead {
        /// The region's number
        mr: u64,
        /// Where in the region
        offset: Bytes,
        /// How much, at most 1MiB
        len: Bytes,
    },
    /// Deregister a region
    RdmaDereg {
        /// The region's number
        mr: u64,
    },
}

impl From<Command> for Request {
    fn from(command: Command) -> Request {
        match command {
            Command::Blockers { file } => Request::Blockers { file },
            Command::Leases { file } => Request::Leases { file },
            Command::Pins { file } => Request::Pins { file },
            Command::Truncate { file, size } => Request::Truncate { file, size: size.0 },
            Command::Punch { file, offset, len } => Request::Punch { file, offset: offset.0, len: len.0 },
            Command::Fallocate { file, offset, len } => Request::Fallocate { file, offset: offset.0, len: len.0 },
            Command::Guests => Request::Guests,
            Command::FlushStats => Request::FlushStats,
            Command::Stale => Request::Stale,
            Command::Poison { file, offset, len } => Request::Poison { file, offset: offset.0, len: len.0 },
            Command::PowerCut { seed } => Request::PowerCut { seed },
            Command::FailFlush { switch } => Request::FailFlush { on: matches!(switch, Switch::On) },
            Command::Revoke { file } => Request::Revoke { file },
            Command::RdmaReg { file } => Request::RdmaReg { file },
            Command::RdmaWrite { mr, offset, text } => Request::RdmaWrite { mr, offset: offset.0, text },
            Command::RdmaRead { mr, offset, len } => Request::RdmaRead { mr, offset: offset.0, len: len.0 },
            Command::RdmaDereg { mr } => Request::RdmaDereg { mr },
        }
    }
}

/// Runs the command. What was tried and failed, such as a truncate that a design refuses, is exit code 1.
///
/// # Errors
/// Nobody listens there (exit code 3); the request makes no sense there (exit code 2).
pub(crate) fn run(args: CtlArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.socket, &args.command.into()).map_err(|error| match error {
        ControlError::Answer(_) | ControlError::TooLong | ControlError::NoSocket { .. } => anyhow::Error::from(error),
        ControlError::Connect { ref error, ref path } if error.kind() == std::io::ErrorKind::InvalidInput => {
            anyhow::anyhow!("{}: {error}; a socket's path has at most 107 bytes", path.display())
        }
        other => exit::CannotRun(other.to_string()).into(),
    })?;
    let (text, data, code) = match answer {
        Response::Answer { text, data } => (text, data, ExitCode::SUCCESS),
        Response::Failed { text, data } => (text, data, ExitCode::from(exit::FOUND)),
        Response::Refused { why } => anyhow::bail!(why),
    };
    exit::print(&if args.json { serde_json::to_string_pretty(&data)? + "\n" } else { text })?;
    Ok(code)
}
