//! Provisioning: a file of a given size with all blocks written, in a given number of runs of the
//! device.
//!
//! It owns the change that gives an empty file its blocks, for exports and measurements.
//! Invariants: such a file is written throughout and reads as zeros, without memory having been
//! taken for it; it has exactly the requested number of runs, or it is not made. Kernel
//! counterpart: `fallocate` with `FALLOC_FL_WRITE_ZEROES` (Linux 6.17), which leaves nothing
//! unwritten either.

use emulator::pin::PageRange;

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::layout_change::plan::{Change, ChangePlan, ClearedBlocks};
use crate::vfs::kernel::Kernel;

/// Gives an empty file its blocks.
pub(crate) struct Provision {
    pub(crate) blocks: u64,
    /// Into how many parts the new blocks are cut. The last part on the device becomes the first
    /// of the file, and so on, so that no two neighbours in the file are neighbours on the device.
    pub(crate) parts: u64,
}

impl Change for Provision {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        // Another task has written to the new file meanwhile.
        if layout.size() > 0 || layout.extents().next().is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(Some(ChangePlan { touches: BlockRange::ALL.into(), blocks: self.blocks, ..ChangePlan::default() }))
    }

    fn meets_file(&self) -> bool {
        false
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        for pages in ready.fresh {
            // The blocks belong to the volume, so the device has them. Poisoned blocks must be
            // zeroed to heal them; sound ones are only discarded.
            let _zeros = match kernel.device.poison().is_clean() {
                true => kernel.device.discard(*pages).map(|_| ()),
                false => kernel.device.zero(*pages),
            };
            kernel.caches.write_back_pages(&kernel.device, *pages);
        }
        let mut extents = Vec::new();
        let mut file_block = 0;
        for run in ready.fresh {
            // The parts of each run are placed in reverse order; with several runs the file has at
            // least one part more than asked for, and the caller rejects it.
            for part in parts_of(*run, self.parts).rev() {
                extents.push(Extent::new(file_block, part.start(), part.len(), ExtentState::Written));
                file_block += part.len();
            }
        }
        layout.with_mapped(&extents).with_size(self.blocks * BLOCK)
    }
}

/// A run cut into `parts` parts (or into single blocks, if it has fewer) of lengths as equal as
/// possible.
fn parts_of(run: PageRange, parts: u64) -> impl DoubleEndedIterator<Item = PageRange> {
    let parts = parts.clamp(1, run.len().max(1));
    let cut = move |n: u64| run.start() + (u128::from(run.len()) * u128::from(n) / u128::from(parts)) as u64;
    (0..parts as usize).map(move |n| {
        let (from, to) = (cut(n as u64), cut(n as u64 + 1));
        PageRange::new(from, to - from)
    })
}
