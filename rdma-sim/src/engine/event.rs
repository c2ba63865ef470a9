//! Asynchronous events.
//!
//! It owns plain values. Kernel counterpart: `enum ib_event_type`, `struct ib_event`.

/// An event of a context that belongs to no request. `enum ib_event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The context was aborted: its queue pairs are in error, its regions are revoked.
    Fatal,
    /// This region was revoked: its keys are invalid. The rest of the context works.
    RegionRevoked {
        /// The region's key.
        rkey: u32,
    },
    /// A completion did not fit into this queue.
    CqError {
        /// The queue's number.
        cq: u32,
    },
    /// This queue pair refused the key, range or access of its peer and went to error.
    QpAccess {
        /// The queue pair's number.
        qp_num: u32,
    },
    /// This queue pair refused a malformed request of its peer and went to error.
    QpRequest {
        /// The queue pair's number.
        qp_num: u32,
    },
    /// This queue pair failed on its own side while it answered its peer, and went to error.
    QpFatal {
        /// The queue pair's number.
        qp_num: u32,
    },
}
