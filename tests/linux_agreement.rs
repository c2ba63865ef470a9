//! Random sequences of system calls run on this machine's own kernel and on the simulated one: both
//! must give the same results.
//!
//! A few hundred sequences by default, 10,000 with `DAXLAB_SLOW=1`. A machine that cannot run them
//! (no leases on the file system of temporary files, no permission) is reported with its reason,
//! and the test does not fail.

use std::path::PathBuf;

use fs_sim::design::preset;
use workloads::machines::linux::LinuxConfig;
use workloads::race::StopFlag;
use workloads::suite::agreement::{self, AgreementConfig, AgreementReport};

fn config(sequences: u64, seed: u64, dir: PathBuf) -> AgreementConfig {
    AgreementConfig {
        sequences,
        seed,
        linux: LinuxConfig { program: PathBuf::from(env!("CARGO_BIN_EXE_daxlab")), dir, ..LinuxConfig::new() },
        axes: preset("mainline").map(|preset| preset.axes),
    }
}

fn tell(report: &AgreementReport) {
    println!("{} sequences, {} agreed, {} inconclusive", report.run, report.agreed, report.inconclusive);
    if let Some(why) = &report.not_run {
        println!("not run: {why}");
    }
}

fn check(report: &AgreementReport, sequences: u64) {
    tell(report);
    if let Some(difference) = &report.difference {
        panic!(
            "the real kernel: {}; the simulation: {}\n{}",
            difference.linux, difference.simulation, difference.scenario
        );
    }
    assert!(!report.failed(), "{} of {} sequences are inconclusive", report.inconclusive, report.run);
    // A machine that can't, can't from the first on; what it refuses later is no reason to claim
    // the rest.
    assert!(if report.not_run.is_some() { report.run == 0 } else { report.run == sequences });
    assert_eq!(report.agreed + report.inconclusive, report.run);
}

fn sequences(fast: u64, slow: u64) -> u64 {
    if std::env::var_os("DAXLAB_SLOW").is_some() { slow } else { fast }
}

#[test]
fn the_simulation_is_what_the_kernel_does() {
    let sequences = sequences(300, 10_000);
    let report = agreement::run(&config(sequences, 1, std::env::temp_dir()), &StopFlag::new());
    check(&report, sequences);
    // Agreement on nothing would be no news.
    for seen in ["open blocks", "open EAGAIN", "returns ok", "setlease ok", "signals SIGIO", "lease write", "load ok"] {
        assert!(report.not_run.is_some() || report.outcomes.contains_key(seen), "no sequence had `{seen}`");
    }
}

#[test]
fn the_kernel_is_what_the_kernel_does() {
    let sequences = sequences(100, 1000);
    check(&agreement::run_against_itself(&config(sequences, 2, std::env::temp_dir()), &StopFlag::new()), sequences);
}

#[test]
fn a_place_without_files_is_not_run() {
    let report = agreement::run(&config(10, 1, PathBuf::from("/proc")), &StopFlag::new());
    assert!(report.not_run.is_some() && report.run == 0 && report.agreed == 0);
}
