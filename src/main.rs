//! The `daxlab` command: arguments, checked configuration, one call, print. No logic lives here.
//!
//! Exit codes are a contract: 0 fine, 1 a violation or failed expectation was found, 2 wrong usage
//! or input, 3 could not run. Results go to stdout, progress and messages to stderr; a closed pipe
//! is no error.

mod ctl;
mod designs;
mod exit;
mod limits;
mod linux_args;
mod numbers;
mod progress;
mod race;
mod random;
mod scenario;
mod serve;

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// What should happen when a DAX file is truncated under pinned pages? Every proposed design, raced
/// side by side.
#[derive(Debug, Parser)]
#[command(name = "daxlab", version, max_term_width = 100, after_help = exit::CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the truncate/pin race under every design and compare
    Race(race::RaceArgs),
    /// Run scenarios under every design, each outcome held against the stated one
    Scenario(scenario::ScenarioArgs),
    /// Serve a file or an image to guests as persistent memory
    Serve(serve::ServeArgs),
    /// Send a request to a running `serve` or `race`
    Ctl(ctl::CtlArgs),
    /// Show the designs and their axes
    Designs(designs::DesignsArgs),
    /// Be the parent of the processes of scenarios on the real kernel (started by this program
    /// itself)
    #[command(hide = true)]
    ScenarioChild,
    /// Keep the host's lease break time short until the starter is gone (started by this program
    /// itself)
    #[command(hide = true)]
    LeaseBreakTime,
    /// Make a Soft-RoCE device (run by this program itself, in a guest)
    #[command(hide = true)]
    SoftRoce {
        /// The network device that it sends by
        netdev: String,
    },
    /// Be the process that a guest's device lives in (started by this program itself)
    #[command(hide = true)]
    GuestPort,
}

#[global_allocator]
static ALLOCATOR: limits::AllocOrExit = limits::AllocOrExit;

fn main() -> ExitCode {
    limits::report_as_errors();
    let outcome = match Cli::parse().command {
        Command::Race(args) => race::run(args),
        Command::Scenario(args) => scenario::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Designs(args) => designs::run(args),
        Command::ScenarioChild => on_socket(workloads::machines::linux::child::main),
        Command::LeaseBreakTime => on_socket(workloads::machines::linux::guard),
        Command::SoftRoce { netdev } => soft_roce(&netdev),
        Command::GuestPort => on_socket(workloads::serving::backend_process::main),
    };
    outcome.unwrap_or_else(|error| exit::report(&error))
}

/// A helper process's life: its starter's socket is its standard input.
fn on_socket(body: fn(OwnedFd) -> std::io::Result<()>) -> anyhow::Result<ExitCode> {
    body(std::io::stdin().as_fd().try_clone_to_owned()?)?;
    Ok(ExitCode::SUCCESS)
}

fn soft_roce(netdev: &str) -> anyhow::Result<ExitCode> {
    workloads::machines::linux::soft_roce::add(netdev)
        .with_context(|| format!("a Soft-RoCE device on {netdev} can't be made"))?;
    Ok(ExitCode::SUCCESS)
}
