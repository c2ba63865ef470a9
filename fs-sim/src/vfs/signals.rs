//! Signals: dispositions and the queue of those not yet taken.
//!
//! It owns what a process has pending. Invariants: SIGKILL can be neither caught nor ignored;
//! SIGIO's default action kills (which is why simulated processes state their disposition); the
//! queue has a bound, beyond which a signal of a kind already queued is merged into it, as standard
//! signals are. Kernel counterpart: kernel/signal.c.

use std::collections::{BTreeMap, VecDeque};

use emulator::sync::Arc;
use emulator::wait::SleepKind;

use crate::base::numbers::{Ino, Pid};
use crate::vfs::kernel::Kernel;
use crate::vfs::process::Process;

/// The signals that simulated processes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// A lease of the process is being broken: the signal for it unless another was chosen.
    Sigio,
    /// Ends the process.
    Sigkill,
    /// Asks the process to end.
    Sigterm,
    /// For the user's purposes.
    Sigusr1,
    /// For the user's purposes.
    Sigusr2,
    /// A page of the device went bad that the process has mapped (`BUS_MCEERR_AO`).
    Sigbus,
}

/// What a signal does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disposition {
    /// The signal's default action: all of ours end the process.
    #[default]
    Default,
    /// Nothing; the signal is dropped.
    Ignore,
    /// Queued for the process; interrupts its interruptible sleeps.
    Handler,
}

/// A queued signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo {
    /// Which.
    pub signal: Signal,
    /// The file whose lease is being broken, if that is why.
    pub ino: Option<Ino>,
    /// The address of the page that went bad, if that is why: `si_addr`.
    pub address: Option<u64>,
}

impl SigInfo {
    /// A signal that tells no more than its number.
    pub fn of(signal: Signal) -> SigInfo {
        SigInfo { signal, ino: None, address: None }
    }
}

/// How many signals queue before equal kinds are merged.
pub const QUEUE_MAX: usize = 1024;

/// A process's signal state.
#[derive(Debug, Default)]
pub struct Signals {
    dispositions: BTreeMap<Signal, Disposition>,
    /// Whether it is signalled when a page goes bad that it has mapped: `PF_MCE_EARLY`.
    pub(crate) early_kill: bool,
    queue: VecDeque<SigInfo>,
}

/// What sending a signal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// There is no such process, or it ignores the signal.
    Dropped,
    /// Queued for the handler.
    Queued,
    /// It ends the process.
    Fatal,
}

impl Signals {
    pub(crate) fn set_disposition(&mut self, signal: Signal, disposition: Disposition) {
        if signal != Signal::Sigkill {
            self.dispositions.insert(signal, disposition);
        }
    }

    fn deliver(&mut self, info: SigInfo) -> Delivery {
        match self.dispositions.get(&info.signal).copied().unwrap_or_default() {
            Disposition::Default => Delivery::Fatal,
            Disposition::Ignore => Delivery::Dropped,
            Disposition::Handler => {
                if self.queue.len() < QUEUE_MAX {
                    self.queue.push_back(info);
                }
                Delivery::Queued
            }
        }
    }

    pub(crate) fn take(&mut self) -> Vec<SigInfo> {
        self.queue.drain(..).collect()
    }

    pub(crate) fn inherit(&self) -> Signals {
        Signals { dispositions: self.dispositions.clone(), early_kill: self.early_kill, queue: VecDeque::new() }
    }
}

impl Kernel {
    /// Sends a signal to `pid`. Without effect if the process is dead or unknown. Kernel:
    /// `kill(2)`, `send_sigio`.
    pub fn send_signal(self: &Arc<Self>, pid: Pid, info: SigInfo) -> Delivery {
        let Some(process) = self.processes.get(pid) else {
            return Delivery::Dropped;
        };
        let delivery = process.signals.lock().deliver(info);
        match delivery {
            Delivery::Dropped => {}
            Delivery::Queued => interrupt(&process),
            Delivery::Fatal => {
                if !process.is_dying() {
                    self.counters.processes_killed.add(1);
                }
                self.shut_down(&process);
            }
        }
        delivery
    }
}

/// Interrupts one thread to run the handler: the first that has no signal pending yet, so the main
/// thread if possible. Kernel: `complete_signal`.
fn interrupt(process: &Process) {
    let waiters = process.waiters.lock().clone();
    let free = waiters.iter().find(|waiter| !waiter.interrupted(SleepKind::Interruptible));
    if let Some(waiter) = free.or(waiters.first()) {
        waiter.interrupt(false);
    }
}
