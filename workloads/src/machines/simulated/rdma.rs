//! Calls about the NIC.
//!
//! It owns contexts and events, and knows which file performs what: `regions`, `windows`,
//! `queue_pairs`, `requests` (what an operation posts, and its memory), `posted` (requests in
//! flight and their completions).

use emulator::sync::Arc;
use fs_sim::{Errno, Task};
use rdma_sim::{AsyncEvent, Context, Mr};

use super::bindings::{OpenContext, Thing, snake};
use super::calls::{Call, CallFailure, Reply};
use super::{posted, queue_pairs, regions, requests, windows};
use crate::ops::{Op, Verb};

/// How many completions a scenario's queues hold.
pub(super) const DEPTH: u32 = 64;

/// Performs a call of this family.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match call.op.verb() {
        Verb::RdmaOpen => open(task),
        Verb::Event => event(call, task),
        Verb::RegMr | Verb::ReregMr | Verb::ReregAccess | Verb::DeregMr | Verb::Prefetch => {
            regions::perform(call, task)
        }
        Verb::AllocMw | Verb::DeallocMw => windows::perform(call, task),
        Verb::Connect | Verb::Accept | Verb::ModifyQp | Verb::DestroyQp => queue_pairs::perform(call, task),
        Verb::Poll => posted::poll(call, task),
        Verb::PostRecv => posted::receive(call, task),
        verb if verb.name().starts_with("post_") => posted::post(call, task),
        _ => requests::perform(call, task),
    }
}

fn open(task: &Task) -> Result<Reply, CallFailure> {
    let (fd, context) = Context::open(task)?;
    let pd = context.alloc_pd(task)?;
    let cq = context.create_cq(task, DEPTH)?;
    Reply::made(Thing::Context(OpenContext { fd, context, pd, cq, work: Arc::default() }))
}

fn event(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    let Op::Event { context } = &call.op else { return Err(call.unknown()) };
    let context = &call.context(context)?.context;
    context.check_holder(task)?;
    match context.poll_event() {
        Some(event) => Reply::value(event_words(call, context, event)),
        None if context.is_disassociated() => Err(CallFailure::Errno(Errno::EIO)),
        None => Reply::value("none"),
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

/// Whether `task` can make a call on this context.
pub(super) fn check(on: &OpenContext, task: &Task) -> Result<(), Errno> {
    on.context.check_holder(task)?;
    if on.context.is_disassociated() { Err(Errno::EIO) } else { Ok(()) }
}
