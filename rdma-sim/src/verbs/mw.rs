//! Memory windows: rights to a part of a region, given and taken without registering anything.
//!
//! It owns a window's binding. Invariants: a window reaches no byte outside its binding, which lies in its region; each
//! binding has a key of its own, and the one before opens nothing any more; a bound window counts with its region, which
//! can't be deregistered or changed meanwhile; a type 2 window opens for the queue pair it was bound on and no other. What it
//! reaches it reaches through the region's gate, so whatever ends the region ends the window. Kernel counterpart: `struct
//! ib_mw`, `rxe_mw.c`; InfiniBand Architecture, volume 1, 10.6.6.2 (type 2 means 2B here).

use std::fmt;

use emulator::sync::atomic::{AtomicU32, Ordering};
use emulator::sync::{Arc, Mutex};
use fs_sim::{Errno, Task};

use super::context::{Context, OBJECTS_MAX};
use super::mr::Mr;
use super::pd::Pd;
use super::qp::Qp;
use super::work::Fault;

/// Who may bind a window, and who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MwType {
    /// Bound by [`Qp::bind_mw`]; opens for every queue pair of its domain. Binding no bytes unbinds it.
    Type1,
    /// Bound by a work request and invalidated by one; opens for the queue pair it was bound on.
    Type2,
}

/// What a peer may do through a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowAccess {
    /// Read.
    pub remote_read: bool,
    /// Write. Needs the region's local write.
    pub remote_write: bool,
    /// Do atomics. Needs the region's local write.
    pub remote_atomic: bool,
}

impl WindowAccess {
    /// All of it.
    pub const ALL: WindowAccess = WindowAccess { remote_read: true, remote_write: true, remote_atomic: true };
    /// Reads only.
    pub const READ: WindowAccess = WindowAccess { remote_read: true, remote_write: false, remote_atomic: false };
}

/// A binding, as it is asked for. `struct ibv_mw_bind_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The key that the window is to have: its own, with other lowest 8 bits ([`Mw::next_rkey`]). [`Qp::bind_mw`] sets it.
    pub rkey: u32,
    /// The key of the region.
    pub lkey: u32,
    /// The first address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the peer may do.
    pub access: WindowAccess,
}

/// What a window opens.
#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) mr: Arc<Mr>,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: WindowAccess,
    /// The queue pair it is for; all of the domain if none.
    qp: Option<u32>,
}

struct State {
    rkey: u32,
    bound: Option<Bound>,
    /// Its owner is done with it.
    retired: bool,
}

/// See the module.
pub struct Mw {
    pd: u32,
    kind: MwType,
    /// The last key given out for a binding by verb.
    issued: AtomicU32,
    state: Mutex<State>,
}

impl fmt::Debug for Mw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mw {{ rkey: {:#x}, {:?}, bound: {} }}", self.rkey(), self.kind, self.is_bound())
    }
}

/// `key` with its lowest 8 bits turned by one. `ibv_inc_rkey`.
fn turned(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}

impl Mw {
    pub(crate) fn new(key: u32, pd: u32, kind: MwType) -> Mw {
        let state = Mutex::new(State { rkey: key, bound: None, retired: false });
        Mw { pd, kind, issued: AtomicU32::new(key), state }
    }

    /// Its type.
    pub fn kind(&self) -> MwType {
        self.kind
    }

    pub(crate) fn pd(&self) -> u32 {
        self.pd
    }

    /// The key of its present or last binding, by which a peer names it.
    pub fn rkey(&self) -> u32 {
        self.state.lock().rkey
    }

    /// A key for its next binding.
    pub fn next_rkey(&self) -> u32 {
        turned(self.rkey())
    }

    /// Whether it is bound.
    pub fn is_bound(&self) -> bool {
        self.state.lock().bound.is_some()
    }

    /// A key for a binding by verb: never the same for two that wait in a queue.
    pub(crate) fn issue_rkey(&self) -> u32 {
        let turn = |key| Some(turned(key));
        let before = self.issued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, turn);
        turned(before.unwrap_or_else(|key| key))
    }

    /// Binds it as asked; `mr` was looked up and checked, or is none for a binding of no bytes.
    pub(crate) fn bind(&self, qp: &Qp, bind: &Bind, mr: Option<Arc<Mr>>) -> Result<(), Fault> {
        let bound = mr.map(|mr| {
            let qp = (self.kind == MwType::Type2).then(|| qp.number());
            Bound { mr, addr: bind.addr, len: bind.len, access: bind.access, qp }
        });
        // Counted before it can be found: the region stays from here on.
        if bound.as_ref().is_some_and(|bound| !bound.mr.hold_for_window()) {
            return Err(Fault::Revoked);
        }
        let replaced = {
            let mut state = self.state.lock();
            let refused = match self.kind {
                _ if state.retired => Some(Fault::UnknownKey),
                _ if state.rkey == bind.rkey => Some(Fault::WindowKey),
                MwType::Type2 if state.bound.is_some() => Some(Fault::WindowBound),
                MwType::Type2 if bound.is_none() => Some(Fault::Range),
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

    /// What `key` opens for `qp`.
    pub(crate) fn opens(&self, key: u32, qp: &Qp) -> Result<Bound, Fault> {
        let bound = {
            let state = self.state.lock();
            state.bound.clone().filter(|_| state.rkey == key).ok_or(Fault::UnknownKey)?
        };
        match bound.qp {
            _ if self.pd != qp.pd() => Err(Fault::OtherDomain),
            Some(of) if of != qp.number() => Err(Fault::OtherQp),
            Some(_) | None => Ok(bound),
        }
    }

    /// Ends the binding of a type 2 window under `key`, as asked over `qp`. No effect on one that is free.
    pub(crate) fn invalidate(&self, key: u32, qp: &Qp) -> Result<(), Fault> {
        let bound = {
            let mut state = self.state.lock();
            match &state.bound {
                _ if state.rkey != key || state.retired => return Err(Fault::UnknownKey),
                _ if self.pd != qp.pd() => return Err(Fault::OtherDomain),
                _ if self.kind == MwType::Type1 => return Err(Fault::WindowType),
                Some(bound) if bound.qp != Some(qp.number()) => return Err(Fault::OtherQp),
                Some(_) | None => state.bound.take(),
            }
        };
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
        Ok(())
    }

    /// Ends the binding, if there is one: its region is gone.
    pub(crate) fn unbind(&self) {
        let bound = self.state.lock().bound.take();
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
    }

    /// Ends the binding and admits none any more; the last key.
    pub(crate) fn retire(&self) -> u32 {
        let (key, bound) = {
            let mut state = self.state.lock();
            state.retired = true;
            (state.rkey, state.bound.take())
        };
        if let Some(bound) = bound {
            bound.mr.window_gone();
        }
        // The last key issued was given to a program, even if its binding never came.
        if self.kind == MwType::Type1 { self.issued.load(Ordering::Relaxed) } else { key }
    }
}

impl Context {
    /// Makes a memory window, bound to nothing.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context), EIO (aborted), EINVAL (a domain that is not this context's), ENOMEM.
    pub fn alloc_mw(self: &Arc<Self>, task: &Task, pd: &Arc<Pd>, kind: MwType) -> Result<Arc<Mw>, Errno> {
        self.check_caller(task)?;
        let made = self.nic().windows.add(|key| Mw::new(key, pd.number(), kind))?;
        let listed = self.add(|objects| {
            if objects.mws.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            let uses = objects.pds.get_mut(&pd.number()).ok_or(Errno::EINVAL)?;
            *uses += 1;
            objects.mws.insert(made.rkey() >> 8, Arc::clone(&made));
            Ok(())
        });
        match listed {
            Ok(()) => Ok(made),
            Err(errno) => {
                self.nic().windows.remove(&made);
                Err(errno)
            }
        }
    }

    /// Takes a memory window down, bound or not: its key opens nothing from here on.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's, or deallocated before).
    pub fn dealloc_mw(&self, task: &Task, mw: &Arc<Mw>) -> Result<(), Errno> {
        self.check_caller(task)?;
        self.with_objects(|objects| {
            let index = mw.rkey() >> 8;
            if !objects.mws.get(&index).is_some_and(|listed| Arc::ptr_eq(listed, mw)) {
                return Err(Errno::EINVAL);
            }
            objects.mws.remove(&index);
            objects.release_pd(mw.pd());
            Ok(())
        })?;
        self.nic().windows.remove(mw);
        Ok(())
    }
}
