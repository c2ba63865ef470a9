//! The states of a queue pair, as a table.
//!
//! It owns nothing but the table. Invariant: what isn't in it does not happen. Kernel counterpart: `qp_state_table`
//! (drivers/infiniband/core/verbs.c); InfiniBand Architecture, volume 1, 10.3.1.

use std::fmt;

/// The state of a reliable connected queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum QpState {
    /// Fresh: takes no work.
    Reset,
    /// Takes receives, does nothing yet.
    Init,
    /// Ready to receive: answers its peer.
    ReadyToReceive,
    /// Ready to send: does everything.
    ReadyToSend,
    /// Something failed: queued and new work is flushed, the peer hears nothing.
    Error,
    /// Gone.
    Destroyed,
}

/// What moves a queue pair from state to state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// `ibv_modify_qp` to INIT.
    Initialise,
    /// To RTR: the peer is known.
    Attach,
    /// To RTS.
    Start,
    /// To ERR, by the program, a failure, or the context's end.
    Fail,
    /// To RESET.
    Reset,
    /// `ibv_destroy_qp`.
    Destroy,
}

/// A transition that the table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue pair {qp_num:#x} is in {found} and can't be moved by {event:?}")]
pub struct TransitionError {
    /// The queue pair.
    pub qp_num: u32,
    /// Its state.
    pub found: QpState,
    /// What was asked.
    pub event: Event,
}

impl QpState {
    /// All of them.
    pub const ALL: [QpState; 6] = [
        QpState::Reset,
        QpState::Init,
        QpState::ReadyToReceive,
        QpState::ReadyToSend,
        QpState::Error,
        QpState::Destroyed,
    ];

    /// The state after `event`; none if the table has no such transition.
    pub fn after(self, event: Event) -> Option<QpState> {
        use QpState::{Destroyed, Error, Init, ReadyToReceive, ReadyToSend, Reset};
        match (self, event) {
            (Destroyed, _) => None,
            (_, Event::Destroy) => Some(Destroyed),
            (_, Event::Fail) => Some(Error),
            (_, Event::Reset) => Some(Reset),
            (Reset | Init, Event::Initialise) => Some(Init),
            (Init, Event::Attach) => Some(ReadyToReceive),
            (ReadyToReceive | ReadyToSend, Event::Start) => Some(ReadyToSend),
            (_, Event::Initialise | Event::Attach | Event::Start) => None,
        }
    }

    /// Whether requests of the peer are answered.
    pub fn answers(self) -> bool {
        matches!(self, QpState::ReadyToReceive | QpState::ReadyToSend)
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
            QpState::Error => "ERR",
            QpState::Destroyed => "destroyed",
        })
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;

    /// One line a state: where each event leads, in the order of [`Event`].
    fn table() -> String {
        let events = [Event::Initialise, Event::Attach, Event::Start, Event::Fail, Event::Reset, Event::Destroy];
        let cell = |to: Option<QpState>| to.map_or("-".into(), |to| to.to_string());
        let line = |from: QpState| format!("{from}: {}\n", events.map(|event| cell(from.after(event))).join(" "));
        QpState::ALL.into_iter().map(line).collect()
    }

    #[test]
    fn the_table() {
        let expected = "\
RESET: INIT - - ERR RESET destroyed
INIT: INIT RTR - ERR RESET destroyed
RTR: - - RTS ERR RESET destroyed
RTS: - - RTS ERR RESET destroyed
ERR: - - - ERR RESET destroyed
destroyed: - - - - - -
";
        assert_eq!(table(), expected);
    }

    #[test]
    fn words_and_states_are_the_same() {
        for state in QpState::ALL {
            assert_eq!(QpState::from_word(state as u32), state);
        }
    }
}
