//! `daxlab ctl`: asking a running server or race who leases, who pins, who blocks; and steering a
//! server.
//!
//! It owns the command's arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand, value_parser};
use workloads::input::{Size, UnitError};
use workloads::ops::{ControlArg, ControlOp, ControlSyntax};
use workloads::serving::control::protocol::Response;
use workloads::serving::control::{ControlError, ask};

use crate::exit;

/// Send a request to a running `daxlab serve` or `daxlab race --control SOCKET`
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The socket at which the server or race listens
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: ControlCommand,
}

/// A subcommand, which clap builds from the table of [`ControlOp`].
#[derive(Debug)]
struct ControlCommand(ControlOp);

/// A number of bytes, with its unit unless it is 0.
fn bytes(text: &str) -> Result<u64, UnitError> {
    if text == "0" { Ok(0) } else { text.parse().map(|Size(bytes)| bytes) }
}

fn clap_arg(arg: &ControlArg) -> Arg {
    let built = Arg::new(arg.name).help(arg.doc).value_name(arg.value_name).required(true);
    match arg.syntax {
        ControlSyntax::Word => built,
        ControlSyntax::MaybeWord => built.required(false),
        ControlSyntax::Size => built.value_parser(bytes),
        ControlSyntax::Number => built.value_parser(value_parser!(u64)),
        ControlSyntax::Switch => built.value_parser(["on", "off"]),
        ControlSyntax::Seed => built.long(arg.name).required(false).value_parser(value_parser!(u64)),
    }
}

impl Subcommand for ControlCommand {
    fn augment_subcommands(command: Command) -> Command {
        let rows = ControlOp::TABLE.iter();
        let rows = rows.map(|row| Command::new(row.name).about(row.doc).args(row.args.iter().map(clap_arg)));
        command.subcommand_required(true).arg_required_else_help(true).subcommands(rows)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        ControlCommand::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        ControlOp::TABLE.iter().any(|row| row.name == name)
    }
}

impl FromArgMatches for ControlCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ControlCommand, clap::Error> {
        let missing = || clap::Error::raw(clap::error::ErrorKind::MissingSubcommand, "a subcommand is missing");
        let (name, matches) = matches.subcommand().ok_or_else(missing)?;
        let row = ControlOp::TABLE.iter().find(|row| row.name == name).ok_or_else(missing)?;
        let mut op = serde_json::Map::from_iter([("command".to_owned(), name.into())]);
        for arg in row.args {
            let word = || matches.get_one::<String>(arg.name);
            let value: serde_json::Value = match arg.syntax {
                ControlSyntax::Word | ControlSyntax::MaybeWord => word().cloned().into(),
                ControlSyntax::Size | ControlSyntax::Number | ControlSyntax::Seed => {
                    matches.get_one::<u64>(arg.name).copied().into()
                }
                ControlSyntax::Switch => word().map(|word| word == "on").into(),
            };
            op.insert(arg.name.to_owned(), value);
        }
        serde_json::from_value(op.into())
            .map(ControlCommand)
            .map_err(|error| clap::Error::raw(clap::error::ErrorKind::InvalidValue, error))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = ControlCommand::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the command. What was tried and failed, such as a truncate that a design refuses, is exit
/// code 1.
///
/// # Errors
/// No process listens there (exit code 3); the request makes no sense there (exit code 2).
pub(crate) fn run(args: CtlArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.socket, &args.command.0).map_err(|error| match error {
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
