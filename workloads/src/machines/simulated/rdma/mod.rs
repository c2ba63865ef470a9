//! Calls about the NIC.
//!
//! It owns the small programs that a scenario's one-line operations stand for: the buffer, its
//! registration, the posting and the polling around an `rdma_write`.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::{Errno, Task};
use rdma_sim::{
    AccessFlags, AsyncEvent, Context, FlushLevel, FlushPlacement, Mr, MwType, Qp, QpConfig, Rereg, Sge, WindowAccess,
    WindowBind, WorkOperation as RdmaOp, WorkRequest, WorkStatus,
};

use super::bindings::{OpenContext, QpEnd, Thing, Window, snake};
use super::calls::{Call, CallFailure, Reply};
use crate::ops::{ByteRange, FlushScope, Op, QpName, RegisterFlags, RemoteName, describe_bytes};

/// How many completions a scenario's queues hold.
const DEPTH: u32 = 64;

/// Performs a call of this family.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::RdmaOpen {} => {
            let (fd, context) = Context::open(task)?;
            let pd = context.alloc_pd(task)?;
            let cq = context.create_cq(task, DEPTH)?;
            Reply::made(Thing::Context(OpenContext { fd, context, pd, cq }))
        }
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
            let (mr, (va, _)) = (call.region(mr)?, call.map(map)?);
            let va = va.checked_add(range.offset).ok_or(Errno::EINVAL)?;
            let change = Rereg { translation: Some((va, range.len)), ..Rereg::default() };
            Reply::made(Thing::Region(mr.context().rereg_mr(task, mr, change)?))
        }
        Op::AllocMw { context } => {
            let on = call.context(context)?;
            let mw = on.context.alloc_mw(task, &on.pd, MwType::Type1)?;
            Reply::made(Thing::Window(Window { mw, context: Arc::clone(&on.context), base: Arc::default() }))
        }
        Op::BindMw { qp, window, mr, range } => bind(call.qp(qp)?, call.window(window)?, call.region(mr)?, *range),
        Op::DeallocMw { window } => {
            let window = call.window(window)?;
            window.context.dealloc_mw(task, &window.mw)?;
            Ok(Reply::default())
        }
        Op::Connect { own, peer } => connect(call, task, own, peer),
        Op::RdmaWrite { qp, remote, range, byte, flags } => {
            let local = Local { byte: Some(*byte), bad_key: flags.bad_key };
            transfer(call, task, (qp, remote), RdmaOp::Write, **range, local)
        }
        Op::RdmaRead { qp, remote, range, flags } => {
            let local = Local { byte: None, bad_key: flags.bad_key };
            transfer(call, task, (qp, remote), RdmaOp::Read, **range, local)
        }
        Op::FetchAdd { qp, remote, offset, add } => {
            let range = ByteRange { offset: offset.0, len: 8 };
            transfer(call, task, (qp, remote), RdmaOp::FetchAdd { add: *add }, range, Local::default())
        }
        Op::AtomicWrite { qp, remote, offset, value } => {
            let range = ByteRange { offset: offset.0, len: 0 };
            transfer(call, task, (qp, remote), RdmaOp::AtomicWrite { value: *value }, range, Local::default())
        }
        Op::Flush { qp, remote, range, placement } => {
            let placement = match placement {
                FlushScope::Global => FlushPlacement::Global,
                FlushScope::Persistent => FlushPlacement::Persistent,
            };
            let flush = RdmaOp::Flush { placement, level: FlushLevel::Range };
            transfer(call, task, (qp, remote), flush, *range, Local::default())
        }
        Op::Event { context } => {
            let context = &call.context(context)?.context;
            Reply::value(context.poll_event().map_or("none".to_owned(), |event| event_words(call, context, event)))
        }
        _ => Err(call.unknown()),
    }
}

/// An event by its name; that of a revoked region names the region too.
fn event_words(call: &Call, context: &Arc<Context>, event: AsyncEvent) -> String {
    let word = snake(&format!("{event:?}"));
    let AsyncEvent::RegionRevoked { rkey } = event else { return word };
    let of = |(_, mr): &&(String, Arc<Mr>)| mr.rkey() == rkey && Arc::ptr_eq(&mr.context(), context);
    let name = call.regions.iter().find(of).map_or("-", |(name, _)| name);
    format!("{word}:{name}")
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

/// Binds a window of this side to a part of a region, and waits for the binding's completion.
fn bind(end: &QpEnd, window: &Window, mr: &Mr, range: ByteRange) -> Result<Reply, CallFailure> {
    let addr = mr.va().wrapping_add(range.offset);
    let bind = WindowBind { rkey: 0, lkey: mr.lkey(), addr, len: range.len, access: WindowAccess::ALL };
    end.qp.bind_mw(1, &window.mw, bind, true).map_err(|error| CallFailure::Errno(error.errno()))?;
    let completion = end.own.cq.poll_one().ok_or(Errno::EAGAIN)?;
    match completion.status {
        WorkStatus::Success => {
            // ORDERING: Relaxed: the next user comes after this call.
            window.base.store(addr, Ordering::Relaxed);
            Ok(Reply::default())
        }
        failed => Err(CallFailure::Word(snake(&format!("{failed:?}")))),
    }
}

fn connect(call: &Call, task: &Task, own: &str, peer: &str) -> Result<Reply, CallFailure> {
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
    Reply::made(Thing::Qp(QpEnd { own: own.clone(), qp }))
}

/// This side's buffer of a request.
#[derive(Clone, Copy, Default)]
struct Local {
    /// What it is filled with.
    byte: Option<u8>,
    /// It is named by a key that is no region's.
    bad_key: bool,
}

/// A key of the slot that is never used: 0 is no region's.
const NO_KEY: u32 = 0;

/// One request of this process at the peer's region, with a buffer of its own, from post to
/// completion.
fn transfer(
    call: &Call,
    task: &Task,
    (qp, remote): (&QpName, &RemoteName),
    op: RdmaOp,
    range: ByteRange,
    buffer: Local,
) -> Result<Reply, CallFailure> {
    let (end, (remote_va, rkey)) = (call.qp(qp)?, call.remote(remote)?);
    let ByteRange { offset, len } = range;
    let (va, memory) = task.mmap_anonymous(len.max(1))?;
    if let Some(byte) = buffer.byte {
        memory.write(0, &vec![byte; len as usize])?;
    }
    let context = &end.own.context;
    let local = context.reg_mr(task, &end.own.pd, va, len.max(1), AccessFlags::LOCAL_WRITE)?;
    let request = WorkRequest {
        wr_id: 1,
        op,
        local: Sge { lkey: if buffer.bad_key { NO_KEY } else { local.lkey() }, addr: va, len: len as u32 },
        remote_addr: remote_va.wrapping_add(offset),
        rkey,
        signaled: true,
    };
    let posted = end.qp.post_send(request).map_err(|error| CallFailure::Errno(error.errno()));
    let completion = posted.and_then(|()| end.own.cq.poll_one().ok_or(CallFailure::Errno(Errno::EAGAIN)));
    let mut bytes = vec![0; len as usize];
    let copied = memory.read(0, &mut bytes);
    context.dereg_mr(task, &local)?;
    task.munmap(va, len.max(1))?;
    let completion = completion?;
    copied?;
    match (completion.status, op) {
        (WorkStatus::Success, RdmaOp::Read) => Reply::value(describe_bytes(&bytes, bytes.len())),
        (WorkStatus::Success, RdmaOp::FetchAdd { .. }) => {
            let before = bytes.first_chunk().map_or(0, |eight| u64::from_ne_bytes(*eight));
            Reply::value(before.to_string())
        }
        (WorkStatus::Success, _) => Ok(Reply::default()),
        (failed, _) => Err(CallFailure::Word(snake(&format!("{failed:?}")))),
    }
}
