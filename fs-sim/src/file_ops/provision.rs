//! Files made to measure: so many bytes, all of them there, in so many runs of the device.
//!
//! It owns the making of a file that is to be exported, or measured with. Invariants: such a file is written as a whole and
//! reads as zeros, without memory having been taken for it; it has exactly as many runs as were asked for, or it is not made.
//! Kernel counterpart: `fallocate` with `FALLOC_FL_WRITE_ZEROES` (Linux 6.17), which likewise leaves nothing unwritten.

use emulator::pin::PageRange;

use super::change::{Change, Patience, Plan, Ready};
use super::open::Flags;
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout};
use crate::process::task::Task;
use crate::range::BlockRange;
use crate::{BLOCK, FILE_MAX, Kernel};

/// Gives an empty file its blocks.
struct Provision {
    blocks: u64,
    /// Into how many parts the new blocks are cut. The last part on the device is the first of the file, and so on, so that no
    /// two neighbours in the file are neighbours on the device.
    parts: u64,
}

impl Change for Provision {
    fn plan(&self, layout: &Layout) -> Result<Option<Plan>, Errno> {
        // Somebody was faster with what was just made.
        if layout.size() > 0 || layout.extents().next().is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(Some(Plan { touches: BlockRange::ALL.into(), blocks: self.blocks, ..Plan::default() }))
    }

    fn apply(&self, kernel: &Kernel, layout: &Layout, ready: &Ready<'_>) -> Layout {
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

impl Kernel {
    /// In how many runs the file called `name` lies on the device, however many extents its map has for them: where both the file
    /// and the device go on it is one.
    ///
    /// # Errors
    /// ENOENT.
    pub fn runs_of(&self, name: &str) -> Result<u64, Errno> {
        Ok(self.named(name).ok_or(Errno::ENOENT)?.layout(runs))
    }
}

fn runs(layout: &Layout) -> u64 {
    let mut end = None;
    let begins = layout.extents().filter(|extent| {
        let goes_on = end == Some((extent.file_block, extent.block));
        end = Some((extent.end(), extent.block + u64::from(extent.len)));
        !goes_on
    });
    begins.count() as u64
}

impl Task {
    /// Makes a file called `name` of `bytes` bytes, all allocated, written and zero. In exactly `runs` runs of the device if
    /// that is given, else in as few as there are to be had.
    ///
    /// # Errors
    /// EINVAL (`bytes` not a positive multiple of 4 KiB, `runs` 0 or more than there are blocks), EFBIG; what an exclusive open
    /// says ([`Task::open`]); ENOSPC: too few free blocks, or, with `runs`, no run of free blocks as long as the file. Refused,
    /// there is no file.
    pub fn provision(&self, name: &str, bytes: u64, runs: Option<u64>) -> Result<(), Errno> {
        let blocks = bytes / BLOCK;
        if bytes > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) || runs.is_some_and(|runs| runs == 0 || runs > blocks) {
            return Err(Errno::EINVAL);
        }
        let fd = self.open(name, Flags { exclusive: true, ..Flags::create() })?;
        let made = self.with_file(fd, |_, inode, _| {
            let change = Provision { blocks, parts: runs.unwrap_or(1) };
            self.change(inode, &change, Patience::Waits)?;
            let found = inode.layout(self::runs);
            if runs.is_some_and(|runs| runs != found) { Err(Errno::ENOSPC) } else { Ok(()) }
        });
        self.close(fd)?;
        // Somebody else may have removed it already.
        made.inspect_err(|_| {
            let _gone = self.unlink(name);
        })
    }
}
