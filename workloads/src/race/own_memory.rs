//! What a process of the race has beside the shared files: a file without a name, and anonymous
//! memory.
//!
//! It owns how both are made. Invariant: no other actor finds the file, because its bytes belong to
//! the places that they are moved to.

use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::{Errno, Task};

use super::endpoint::LocalBuffer;
use super::job::DMA_BYTES_MAX;
use super::stats::ActorStats;

/// See the module.
pub(super) struct OwnMemory {
    /// The file: [`DMA_BYTES_MAX`] written bytes, so that no write to it extends it.
    pub(super) scratch: Fd,
    pub(super) buffer: LocalBuffer,
}

impl OwnMemory {
    /// Makes both for a process of actor number `actor`.
    pub(super) fn make(task: &Task, stats: &mut ActorStats, actor: usize) -> Result<OwnMemory, Errno> {
        let buffer = LocalBuffer::map(task)?;
        let name = format!("scratch-{actor}");
        let scratch = stats.call(task.open(&name, OpenFlags::create()))?;
        stats.call(task.unlink(&name))?;
        stats.call(task.write(scratch, 0, &vec![0; DMA_BYTES_MAX as usize]))?;
        Ok(OwnMemory { scratch, buffer })
    }
}
