//! TODO

use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::vfs::kernel::Kernel;
use crate::vfs::process::Process;

pub(crate) fn charge_locked_memory(_kernel: &Kernel, process: &Process, pages: u64) -> Result<(), Errno> {
    let within = |locked: u64| locked.checked_add(pages).filter(|locked| *locked <= process.memlock());
    let charged = process.locked_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
    charged.map(|_| ()).map_err(|_| Errno::ENOMEM)
}

pub(crate) fn uncharge_locked_memory(_kernel: &Kernel, process: &Process, pages: u64) {
    process.locked_pages.fetch_sub(pages, Ordering::Relaxed);
}
