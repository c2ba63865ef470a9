//! Operations that stay on the requester's side: binding and invalidating memory windows.
//!
//! It owns the checks of a binding. Invariant: a window is bound inside its region, within the
//! region's domain, and to no right that the region itself does not have. Kernel counterpart:
//! `rxe_check_bind_mw`, `rxe_bind_mw`, `rxe_invalidate_mw` (drivers/infiniband/sw/rxe/rxe_mw.c),
//! with the C10 and o10 compliance statements named there.

use emulator::sync::Arc;

use super::qp::Qp;
use crate::memory::fault::WorkFault;
use crate::memory::mr::Mr;
use crate::memory::mw::WindowBind;
use crate::transport::WorkFailure;
use crate::transport::operation::WorkStatus;

/// Binds a window, or unbinds one of type 1.
pub(crate) fn bind(qp: &Qp, bind: &WindowBind) -> Result<(), WorkFailure> {
    try_bind(qp, bind).map_err(|fault| WorkFailure { status: WorkStatus::MemoryWindowBindError, fault })
}

fn try_bind(qp: &Qp, bind: &WindowBind) -> Result<(), WorkFault> {
    let window = qp.nic().windows.find(bind.rkey).ok_or(WorkFault::UnknownKey)?;
    if window.pd() != qp.pd() {
        return Err(WorkFault::OtherDomain);
    }
    let region = if bind.len == 0 { None } else { Some(bindable(qp, bind)?) };
    window.bind(qp.identity(), bind, region)
}

/// The region of a binding, if the region permits the binding.
fn bindable(qp: &Qp, bind: &WindowBind) -> Result<Arc<Mr>, WorkFault> {
    let entry = qp.nic().regions.enter(bind.lkey)?;
    let mr = &entry.mr;
    if mr.pd() != qp.pd() {
        return Err(WorkFault::OtherDomain);
    }
    let writes = bind.access.remote_write || bind.access.remote_atomic;
    if !mr.access().mw_bind || (writes && !mr.access().local_write) {
        return Err(WorkFault::Access);
    }
    let offset = bind.addr.checked_sub(mr.va()).ok_or(WorkFault::Range)?;
    if offset.checked_add(bind.len).is_none_or(|end| end > mr.len()) {
        return Err(WorkFault::Range);
    }
    Ok(Arc::clone(mr))
}

/// Unbinds a type 2 window, on a request of its own side.
pub(crate) fn invalidate(qp: &Qp, rkey: u32) -> Result<(), WorkFailure> {
    invalidate_window(qp, rkey).map_err(|fault| WorkFailure { status: WorkStatus::LocalOperationError, fault })
}

/// Unbinds the type 2 window of a key, if `qp` bound it. Regions cannot be invalidated: fast
/// registration does not exist here.
pub(crate) fn invalidate_window(qp: &Qp, rkey: u32) -> Result<(), WorkFault> {
    qp.nic().windows.find(rkey).ok_or(WorkFault::UnknownKey)?.invalidate(rkey, qp.identity())
}
