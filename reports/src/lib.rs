//! Results in; tables, histograms, plots and pages out.
//!
//! This crate knows only numbers and text: no design, no filesystem, no NIC. A race fills one
//! [`RunResult`] with counters, and one [`OpLatencies`] per design with call times. The terminal's
//! table, `result.json`, the HdrHistogram files and `report.html` are all made from these two
//! values, so they cannot disagree.
//!
//! # Layers, bottom first
//! 1. [`human`]: numbers and lines of text as people read them; for every format below
//! 2. [`result`]: `result.json`: its types, how to write it, how to read it back
//! 3. [`hdr`]: record call times; write `.hlog` and `.hgrm` files; read a `.hlog` file back
//! 4. [`figures`]: which figures a comparison shows, in which order, under which headings
//! 5. [`text`]: the comparison table for a terminal
//! 6. [`plot`]: the percentile plot of one operation, as SVG
//! 7. [`html`]: `report.html`, one self-contained page
//! 8. [`output`]: write a run's whole output folder, all of it or nothing
//! 9. [`scenarios`]: results of scenarios as text, JSON and JUnit XML; uses no other layer
//!
//! Only [`output`] and [`RunResult::read`] touch files. Every other function is a pure function of
//! its arguments. There is no kernel counterpart: a kernel offers tracepoints, and its users make
//! reports of them.
//!
//! ```
//! use reports::{DesignResult, JobSummary, OpLatencies, RaceVerdict, RunResult, text};
//!
//! let mut latencies = OpLatencies::new();
//! latencies.record("truncate", 12_400, false);
//! latencies.record("truncate", 3_100_000, true);
//!
//! let mut run = RunResult::new(42, JobSummary::new("default", 10_000_000_000, 2));
//! let mut design = DesignResult::new("rfc-v2", RaceVerdict::Refuses);
//! design.counters.truncate_attempts = 2;
//! design.counters.truncate_done = 2;
//! design.latency_ns = latencies.summaries();
//! run.designs.push(design);
//!
//! let table = text::tables(&run, &text::TableOptions { width: 100, ansi: false });
//! assert!(table.contains("rfc-v2"));
//! assert!(table.contains("12.4µs"));
//! ```

#![allow(rustdoc::private_intra_doc_links, reason = "the list of layers names private layers too")]

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
pub use output::{OutputFolder, RunWriteError, WrittenRun, write_run};
pub use result::{
    DesignResult, JobSummary, LatencySummary, RaceCounters, RaceVerdict, ReportedFinding, RunResult, SCHEMA_VERSION,
};
