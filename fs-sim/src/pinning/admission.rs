//! The design's gate for long-term users.
//!
//! It owns the axes `pin_gate` and `gate_scope`: what a kind of user may get at all, before any
//! lease is looked up. Invariant: the answer depends on the design and the kind of user only.
//! Kernel counterpart: `check_vma_flags` (mm/gup.c) with `FOLL_LONGTERM`.

use crate::base::errno::Errno;
use crate::design::{GateScope, PinGate};
use crate::vfs::kernel::Kernel;

/// The kind of a long-term user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongTermUser {
    /// An RDMA region. It can fault at access where the design says so.
    Rdma,
    /// An AF_XDP umem. It can't fault.
    Umem,
    /// io_uring fixed buffers. They can't fault.
    FixedBuffers,
    /// Any other user, such as a guest that the kernel cannot unmap. It can't fault.
    Other,
    /// A guest whose memory can be unmapped. It can't fault either, but it can be unmapped once,
    /// before a page changes.
    Unmappable,
}

impl LongTermUser {
    /// Whether it gets pages that are no file's of a private mapping of one. Kernel:
    /// `pin_user_pages_fast` finds them in the page table; `pin_user_pages`, which a umem calls,
    /// looks at the mapping alone.
    pub(crate) fn finds_copies(self) -> bool {
        self != LongTermUser::Umem
    }

    /// What the user's call returns for `errno` of a page behind others that could be pinned: the
    /// pin then gives their number, and the user makes an error of its own of that. Kernel:
    /// `xdp_umem_pin_pages`, `io_pin_pages`; `ib_umem_get` goes on to the error.
    pub(crate) fn behind_pinned_pages(self, errno: Errno) -> Errno {
        match self {
            LongTermUser::Umem => Errno::ENOMEM,
            LongTermUser::FixedBuffers => Errno::EFAULT,
            LongTermUser::Rdma | LongTermUser::Other | LongTermUser::Unmappable => errno,
        }
    }
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
        /// Whether a descriptor of the open file that has it suffices.
        by_reference: bool,
    },
    /// Access by faults.
    OnDemand,
    /// No pins: it is told before a page changes.
    NotifyOnly,
}

/// What the gate has for `user`.
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
        PinGate::Lease => Ok(Admission::PinsUnder { exclusive: false, by_reference: false }),
        PinGate::Reference => Ok(Admission::PinsUnder { exclusive: false, by_reference: true }),
        PinGate::Unbreakable => Ok(Admission::PinsUnder { exclusive: true, by_reference: false }),
    }
}
