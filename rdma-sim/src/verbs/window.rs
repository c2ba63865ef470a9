//! Making and destroying memory windows.
//!
//! It owns the listing of windows on their context. Binding is a work request: see
//! [`Qp::bind_mw`](crate::engine::qp::Qp::bind_mw). Kernel counterpart: `ib_uverbs_alloc_mw`,
//! `ib_uverbs_dealloc_mw`.

use emulator::sync::Arc;
use fs_sim::{Errno, Task};

use super::context::{Context, OBJECTS_MAX};
use super::pd::Pd;
use crate::memory::key;
use crate::memory::mw::{Mw, MwType};

impl Context {
    /// Makes a memory window that is not bound. `ibv_alloc_mw`.
    ///
    /// # Errors
    /// EBADF (the caller does not hold the context), EIO (aborted), EINVAL (a domain that is not
    /// this context's), ENOMEM.
    pub fn alloc_mw(self: &Arc<Self>, task: &Task, pd: &Arc<Pd>, kind: MwType) -> Result<Arc<Mw>, Errno> {
        self.check_caller(task)?;
        let made = self.nic().windows.add(|key| Mw::new(key, pd.number(), kind))?;
        let listed = self.add(|objects| {
            if objects.mws.len() >= OBJECTS_MAX {
                return Err(Errno::ENOMEM);
            }
            let uses = objects.pds.get_mut(&pd.number()).ok_or(Errno::EINVAL)?;
            *uses += 1;
            objects.mws.insert(key::index(made.rkey()), Arc::clone(&made));
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

    /// Destroys a memory window, bound or not: from then on its key opens nothing.
    /// `ibv_dealloc_mw`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's, or deallocated before).
    pub fn dealloc_mw(&self, task: &Task, mw: &Arc<Mw>) -> Result<(), Errno> {
        self.check_caller(task)?;
        self.with_objects(|objects| {
            let index = key::index(mw.rkey());
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
