//! Why a request failed, in detail.
//!
//! It owns the vendor's error codes. Invariant: a code's number never changes. Kernel counterpart:
//! `vendor_err` of `struct ib_wc` (include/rdma/ib_verbs.h).

use std::fmt;

/// Why a request failed, in detail: the vendor's own error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkFault {
    /// No error.
    None = 0,
    /// No region has this key, or none has it any more.
    UnknownKey = 1,
    /// The region was revoked, or is being deregistered or changed.
    Revoked = 2,
    /// The region belongs to another protection domain.
    OtherDomain = 3,
    /// The addresses are not all inside the region.
    Range = 4,
    /// The region does not allow this access.
    Access = 5,
    /// The memory could not be faulted in: truncated, unmapped, its process gone.
    NotPresent = 6,
    /// The device failed.
    Device = 7,
    /// An atomic or atomic write at an address that is not a multiple of 8.
    Misaligned = 8,
    /// The message is longer than the receive.
    Length = 9,
    /// The peer does not answer.
    Silent = 10,
    /// The peer has no receive posted.
    NoReceive = 11,
    /// Flushed because an earlier request failed.
    Behind = 12,
    /// The peer's receive names memory that it cannot use.
    ReceiveMemory = 13,
    /// The peer's completion queue has overflowed.
    ReceiveOverrun = 14,
    /// A type 2 window is already bound.
    WindowBound = 15,
    /// A window's new key is the same as its old key.
    WindowKey = 16,
    /// A type 1 window cannot be invalidated.
    WindowType = 17,
    /// The window was bound on another queue pair.
    OtherQp = 18,
}

impl fmt::Display for WorkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkFault::None => "none",
            WorkFault::UnknownKey => "no region has this key",
            WorkFault::Revoked => "the region was revoked",
            WorkFault::OtherDomain => "the region belongs to another protection domain",
            WorkFault::Range => "the addresses leave the region",
            WorkFault::Access => "the region does not allow this access",
            WorkFault::NotPresent => "the memory could not be faulted in",
            WorkFault::Device => "the device failed",
            WorkFault::Misaligned => "the address of an atomic is no multiple of 8",
            WorkFault::Length => "the message is longer than the receive",
            WorkFault::Silent => "the peer does not answer",
            WorkFault::NoReceive => "the peer has no receive posted",
            WorkFault::Behind => "flushed behind an earlier failure",
            WorkFault::ReceiveMemory => "the peer's receive points to memory it cannot use",
            WorkFault::ReceiveOverrun => "the peer's completion queue has overflowed",
            WorkFault::WindowBound => "the window is bound already",
            WorkFault::WindowKey => "the window's new key is its old one",
            WorkFault::WindowType => "a type 1 window cannot be invalidated",
            WorkFault::OtherQp => "the window was bound on another queue pair",
        })
    }
}
