//! Verbs of a scenario's process, over Soft-RoCE.
//!
//! It owns the contexts that the process has opened: each with one protection domain, one
//! completion queue and the queue pairs that were made on it. Reading order: `wire` (what is
//! asked for), `uapi` (the kernel's structures), `command` (the ioctl), `ring` (the shared queues),
//! `work` (requests of a send queue), `DeviceContext` here. Invariants: every other object is the
//! kernel's, by the kernel's number, and what the kernel refuses is its own errno. The memory that
//! a request uses on this side lives until the request is completed. A wait for a completion is
//! bounded. Counterpart: libibverbs with its provider for rxe, which is not used: of the releases
//! that this program's C library fits, not all have FLUSH and ATOMIC WRITE. Kernel counterpart:
//! drivers/infiniband/core/uverbs_cmd.c, drivers/infiniband/sw/rxe.

mod command;
mod context;
mod device;
mod link;
mod ring;
mod uapi;
pub(crate) mod wire;
mod work;

use std::cell::RefCell;
use std::collections::BTreeMap;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use context::DeviceContext;
pub use link::add;
use wire::{VerbsAnswer, VerbsFailure, VerbsRequest};

thread_local! {
    /// The contexts of this process, by the descriptors that opened them. A forked child has them
    /// too: its copies of the shared queues' mappings are of the same queues.
    static CONTEXTS: RefCell<BTreeMap<i32, DeviceContext>> = const { RefCell::new(BTreeMap::new()) };
}

/// Performs a request.
pub(super) fn perform(request: VerbsRequest) -> Result<Option<VerbsAnswer>, VerbsFailure> {
    let answer = match request {
        VerbsRequest::Open => {
            let (fd, context) = DeviceContext::open()?;
            CONTEXTS.with_borrow_mut(|contexts| contexts.insert(fd, context));
            VerbsAnswer::Context(fd)
        }
        VerbsRequest::Register { context, at, len, access } => {
            on(context, |context| context.register((at, len), access))?
        }
        VerbsRequest::Reregister { context, region, translation, access } => {
            on(context, |context| context.reregister(region, translation, access))?
        }
        VerbsRequest::Deregister { context, region } => return done(on(context, |context| context.deregister(region))),
        VerbsRequest::Prefetch { context, lkey, at, len, write } => {
            return done(on(context, |context| context.prefetch(lkey, (at, len), write)));
        }
        VerbsRequest::AllocateWindow { context, type2 } => on(context, |context| context.allocate_window(type2))?,
        VerbsRequest::DeallocateWindow { context, window } => {
            return done(on(context, |context| context.deallocate_window(window)));
        }
        VerbsRequest::CreatePair { context } => on(context, DeviceContext::create_pair)?,
        VerbsRequest::ConnectPair { context, pair, peer, rnr_wait } => {
            return done(on(context, |context| context.connect_pair(pair, peer, rnr_wait)));
        }
        VerbsRequest::Perform { context, pair, work } => on(context, |context| context.perform(pair, work))?,
        VerbsRequest::Post { context, pair, id, work } => {
            return done(on(context, |context| context.post(pair, id, work)));
        }
        VerbsRequest::PostReceive { context, pair, id, at, len, lkey } => {
            return done(on(context, |context| context.post_receive(pair, id, uapi::Buffer { at, len, lkey })));
        }
        VerbsRequest::Poll { context } => on(context, DeviceContext::poll)?,
        VerbsRequest::LimitLocked { bytes } => return done(limit_locked(bytes).map_err(Into::into)),
    };
    Ok(Some(answer))
}

/// Forgets the context `fd`, which is about to be closed: a mapping of a queue would keep it open.
pub(super) fn forget(fd: i32) {
    CONTEXTS.with_borrow_mut(|contexts| contexts.remove(&fd));
}

fn on<T>(fd: i32, call: impl FnOnce(&mut DeviceContext) -> Result<T, VerbsFailure>) -> Result<T, VerbsFailure> {
    CONTEXTS.with_borrow_mut(|contexts| contexts.get_mut(&fd).map_or(Err(Errno::BADF.into()), call))
}

fn done(result: Result<(), VerbsFailure>) -> Result<Option<VerbsAnswer>, VerbsFailure> {
    result.map(|()| None)
}

/// Limits the memory that this process may lock. The limit holds for no process with CAP_IPC_LOCK
/// (`ib_umem_get`).
fn limit_locked(bytes: u64) -> Result<(), Errno> {
    // Only root raises the hard limit; a lower soft one needs no right.
    let Rlimit { maximum, .. } = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum })?;
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    let effective = effective - CapabilitySet::IPC_LOCK;
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}
