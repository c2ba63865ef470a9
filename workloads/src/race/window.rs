//! Memory windows over regions: bound, used as the only way to a region, unbound.
//!
//! It owns how a window is bound and unbound. Invariants that it checks: a region is not
//! deregistered while a window is bound to it, and no request succeeds by a key after its window
//! was unbound, invalidated or deallocated. Kernel counterpart: the users of `ibv_bind_mw` and of
//! `IBV_WR_BIND_MW`.

use emulator::sync::Arc;
use fs_sim::{BLOCK, Errno, Task};
use rdma_sim::{Mr, Mw, MwType, Sge, WindowAccess, WindowBind, WorkOperation, WorkRequest, WorkStatus};

use super::endpoint::{BurstResult, Endpoint};
use super::op_stream::WindowKind;
use super::oracle::WORD;
use super::region::RegionWindow;
use super::stats::{ActorStats, TimedCall};

impl Endpoint {
    /// Makes a window and binds it to a part of `mr`: from a block to the region's end.
    pub(super) fn bind(
        &mut self,
        stats: &mut ActorStats,
        task: &Task,
        (mr, writable): (&Arc<Mr>, bool),
        kind: WindowKind,
    ) -> Result<RegionWindow, Errno> {
        let of_type = if kind.type2 { MwType::Type2 } else { MwType::Type1 };
        let mw = stats.call(self.context.alloc_mw(task, &self.pd, of_type))?;
        let at = kind.place.below(mr.len() / BLOCK) * BLOCK;
        let len = mr.len() - at;
        let access = if writable { WindowAccess::ALL } else { WindowAccess::READ };
        let bind = WindowBind { rkey: mw.next_rkey(), lkey: mr.lkey(), addr: mr.va() + at, len, access };
        let bound = stats.timed(TimedCall::BindWindow, task, || self.bind_request(&mw, kind, bind));
        match bound {
            Ok(rkey) => Ok(RegionWindow { mw, kind, at, len, rkey }),
            Err(errno) => {
                // It failed because the region was revoked, or the context aborted, a moment ago.
                self.recover();
                let _gone = self.context.dealloc_mw(task, &mw);
                Err(errno)
            }
        }
    }

    /// Binds by the verb or work request of the window's type; returns the key.
    fn bind_request(&mut self, mw: &Mw, kind: WindowKind, bind: WindowBind) -> Result<u32, Errno> {
        if kind.type2 {
            return self.own_request(WorkOperation::BindMw(bind)).map(|()| bind.rkey);
        }
        let wr_id = self.next_number();
        let rkey = self.peer().bind_mw(wr_id, mw, bind, true).map_err(|refused| refused.errno())?;
        self.completed(wr_id).map(|()| rkey)
    }

    /// Executes a request that concerns the side that answers: it binds and invalidates windows,
    /// and a window of type 2 opens for its queue pair alone.
    fn own_request(&mut self, op: WorkOperation) -> Result<(), Errno> {
        let wr_id = self.next_number();
        let request = WorkRequest { wr_id, op, local: Sge::default(), remote_addr: 0, rkey: 0, signaled: true };
        self.peer().post_send(request).map_err(|refused| refused.errno())?;
        self.completed(wr_id)
    }

    /// Whether the request `wr_id`, which has just been posted, was successful.
    fn completed(&self, wr_id: u64) -> Result<(), Errno> {
        let done = self.take_completion().filter(|done| done.wr_id == wr_id);
        if done.is_some_and(|done| done.status == WorkStatus::Success) { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Deregisters `mr` while its window is bound, which must be refused unless the window has just
    /// ended with the region. Returns whether the region is gone.
    pub(super) fn deregister_bound(&self, stats: &mut ActorStats, task: &Task, mr: &Arc<Mr>) -> bool {
        let gone = self.context.dereg_mr(task, mr).is_ok();
        if gone {
            stats.counters.deregistrations += 1;
            if !mr.is_revoked() && !self.context.is_aborted() {
                stats.broken.push(format!("memory windows: region {:#x} was deregistered under one", mr.rkey()));
            }
        }
        gone
    }

    /// Unbinds and deallocates a window, and checks that its key opens nothing any more.
    pub(super) fn unbind(&mut self, stats: &mut ActorStats, task: &Task, mr: &Arc<Mr>, window: &RegionWindow) {
        if window.kind.deallocated {
            let deallocate = || self.context.dealloc_mw(task, &window.mw);
            let gone = stats.timed(TimedCall::UnbindWindow, task, deallocate);
            return self.check_closed(stats, mr, window, gone.is_ok());
        }
        let unbound = stats.timed(TimedCall::UnbindWindow, task, || match window.kind.type2 {
            true => self.own_request(WorkOperation::LocalInvalidate { rkey: window.rkey }),
            false => self.bind_request(&window.mw, window.kind, WindowBind { len: 0, ..self.nothing(mr) }).map(|_| ()),
        });
        if unbound.is_err() {
            self.recover();
        }
        self.check_closed(stats, mr, window, unbound.is_ok());
        let _gone = stats.call(self.context.dealloc_mw(task, &window.mw));
    }

    /// A binding of no bytes.
    fn nothing(&self, mr: &Mr) -> WindowBind {
        WindowBind { rkey: 0, lkey: mr.lkey(), addr: mr.va(), len: 0, access: WindowAccess::READ }
    }

    /// A request by the key of a window that was `closed` must fail.
    fn check_closed(&mut self, stats: &mut ActorStats, mr: &Arc<Mr>, window: &RegionWindow, closed: bool) {
        if !closed {
            return;
        }
        let wr_id = self.next_number();
        let (local, remote_addr) = (self.local_part(WORD), mr.va() + window.at);
        let op = WorkOperation::Read;
        let request = WorkRequest { wr_id, op, local, remote_addr, rkey: window.rkey, signaled: true };
        if self.queue().post_send(request).is_ok() && self.completed(wr_id).is_ok() {
            let how = if window.kind.deallocated { "deallocated" } else { "unbound" };
            let kind = window.mw.kind();
            stats.broken.push(format!(
                "memory windows: key {:#x} of a {kind:?} window answered a READ after it was {how}",
                window.rkey
            ));
            return;
        }
        let _ended: BurstResult = self.recover();
    }
}
