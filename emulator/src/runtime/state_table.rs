//! State machines as tables: states, events and transitions in one place.
//!
//! It owns the macro [`state_table!`](crate::state_table!), which makes from one table the enums of
//! states and events, the one function that changes a state, and a Mermaid diagram of the machine.
//! Invariant: a state changes only by a row of its table; everything else is an
//! [`InvalidTransition`] that names machine, state and event. Kernel counterpart: the tables of
//! `ib_modify_qp_is_ok` (drivers/infiniband/core/verbs.c).

/// An event that the machine's state has no row for. The state stays as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{machine}: no transition from {state} on {event}")]
pub struct InvalidTransition {
    /// The type of the machine's states.
    pub machine: &'static str,
    /// The state that it is in.
    pub state: &'static str,
    /// The event that came.
    pub event: &'static str,
}

/// A Mermaid `stateDiagram-v2` of `rows` (state, event, next state), which begins in `start`.
/// States without a row of their own are final.
pub fn mermaid(start: &str, rows: &[(&str, &str, &str)]) -> String {
    let mut lines = vec!["stateDiagram-v2".to_owned(), format!("    [*] --> {start}")];
    lines.extend(rows.iter().map(|(from, event, to)| format!("    {from} --> {to}: {event}")));
    let mut ends: Vec<&str> = Vec::new();
    for (_, _, to) in rows {
        if !ends.contains(to) && !rows.iter().any(|(from, _, _)| from == to) {
            ends.push(to);
        }
    }
    lines.extend(ends.iter().map(|end| format!("    {end} --> [*]")));
    lines.join("\n") + "\n"
}

/// Declares a state machine: its states, its events, the state it starts in, and its rows.
///
/// A row `A | B + event => C` says: in state `A` or `B`, `event` leads to state `C`. Two rows for
/// one state and event do not compile (the second would be unreachable).
///
/// ```
/// emulator::state_table! {
///     /// Where a lease stands.
///     pub enum DoorState {
///         /// Nothing passes.
///         Closed,
///         /// Anything passes.
///         Open,
///         /// It is gone.
///         Removed,
///     }
///     /// What happens to it.
///     pub enum DoorEvent {
///         /// It is opened.
///         Open,
///         /// It is closed.
///         Close,
///         /// It is taken away.
///         Remove,
///     }
///     start Closed;
///     Closed + Open => Open;
///     Open + Close => Closed;
///     Closed | Open + Remove => Removed;
/// }
/// assert_eq!(DoorState::START.next(DoorEvent::Open), Ok(DoorState::Open));
/// let error = DoorState::Removed.next(DoorEvent::Open).unwrap_err();
/// assert_eq!(error.to_string(), "DoorState: no transition from Removed on Open");
/// assert!(DoorState::mermaid().contains("Open --> Closed: Close"));
/// ```
#[macro_export]
macro_rules! state_table {
    (
        $(#[$state_meta:meta])*
        $state_vis:vis enum $State:ident { $($(#[$variant_meta:meta])* $variant:ident),+ $(,)? }
        $(#[$event_meta:meta])*
        $event_vis:vis enum $Event:ident { $($(#[$happens_meta:meta])* $happens:ident),+ $(,)? }
        start $start:ident;
        $($($from:ident)|+ + $event:ident => $to:ident;)+
    ) => {
        $(#[$state_meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $state_vis enum $State { $($(#[$variant_meta])* $variant),+ }

        $(#[$event_meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $event_vis enum $Event { $($(#[$happens_meta])* $happens),+ }

        #[allow(dead_code, reason = "a machine need not use all that its table offers")]
        impl $State {
            /// The state in which the machine begins.
            $state_vis const START: $State = $State::$start;

            /// Every state.
            $state_vis const ALL: &'static [$State] = &[$($State::$variant),+];

            /// Every event.
            $state_vis const EVENTS: &'static [$Event] = &[$($Event::$happens),+];

            /// The state after `event`: the only way from one state to another.
            ///
            /// # Errors
            /// The table has no row for this state and this event.
            #[deny(unreachable_patterns)]
            $state_vis fn next(self, event: $Event) -> Result<$State, $crate::runtime::state_table::InvalidTransition> {
                match (self, event) {
                    $($(($State::$from, $Event::$event))|+ => Ok($State::$to),)+
                    #[allow(unreachable_patterns, reason = "a table may have a row for every pair")]
                    _ => Err($crate::runtime::state_table::InvalidTransition {
                        machine: stringify!($State),
                        state: self.name(),
                        event: match event { $($Event::$happens => stringify!($happens)),+ },
                    }),
                }
            }

            /// Its name, as in the table.
            $state_vis fn name(self) -> &'static str {
                match self { $($State::$variant => stringify!($variant)),+ }
            }

            /// The machine as a Mermaid diagram.
            $state_vis fn mermaid() -> String {
                $crate::runtime::state_table::mermaid(
                    stringify!($start),
                    &[$($((stringify!($from), stringify!($event), stringify!($to)),)+)+],
                )
            }
        }
    };
}
