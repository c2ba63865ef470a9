//! Reads a `result.json` and `.hlog` files, and draws the percentile plot of truncate as SVG.
//!
//! `plot_result RESULT.json DESIGN.hlog...` draws one line per `.hlog` file and writes `plot.svg`
//! into the current folder. Without arguments, the example first writes a small run into a folder
//! below the system's temporary folder, and writes the SVG beside that folder, which holds nothing
//! but runs.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reports::plot::{self, Plot, PlotSeries};
use reports::{DesignResult, JobSummary, OpLatencies, RaceVerdict, RunResult, hdr, human, write_run};

/// The operation to plot.
const OPERATION: &str = "truncate";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match arguments.as_slice() {
        [] => {
            let folder = std::env::temp_dir().join("daxlab-plot-example");
            let (result, logs) = write_sample(&folder)?;
            draw(&result, &logs, &folder.with_extension("svg"))
        }
        [_] => Err("give a result.json and at least one .hlog file, or nothing".into()),
        [result, logs @ ..] => draw(result, logs, Path::new("plot.svg")),
    }
}

/// Draws one line per log, and writes the SVG to `target`.
fn draw(result: &Path, logs: &[PathBuf], target: &Path) -> Result<(), Box<dyn Error>> {
    let run = RunResult::read(result)?;
    for design in &run.designs {
        if let Some(latency) = design.latency_ns.get(OPERATION) {
            let (p50, max) = (human::nanoseconds(latency.p50), human::nanoseconds(latency.max));
            println!("{}: {}, {OPERATION} took {p50} in the median, {max} at most", design.name, design.verdict);
        }
    }
    let mut series = Vec::new();
    for (style, log) in logs.iter().enumerate() {
        let logged = hdr::read_log(&fs::read(log)?)?;
        let calls = logged.iter().find(|line| line.tag == OPERATION);
        let steps = calls.map(|line| hdr::percentile_walk(&line.histogram)).unwrap_or_default();
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        series.push(PlotSeries { name, style, steps });
    }
    let title = format!("{OPERATION} in job {}, seed {}", run.job.name, run.seed);
    let svg = plot::svg(&Plot { id: "plot".to_owned(), title, series });
    fs::write(target, &svg)?;
    println!("wrote {} lines, {} to {}", logs.len(), human::bytes(svg.len() as u64), target.display());
    Ok(())
}

/// Writes a run of two designs into `folder`; returns the paths of its result and its logs.
fn write_sample(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>), Box<dyn Error>> {
    let mut run = RunResult::new(7, JobSummary::new("sample", 1_000_000_000, 2));
    let mut all_latencies = Vec::new();
    for (name, verdict, longest_wait_ns) in
        [("rfc-v2", RaceVerdict::Safe, 0), ("chinner-2019", RaceVerdict::Stalls, 4_000_000)]
    {
        let mut latencies = OpLatencies::new();
        for call in 1..=1_000_u64 {
            let waited = longest_wait_ns > 0 && call % 10 == 0;
            let wait_ns = if waited { longest_wait_ns * call / 1_000 } else { 0 };
            latencies.record(OPERATION, 3_000 + 5 * call + wait_ns, waited);
        }
        let mut design = DesignResult::new(name, verdict);
        design.latency_ns = latencies.summaries();
        design.elapsed_ns = 1_000_000_000;
        run.designs.push(design);
        all_latencies.push(latencies);
    }
    let written = write_run(folder, &run, &all_latencies, Duration::ZERO)?;
    let logs = written.files.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "hlog"));
    Ok((written.result, logs.collect()))
}
