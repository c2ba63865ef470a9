//! Media errors: pages of the device that go bad, the processes that are told, and the repair.
//!
//! It owns the way from a file, a mapping or a registration to its pages, and the signal.
//! Invariants: a process that asked for it ([`Process::set_early_kill`]) gets one SIGBUS for each
//! address at which it has a page mapped that goes bad; others meet the error at their next access.
//! What is healed reads as zeros. Kernel counterpart: `ndctl inject-error`, `ndctl clear-errors`,
//! `memory_failure`, `xfs_dax_notify_failure`, `mf_dax_kill_procs`, `collect_procs_fsdax`
//! (mm/memory-failure.c). The simulation has no page tables: a page counts as mapped wherever a
//! mapping shows it **\[chosen\]** (Linux: where it was touched).
//!
//! [`Process::set_early_kill`]: crate::vfs::process::Process::set_early_kill

use std::ops::Range;

use emulator::pin::PageRange;
use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::{Ino, Pid};
use crate::base::page_sets::{common, merge};
use crate::base::range::{BlockRange, BlockRanges};
use crate::base::units::BLOCK;
use crate::extent_map::lookup::{mapped, pages_of, parts_on};
use crate::holders::holder::Holder;
use crate::holders::list::pin_holders;
use crate::vfs::address_space::{Backing, Mapping};
use crate::vfs::inode::Inode;
use crate::vfs::kernel::Kernel;
use crate::vfs::open_file::Deferred;
use crate::vfs::signals::{SigInfo, Signal};
use crate::vfs::task::Task;

impl Kernel {
    /// Poisons the device page that holds this block of a file: an access to it fails, others are
    /// unaffected. Processes that asked for it and have it mapped get SIGBUS.
    ///
    /// # Errors
    /// ENOENT (no such inode), ENXIO (a hole).
    pub fn poison(self: &Arc<Self>, ino: Ino, file_block: u64) -> Result<(), Errno> {
        self.poison_range(ino, BlockRange::new(file_block, file_block.saturating_add(1)))
    }

    /// As [`Kernel::poison`], for a range; holes in it are left out.
    ///
    /// # Errors
    /// ENOENT (no such inode), ENXIO (no block there).
    pub fn poison_range(self: &Arc<Self>, ino: Ino, range: BlockRange) -> Result<(), Errno> {
        let inode = self.inodes.get(ino).ok_or(Errno::ENOENT)?;
        self.poison_blocks(&inode, range)
    }

    /// Poisons the pages that hold bytes `offset..offset+len` of the region with this key, whether
    /// they are still a file's or orphaned. `start` is the region's address.
    ///
    /// # Errors
    /// EINVAL (outside of the region); ENXIO: the region pins no page of a file.
    pub fn poison_region(self: &Arc<Self>, key: u32, start: u64, offset: u64, len: u64) -> Result<(), Errno> {
        let (holder, runs) = region_bytes(self, key, start, (offset, len))?;
        let bad = runs.into_iter().map(|bytes| pages_around(&bytes)).collect();
        self.pages_go_bad(holder.ino, bad);
        Ok(())
    }

    /// Heals the block; it reads as zeros then, because its contents are lost.
    ///
    /// # Errors
    /// ENOENT, ENXIO (a hole); EIO if the device is gone.
    pub fn clear_poison(&self, ino: Ino, file_block: u64) -> Result<(), Errno> {
        self.clear_poison_range(ino, BlockRange::new(file_block, file_block.saturating_add(1)))
    }

    /// Heals the bad pages under a range of a file; they read as zeros then. Others keep their
    /// contents.
    ///
    /// # Errors
    /// ENOENT, ENXIO (no block there); EIO if the device is gone.
    pub fn clear_poison_range(&self, ino: Ino, range: BlockRange) -> Result<(), Errno> {
        let inode = self.inodes.get(ino).ok_or(Errno::ENOENT)?;
        let pages = pages_in(&inode, range)?;
        for bad in common(&self.bad_pages(), &pages) {
            self.device.zero(bad).map_err(|_| Errno::EIO)?;
            self.caches.write_back_pages(&self.device, bad);
        }
        self.device_there()
    }

    /// The blocks of a file whose pages are bad.
    pub fn bad_blocks(&self, inode: &Inode) -> Vec<BlockRange> {
        let bad = self.bad_pages();
        let blocks: BlockRanges = inode.layout(|layout| {
            mapped(layout, BlockRange::ALL).flat_map(|extent| parts_on(extent, &bad)).map(|part| part.range()).collect()
        });
        blocks.iter().collect()
    }

    /// All bad pages of the device, sorted.
    fn bad_pages(&self) -> Vec<PageRange> {
        let mut bad = self.device.poison().pages().into_iter().map(|page| PageRange::new(page, 1)).collect();
        merge(&mut bad);
        bad
    }

    fn poison_blocks(self: &Arc<Self>, inode: &Inode, range: BlockRange) -> Result<(), Errno> {
        let pages = pages_in(inode, range)?;
        self.pages_go_bad(inode.ino(), pages);
        Ok(())
    }

    fn pages_go_bad(self: &Arc<Self>, ino: Ino, mut pages: Vec<PageRange>) {
        merge(&mut pages);
        for bad in &pages {
            self.device.poison().poison(*bad);
            self.trace("poisoned", 0, ino.0, Some(*bad));
        }
        let mut owed: Vec<(Pid, u64)> = Vec::new();
        for (pid, process) in self.processes.snapshot() {
            if process.signals.lock().early_kill {
                let at = process.mm.lock().all().flat_map(|mapping| places_of(mapping, &pages)).collect::<Vec<_>>();
                owed.extend(at.into_iter().map(|address| (pid, address)));
            }
        }
        for (pid, address) in owed {
            self.send_signal(pid, SigInfo { address: Some(address), ..SigInfo::of(Signal::Sigbus) });
        }
    }
}

impl Task {
    /// Poisons the device pages that `len` bytes at `va` of this process's memory show.
    ///
    /// # Errors
    /// EFAULT (not mapped), EINVAL (an empty range), ENXIO (no block there), EOPNOTSUPP (memory
    /// that is not of the volume's device, as the copies of a private mapping).
    pub fn poison_mapped(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            if len == 0 {
                return Err(Errno::EINVAL);
            }
            let target = self.process().target(va, len, false).map_err(|_| Errno::EFAULT)?;
            let done = match &target {
                Backing::File { description, offset } => {
                    let (inode, _) = description.file().ok_or(Errno::EFAULT)?;
                    self.kernel().poison_blocks(inode, BlockRange::of_bytes(*offset, len))
                }
                Backing::Device { offset } => {
                    let pages = BlockRange::of_bytes(*offset, len);
                    let ino = self.kernel().owner_of(pages.start).map_or(Ino(0), |(ino, _)| ino);
                    self.kernel().pages_go_bad(ino, vec![PageRange::new(pages.start, pages.len())]);
                    Ok(())
                }
                Backing::Private { .. } | Backing::Memory { .. } | Backing::Anon { .. } => Err(Errno::EOPNOTSUPP),
            };
            let mut deferred = Deferred::default();
            target.put(&mut deferred);
            self.run_deferred(deferred);
            done
        })
    }
}

/// The pages that hold these bytes of the device.
fn pages_around(bytes: &Range<u64>) -> PageRange {
    let first = bytes.start / BLOCK;
    PageRange::new(first, bytes.end.div_ceil(BLOCK) - first)
}

/// The bytes of the device that the region with this key has pinned under `offset..offset+len` of
/// it, whether they are still a file's or orphaned, and who holds them. `start` is the region's
/// address.
///
/// # Errors
/// EINVAL (nothing, or outside of the region); ENXIO: the region pins no page of a file.
pub(crate) fn region_bytes(
    kernel: &Kernel,
    key: u32,
    start: u64,
    (offset, len): (u64, u64),
) -> Result<(Arc<Holder>, Vec<Range<u64>>), Errno> {
    let all = kernel.all_inodes().into_iter().flat_map(|inode| pin_holders(&inode).all());
    let holder = all.into_iter().find(|holder| holder.object.describe().region == Some(key)).ok_or(Errno::ENXIO)?;
    let first = (start % BLOCK).checked_add(offset).ok_or(Errno::EINVAL)?;
    let end = first.checked_add(len).ok_or(Errno::EINVAL)?;
    let held: u64 = holder.pages.iter().map(|pages| pages.len() * BLOCK).sum();
    if len == 0 || end > held {
        return Err(Errno::EINVAL);
    }
    let mut at = 0;
    let mut runs = Vec::new();
    for pages in holder.pages.iter() {
        let next = at + pages.len() * BLOCK;
        let (from, to) = (first.clamp(at, next), end.clamp(at, next));
        if from < to {
            let base = pages.start() * BLOCK;
            runs.push(base + (from - at)..base + (to - at));
        }
        at = next;
    }
    Ok((holder, runs))
}

/// The device pages under a range of a file.
///
/// # Errors
/// ENXIO: there are none.
fn pages_in(inode: &Inode, range: BlockRange) -> Result<Vec<PageRange>, Errno> {
    let mut pages: Vec<PageRange> =
        inode.layout(|layout| mapped(layout, range).map(|extent| pages_of(&extent)).collect());
    merge(&mut pages);
    if pages.is_empty() { Err(Errno::ENXIO) } else { Ok(pages) }
}

/// The addresses at which a mapping shows one of `pages`, sorted; copies of a private mapping are
/// not pages of the device.
fn places_of(mapping: &Mapping, pages: &[PageRange]) -> Vec<u64> {
    let (description, first) = match &mapping.backing {
        Backing::File { description, offset } => (description, *offset),
        Backing::Private { description, pages, offset } => (description, pages.in_file(*offset)),
        Backing::Device { offset } => return places_on_device(mapping, *offset, pages),
        Backing::Memory { .. } | Backing::Anon { .. } => return Vec::new(),
    };
    let Some((inode, _)) = description.file() else { return Vec::new() };
    let range = BlockRange::of_bytes(first, mapping.len);
    let shown: Vec<u64> = inode.layout(|layout| {
        let parts = mapped(layout, range).flat_map(|extent| parts_on(extent, pages));
        parts.flat_map(|part| part.range().start..part.range().end).collect()
    });
    let copied = |at: &u64| match &mapping.backing {
        Backing::Private { pages, offset, .. } => pages.is_copied(offset + (at - mapping.start)),
        _ => false,
    };
    shown.into_iter().map(|block| mapping.start + (block * BLOCK - first)).filter(|at| !copied(at)).collect()
}

/// As [`places_of`], of a mapping of the device from byte `offset` on.
fn places_on_device(mapping: &Mapping, offset: u64, pages: &[PageRange]) -> Vec<u64> {
    let first = offset / BLOCK;
    let shown = first..first + mapping.len.div_ceil(BLOCK);
    let bad = pages.iter().flat_map(|bad| bad.start()..bad.end()).filter(|page| shown.contains(page));
    bad.map(|page| mapping.start + (page - first) * BLOCK).collect()
}
