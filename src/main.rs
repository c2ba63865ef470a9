//! The `daxlab` command: arguments, checked configuration, one call, print. No logic lives here.
//!
//! Exit codes are a contract: 0 fine, 1 a violation or failed expectation was found, 2 wrong usage or input, 3 could not run.
//! Results go to stdout, progress and messages to stderr; a closed pipe is no error.

mod designs;
mod exit;
mod progress;
mod race;
mod scenario;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What should happen when a DAX file is truncated under pinned pages? Every proposed design, raced side by side.
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
    /// Show the designs and their axes
    Designs(designs::DesignsArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Race(args) => race::run(args),
        Command::Scenario(args) => scenario::run(args),
        Command::Designs(args) => designs::run(args),
    };
    outcome.unwrap_or_else(|error| exit::report(&error))
}
