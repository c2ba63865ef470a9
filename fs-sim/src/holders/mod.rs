//! Who holds a file's pages, and how it is asked to release them.
//!
//! It owns the records: committed holders of long-term pins, holders that are only notified,
//! direct I/O in flight, layouts of block-layout clients, freed blocks that guests may still reach.
//! Upper crates implement [`holder::PinHolder`]. Invariant: a holder is listed from before its
//! registration returns until after its last page is unpinned, so a refusal of a layout change can
//! always name a holder. Kernel counterpart: none today, which is part of the discussion; `struct
//! file_file_pin` of the 2019 RFC.

pub mod block_layout;
pub(crate) mod ghosts;
pub mod holder;
pub mod in_flight_io;
pub mod lease_gate;
pub(crate) mod list;
pub(crate) mod short_pins;
pub mod stale_watch;
