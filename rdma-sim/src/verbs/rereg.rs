//! Changing a region's registration: other memory, another domain or other rights, under the same
//! key.
//!
//! It owns the order of the change. Invariants: everything that can fail comes before the old
//! registration is touched, so a refused change leaves it as it was **\[chosen\]** (the man page
//! only promises that for bad input); the new pins are taken before the old ones are released, so
//! locked memory is charged for both for a moment **\[chosen\]**; a request that finds the region
//! during the exchange is refused as if the region were revoked; a task that ends the context
//! meanwhile ends the change. Kernel counterpart: `ib_uverbs_rereg_mr`, `ibv_rereg_mr(3)`.

use emulator::race_point;
use emulator::sync::Arc;
use emulator::wait::WaitFor;
use fs_sim::pinning::registration::Registration;
use fs_sim::vfs::open_file::Deferred;
use fs_sim::{Errno, Task};

use super::context::Context;
use super::pd::Pd;
use crate::memory::access::AccessFlags;
use crate::memory::mr::Mr;
use crate::memory::owner::ObjectOwner;

/// What `rereg_mr` changes. A field that is none stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rereg<'a> {
    /// First address and length in bytes. `IBV_REREG_MR_CHANGE_TRANSLATION`.
    pub translation: Option<(u64, u64)>,
    /// The domain. `IBV_REREG_MR_CHANGE_PD`.
    pub pd: Option<&'a Arc<Pd>>,
    /// The rights. `IBV_REREG_MR_CHANGE_ACCESS`.
    pub access: Option<AccessFlags>,
}

impl Rereg<'_> {
    /// Whether the memory must be registered anew: for another translation, or for rights that the
    /// old registration was not checked for.
    fn needs_memory(&self, old: AccessFlags) -> bool {
        let gains = |access: AccessFlags| {
            let more = |old: bool, new: bool| new && !old;
            more(old.local_write, access.local_write)
                || more(old.flush_persistent, access.flush_persistent)
                || old.on_demand != access.on_demand
        };
        self.translation.is_some() || self.access.is_some_and(gains)
    }
}

impl Context {
    /// Changes a region's registration. Returns a new handle of the region, with the same keys. The
    /// old handle is of no use any more.
    ///
    /// A new translation, and rights that the old registration was not checked for, are registered
    /// as by [`Context::reg_mr`], on the caller's account. Returns when the last copy to the old
    /// memory has ended and that memory is unpinned.
    ///
    /// # Errors
    /// EBADF; EIO (aborted, or revoked); EINVAL (nothing to change; not this context's; bad rights,
    /// length or domain); EBUSY (windows are bound **\[chosen\]**, or another change is under way);
    /// and every error of [`Context::reg_mr`]. The old registration is as before.
    pub fn rereg_mr(self: &Arc<Self>, task: &Task, mr: &Arc<Mr>, change: Rereg<'_>) -> Result<Arc<Mr>, Errno> {
        self.check_caller(task)?;
        let access = change.access.unwrap_or(mr.access());
        let (va, len) = change.translation.unwrap_or((mr.va(), mr.len()));
        access.check()?;
        let nothing = change.translation.is_none() && change.pd.is_none() && change.access.is_none();
        if nothing || len == 0 {
            return Err(Errno::EINVAL);
        }
        let pd = change.pd.map_or(mr.pd(), |pd| pd.number());
        self.add(|objects| {
            if !objects.mrs.get(&mr.key()).is_some_and(|listed| Arc::ptr_eq(listed, mr)) {
                return Err(Errno::EINVAL);
            }
            if objects.changing.contains(&mr.key()) {
                return Err(Errno::EBUSY);
            }
            // Counted as a use of the new domain, even if it is the old one: each handle counts its
            // own use.
            let uses = objects.pds.get_mut(&pd).ok_or(Errno::EINVAL)?;
            mr.refuse_windows()?;
            *uses += 1;
            objects.changing.insert(mr.key());
            Ok(())
        })?;
        let new = Arc::new(Mr::new(mr.key(), pd, access, va, len, Arc::clone(self) as Arc<dyn ObjectOwner>));
        let mut deferred = Deferred::default();
        let memory = match change.needs_memory(mr.access()) {
            true => self.new_memory(task, &new, &mut deferred).map(Some),
            false => Ok(None),
        };
        let changed = memory.and_then(|memory| self.exchange(task, (mr, &new), memory, &mut deferred));
        let listed = self.list_changed(mr, &new, changed);
        if listed.is_ok() {
            self.revoke_if_marked(&new);
        }
        // Last: the end of a file may make the caller wait.
        task.run_deferred(deferred);
        listed.map(|()| new)
    }

    /// Registers what `new` describes, with the checks of a new region.
    fn new_memory(&self, task: &Task, new: &Arc<Mr>, deferred: &mut Deferred) -> Result<Registration, Errno> {
        let memory = self.register_memory(task, new)?;
        race_point!("rereg_mr: committed, not stored");
        if memory.pins_file() {
            self.file_pin_made();
            if self.denies_file_pins(task) {
                new.release(memory, deferred);
                return Err(Errno::EPERM);
            }
        }
        Ok(memory)
    }

    /// Stores the new registration in the place of the old one, once the last copy has left it. EIO
    /// if the region was ended first.
    fn exchange(
        &self,
        task: &Task,
        (old, new): (&Arc<Mr>, &Arc<Mr>),
        memory: Option<Registration>,
        deferred: &mut Deferred,
    ) -> Result<(), Errno> {
        let regions = &self.nic().regions;
        let begun = regions.begin_change(old);
        race_point!("rereg_mr: shut, not exchanged");
        let quiet = begun && {
            // As in `dereg_mr`: a copy in flight always ends.
            let how = WaitFor::uninterruptible("copies in flight");
            let ready = || regions.can_exchange(old);
            self.drained().wait(self.kernel().world(), task.waiter(), how, ready).unwrap_or(false)
        };
        let exchanged = match quiet {
            true => regions.exchange(old, Arc::clone(new), memory),
            false => Err(memory),
        };
        match exchanged {
            Ok(Some(before)) => old.release(before, deferred),
            Ok(None) => old.set_released(),
            Err(memory) => {
                if let Some(memory) = memory {
                    new.release(memory, deferred);
                }
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }

    /// Ends a change, whether it succeeded or not. An abort or close since its begin has ended the
    /// region by its key, whichever of the two handles was listed.
    fn list_changed(&self, old: &Arc<Mr>, new: &Arc<Mr>, changed: Result<(), Errno>) -> Result<(), Errno> {
        let listed = changed.and_then(|()| {
            self.add(|objects| {
                objects.mrs.insert(new.key(), Arc::clone(new));
                objects.release_pd(old.pd());
                Ok(())
            })
        });
        self.with_objects(|objects| {
            objects.changing.remove(&old.key());
            if listed.is_err() {
                objects.release_pd(new.pd());
                old.admit_windows();
            }
        });
        listed
    }
}
