//! Memory windows: rights to a part of a region, granted and withdrawn without a registration.
//!
//! It owns a window's binding. Invariants: a window reaches no byte outside its binding, which lies
//! in its region; each binding has its own key, and the key of the binding before opens nothing; a
//! region with a bound window cannot be deregistered or changed; a type 2 window opens only for the
//! queue pair that bound it. An access through a window passes the region's gate, so the end of the
//! region ends the window. Kernel counterpart: `struct ib_mw`, `rxe_mw.c`; InfiniBand Architecture,
//! volume 1, 10.6.6.2 (type 2 means 2B here).

use std::fmt;

use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::{Arc, Mutex};

use super::access::{QpIdentity, WindowAccess};
use super::fault::WorkFault;
use super::key;
use super::mr::Mr;

/// How a window is bound, and which queue pairs may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MwType {
    /// Bound by [`Qp::bind_mw`](crate::engine::qp::Qp::bind_mw); opens for every queue pair
    /// of its domain. A binding of no bytes unbinds it.
    Type1,
    /// Bound and invalidated by work requests; opens only for the queue pair that bound it.
    Type2,
}

/// A binding, as a program requests it. `struct ibv_mw_bind_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBind {
    /// The key that the window is to have: its own, with other lowest 8 bits ([`Mw::next_rkey`]).
    /// [`Qp::bind_mw`](crate::engine::qp::Qp::bind_mw) sets it.
    pub rkey: u32,
    /// The key of the region.
    pub lkey: u32,
    /// The first address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the window allows the peer.
    pub access: WindowAccess,
}

/// The present binding of a window.
#[derive(Clone)]
pub(crate) struct WindowBinding {
    pub(crate) mr: Arc<Mr>,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: WindowAccess,
    /// The queue pair that may use it; every queue pair of the domain if none.
    qp: Option<u32>,
}

struct WindowState {
    rkey: u32,
    bound: Option<WindowBinding>,
    /// Its owner has deallocated it.
    retired: bool,
}

/// A memory window.
pub struct Mw {
    pd: u32,
    kind: MwType,
    /// The last key issued for a binding by verb.
    issued: AtomicU32,
    state: Mutex<WindowState>,
}

impl fmt::Debug for Mw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mw {{ rkey: {:#x}, {:?}, bound: {} }}", self.rkey(), self.kind, self.is_bound())
    }
}

impl Mw {
    pub(crate) fn new(key: u32, pd: u32, kind: MwType) -> Mw {
        let state = Mutex::new(WindowState { rkey: key, bound: None, retired: false });
        Mw { pd, kind, issued: AtomicU32::new(key), state }
    }

    /// Its type.
    pub fn kind(&self) -> MwType {
        self.kind
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// The key of its present or last binding: a peer names the window by it.
    pub fn rkey(&self) -> u32 {
        self.state.lock().rkey
    }

    /// The first address of its present binding, if it is bound.
    pub fn addr(&self) -> Option<u64> {
        self.state.lock().bound.as_ref().map(|bound| bound.addr)
    }

    /// A key for its next binding.
    pub fn next_rkey(&self) -> u32 {
        Mw::key_after(self.rkey())
    }

    /// The key that follows `rkey`: for a binding that is posted before the binding with `rkey` has
    /// completed. `ibv_inc_rkey`.
    pub fn key_after(rkey: u32) -> u32 {
        key::increment(rkey)
    }

    /// Whether it is bound.
    pub fn is_bound(&self) -> bool {
        self.state.lock().bound.is_some()
    }

    /// Issues a key for a binding by verb. Two bindings that wait in a queue never have the same
    /// key.
    pub(crate) fn issue_rkey(&self) -> u32 {
        let turn = |issued| Some(key::increment(issued));
        let before = self.issued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, turn);
        key::increment(before.unwrap_or_else(|issued| issued))
    }

    /// Binds it as requested. `mr` is the region, looked up and checked; none for a binding of no
    /// bytes.
    pub(crate) fn bind(&self, qp: QpIdentity, bind: &WindowBind, mr: Option<Arc<Mr>>) -> Result<(), WorkFault> {
        let bound = mr.map(|mr| {
            let qp = (self.kind == MwType::Type2).then_some(qp.number);
            WindowBinding { mr, addr: bind.addr, len: bind.len, access: bind.access, qp }
        });
        // Counted before a peer can find the binding: from here on the region cannot be
        // deregistered.
        if bound.as_ref().is_some_and(|bound| !bound.mr.hold_for_window()) {
            return Err(WorkFault::Revoked);
        }
        let replaced = {
            let mut state = self.state.lock();
            let refused = match self.kind {
                _ if state.retired => Some(WorkFault::UnknownKey),
                _ if state.rkey == bind.rkey => Some(WorkFault::WindowKey),
                // A revocation marks the region before it unbinds the region's windows.
                _ if bound.as_ref().is_some_and(|bound| bound.mr.is_revoked()) => Some(WorkFault::Revoked),
                MwType::Type2 if state.bound.is_some() => Some(WorkFault::WindowBound),
                MwType::Type2 if bound.is_none() => Some(WorkFault::Range),
                MwType::Type1 | MwType::Type2 => None,
            };
            match refused {
                Some(fault) => Err((fault, bound)),
                None => {
                    state.rkey = bind.rkey;
                    Ok(std::mem::replace(&mut state.bound, bound))
                }
            }
        };
        let (result, unbound) = match replaced {
            Ok(before) => (Ok(()), before),
            Err((fault, bound)) => (Err(fault), bound),
        };
        if let Some(bound) = unbound {
            bound.mr.window_gone();
        }
        result
    }

    /// The binding that `key` opens for `qp`.
    pub(crate) fn opens(&self, key: u32, qp: QpIdentity) -> Result<WindowBinding, WorkFault> {
        let bound = {
            let state = self.state.lock();
            state.bound.clone().filter(|_| state.rkey == key).ok_or(WorkFault::UnknownKey)?
        };
        match bound.qp {
            _ if self.pd != qp.pd => Err(WorkFault::OtherDomain),
            Some(of) if of != qp.number => Err(WorkFault::OtherQp),
            Some(_) | None => Ok(bound),
        }
    }

    /// Ends the binding of a type 2 window under `key`, on request of `qp`. No effect if it is not
    /// bound.
    pub(crate) fn invalidate(&self, key: u32, qp: QpIdentity) -> Result<(), WorkFault> {
        let bound = {
            let mut state = self.state.lock();
            match &state.bound {
                _ if state.rkey != key || state.retired => return Err(WorkFault::UnknownKey),
                _ if self.pd != qp.pd => return Err(WorkFault::OtherDomain),
                _ if self.kind == MwType::Type1 => return Err(WorkFault::WindowType),
                Some(bound) if bound.qp != Some(qp.number) => return Err(WorkFault::OtherQp),
                Some(_) | None => state.bound.take(),
            }
        };
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
        Ok(())
    }

    /// Ends the binding, if there is one, because its region ends.
    pub(crate) fn unbind(&self) {
        let bound = self.state.lock().bound.take();
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
    }

    /// Ends the binding, if it is to `mr`.
    pub(crate) fn unbind_from(&self, mr: &Arc<Mr>) {
        let bound = self.state.lock().bound.take_if(|bound| Arc::ptr_eq(&bound.mr, mr));
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
    }

    /// Ends the binding and refuses any further one. Returns the last key.
    pub(crate) fn retire(&self) -> u32 {
        let (key, bound) = {
            let mut state = self.state.lock();
            state.retired = true;
            (state.rkey, state.bound.take())
        };
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
        // A program got the last issued key, even if its binding never executed.
        if self.kind == MwType::Type1 { self.issued.load(Ordering::Relaxed) } else { key }
    }
}
