//! TODO

use crate::base::errno::Errno;
use crate::design::{GateScope, PinGate};
use crate::vfs::kernel::Kernel;

/// Who wants a long-term pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongTermUser {
    /// An RDMA region. It can fault at access where the design says so.
    Rdma,
    /// Anybody else: an AF_XDP umem, io_uring fixed buffers, a guest of which nobody knows how to unmap it. They can't fault.
    Other,
    /// A guest from which its memory can be taken away. It can't fault either, but be unmapped before a page changes, once.
    Unmappable,
}

/// What the design's gate has for a long-term user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Pins.
    Pins,
    /// Pins, under a lease.
    PinsUnder {
        /// Whether it must be an exclusive one.
        exclusive: bool,
    },
    /// Faults.
    OnDemand,
    /// Nothing but to be told before a page changes.
    NotifyOnly,
}

/// What the gate has for `user`, whatever it holds and wants.
///
/// # Errors
/// EOPNOTSUPP: nothing.
pub(crate) fn admission(kernel: &Kernel, user: LongTermUser) -> Result<Admission, Errno> {
    let rdma = user == LongTermUser::Rdma;
    if kernel.axes.gate_scope == GateScope::RdmaOnly && !rdma {
        return Err(Errno::EOPNOTSUPP);
    }
    match kernel.axes.pin_gate {
        PinGate::Fault if rdma => Ok(Admission::OnDemand),
        PinGate::Fault if user == LongTermUser::Unmappable => Ok(Admission::NotifyOnly),
        PinGate::Refuse | PinGate::Fault => Err(Errno::EOPNOTSUPP),
        PinGate::Open => Ok(Admission::Pins),
        PinGate::Lease => Ok(Admission::PinsUnder { exclusive: false }),
        PinGate::Unbreakable => Ok(Admission::PinsUnder { exclusive: true }),
    }
}
