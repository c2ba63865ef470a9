//! The live status line.
//!
//! It owns what is shown while a race runs. Invariant: it writes to stderr only, and only one line
//! per design where stderr is no terminal.

use std::cell::RefCell;
use std::time::Duration;

use emulator::sync::Arc;
use fs_sim::Kernel;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use workloads::race::{DesignRun, RaceProgress, Snapshot};
use workloads::serving::control::Questions;

use crate::exit;

/// See the module.
pub(crate) struct StatusLine {
    bar: ProgressBar,
    /// Answers questions about the machine that runs.
    control: Arc<Questions>,
    /// Which design runs, as `[3/10] rfc-v2`.
    head: RefCell<String>,
}

impl StatusLine {
    /// A status line on stderr; `control` answers questions about the machine that runs.
    pub(crate) fn new(control: Arc<Questions>) -> StatusLine {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        StatusLine { bar, control, head: RefCell::default() }
    }
}

impl RaceProgress for StatusLine {
    fn started(&self, index: usize, of: usize, design: &DesignRun, _duration: Duration) {
        let head = format!("[{}/{of}] {}", index + 1, design.name);
        if self.bar.is_hidden() {
            exit::note(&head);
        } else {
            self.bar.set_message(head.clone());
        }
        *self.head.borrow_mut() = head;
    }

    fn machine(&self, kernel: &Arc<Kernel>) {
        self.control.publish(kernel);
    }

    fn snapshot(&self, now: &Snapshot) {
        self.bar.set_message(format!(
            "{}  {:.1} s  {} ops  {} truncates  {} registrations  {} DMAs  {} stale",
            self.head.borrow(),
            now.elapsed_ns as f64 / 1e9,
            now.operations,
            now.truncates,
            now.registrations,
            now.dma,
            now.stale,
        ));
        self.bar.tick();
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
