//! Memory regions: registered, changed, deregistered, faulted in ahead.
//!
//! It owns the translation of flags into rights.

use fs_sim::{Errno, Task};
use rdma_sim::{AccessFlags, Rereg, Sge};

use super::bindings::Thing;
use super::calls::{Call, CallFailure, Reply};
use crate::ops::{Op, RegisterFlags};

/// Performs a call about regions.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::RegMr { context, map, range, flags } => {
            let (on, (va, _)) = (call.context(context)?, call.map(map)?);
            let va = va.checked_add(range.offset).ok_or(Errno::EINVAL)?;
            let mr = on.context.reg_mr(task, &on.pd, va, range.len, access(*flags))?;
            Reply::made(Thing::Region(mr))
        }
        Op::DeregMr { mr } => {
            let mr = call.region(mr)?;
            mr.context().dereg_mr(task, mr)?;
            Ok(Reply::default())
        }
        Op::ReregMr { mr, map, range } => {
            let (va, _) = call.map(map)?;
            let va = va.checked_add(range.offset).ok_or(Errno::EINVAL)?;
            change(call, task, mr, Rereg { translation: Some((va, range.len)), ..Rereg::default() })
        }
        Op::ReregAccess { mr, flags } => {
            change(call, task, mr, Rereg { access: Some(access(*flags)), ..Rereg::default() })
        }
        Op::Prefetch { context, mr, range, flags } => {
            let (on, mr) = (call.context(context)?, call.region(mr)?);
            // The length in a request has 32 bits.
            let len = u32::try_from(range.len).map_err(|_| Errno::EINVAL)?;
            let addr = mr.va().checked_add(range.offset).ok_or(Errno::EFAULT)?;
            on.context.prefetch(task, &on.pd, Sge { lkey: mr.lkey(), addr, len }, flags.write)?;
            Ok(Reply::default())
        }
        _ => Err(call.unknown()),
    }
}

fn change(call: &Call, task: &Task, mr: &str, change: Rereg<'_>) -> Result<Reply, CallFailure> {
    let mr = call.region(mr)?;
    Reply::made(Thing::Region(mr.context().rereg_mr(task, mr, change)?))
}

fn access(wanted: RegisterFlags) -> AccessFlags {
    let flags = match wanted.ro {
        true => AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ },
        false => AccessFlags::ALL,
    };
    let flags = if wanted.on_demand { flags.on_demand() } else { flags };
    let flags = if wanted.window { flags.mw_bind() } else { flags };
    if wanted.flush { flags.flush_global().flush_persistent() } else { flags }
}
