//! Registering and deregistering memory regions.
//!
//! It owns the order of a registration: reserve a key, pin, store, list. Invariant: a registration
//! that loses against an abort or a close of its context takes itself back, so no region outlives
//! its context. Kernel counterpart: `ib_uverbs_reg_mr`, `ib_uverbs_dereg_mr`.

use std::task::Poll;

use emulator::race_point;
use emulator::sync::Arc;
use emulator::wait::WaitFor;
use fs_sim::holders::holder::PinHolder;
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::{PinRequest, Registration};
use fs_sim::vfs::open_file::Deferred;
use fs_sim::{Errno, Task};

use super::context::Context;
use super::pd::Pd;
use crate::memory::access::AccessFlags;
use crate::memory::mr::Mr;
use crate::memory::owner::ObjectOwner;
use crate::memory::region_table::RegisteredRegion;

impl Mr {
    /// Its context.
    pub fn context(&self) -> Arc<Context> {
        let owner = Arc::clone(self.owner()).into_any().downcast();
        owner.expect("a context is the only owner that a region can have")
    }
}

impl Context {
    /// Registers `len` bytes of the caller's memory at `va`. `ibv_reg_mr`. File pages need the
    /// lease that the design asks for. They are pinned (or, on demand, faulted in at each access)
    /// until the region is deregistered or revoked, or the context is closed.
    ///
    /// ```
    /// # use emulator::World;
    /// # use emulator::device::Device;
    /// # use emulator::sync::Arc;
    /// # use fs_sim::design::presets;
    /// # use fs_sim::leases::layout::kind::LeaseKind;
    /// # use fs_sim::syscalls::open::OpenFlags;
    /// # use fs_sim::{BlockRange, Errno, Kernel, KernelConfig};
    /// use rdma_sim::{AccessFlags, Context};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let man_page = presets().iter().find(|preset| preset.name == "man-page");
    /// # let man_page = man_page.ok_or("no such preset")?;
    /// # let config = KernelConfig::new(man_page.axes);
    /// # let kernel = Kernel::new(Arc::new(World::manual(1)), Device::memory(2 << 20)?, config)?;
    /// # let task = kernel.spawn();
    /// # let (_fd, context) = Context::open(&task)?;
    /// # let pd = context.alloc_pd(&task)?;
    /// let data = task.open("data", OpenFlags::create())?;
    /// task.write(data, 0, &[7; 4096])?;
    /// let va = task.mmap(data, 0, 4096, true)?;
    /// let refused = context.reg_mr(&task, &pd, va, 4096, AccessFlags::ALL);
    /// assert_eq!(refused.err(), Some(Errno::EPERM), "no lease");
    /// task.lease(data, LeaseKind::WRITE_U, BlockRange::ALL)?;
    /// let mr = context.reg_mr(&task, &pd, va, 4096, AccessFlags::ALL)?;
    /// assert_eq!(task.ftruncate(data, 0), Err(Errno::ETXTBSY), "the NIC has pinned the page");
    /// context.dereg_mr(&task, &mr)?;
    /// task.ftruncate(data, 0)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// EBADF: the caller does not hold the context. EIO: the context was aborted. EINVAL: remote
    /// write or atomic without local write; `flush_persistent` on anonymous memory, which is not
    /// persistent, as `rxe` has it; length 0, or beyond the mapping; a domain that is not this
    /// context's. EPERM: the design's gate refuses the pin; or file pages under `pass_context =
    /// deny` while another process holds the context too. Also every error of [`Task::register`].
    /// After an error nothing stays pinned.
    pub fn reg_mr(
        self: &Arc<Self>,
        task: &Task,
        pd: &Arc<Pd>,
        va: u64,
        len: u64,
        access: AccessFlags,
    ) -> Result<Arc<Mr>, Errno> {
        self.check_caller(task)?;
        access.check()?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        // Counted as a use first: from here on the domain cannot be destroyed.
        self.add(|objects| objects.pds.get_mut(&pd.number()).map(|uses| *uses += 1).ok_or(Errno::EINVAL))?;
        let registered = self.register_region(task, pd, va, len, access);
        if registered.is_err() {
            self.with_objects(|objects| objects.release_pd(pd.number()));
        }
        registered
    }

    /// Registers the memory that `mr` describes, with `mr` as its pin holder.
    pub(super) fn register_memory(&self, task: &Task, mr: &Arc<Mr>) -> Result<Registration, Errno> {
        let access = mr.access();
        let want = PinRequest { va: mr.va(), len: mr.len(), write: access.local_write, user: LongTermUser::Rdma };
        let memory = match access.on_demand {
            true => task.register_on_demand(want)?,
            false => task.register(want, Arc::clone(mr) as Arc<dyn PinHolder>)?,
        };
        match memory {
            // Refused before anything depends on it. Anonymous memory has no pins to release.
            Registration::Anonymous(range) if access.flush_persistent && !range.is_persistent() => Err(Errno::EINVAL),
            memory => Ok(memory),
        }
    }

    fn register_region(
        self: &Arc<Self>,
        task: &Task,
        pd: &Arc<Pd>,
        va: u64,
        len: u64,
        access: AccessFlags,
    ) -> Result<Arc<Mr>, Errno> {
        let key = self.nic().regions.reserve()?;
        let mr = Arc::new(Mr::new(key, pd.number(), access, va, len, Arc::clone(self) as Arc<dyn ObjectOwner>));
        let memory = self.register_memory(task, &mr).inspect_err(|_| self.nic().regions.cancel(key))?;
        race_point!("reg_mr: committed, not stored");
        let pins_file = memory.pins_file();
        if pins_file {
            self.file_pin_made();
        }
        self.nic().regions.install(key, RegisteredRegion { mr: Arc::clone(&mr), memory });
        race_point!("reg_mr: stored, not listed");
        let denied = pins_file && self.denies_file_pins(task);
        let listed = match denied {
            true => Err(Errno::EPERM),
            // An abort or close since the commit could not find the region: it is ended here.
            false => self.add(|objects| {
                objects.mrs.insert(key, Arc::clone(&mr));
                Ok(())
            }),
        };
        match listed {
            Ok(()) => {
                self.nic().counters.mrs_registered.add(1);
                self.revoke_if_marked(&mr);
                Ok(mr)
            }
            Err(errno) => {
                let mut deferred = Deferred::default();
                self.end_region(&mr, &mut deferred);
                task.run_deferred(deferred);
                Err(errno)
            }
        }
    }

    /// Ends a region's registration. Returns when the last copy in flight has ended and the pages
    /// are unpinned. `ibv_dereg_mr`.
    ///
    /// # Errors
    /// EBADF, EINVAL (not this context's, deregistered before, or an old handle of a changed
    /// region), EBUSY (windows are bound to it, or its registration is being changed).
    pub fn dereg_mr(&self, task: &Task, mr: &Arc<Mr>) -> Result<(), Errno> {
        self.check_caller(task)?;
        self.with_objects(|objects| {
            let listed = objects.mrs.get(&mr.key()).is_some_and(|listed| Arc::ptr_eq(listed, mr));
            if !listed {
                return Err(Errno::EINVAL);
            }
            if objects.changing.contains(&mr.key()) {
                return Err(Errno::EBUSY);
            }
            mr.refuse_windows()?;
            objects.mrs.remove(&mr.key());
            objects.release_pd(mr.pd());
            Ok(())
        })?;
        let mut deferred = Deferred::default();
        self.end_region(mr, &mut deferred);
        task.run_deferred(deferred);
        // A copy in flight always ends: it is inside no other region while it waits.
        let how = WaitFor::uninterruptible("copies in flight");
        let ready = || if mr.is_released() { Poll::Ready(()) } else { Poll::Pending };
        let _ends_only_by_its_condition = self.drained().wait(self.kernel().world(), task.waiter(), how, ready);
        Ok(())
    }

    /// A registration is complete. A revocation that came for its pins meanwhile is carried out
    /// now: the call succeeds, and the region is as any revoked one.
    pub(super) fn revoke_if_marked(&self, mr: &Arc<Mr>) {
        if mr.is_revoked() {
            self.take_region(self.kernel(), mr.key(), &**mr);
        }
    }

    /// Ends a region that is on no list any more, and gives up its key.
    pub(super) fn end_region(&self, mr: &Arc<Mr>, deferred: &mut Deferred) {
        self.nic().regions.close(mr.key(), deferred);
        self.nic().regions.forget(mr.key());
    }
}
