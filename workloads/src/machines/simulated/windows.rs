//! Memory windows: made, destroyed, and what a binding or an invalidation posts.
//!
//! It owns the consumer's side of a window's keys: for type 1 the NIC chooses them, for type 2 this
//! module does, as a program does with `ibv_inc_rkey`.

use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicU32, Ordering};
use fs_sim::{Errno, Task};
use rdma_sim::{Mr, Mw, MwType, WindowAccess, WindowBind, WorkOperation};

use super::bindings::{Thing, Window};
use super::calls::{Call, CallFailure, Reply};
use super::requests::Posting;
use crate::ops::{BindFlags, ByteRange, Op};

impl Window {
    /// The key of its last binding that was posted: the consumer's view.
    fn chosen(&self) -> u32 {
        // ORDERING: Relaxed: one call at a time uses a window of a scenario.
        self.key.load(Ordering::Relaxed)
    }

    fn choose(&self, key: u32) {
        // ORDERING: Relaxed, as in `chosen`.
        self.key.store(key, Ordering::Relaxed);
    }

    /// A binding failed: the window has the key it had.
    pub(super) fn not_bound(&self) {
        self.choose(self.mw.rkey());
    }
}

/// Performs a call that makes or destroys a window.
pub(super) fn perform(call: &Call, task: &Task) -> Result<Reply, CallFailure> {
    match &call.op {
        Op::AllocMw { context, flags } => {
            let on = call.context(context)?;
            let kind = if flags.type2 { MwType::Type2 } else { MwType::Type1 };
            let mw = on.context.alloc_mw(task, &on.pd, kind)?;
            let key = Arc::new(AtomicU32::new(mw.rkey()));
            Reply::made(Thing::Window(Window { mw, context: Arc::clone(&on.context), key }))
        }
        Op::DeallocMw { window } => {
            let window = call.window(window)?;
            window.context.dealloc_mw(task, &window.mw)?;
            Ok(Reply::default())
        }
        _ => Err(call.unknown()),
    }
}

/// What binds `window` to a part of `mr`.
pub(super) fn binding(window: &Window, mr: &Mr, range: ByteRange, flags: BindFlags) -> Result<Posting, CallFailure> {
    let addr = mr.va().wrapping_add(range.offset);
    let bind = WindowBind { rkey: 0, lkey: mr.lkey(), addr, len: range.len, access: WindowAccess::ALL };
    match (window.mw.kind(), flags.same_key) {
        (MwType::Type1, false) => Ok(Posting::BindType1(window.clone(), bind)),
        // The NIC chooses the key.
        (MwType::Type1, true) => Err(CallFailure::Errno(Errno::EINVAL)),
        (MwType::Type2, same) => {
            let rkey = if same { window.chosen() } else { Mw::key_after(window.chosen()) };
            window.choose(rkey);
            Ok(Posting::BindType2(window.clone(), WindowBind { rkey, ..bind }))
        }
    }
}

/// What invalidates `window` on its own side.
pub(super) fn invalidation(window: &Window) -> Posting {
    Posting::Send(WorkOperation::LocalInvalidate { rkey: window.chosen() })
}
