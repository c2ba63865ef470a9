//! Results in; tables, histograms, plots and pages out.
//!
//! This crate knows only numbers: no design, no filesystem, no NIC. A race fills a [`RunResult`] with counters and an
//! [`OpLatencies`] per design with call times; from these two everything a reader sees is made, so that the table on the
//! terminal, `result.json`, the HdrHistogram files and `report.html` cannot disagree.
//!
//! | module | gives |
//! |---|---|
//! | [`result`] | `result.json`, versioned, and the errors of reading one back |
//! | [`hdr`] | latency recording, `.hlog` and `.hgrm` files |
//! | [`text`] | the comparison table for a terminal |
//! | [`html`] | `report.html`, self-contained |
//! | [`plot`] | the percentile plot, as SVG |
//! | [`scenarios`] | results of scenarios as text, JSON, JUnit XML |
//! | [`output`] | a whole output folder, all of it or nothing |
//! | [`human`] | numbers as people read them |
//!
//! Everything here is a pure function of its arguments except [`output`] and [`RunResult::read`]. There is no kernel
//! counterpart: a kernel has tracepoints and leaves this to its users.
//!
//! ```
//! use reports::{RaceCounters, DesignResult, JobSummary, OpLatencies, RunResult, RaceVerdict, text};
//!
//! let mut latencies = OpLatencies::new();
//! latencies.record("truncate", 12_400, false);
//! latencies.record("truncate", 3_100_000, true);
//!
//! let mut run = RunResult::new(42, JobSummary::new("default", 10_000_000_000, 2));
//! let mut design = DesignResult::new("rfc-v2", RaceVerdict::Refuses);
//! design.counters = RaceCounters { truncate_attempts: 2, truncate_done: 2, ..RaceCounters::default() };
//! design.latency_ns = latencies.summaries();
//! run.designs.push(design);
//!
//! let table = text::tables(&run, &text::TableOptions { width: 100, ansi: false });
//! assert!(table.contains("rfc-v2"));
//! assert!(table.contains("12.4µs"));
//! ```

mod figures;
pub mod hdr;
pub mod html;
pub mod human;
pub mod output;
pub mod plot;
pub mod result;
pub mod scenarios;
pub mod text;

pub use hdr::{Latency, OpLatencies};
pub use output::{WrittenRun, check_writable, write_run};
pub use result::{
    DesignResult, JobSummary, LatencySummary, RaceCounters, RaceVerdict, ReportedFinding, RunResult, SCHEMA_VERSION,
};
