//! What the layers above do when an object of this layer ends.
//!
//! It owns the trait by which the last close of a file, the exit of a process and the eviction of
//! an inode reach leases, pins and blocks. Invariant: each method is called exactly once for each
//! end, with no lock held. Kernel counterpart: `locks_remove_file` in `__fput`, `exit_aio` in
//! `do_exit`, `evict_inode` of `struct super_operations`.

use emulator::sync::Arc;

use super::inode::Inode;
use super::kernel::Kernel;
use super::open_file::{AccessMode, Deferred};
use super::process::Process;
use super::task::Task;
use crate::base::numbers::DescriptionId;

/// See the module. The composition root ([`crate::kernel`]) implements it.
pub(crate) trait Lifecycle: Send + Sync {
    /// The last reference to an open file is gone. `closer` is the task whose `close` or `dup2`
    /// this is: the only kind that may wait.
    fn file_released(
        &self,
        kernel: &Arc<Kernel>,
        inode: &Arc<Inode>,
        file: (DescriptionId, AccessMode),
        closer: Option<&Task>,
    );

    /// A process exits; its mappings and descriptors are still there. Never waits.
    fn process_exits(&self, kernel: &Arc<Kernel>, process: &Process, deferred: &mut Deferred);

    /// An inode has neither a name nor an open file. Never fails and never waits.
    fn evict(&self, kernel: &Arc<Kernel>, inode: &Arc<Inode>);
}
