//! Queue pairs: connected, named at their other end, moved between their states, destroyed.
//!
//! It owns the translation of states. A connection is made by one of the two processes, as far as
//! the scenario can see; the end of the other one gets a name by `accept`.

use emulator::sync::Arc;
use fs_sim::{Errno, Task};
use rdma_sim::{Qp, QpConfig, QpState, RnrRetry};

use super::bindings::{OpenContext, QpEnd, Thing};
use super::calls::{Call, CallFailure, Reply};
use super::rdma::{DEPTH, check};
use crate::ops::{Op, QpStateName};

/// Performs a call about queue pairs.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::Connect { own, peer, flags } => {
            let end = connect(call, task, own, peer)?;
            if flags.rnr_wait {
                end.qp.set_rnr_retry(RnrRetry::Forever);
            }
            Reply::made(Thing::Qp(end))
        }
        Op::Accept { qp } => {
            let QpEnd { own, qp, peer, peer_qp } = call.qp(qp)?.clone();
            check(&peer, task)?;
            Reply::made(Thing::Qp(QpEnd { own: peer, qp: peer_qp, peer: own, peer_qp: qp }))
        }
        Op::ModifyQp { qp, state } => {
            let end = call.qp(qp)?;
            check(&end.own, task)?;
            modify(&end.qp, *state)?;
            Ok(Reply::default())
        }
        Op::DestroyQp { qp } => {
            let end = call.qp(qp)?;
            end.own.context.destroy_qp(task, &end.qp)?;
            Ok(Reply::default())
        }
        _ => Err(call.unknown()),
    }
}

/// `ibv_modify_qp`: a transition that the table does not have is EINVAL.
fn modify(qp: &Qp, to: QpStateName) -> Result<(), Errno> {
    let moved = match to {
        QpStateName::ReadyToSend => qp.start(),
        QpStateName::SendQueueDrained => qp.drain_sends(),
        QpStateName::Reset => qp.reset(),
        QpStateName::Error if qp.state() == QpState::Destroyed => return Err(Errno::EINVAL),
        QpStateName::Error => {
            qp.fail();
            return Ok(());
        }
    };
    moved.map_err(|_| Errno::EINVAL)
}

fn connect(call: &Call, task: &Task, own: &str, peer: &str) -> Result<QpEnd, CallFailure> {
    let (own, peer) = (call.context(own)?, call.context(peer)?);
    let end = |on: &OpenContext, task: &Task| {
        let config =
            QpConfig { send_cq: Arc::clone(&on.cq), recv_cq: Arc::clone(&on.cq), max_send: DEPTH, max_recv: DEPTH };
        on.context.create_qp(task, &on.pd, config)
    };
    let qp = end(own, task)?;
    let other = match &call.peer {
        // A thread for the moment: the process's own may be in a call.
        Some(peer_task) => end(peer, &peer_task.thread())?,
        None => return Err(CallFailure::Errno(Errno::EINVAL)),
    };
    Qp::connect(&qp, &other).map_err(|_| Errno::EINVAL)?;
    Ok(QpEnd { own: own.clone(), qp, peer: peer.clone(), peer_qp: other })
}
