//! Block-layout clients: granting a layout, and the client's I/O to the device.
//!
//! It owns the step that makes a layout true when it is granted. Invariant: a layout's extents are
//! what the file has as long as the layout is neither returned nor fenced. Kernel counterpart:
//! `nfsd4_block_proc_layoutget` (fs/nfsd/blocklayout.c).

use emulator::pin::gate::Gate;
use emulator::sync::atomic::AtomicBool;
use emulator::sync::{Arc, Mutex, OnceLock};

use crate::base::errno::Errno;
use crate::base::range::BlockRange;
use crate::base::units::BLOCK;
use crate::extent_map::lookup::pieces_in;
use crate::extent_map::{ExtentState, Layout, Piece};
use crate::holders::block_layout::{BlockLayout, BlockLayouts, IoMode};
use crate::layout_change::changes::allocate::{Allocate, clean_unwritten};
use crate::layout_change::copy::clean_file;
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::pinning::dma::{read_extent, write_extent};
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::task::Task;

impl BlockLayout {
    /// The client reads the device blocks of byte `offset` of the file; holes read as zeros.
    ///
    /// # Errors
    /// EFAULT outside the layout's range; EIO once it was returned or fenced, or if the device
    /// fails.
    pub fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.check(offset, into.len() as u64)?;
        self.access(kernel, || {
            into.fill(0);
            let len = into.len() as u64;
            self.parts(offset, len).try_for_each(|(extent, skip, part)| {
                read_extent(kernel, self.inode.ino(), extent, skip, self.read_point, &mut into[part])
            })
        })
    }

    /// The client writes the device blocks of byte `offset` of the file.
    ///
    /// # Errors
    /// EACCES for a read layout; else as [`BlockLayout::read`].
    pub fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if self.mode == IoMode::Read {
            return Err(Errno::EACCES);
        }
        self.check(offset, from.len() as u64)?;
        self.access(kernel, || {
            self.parts(offset, from.len() as u64).try_for_each(|(extent, skip, part)| {
                write_extent(kernel, self.inode.ino(), extent, skip, self.read_point, &from[part])
            })
        })
    }
}

pub(crate) fn grant_layout(
    task: &Task,
    file: &Arc<Description>,
    range: BlockRange,
    mode: IoMode,
) -> Result<Arc<BlockLayout>, Errno> {
    let granted = task.syscall(|| {
        let (inode, _) = file.file().ok_or(Errno::EINVAL)?;
        task.kernel().mount.check()?;
        loop {
            let outside = range.end > inode.layout(Layout::size).div_ceil(BLOCK);
            if range.is_empty() || outside {
                return Err(Errno::EINVAL);
            }
            if inode.turn.refuses_in(range) {
                return Err(Errno::EAGAIN);
            }
            if mode == IoMode::ReadWrite {
                let allocation =
                    Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true, by_fallocate: false };
                change_layout(task, inode, &allocation, Patience::Waits)?;
            }
            let turn = inode.turn.change(task.kernel(), task.waiter().id());
            let taken = turn.take(task, &range.into(), false);
            taken.map_err(|errno| if errno == Errno::ETXTBSY { Errno::EAGAIN } else { errno })?;
            // No block moves while the turn is held. Unwritten blocks are cleaned, so that the
            // extents say everything.
            clean_unwritten(task.kernel(), inode, range);
            // As `xfs_fs_map_blocks`: the client reads the medium.
            clean_file(task.kernel(), inode, BlockRange::ALL);
            let read_point = task.kernel().ledger.read_point();
            let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
            // The client may not write a hole or a block that other files share.
            let writable = |piece: &Piece| matches!(piece, Piece::Mapped(extent) if !extent.shared);
            let fit = mode == IoMode::Read || pieces.iter().all(writable);
            if range.end > size.div_ceil(BLOCK) || !fit {
                continue;
            }
            let mapped = |piece: Piece| match piece {
                Piece::Mapped(extent) => Some(extent),
                Piece::Hole { .. } => None,
            };
            let layout = Arc::new(BlockLayout {
                fd_holders: OnceLock::new(),
                pid: task.pid(),
                inode: Arc::clone(inode),
                range,
                mode,
                extents: pieces.into_iter().filter_map(mapped).collect(),
                read_point,
                gate: Gate::new(),
                recalled: Mutex::new(None),
                fenced: AtomicBool::new(false),
                file: Mutex::new(Some(Arc::clone(file))),
            });
            BlockLayouts::of(inode).held.lock().push(Arc::clone(&layout));
            return Ok(layout);
        }
    });
    granted.inspect_err(|_| {
        let mut deferred = Deferred::default();
        Arc::clone(file).put(&mut deferred);
        task.run_deferred(deferred);
    })
}
