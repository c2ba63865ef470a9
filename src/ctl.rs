//! `daxlab ctl`: asking a running server or race who leases, who pins, who blocks; and steering a
//! server.
//!
//! It owns the command's arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use workloads::input::{Duration, Size, UnitError};
use workloads::ops::{Arg, FlushRule, Op, Param, Parameter, Verb};
use workloads::serving::control::protocol::Response;
use workloads::serving::control::{ControlError, ask};

use crate::exit;
use crate::numbers;

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

/// A subcommand, which clap builds from the table of operations.
#[derive(Debug)]
struct ControlCommand(Op);

/// What `daxlab ctl --help` says below the list.
const CHANGES: &str = "truncate, punch and fallocate are the call of a simulated process of their own. They wait as long as the \
    design has them wait; Ctrl-C interrupts the call.";

/// A number of bytes, with its unit unless it is 0.
fn bytes(text: &str) -> Result<u64, UnitError> {
    if text == "0" { Ok(0) } else { text.parse().map(|Size(bytes)| bytes) }
}

/// A time in nanoseconds; `off` is none.
fn delay(text: &str) -> Result<u64, UnitError> {
    match text {
        "off" => Ok(0),
        _ => text.parse().map(|Duration(time)| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
    }
}

fn requests() -> impl Iterator<Item = Verb> {
    Verb::ALL.iter().copied().filter(|verb| verb.is_for_servers())
}

fn clap_arg(parameter: &Parameter) -> clap::Arg {
    let help = parameter.doc.unwrap_or_default();
    let built = clap::Arg::new(parameter.name).help(help).value_name(parameter.name.to_uppercase()).required(true);
    match parameter.syntax {
        Param::Optional(Param::Number) => built.required(false).long(parameter.name).value_parser(numbers::any),
        Param::Optional(_) => built.required(false),
        Param::Size => built.value_parser(bytes),
        Param::Number => built.value_parser(numbers::any),
        Param::Delay => built.value_parser(delay),
        Param::FlushRule => built
            .value_name("on|off|nth=N|every=N")
            .value_parser(|text: &str| text.parse::<FlushRule>().map(|rule| rule.to_string())),
        _ => built,
    }
}

fn given(matches: &ArgMatches, parameter: &Parameter) -> Arg {
    let word = || matches.get_one::<String>(parameter.name).cloned();
    let found = match parameter.syntax {
        Param::Size | Param::Span | Param::Delay | Param::Number | Param::Optional(Param::Number) => {
            matches.get_one::<u64>(parameter.name).copied().map(Arg::Number)
        }
        _ => word().map(Arg::Name),
    };
    found.unwrap_or(Arg::Absent)
}

impl Subcommand for ControlCommand {
    fn augment_subcommands(command: Command) -> Command {
        let request = |verb: Verb| {
            let about = verb.doc().trim_end_matches('.');
            let command = Command::new(verb.name()).about(about).args(verb.params().iter().map(clap_arg));
            let changes = matches!(verb, Verb::Truncate | Verb::PunchByPath | Verb::FallocateByPath);
            if changes { command.after_help(CHANGES) } else { command }
        };
        let command = command.subcommand_required(true).arg_required_else_help(true).after_help(CHANGES);
        command.subcommands(requests().map(request))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        ControlCommand::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Verb::of_server(name).is_some()
    }
}

impl FromArgMatches for ControlCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ControlCommand, clap::Error> {
        let missing = || clap::Error::raw(clap::error::ErrorKind::MissingSubcommand, "a subcommand is missing");
        let (name, matches) = matches.subcommand().ok_or_else(missing)?;
        let verb = Verb::of_server(name).ok_or_else(missing)?;
        let args: Vec<Arg> = verb.params().iter().map(|parameter| given(matches, parameter)).collect();
        Op::from_args(verb, &args)
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
