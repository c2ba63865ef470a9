//! Power cuts, and recovery by a kernel that mounts what the last one left.
//!
//! It owns the way from [`Kernel::power_cut`] to [`Kernel::recover`]. Invariants: nothing of the
//! old machine continues (its processes are dead, its accesses fail); the new one has every file
//! as of its last committed change, with the bytes that the CPU caches (`volume::caches`) had
//! written back; blocks that were orphaned, or about to be freed, are freed
//! exactly once; an inode without a name is gone. Kernel counterpart: `xlog_recover`
//! (fs/xfs/xfs_log_recover.c) with its unlinked lists (`xlog_recover_process_iunlinks`).

use std::collections::{BTreeMap, BTreeSet};

use emulator::World;
use emulator::device::persistence::DurableImage;
use emulator::device::{AccessError, Device, OpenError};
use emulator::pin::PageRange;
use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::numbers::Ino;
use crate::base::page_sets::{merge, without};
use crate::extent_map::lookup::pages_of;
use crate::extent_map::{ExtentState, Layout};
use crate::layout_change::departure::reap_orphans;
use crate::layout_change::eviction::evict;
use crate::vfs::inode::Inode;
use crate::vfs::kernel::{Kernel, KernelConfig};
use crate::vfs::lifecycle::LastReference;
use crate::volume::PageList;
use crate::volume::caches::CpuCaches;

/// What a power cut leaves: the device, and what the journal says.
#[derive(Debug)]
pub struct Durable {
    device: Device,
    /// The bytes that survive, where not all do.
    durable: Option<Arc<DurableImage>>,
    names: BTreeMap<String, DurableName>,
    layouts: BTreeMap<Ino, Layout>,
    pending: Vec<PageRange>,
}

/// A directory entry.
#[derive(Clone, Copy, Debug)]
struct DurableName {
    ino: Ino,
    uid: u32,
    mode: u32,
}

impl Durable {
    /// The blocks that had left their files and were not free yet.
    pub fn free_pending(&self) -> u64 {
        self.pending.iter().map(|pages| pages.len()).sum()
    }
}

/// The result of a recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Names found.
    pub names: u64,
    /// Blocks freed that had left their files before the cut.
    pub freed_pending: u64,
    /// Inodes without a name that were removed, and their blocks freed.
    pub removed_inodes: u64,
    /// 64-byte lines of files' blocks that went back to the version last written back, because
    /// later stores were in the CPU caches. None on a platform that saves those.
    pub lost_lines: Option<u64>,
}

impl Kernel {
    /// Cuts the power. Everything volatile is lost: processes die at once, and with them leases,
    /// pins and holders; from now on every access of this kernel to the device fails. A copy that
    /// another thread of the program is making at this moment may still land: a caller that wants
    /// none joins those threads before [`Kernel::recover`].
    ///
    /// # Errors
    /// The device could not be mapped again; then nothing was cut.
    pub fn power_cut(self: &Arc<Self>) -> Result<Durable, OpenError> {
        let device = self.device.map_again()?;
        let contents = self.journal.cut(|| self.device.poison().lose_device());
        self.mount.lose();
        // After the layouts: a file created since has a name and no layout, and is empty.
        let names = self.names.lock().clone();
        let named = |inode: &Inode| DurableName { ino: inode.ino(), uid: inode.uid(), mode: inode.mode() };
        let names = names.into_iter().map(|(name, inode)| (name, named(&inode))).collect();
        let durable = self.caches.durable();
        self.trace("power cut", 0, 0, None);
        for (_, process) in self.processes.snapshot() {
            self.shut_down(&process);
        }
        Ok(Durable { device, durable, names, layouts: contents.layouts, pending: contents.pending })
    }

    /// A kernel that mounts what a power cut has left, under any design.
    ///
    /// # Errors
    /// The pin words or the ledger could not be mapped; the device could not be given its surviving
    /// bytes.
    pub fn recover(
        world: Arc<World>,
        durable: Durable,
        config: KernelConfig,
    ) -> std::io::Result<(Arc<Kernel>, Recovered)> {
        let Durable { device, durable, names, layouts, pending } = durable;
        let lost_lines = durable.as_ref().map(|durable| lose_lines(durable, &device, &layouts, &names)).transpose()?;
        let kernel = Kernel::boot(world, device, CpuCaches::over(durable), config)?;
        let mut recovered = Recovered { names: names.len() as u64, lost_lines, ..Recovered::default() };
        let mut links: BTreeMap<Ino, (DurableName, u32)> = BTreeMap::new();
        for name in names.values() {
            links.entry(name.ino).or_insert((*name, 0)).1 += 1;
        }
        let empty: Vec<Ino> = links.keys().copied().filter(|ino| !layouts.contains_key(ino)).collect();
        let all = empty.into_iter().map(|ino| (ino, Layout::default())).chain(layouts);
        let mut inodes: BTreeMap<Ino, Arc<Inode>> = BTreeMap::new();
        let mut claimed = PageList::default();
        for (ino, layout) in all {
            claim_layout(&kernel, &layout, &mut claimed);
            inodes.insert(ino, mount_inode(&kernel, ino, layout, links.get(&ino)));
        }
        let last = inodes.keys().next_back().map_or(0, |ino| ino.0);
        kernel.next_ino.store(last + 1, Ordering::Relaxed);
        let bound = names.into_iter().filter_map(|(name, at)| Some((name, Arc::clone(inodes.get(&at.ino)?))));
        kernel.names.lock().extend(bound);
        for pages in pending {
            recovered.freed_pending += pages.len();
            claim_pages(&kernel, pages);
            // As if the last pin had just gone.
            kernel.orphans.insert(pages);
            reap_orphans(&kernel, pages);
        }
        for (ino, inode) in inodes.iter().filter(|(ino, _)| !links.contains_key(ino)) {
            recovered.removed_inodes += 1;
            kernel.trace("removed by recovery", 0, ino.0, None);
            evict(&kernel, inode, LastReference::Kernel);
        }
        Ok((kernel, recovered))
    }
}

/// Gives `device` back the bytes that survive. Returns how many lines of written blocks of files
/// with a name have changed by that.
fn lose_lines(
    durable: &DurableImage,
    device: &Device,
    layouts: &BTreeMap<Ino, Layout>,
    names: &BTreeMap<String, DurableName>,
) -> std::io::Result<u64> {
    let named: BTreeSet<Ino> = names.values().map(|name| name.ino).collect();
    let kept = layouts.iter().filter(|(ino, _)| named.contains(ino)).flat_map(|(_, layout)| layout.extents());
    let written = kept.filter(|extent| extent.state == ExtentState::Written);
    let mut pages: Vec<PageRange> = written.map(|extent| pages_of(&extent)).collect();
    merge(&mut pages);
    let lost = pages.into_iter().map(|pages| durable.unflushed(device, pages)).sum::<Result<u64, AccessError>>();
    let lost = lost.map_err(std::io::Error::other)?;
    durable.restore(device).map_err(std::io::Error::other)?;
    Ok(lost)
}

fn mount_inode(kernel: &Kernel, ino: Ino, layout: Layout, name: Option<&(DurableName, u32)>) -> Arc<Inode> {
    let inode = Arc::new(Inode::new(ino, name.map_or(0, |(name, _)| name.uid)));
    if let Some((name, _)) = name {
        inode.set_mode(name.mode);
    }
    {
        let mut life = inode.life.lock();
        life.links = name.map_or(0, |(_, links)| *links);
        life.evicted = name.is_none();
    }
    inode.publish(layout);
    kernel.journal.commit([inode.to_commit()]);
    kernel.inodes.insert(ino, Arc::clone(&inode));
    inode
}

/// Marks the blocks of a layout as allocated. Blocks that are already `claimed`, by an earlier
/// layout or another part of this one, must be marked as shared, and are counted so.
fn claim_layout(kernel: &Kernel, layout: &Layout, claimed: &mut PageList) {
    for extent in layout.extents() {
        let pages = pages_of(&extent);
        let again = claimed.take(pages);
        for pages in &again {
            match extent.shared {
                true => kernel.shares.share(*pages),
                false => kernel.violated(format!("invariant 4: recovery found {pages} in two layouts, not shared")),
            }
        }
        without(&[pages], &again).into_iter().for_each(|pages| claim_pages(kernel, pages));
        claimed.put(pages);
    }
}

/// Marks blocks as allocated that the journal names.
fn claim_pages(kernel: &Kernel, pages: PageRange) {
    if !kernel.allocator.claim(pages) {
        kernel.violated(format!("invariant 4: recovery found {pages} claimed twice, or outside the device"));
    }
}
