//! Block-layout clients: machines that know a file's extents and access the device by themselves (pNFS block and SCSI layouts,
//! NVMe-oF).
//!
//! It owns the kernel-internal layout lease that each of them holds, in every design, even one without user leases.
//! Invariants: a layout is granted and a layout change published under the inode's ticket, so every granted layout is either
//! true or being recalled; a change by anybody else goes on only when no layout is left in its range; a client that does not
//! return a recalled layout within two lease periods is *fenced*: its access is shut, its I/O in flight drains, the layout
//! goes. Nothing here pins a page: what keeps the blocks is that the change waits. Kernel counterpart:
//! fs/nfsd/nfs4layouts.c (`nfsd4_layout_lm_break`, `nfsd4_cb_layout_done`, `nfsd4_layout_lm_change`), fs/nfsd/blocklayout.c
//! (fencing by persistent reservations).

use std::any::Any;

use emulator::ledger::Stamp;
use emulator::pin::gate::Gate;
use emulator::race_point;
use emulator::runtime::clock::Nanos;
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, Mutex, OnceLock};
use emulator::wait::{WaitFor, WaitQueue};

use super::downcast;
use crate::errno::Errno;
use crate::extent_map::{Extent, ExtentState, Layout, Piece};
use crate::file_ops::change::Patience;
use crate::file_ops::fallocate::Allocate;
use crate::file_ops::plan::Work;
use crate::gup::pieces_in;
use crate::inode::Inode;
use crate::process::Pid;
use crate::process::custody::Custody;
use crate::process::description::{Access, Deferred, Description, OpenObject, Pass};
use crate::process::fd_table::Fd;
use crate::process::task::Task;
use crate::range::{BlockRange, BlockRanges};
use crate::waits::{Ended, Look, Need};
use crate::{BLOCK, Kernel};

/// What a client may do with a layout. Kernel: `IOMODE4_READ`, `IOMODE4_RW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Read its extents.
    Read,
    /// Read and write them; holes were allocated for it.
    ReadWrite,
}

/// A layout that a client holds; see the module.
#[derive(Debug)]
pub struct BlockLayout {
    /// Of its descriptor, once it has one.
    custody: OnceLock<Arc<Custody>>,
    pid: Pid,
    inode: Arc<Inode>,
    range: BlockRange,
    mode: IoMode,
    /// The written extents in the range, in file order.
    extents: Vec<Extent>,
    read_point: Stamp,
    /// Counts I/O in flight; shut once the layout was returned or fenced. Whoever leaves it last then ends the layout.
    gate: Gate,
    /// When its time is over; none until it is recalled.
    recalled: Mutex<Option<Recall>>,
    fenced: AtomicBool,
    /// Keeps the file open until no I/O is in flight any more: an unlinked file's blocks stay as long.
    file: Mutex<Option<Arc<Description>>>,
}

/// A recall: the notice that a client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// When it is fenced; never where leases are never taken by force (`lease_break_time = 0`).
    pub deadline: Option<Nanos>,
}

/// The layouts that clients hold on one inode.
#[derive(Debug, Default)]
pub(crate) struct BlockLayouts {
    held: Mutex<Vec<Arc<BlockLayout>>>,
    pub(crate) changed: WaitQueue,
}

/// A part of a change and the layouts that stand against it.
type InWay<'w> = (&'w Work<'w>, Vec<Arc<BlockLayout>>);

impl BlockLayouts {
    pub(crate) fn all(&self) -> Vec<Arc<BlockLayout>> {
        self.held.lock().clone()
    }

    fn overlapping(&self, ranges: &BlockRanges) -> Vec<Arc<BlockLayout>> {
        self.held.lock().iter().filter(|layout| ranges.overlaps(layout.range)).cloned().collect()
    }

    fn remove(&self, layout: &BlockLayout) {
        self.held.lock().retain(|held| !std::ptr::eq(Arc::as_ptr(held), layout));
        self.changed.wake_all();
    }
}

impl BlockLayout {
    /// The client's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The file blocks it is about.
    pub fn range(&self) -> BlockRange {
        self.range
    }

    /// What the client may do.
    pub fn mode(&self) -> IoMode {
        self.mode
    }

    /// The notice that it is recalled, if it is.
    pub fn recall(&self) -> Option<Recall> {
        *self.recalled.lock()
    }

    /// Whether it was fenced.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    pub(crate) fn custody(&self) -> Option<&Arc<Custody>> {
        self.custody.get()
    }

    /// Shuts it, and ends it if no I/O is in flight; else the last I/O does.
    fn shut(&self, deferred: &mut Deferred) {
        let (inside, _) = self.gate.close();
        if inside == 0 {
            self.end(deferred);
        }
    }

    /// What whoever leaves the shut gate last does, and may do again: takes it off the list and lets go of the file, whose
    /// blocks nobody can reach by it any more.
    fn end(&self, deferred: &mut Deferred) {
        self.inode.block_layouts.remove(self);
        let file = self.file.lock().take();
        if let Some(file) = file {
            file.put(deferred);
        }
    }

    fn access(&self, kernel: &Arc<Kernel>, body: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let (result, last) = match self.gate.enter() {
            Ok(()) => {
                race_point!("block layout: entered");
                let result = body();
                (result, self.gate.leave())
            }
            Err(shut) => (Err(Errno::EIO), shut.last),
        };
        if last {
            let mut deferred = Deferred::default();
            self.end(&mut deferred);
            kernel.run_deferred(deferred);
        }
        result
    }

    /// What of the bytes `offset..offset+len` of the file each extent holds: extent, bytes into it, and the part.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Extent, u64, std::ops::Range<usize>)> {
        self.extents.iter().filter_map(move |extent| {
            let (start, end) = (extent.file_block * BLOCK, extent.end() * BLOCK);
            let (from, to) = (offset.max(start), offset.saturating_add(len).min(end));
            (from < to).then(|| (extent, from - start, (from - offset) as usize..(to - offset) as usize))
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let inside = offset.checked_add(len).is_some_and(|_| self.range.contains(BlockRange::of_bytes(offset, len)));
        if inside { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// The client reads the device blocks of byte `offset` of the file; holes read as zeros.
    ///
    /// # Errors
    /// EFAULT outside the layout's range; EIO once it was returned or fenced, or if the device fails.
    pub fn read(&self, kernel: &Arc<Kernel>, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.check(offset, into.len() as u64)?;
        self.access(kernel, || {
            into.fill(0);
            let len = into.len() as u64;
            self.parts(offset, len).try_for_each(|(extent, skip, part)| {
                kernel.read_extent(self.inode.ino(), extent, skip, self.read_point, &mut into[part])
            })
        })
    }

    /// The client writes the device blocks of byte `offset` of the file.
    ///
    /// # Errors
    /// EACCES for a layout that is to be read; else as [`BlockLayout::read`].
    pub fn write(&self, kernel: &Arc<Kernel>, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if self.mode == IoMode::Read {
            return Err(Errno::EACCES);
        }
        self.check(offset, from.len() as u64)?;
        self.access(kernel, || {
            self.parts(offset, from.len() as u64).try_for_each(|(extent, skip, part)| {
                kernel.write_extent(self.inode.ino(), extent, skip, self.read_point, &from[part])
            })
        })
    }
}

impl OpenObject for BlockLayout {
    fn release(&self, _kernel: &Arc<Kernel>, deferred: &mut Deferred) {
        self.shut(deferred);
    }

    /// A client's session is its own.
    fn may_pass(&self, _kernel: &Kernel, _pass: Pass) -> bool {
        false
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Kernel {
    /// Takes a client's access away: what it has in flight drains, then its layout is gone.
    pub(crate) fn fence(self: &Arc<Self>, layout: &BlockLayout) {
        if !layout.fenced.swap(true, Ordering::SeqCst) {
            self.counters.layout_fences.add(1);
            self.trace("fenced", layout.pid.0.into(), layout.inode.ino().0, None);
        }
        let mut deferred = Deferred::default();
        layout.shut(&mut deferred);
        self.run_deferred(deferred);
    }

    /// Tells a client, once, that its layout is wanted back.
    fn recall(&self, layout: &BlockLayout) -> Recall {
        let mut recalled = layout.recalled.lock();
        *recalled.get_or_insert_with(|| {
            self.counters.layout_recalls.add(1);
            let period = self.options.lease_break_time;
            let deadline = (!period.is_zero()).then(|| self.world.now().after(period * 2));
            Recall { deadline }
        })
    }
}

impl Task {
    /// Gives a block-layout client the layout of `range` of the file open as `fd` (`LAYOUTGET`), in a descriptor of its own; the
    /// calling process stands for the client. For [`IoMode::ReadWrite`] holes are allocated as written zeros **\[chosen\]**
    /// and shared blocks copied first, which is a layout change by the client. What it adds itself later is in none of the
    /// layouts it holds already: it asks again.
    ///
    /// # Errors
    /// EBADF; EINVAL (not a file; an empty range, or one that reaches beyond the last block of the file **\[chosen\]**); EACCES
    /// (open mode); EAGAIN while a layout change of the file waits; EMFILE; ENODEV (the device is being removed); what an
    /// allocation says.
    pub fn layoutget(&self, fd: Fd, range: BlockRange, mode: IoMode) -> Result<(Fd, Arc<BlockLayout>), Errno> {
        let file = self.open_again(fd, |access: Access| access.read && (access.write || mode == IoMode::Read))?;
        let layout = self.grant(&file, range, mode)?;
        // Whoever removes the device meanwhile may have missed this one.
        let installed = self.kernel().mount.check().and_then(|()| {
            self.install_object(|custody| {
                let _first = layout.custody.set(custody);
                Arc::clone(&layout) as Arc<dyn OpenObject>
            })
        });
        match installed {
            Ok((fd, _)) => Ok((fd, layout)),
            Err(errno) => {
                // Released already, unless the process died first; twice does no harm.
                let mut deferred = Deferred::default();
                layout.release(self.kernel(), &mut deferred);
                self.kernel().run_deferred(deferred);
                Err(errno)
            }
        }
    }

    fn grant(&self, file: &Arc<Description>, range: BlockRange, mode: IoMode) -> Result<Arc<BlockLayout>, Errno> {
        let granted = self.syscall(|| {
            let (inode, _) = file.file().ok_or(Errno::EINVAL)?;
            self.kernel().mount.check()?;
            loop {
                let outside = range.end > inode.layout(Layout::size).div_ceil(BLOCK);
                if range.is_empty() || outside {
                    return Err(Errno::EINVAL);
                }
                if inode.ticket.waiting_on().is_some() {
                    return Err(Errno::EAGAIN);
                }
                if mode == IoMode::ReadWrite {
                    let allocation = Allocate { range, size_min: 0, state: ExtentState::Written, unshare: true };
                    self.change(inode, &allocation, Patience::Waits)?;
                }
                let ticket = inode.ticket.take_unless_waiting(self);
                let _ticket = ticket.map_err(|errno| if errno == Errno::ETXTBSY { Errno::EAGAIN } else { errno })?;
                // With the ticket no block moves; what is unwritten is cleaned, so that its extents say all.
                self.kernel().clean_unwritten(inode, range);
                let read_point = self.kernel().ledger.read_point();
                let (pieces, size) = inode.layout(|layout| (pieces_in(layout, range), layout.size()));
                // A hole, or a block that other files share, is not the client's to write.
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
                    custody: OnceLock::new(),
                    pid: self.pid(),
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
                inode.block_layouts.held.lock().push(Arc::clone(&layout));
                return Ok(layout);
            }
        });
        granted.inspect_err(|_| {
            let mut deferred = Deferred::default();
            Arc::clone(file).put(&mut deferred);
            self.kernel().run_deferred(deferred);
        })
    }

    /// Recalls the layouts that others hold where a change does something, waits until they are returned, and fences those
    /// whose time is over. False if anything was in the way: all is to be judged again.
    ///
    /// # Errors
    /// ETXTBSY for a change that never waits, also where it would meet its own; EINTR; EDEADLK.
    pub(crate) fn recall_layouts(&self, works: &[Work<'_>], patience: Patience) -> Result<bool, Errno> {
        let in_way = self.layouts_in_way(works, false);
        if patience == Patience::Never && !(in_way.is_empty() && self.layouts_in_way(works, true).is_empty()) {
            return Err(Errno::ETXTBSY);
        }
        self.until_gone(&in_way, |layout| {
            let _told = self.kernel().recall(layout);
        })
    }

    /// A client that takes blocks away itself knows of it: its own layouts there end at once **\[chosen\]**, once nothing
    /// refuses the change any more; those where it only adds blocks stay. False if I/O had to be waited for, or could have
    /// been: all is to be judged again.
    ///
    /// # Errors
    /// EINTR.
    pub(crate) fn end_own_layouts(&self, works: &[Work<'_>]) -> Result<bool, Errno> {
        self.until_gone(&self.layouts_in_way(works, true), |layout| {
            let mut deferred = Deferred::default();
            layout.shut(&mut deferred);
            self.kernel().run_deferred(deferred);
        })
    }

    /// The layouts that stand against a change: those of others, or its own.
    fn layouts_in_way<'w>(&self, works: &'w [Work<'w>], own: bool) -> Vec<InWay<'w>> {
        let concerned = works.iter().filter(|work| !(own && work.only_adds()));
        let in_way = concerned.map(|work| {
            let mut layouts = work.inode.block_layouts.overlapping(&work.concerns_clients());
            layouts.retain(|layout| (layout.pid == self.pid()) == own);
            (work, layouts)
        });
        in_way.filter(|(_, layouts)| !layouts.is_empty()).collect()
    }

    /// Does `demand` to each of these layouts, and waits until they are gone. True if there was none.
    fn until_gone(&self, in_way: &[InWay<'_>], demand: impl Fn(&BlockLayout)) -> Result<bool, Errno> {
        for (work, layouts) in in_way {
            work.inode.set_waiting(work.ticket, &work.concerns_clients(), &[]);
            layouts.iter().for_each(|layout| demand(layout));
        }
        for (work, layouts) in in_way {
            self.wait_for_layouts(work.inode, layouts)?;
        }
        Ok(in_way.is_empty())
    }

    /// Waits until none of `layouts` is left, fencing those of others whose time is over.
    fn wait_for_layouts(&self, inode: &Inode, layouts: &[Arc<BlockLayout>]) -> Result<(), Errno> {
        let kernel = self.kernel();
        loop {
            let now = kernel.world.now();
            let mut next = None;
            for layout in layouts.iter().filter(|layout| layout.pid != self.pid()) {
                match kernel.recall(layout).deadline {
                    Some(deadline) if deadline <= now => kernel.fence(layout),
                    deadline => next = deadline.into_iter().chain(next).min(),
                }
            }
            let how = WaitFor::interruptible("block layout recall").until(next);
            let outcome = self.block_on(&inode.block_layouts.changed, how, || {
                let held = inode.block_layouts.held.lock();
                let left = || layouts.iter().filter(|layout| held.iter().any(|other| Arc::ptr_eq(other, layout)));
                if left().next().is_none() {
                    return Look::Ready(());
                }
                // Of a shut one the I/O in flight is left, which ends by itself: nobody is needed for it.
                let open = left().filter(|layout| !layout.gate.is_closed());
                Look::Blocked(open.map(|layout| Need::any_of(vec![layout.pid])).collect())
            });
            match outcome {
                Ok(()) => return Ok(()),
                Err(Ended::TimedOut) => {}
                Err(Ended::Interrupted) => return Err(Errno::EINTR),
                Err(Ended::Deadlock) => return Err(Errno::EDEADLK),
            }
        }
    }

    /// Returns a layout (`LAYOUTRETURN`): [`Task::close`] of its descriptor.
    ///
    /// # Errors
    /// EBADF, EINVAL (not a layout).
    pub fn layoutreturn(&self, fd: Fd) -> Result<(), Errno> {
        let _is_one: Arc<BlockLayout> = downcast(self.object(fd)?)?;
        self.close(fd)
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
