//! Locked memory: pages charged to the process that registered long-term pins.
//!
//! It owns `RLIMIT_MEMLOCK`. Invariant: a charge is given back exactly once, at the release of the
//! pins, also after the holder was passed to another process. Kernel counterpart:
//! `account_locked_vm` (mm/util.c), `mm->pinned_vm`.

use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::vfs::kernel::Kernel;
use crate::vfs::process::Process;

pub(crate) fn charge_locked_memory(_kernel: &Kernel, process: &Process, pages: u64) -> Result<(), Errno> {
    let within = |locked: u64| locked.checked_add(pages).filter(|locked| *locked <= process.memlock());
    let charged = process.locked_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
    charged.map(|_| ()).map_err(|_| Errno::ENOMEM)
}

/// Whether a charge of `pages` would be within the limit now.
pub(crate) fn may_lock(process: &Process, pages: u64) -> bool {
    process.locked_pages().checked_add(pages).is_some_and(|locked| locked <= process.memlock())
}

pub(crate) fn uncharge_locked_memory(_kernel: &Kernel, process: &Process, pages: u64) {
    process.locked_pages.fetch_sub(pages, Ordering::Relaxed);
}
