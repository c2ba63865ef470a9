//! Files made to measure: so many bytes, all of them there, in so many runs of the device.
//!
//! It owns the making of a file that is to be exported, or measured with. Invariants: such a file is written as a whole and
//! reads as zeros, without memory having been taken for it; it has exactly as many runs as were asked for, or it is not made.
//! Kernel counterpart: `fallocate` with `FALLOC_FL_WRITE_ZEROES` (Linux 6.17), which likewise leaves nothing unwritten.

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
    /// Into how many parts the new blocks are cut. The last part on the device is the first of the file, and so on, so that no
    /// two neighbours in the file are neighbours on the device.
    pub(crate) parts: u64,
}

impl Change for Provision {
    fn plan(&self, layout: &Layout) -> Result<Option<ChangePlan>, Errno> {
        // Somebody was faster with what was just made.
        if layout.size() > 0 || layout.extents().next().is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(Some(ChangePlan { touches: BlockRange::ALL.into(), blocks: self.blocks, ..ChangePlan::default() }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &ClearedBlocks<'_>) -> Layout {
        for pages in ready.fresh {
            // The blocks are the volume's own: the device has them. What was poisoned must be healed; else nothing is written.
            let _zeros = match kernel.device.poison().is_clean() {
                true => kernel.device.discard(*pages).map(|_| ()),
                false => kernel.device.zero(*pages),
            };
        }
        let mut extents = Vec::new();
        let mut file_block = 0;
        for run in ready.fresh {
            // With more than one run (and so more than one part too many) the parts of each are turned round by themselves.
            for part in parts_of(*run, self.parts).rev() {
                extents.push(Extent::new(file_block, part.start(), part.len(), ExtentState::Written));
                file_block += part.len();
            }
        }
        layout.with_mapped(&extents).with_size(self.blocks * BLOCK)
    }
}

/// A run cut into `parts` parts (or single blocks, if there are fewer) of as equal lengths as can be.
fn parts_of(run: PageRange, parts: u64) -> impl DoubleEndedIterator<Item = PageRange> {
    let parts = parts.clamp(1, run.len().max(1));
    let cut = move |n: u64| run.start() + (u128::from(run.len()) * u128::from(n) / u128::from(parts)) as u64;
    (0..parts as usize).map(move |n| {
        let (from, to) = (cut(n as u64), cut(n as u64 + 1));
        PageRange::new(from, to - from)
    })
}
