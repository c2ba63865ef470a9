//! What the layers above do when an object of this layer ends.
//!
//! It owns the trait by which the last close of a file, the exit of a process and the eviction of
//! an inode reach leases, pins and blocks, and the type that says in whose call that happens.
//! Invariant: each method is called exactly once for each end, with no lock held. Kernel
//! counterpart: `locks_remove_file` in `__fput`, `exit_aio` in `do_exit`, `evict_inode` of `struct
//! super_operations`.

use emulator::sync::Arc;

use super::inode::Inode;
use super::kernel::Kernel;
use super::open_file::{AccessMode, Deferred};
use super::process::Process;
use super::task::Task;
use crate::base::numbers::DescriptionId;

/// In whose call the last reference to a file goes.
#[derive(Clone, Copy)]
pub(crate) enum LastReference<'t> {
    /// A `close` or `dup2` of this task: the only calls that wait where the design says
    /// `wait-killable`.
    Close(&'t Task),
    /// Another call of this task.
    Call(&'t Task),
    /// None of a task: the exit of a process, or the kernel's own work. It never waits.
    Kernel,
}

impl<'t> LastReference<'t> {
    /// The task that closes it.
    pub(crate) fn closer(self) -> Option<&'t Task> {
        match self {
            LastReference::Close(task) => Some(task),
            LastReference::Call(_) | LastReference::Kernel => None,
        }
    }

    /// The task in whose call it is.
    pub(crate) fn task(self) -> Option<&'t Task> {
        match self {
            LastReference::Close(task) | LastReference::Call(task) => Some(task),
            LastReference::Kernel => None,
        }
    }
}

/// See the module. The composition root ([`crate::kernel`]) implements it.
pub(crate) trait Lifecycle: Send + Sync {
    /// The last reference to an open file is gone.
    fn file_released(
        &self,
        kernel: &Arc<Kernel>,
        inode: &Arc<Inode>,
        file: (DescriptionId, AccessMode),
        last: LastReference<'_>,
    );

    /// A process exits; its mappings and descriptors are still there. Never waits.
    fn process_exits(&self, kernel: &Arc<Kernel>, process: &Process, deferred: &mut Deferred);

    /// An inode has neither a name nor an open file. Never fails; waits only in the call of a task,
    /// where the design says so (`evict_while_pinned`).
    fn evict(&self, kernel: &Arc<Kernel>, inode: &Arc<Inode>, last: LastReference<'_>);
}
