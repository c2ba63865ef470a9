//! The network of a race: the peer that acknowledges zero-copy sends, and the clock of disks with a
//! delay.
//!
//! It owns the sends that no peer has acknowledged yet. Invariant: a send waits for no process: the
//! supervisor acknowledges it when it is due, or once the race has stopped. So a layout change that
//! waits for a send always goes on, also when the sender sleeps or is gone. Kernel counterpart: the
//! remote end of a TCP connection; the interrupt of a disk.

use emulator::runtime::clock::Nanos;
use emulator::sync::{Arc, Mutex};
use fs_sim::Kernel;
use fs_sim::syscalls::zero_copy::SentPages;

use super::oracle::{PayloadFile, Payloads};
use super::stats::ActorStats;

/// A send that no peer has acknowledged.
pub(super) struct UnacknowledgedSend {
    pub(super) sent: SentPages,
    /// When the peer acknowledges it.
    pub(super) due: Nanos,
    /// What was sent: bytes from this offset of this file.
    pub(super) file: PayloadFile,
    pub(super) offset: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Network(Mutex<Vec<UnacknowledgedSend>>);

impl Network {
    pub(super) fn send(&self, send: UnacknowledgedSend) {
        self.0.lock().push(send);
    }

    /// When the next send or I/O is due.
    pub(super) fn next_due(&self, kernel: &Kernel) -> Option<Nanos> {
        let send = self.0.lock().iter().map(|send| send.due).min();
        send.into_iter().chain(kernel.next_io_due()).min()
    }

    /// Ends what is due by `now`: acknowledges sends, completes I/O of disks. The bytes of a send
    /// are checked as a last transmission carries them.
    pub(super) fn deliver(&self, kernel: &Arc<Kernel>, payloads: &Payloads, now: Nanos, stats: &mut ActorStats) {
        kernel.complete_due_io();
        self.acknowledge(kernel, payloads, now, stats);
    }

    /// Acknowledges every send that is due by `now`.
    pub(super) fn acknowledge(&self, kernel: &Arc<Kernel>, payloads: &Payloads, now: Nanos, stats: &mut ActorStats) {
        let due: Vec<UnacknowledgedSend> = self.0.lock().extract_if(.., |send| send.due <= now).collect();
        for UnacknowledgedSend { sent, file, offset, .. } in due {
            if let Ok(bytes) = stats.call(sent.acknowledge(kernel)) {
                stats.checked("a zero-copy send", payloads.check(&bytes, file, offset));
            }
        }
    }
}
