//! What happens when a file, a process or an inode ends.
//!
//! It owns the order in which the layers act. Invariant: nothing here waits, but for the leases of
//! a file that `close` or `dup2` releases where the design says `wait-killable`. Kernel
//! counterpart: `__fput` (fs/file_table.c), `do_exit` (kernel/exit.c), `evict` (fs/inode.c).

use emulator::sync::Arc;

use crate::base::numbers::DescriptionId;
use crate::layout_change::eviction::evict;
use crate::leases::layout::close::release_leases;
use crate::leases::posix::close::release_posix_lease;
use crate::pinning::direct_io::end_io_in_flight;
use crate::syscalls::exec::RunningPrograms;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::lifecycle::{LastReference, Lifecycle};
use crate::vfs::open_file::{AccessMode, Deferred};
use crate::vfs::process::Process;

/// The layers of this crate.
pub(super) struct Layers;

impl Lifecycle for Layers {
    fn file_released(
        &self,
        kernel: &Arc<Kernel>,
        inode: &Arc<Inode>,
        (file, access): (DescriptionId, AccessMode),
        last: LastReference<'_>,
    ) {
        release_posix_lease(inode, file, access);
        release_leases(kernel, inode, file, last);
    }

    fn process_exits(&self, kernel: &Arc<Kernel>, process: &Process, deferred: &mut Deferred) {
        end_io_in_flight(kernel, process, deferred);
        process.attached::<RunningPrograms>().end_all(kernel);
    }

    fn evict(&self, kernel: &Arc<Kernel>, inode: &Arc<Inode>, last: LastReference<'_>) {
        evict(kernel, inode, last);
    }
}
