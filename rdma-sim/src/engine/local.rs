//! What a request does on its own side: binding and invalidating memory windows.
//!
//! It owns the checks of a binding. Invariant: a window is bound inside its region, within the region's domain, and to
//! nothing that the region's own rights forbid. Kernel counterpart: `rxe_check_bind_mw`, `rxe_bind_mw`, `rxe_invalidate_mw`
//! (drivers/infiniband/sw/rxe/rxe_mw.c); the C10 and o10 compliance statements named there.

use emulator::sync::Arc;

use crate::transport::Failure;
use crate::verbs::mr::Mr;
use crate::verbs::mw::Bind;
use crate::verbs::qp::Qp;
use crate::verbs::work::{Fault, Status};

/// Binds a window, or unbinds one of type 1.
pub(crate) fn bind(qp: &Qp, bind: &Bind) -> Result<(), Failure> {
    try_bind(qp, bind).map_err(|fault| Failure { status: Status::MemoryWindowBindError, fault })
}

fn try_bind(qp: &Qp, bind: &Bind) -> Result<(), Fault> {
    let window = qp.context().nic().windows.find(bind.rkey).ok_or(Fault::UnknownKey)?;
    if window.pd() != qp.pd() {
        return Err(Fault::OtherDomain);
    }
    let region = if bind.len == 0 { None } else { Some(bindable(qp, bind)?) };
    window.bind(qp, bind, region)
}

/// The region of a binding, if the binding fits it.
fn bindable(qp: &Qp, bind: &Bind) -> Result<Arc<Mr>, Fault> {
    let entry = qp.context().nic().regions.enter(bind.lkey)?;
    let mr = &entry.mr;
    if mr.pd() != qp.pd() {
        return Err(Fault::OtherDomain);
    }
    let writes = bind.access.remote_write || bind.access.remote_atomic;
    if !mr.access().mw_bind || (writes && !mr.access().local_write) {
        return Err(Fault::Access);
    }
    let offset = bind.addr.checked_sub(mr.va()).ok_or(Fault::Range)?;
    if offset.checked_add(bind.len).is_none_or(|end| end > mr.len()) {
        return Err(Fault::Range);
    }
    Ok(Arc::clone(mr))
}

/// Unbinds a type 2 window by a request of its own side.
pub(crate) fn invalidate(qp: &Qp, rkey: u32) -> Result<(), Failure> {
    invalidate_window(qp, rkey).map_err(|fault| Failure { status: Status::LocalOperationError, fault })
}

/// Unbinds the type 2 window of a key, bound on `qp`. Regions can't be invalidated: these are no fast-registration ones.
pub(crate) fn invalidate_window(qp: &Qp, rkey: u32) -> Result<(), Fault> {
    qp.context().nic().windows.find(rkey).ok_or(Fault::UnknownKey)?.invalidate(rkey, qp)
}
