//! Calls about the NIC.
//!
//! It owns the small programs that a scenario's one-line operations stand for: the buffer, its registration, the posting and the
//! polling around an `rdma_write`.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;
use fs_sim::{Errno, Task};
use rdma_sim::{
    AccessFlags, Context, FlushLevel, FlushPlacement, MwType, Qp, QpConfig, Rereg, Sge, WindowAccess, WindowBind,
    WorkOperation, WorkRequest, WorkStatus,
};

use super::calls::{Call, Reply, Stop};
use super::things::{OpenContext, QpEnd, Thing, Window, snake};
use crate::ops::{ByteRange, Verb, describe_bytes};

/// How many completions a scenario's queues hold.
const DEPTH: u32 = 64;

/// Performs a call of this family.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let op = &call.op;
    match op.verb {
        Verb::RdmaOpen => {
            let (fd, context) = Context::open(task)?;
            let pd = context.alloc_pd(task)?;
            let cq = context.create_cq(task, DEPTH)?;
            Reply::made(Thing::Context(OpenContext { fd, context, pd, cq }))
        }
        Verb::RegMr => {
            let (on, (va, _), range) = (call.context(0)?, call.map(1)?, op.range(2));
            let va = va.checked_add(range.offset).ok_or(Errno::EINVAL)?;
            let mr = on.context.reg_mr(task, &on.pd, va, range.len, access(call))?;
            Reply::made(Thing::Region(mr))
        }
        Verb::DeregMr => {
            let mr = call.region(0)?;
            mr.context().dereg_mr(task, mr)?;
            Ok(Reply::default())
        }
        Verb::ReregMr => {
            let (mr, (va, _), range) = (call.region(0)?, call.map(1)?, op.range(2));
            let va = va.checked_add(range.offset).ok_or(Errno::EINVAL)?;
            let change = Rereg { translation: Some((va, range.len)), ..Rereg::default() };
            Reply::made(Thing::Region(mr.context().rereg_mr(task, mr, change)?))
        }
        Verb::AllocMw => {
            let on = call.context(0)?;
            let mw = on.context.alloc_mw(task, &on.pd, MwType::Type1)?;
            Reply::made(Thing::Window(Window { mw, context: Arc::clone(&on.context), base: Arc::default() }))
        }
        Verb::BindMw => bind(call),
        Verb::DeallocMw => {
            let window = call.window(0)?;
            window.context.dealloc_mw(task, &window.mw)?;
            Ok(Reply::default())
        }
        Verb::Connect => connect(call, task),
        Verb::RdmaWrite => {
            let local = Local { byte: Some(op.byte(3)), bad_key: op.has(4, "bad_key") };
            transfer(call, task, WorkOperation::Write, op.range(2), local)
        }
        Verb::RdmaRead => {
            let local = Local { byte: None, bad_key: op.has(3, "bad_key") };
            transfer(call, task, WorkOperation::Read, op.range(2), local)
        }
        Verb::FetchAdd => {
            let range = ByteRange { offset: op.number(2), len: 8 };
            transfer(call, task, WorkOperation::FetchAdd { add: op.number(3) }, range, Local::default())
        }
        Verb::AtomicWrite => {
            let range = ByteRange { offset: op.number(2), len: 0 };
            transfer(call, task, WorkOperation::AtomicWrite { value: op.number(3) }, range, Local::default())
        }
        Verb::Flush => {
            let placement = if op.word(3) == "global" { FlushPlacement::Global } else { FlushPlacement::Persistent };
            transfer(
                call,
                task,
                WorkOperation::Flush { placement, level: FlushLevel::Range },
                op.range(2),
                Local::default(),
            )
        }
        Verb::Event => {
            let event = call.context(0)?.context.poll_event();
            Reply::value(event.map_or("none".to_owned(), |event| snake(&format!("{event:?}"))))
        }
        _ => Err(call.unknown()),
    }
}

fn access(call: &Call) -> AccessFlags {
    let flags = match call.op.has(3, "ro") {
        true => AccessFlags { remote_read: true, ..AccessFlags::LOCAL_READ },
        false => AccessFlags::ALL,
    };
    let flags = if call.op.has(3, "on_demand") { flags.on_demand() } else { flags };
    let flags = if call.op.has(3, "window") { flags.mw_bind() } else { flags };
    if call.op.has(3, "flush") { flags.flush_global().flush_persistent() } else { flags }
}

/// Binds a window of this side to a part of a region, and waits for the binding's completion.
fn bind(call: &Call) -> Result<Reply, Stop> {
    let (end, window, mr, range) = (call.qp(0)?, call.window(1)?, call.region(2)?, call.op.range(3));
    let addr = mr.va().wrapping_add(range.offset);
    let bind = WindowBind { rkey: 0, lkey: mr.lkey(), addr, len: range.len, access: WindowAccess::ALL };
    end.qp.bind_mw(1, &window.mw, bind, true).map_err(|error| Stop::Errno(error.errno()))?;
    let completion = end.own.cq.poll_one().ok_or(Errno::EAGAIN)?;
    match completion.status {
        WorkStatus::Success => {
            // ORDERING: Relaxed: whoever uses it next comes after this call.
            window.base.store(addr, Ordering::Relaxed);
            Ok(Reply::default())
        }
        failed => Err(Stop::Word(snake(&format!("{failed:?}")))),
    }
}

fn connect(call: &Call, task: &Task) -> Result<Reply, Stop> {
    let (own, peer) = (call.context(0)?, call.context(1)?);
    let end = |on: &OpenContext, task: &Task| {
        let config =
            QpConfig { send_cq: Arc::clone(&on.cq), recv_cq: Arc::clone(&on.cq), max_send: DEPTH, max_recv: DEPTH };
        on.context.create_qp(task, &on.pd, config)
    };
    let qp = end(own, task)?;
    let other = match &call.peer {
        // A thread for the moment: the process's own may be in a call.
        Some(peer_task) => end(peer, &peer_task.thread())?,
        None => return Err(Stop::Errno(Errno::EINVAL)),
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

/// One request of this process at the peer's region, with a buffer of its own, from post to completion.
fn transfer(call: &Call, task: &Task, op: WorkOperation, range: ByteRange, buffer: Local) -> Result<Reply, Stop> {
    let (end, (remote_va, rkey)) = (call.qp(0)?, call.remote(1)?);
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
    let posted = end.qp.post_send(request).map_err(|error| Stop::Errno(error.errno()));
    let completion = posted.and_then(|()| end.own.cq.poll_one().ok_or(Stop::Errno(Errno::EAGAIN)));
    let mut bytes = vec![0; len as usize];
    let copied = memory.read(0, &mut bytes);
    context.dereg_mr(task, &local)?;
    task.munmap(va, len.max(1))?;
    let completion = completion?;
    copied?;
    match (completion.status, op) {
        (WorkStatus::Success, WorkOperation::Read) => Reply::value(describe_bytes(&bytes, bytes.len())),
        (WorkStatus::Success, WorkOperation::FetchAdd { .. }) => {
            let before = bytes.first_chunk().map_or(0, |eight| u64::from_ne_bytes(*eight));
            Reply::value(before.to_string())
        }
        (WorkStatus::Success, _) => Ok(Reply::default()),
        (failed, _) => Err(Stop::Word(snake(&format!("{failed:?}")))),
    }
}
