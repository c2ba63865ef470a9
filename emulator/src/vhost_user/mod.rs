//! vhost-user virtio-pmem: a device, or pieces of it, as a virtual machine's persistent memory.
//!
//! It owns the state of one guest: the connection of its frontend, the pieces mapped for it, and
//! its request queue. What lies behind (a whole image, a file with leases and pins) is a
//! [`Medium`]. Invariants: no message and no content of guest memory makes it panic, block for ever
//! or grow without bound. A FLUSH is answered with success only after the medium has reported
//! everything durable. Counterparts: QEMU's `hw/virtio/vhost-user-test-device.c` and
//! `hw/virtio/virtio-pmem.c`, Linux drivers/nvdimm/virtio_pmem.c; VirtIO 1.3 section 5.19 (PMEM
//! device) and 2.10 (shared memory regions).

pub mod attach;
mod channel;
mod connection;
mod daemon;
mod device;
#[doc(hidden)]
pub mod fuzz;
mod mapping;
mod peer;
pub mod pmem;
mod queue;
mod relay;
mod rules;
mod server;
mod stats;
mod table;
mod trace;
mod vring;
mod wake;
mod wire;

pub use connection::MessageLimits;
pub use mapping::Unmapped;
pub use peer::Peer;
pub use relay::{VIOLATIONS_MAX, ViolationReport};
pub use server::{RefusalReport, VhostOptions, VhostServer};
pub use stats::VhostStats;
pub use trace::MessageTrace;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// A piece of a guest's device, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemPiece {
    /// Where it lies in the guest's device. Pieces of one device lie back to back from 0.
    pub guest_offset: u64,
    /// Where it lies in the file behind the medium; a multiple of 4 KiB.
    pub device_offset: u64,
    /// Its length, a multiple of 4 KiB.
    pub len: u64,
}

/// The most pieces that a device is made of: QEMU 11.1 maps 128 in 0.2 s and aborts at 512.
pub const PIECES_MAX: usize = 128;

/// The most regions in a machine's memory table: its RAM (one region, or two above 3 GiB) and the
/// pieces of all its vhost-user devices together. A device that QEMU 11.1 starts while RAM and the
/// other devices have more than that does not start, and its guest's fsync hangs until a reset.
pub const MACHINE_REGIONS_MAX: usize = 8;

/// After how long a device that was not started is one that its frontend could not start: QEMU
/// tells of its memory right after it begins.
pub const NOT_STARTED: Duration = Duration::from_secs(1);

/// Why a flush failed; the guest only sees that it did (`ret` = 1, EIO of its fsync).
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The guest's pieces were revoked.
    #[error("revoked")]
    Revoked,
    /// The guest has no piece of the device mapped, so its stores did not reach the device.
    #[error("the device is not mapped in the guest")]
    Unmapped,
    /// The driver may have stored something before its device was mapped. Flushes fail until the
    /// guest binds the driver anew, or reboots.
    #[error("the device was mapped after its driver had started")]
    Late,
    /// The operator made flushes fail.
    #[error("flushes are told to fail")]
    Told,
    /// The machine that the memory belongs to is gone, or without power.
    #[error("the memory's machine is gone")]
    Gone,
    /// What is behind could not be written back.
    #[error("writing back: {0}")]
    Io(#[from] std::io::Error),
}

/// What lies behind a guest's device.
pub trait Medium: Send + Sync + 'static {
    /// The file that pieces are offsets in. Guests get it read-only if the descriptor is.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Called when a frontend has connected, before its first message. Reserves what the guest's
    /// memory needs while it is attached, and returns the size of the guest's device in bytes: a
    /// multiple of 2 MiB, the same until [`Medium::gone`]. `process` tells of the end of the
    /// frontend's process (pidfd_open(2)).
    ///
    /// # Errors
    /// The reason, as text for the operator. The connection is then closed.
    fn connect(&self, peer: Peer, process: Option<OwnedFd>) -> Result<u64, String>;

    /// Called when a driver takes the device, also after a reset. Returns the pieces to map, at
    /// most [`PIECES_MAX`], none if it has been revoked. Called from a thread on which it may wait.
    fn attach(&self) -> Vec<PmemPiece>;

    /// Makes durable whatever the guest stored before the call. Called once for all requests that
    /// were waiting.
    ///
    /// # Errors
    /// [`FlushError`]: nothing is known to be durable.
    fn flush(&self) -> Result<(), FlushError>;

    /// The frontend's first message came. Called once for each [`Medium::connect`] at most, from a
    /// thread on which it must not wait.
    fn speaks(&self) {}

    /// The frontend refused to map a piece that it does not have, with this answer of its own: QEMU
    /// says 1. Nothing is mapped then. Called once for each attach at most.
    fn mapping_refused(&self, _answer: i64) {}

    /// The frontend began to start the device [`NOT_STARTED`] ago and has told of no memory since.
    /// Called once for each such start, from a thread on which it must not wait.
    fn not_started(&self) {}

    /// The frontend hung up. Called once for each [`Medium::connect`] that succeeded.
    fn gone(&self);
}
