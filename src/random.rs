//! `daxlab scenario random`: random sequences on a real kernel and in the simulation.
//!
//! It owns the command's arguments and its exit code: 1 where the two differ.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use workloads::race::StopFlag;
use workloads::suite::agreement::{self, AgreementConfig, AgreementReports, KernelAgreement};
use workloads::suite::guest_kernels::agree_on_guests;
use workloads::suite::linux;

use crate::exit;
use crate::linux_args::{GuestArgs, KernelArgs, guest_error, guest_run};
use crate::numbers;

/// The most random sequences of a run.
const SEQUENCES_MAX: u32 = 1_000_000;
#[derive(Debug, Args)]
pub(crate) struct RandomArgs {
    /// The kernel: this machine's own, or those of guests, on file systems with DAX
    #[arg(long, value_enum)]
    on: RealKernel,
    /// How many sequences
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = numbers::within(1..=SEQUENCES_MAX, "each takes tens of milliseconds"))]
    sequences: u32,
    /// The seed: the same sequences on the same kernel
    #[arg(long, value_name = "SEED", default_value_t = 1, value_parser = numbers::any)]
    seed: u64,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    guest: GuestArgs,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = RandomFormat::Text)]
    format: RandomFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RealKernel {
    /// This machine's own Linux kernel
    Kernel,
    /// Linux kernels in guests, on persistent memory
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RandomFormat {
    /// A line for each kernel, and a difference as a scenario
    Text,
    /// All counts, for programs
    Json,
}

/// Runs the command.
///
/// # Errors
/// Wrong input (exit code 2), or no kernel that could run it (3).
pub(crate) fn run(args: &RandomArgs) -> anyhow::Result<ExitCode> {
    let (sequences, seed) = (u64::from(args.sequences), args.seed);
    let reports = match args.on {
        RealKernel::Kernel => {
            args.guest.check_unused()?;
            let config = AgreementConfig { sequences, seed, linux: args.kernel.config(), axes: None };
            let report = agreement::run(&config, &StopFlag::new());
            AgreementReports::new(seed, vec![KernelAgreement { kernel: linux::release(), report }])
        }
        RealKernel::Guest => {
            args.kernel.check_unused()?;
            agree_on_guests(sequences, seed, &guest_run(&args.guest), &exit::note).map_err(guest_error)?
        }
    };
    let printed = exit::print(&match args.format {
        RandomFormat::Text => reports.to_string(),
        RandomFormat::Json => serde_json::to_string_pretty(&reports)? + "\n",
    });
    if reports.kernels.iter().any(|kernel| kernel.report.failed()) {
        return exit::after_results(true, [printed]);
    }
    printed?;
    match reports.kernels.iter().find_map(|kernel| kernel.report.not_run.as_ref()) {
        Some(why) => Err(exit::CannotRun(why.clone()).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}
