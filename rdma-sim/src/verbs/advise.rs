//! Advice about regions: translates on-demand memory before it is used.
//!
//! It owns nothing. Invariant: advice pins nothing and changes no right; an access after it passes
//! the same checks as without it. Kernel counterpart: `ib_uverbs_advise_mr`, `ibv_advise_mr(3)`.

use emulator::sync::Arc;
use fs_sim::pinning::registration::Registration;
use fs_sim::{Errno, Task};

use super::context::Context;
use super::pd::Pd;
use crate::memory::access::Sge;

impl Context {
    /// Translates the bytes of `sge`, so that the next access need not. `write`: for accesses that
    /// write. `IBV_ADVISE_MR_ADVICE_PREFETCH` and `_WRITE`, with `IBV_ADVISE_MR_FLAG_FLUSH`:
    /// complete on return.
    ///
    /// # Errors
    /// EBADF; EINVAL (not a domain of this context, or not an on-demand region of the domain);
    /// EFAULT (outside the region, against its rights, or cannot be faulted in now); EIO (the
    /// device failed).
    pub fn prefetch(&self, task: &Task, pd: &Arc<Pd>, sge: Sge, write: bool) -> Result<(), Errno> {
        self.check_caller(task)?;
        if pd.context() != self.number() {
            return Err(Errno::EINVAL);
        }
        let entry = self.nic().regions.enter(sge.lkey).map_err(|_| Errno::EFAULT)?;
        let mr = &entry.mr;
        if mr.pd() != pd.number() {
            return Err(Errno::EINVAL);
        }
        let Registration::OnDemand(range) = &entry.memory else { return Err(Errno::EINVAL) };
        let offset = sge.addr.checked_sub(mr.va()).ok_or(Errno::EFAULT)?;
        if write && !mr.access().local_write {
            return Err(Errno::EFAULT);
        }
        range.prefetch(self.kernel(), offset, u64::from(sge.len), write)
    }
}
