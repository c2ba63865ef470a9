//! The states of a queue pair, as one table.
//!
//! It owns the transition table. Invariant: a queue pair changes its state only by a row of the
//! table. The page docs/states/queue-pair.md is generated from it. Kernel counterpart:
//! `qp_state_table` (drivers/infiniband/core/verbs.c); InfiniBand Architecture, volume 1, 10.3.1.

use std::fmt;

emulator::state_table! {
    /// The state of a reliable connected queue pair.
    #[derive(PartialOrd, Ord, Hash)]
    #[repr(u32)]
    pub enum QpState {
        /// The queue pair accepts no work.
        Reset,
        /// The queue pair accepts receives and does nothing yet.
        Init,
        /// Ready to receive: the queue pair answers its peer.
        ReadyToReceive,
        /// Ready to send: the queue pair also executes sends.
        ReadyToSend,
        /// Send queue drained: as ready to send, but posted sends wait in the queue.
        SendQueueDrained,
        /// Something failed: queued and new work is flushed, and the peer gets no answer.
        Error,
        /// The queue pair is destroyed.
        Destroyed,
    }
    /// What changes the state of a queue pair.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum QpEvent {
        /// `ibv_modify_qp` to INIT.
        Initialise,
        /// `ibv_modify_qp` to RTR: the peer is known.
        Attach,
        /// `ibv_modify_qp` to RTS.
        Start,
        /// `ibv_modify_qp` to SQD.
        Drain,
        /// To ERR, by the program, by a failure, or by the end of the context.
        Fail,
        /// `ibv_modify_qp` to RESET.
        Reset,
        /// `ibv_destroy_qp`.
        Destroy,
    }
    start Reset;
    Reset | Init + Initialise => Init;
    Init + Attach => ReadyToReceive;
    ReadyToReceive | ReadyToSend | SendQueueDrained + Start => ReadyToSend;
    ReadyToSend | SendQueueDrained + Drain => SendQueueDrained;
    Reset | Init | ReadyToReceive | ReadyToSend | SendQueueDrained | Error + Fail => Error;
    Reset | Init | ReadyToReceive | ReadyToSend | SendQueueDrained | Error + Reset => Reset;
    Reset | Init | ReadyToReceive | ReadyToSend | SendQueueDrained | Error + Destroy => Destroyed;
}

/// A transition that the table does not have. The state stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue pair {qp_num:#x} is in {found} and cannot be moved by {event:?}")]
pub struct QpTransitionError {
    /// The number of the queue pair.
    pub qp_num: u32,
    /// The state it is in.
    pub found: QpState,
    /// The requested event.
    pub event: QpEvent,
}

impl QpState {
    /// Whether the queue pair answers requests of its peer.
    pub fn answers(self) -> bool {
        matches!(self, QpState::ReadyToReceive | QpState::ReadyToSend | QpState::SendQueueDrained)
    }

    /// Whether the queue pair accepts sends. In ERR they are completed as flushed.
    pub fn accepts_sends(self) -> bool {
        matches!(self, QpState::ReadyToSend | QpState::SendQueueDrained | QpState::Error)
    }

    pub(crate) fn from_word(word: u32) -> QpState {
        QpState::ALL.get(word as usize).copied().unwrap_or(QpState::Destroyed)
    }
}

impl fmt::Display for QpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            QpState::Reset => "RESET",
            QpState::Init => "INIT",
            QpState::ReadyToReceive => "RTR",
            QpState::ReadyToSend => "RTS",
            QpState::SendQueueDrained => "SQD",
            QpState::Error => "ERR",
            QpState::Destroyed => "destroyed",
        })
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    /// One line a state: where each event leads, in the order of [`QpEvent`].
    fn table() -> String {
        let cell = |to: Option<QpState>| to.map_or("-".into(), |to| to.to_string());
        let line = |from: QpState| {
            format!(
                "{from}: {}\n",
                QpState::EVENTS.iter().map(|event| cell(from.next(*event).ok())).collect::<Vec<_>>().join(" ")
            )
        };
        QpState::ALL.iter().copied().map(line).collect()
    }

    #[test]
    fn the_table() {
        let expected = "\
RESET: INIT - - - ERR RESET destroyed
INIT: INIT RTR - - ERR RESET destroyed
RTR: - - RTS - ERR RESET destroyed
RTS: - - RTS SQD ERR RESET destroyed
SQD: - - RTS SQD ERR RESET destroyed
ERR: - - - - ERR RESET destroyed
destroyed: - - - - - - -
";
        assert_eq!(table(), expected);
    }

    #[test]
    fn words_and_states_are_the_same() {
        for state in QpState::ALL {
            assert_eq!(QpState::from_word(*state as u32), *state);
        }
    }
}
