//! Calls on memory: mmap, munmap, loads and stores through mappings, the limit of locked memory.
//!
//! It owns the faults of simulated loads and stores. Invariant: a store allocates only where no
//! lease stands against it. Kernel counterpart: mm/mmap.c, `dax_iomap_fault`.

use emulator::sync::Arc;
use emulator::sync::atomic::Ordering;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::base::range::BlockRange;
use crate::base::units::{ANON_MAX, BLOCK, FILE_MAX, round_up};
use crate::extent_map::Layout;
use crate::extent_map::lookup::is_writable;
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::pinning::anon_range::AnonRange;
use crate::pinning::dma::{read_short, write_short};
use crate::pinning::gup::{pin_short, unpin_short};
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::inode::Inode;
use crate::vfs::open_file::{AccessMode, Deferred, Description};
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::task::Task;

impl Task {
    /// A load through a mapping.
    ///
    /// # Errors
    /// SIGSEGV (nothing mapped there), SIGBUS (beyond the end of the file, or a poisoned page).
    pub fn load(&self, va: u64, into: &mut [u8]) -> Result<(), Errno> {
        through_mapping(self, va, into.len(), false, |target| match target {
            Backing::Anon { memory, offset } => memory.read(*offset, into),
            Backing::File { description, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                load_file(self, inode, *offset, into)
            }
            Backing::Private { description, pages, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                load_private(self, inode, pages, *offset, into)
            }
        })
    }

    /// A store through a mapping. A page of a private mapping is copied first. Over a hole or a
    /// shared block of a shared mapping it must allocate, and does so only where no lease of
    /// another process stands against it, and its own leases allow a write. Its own breakable read
    /// lease is signalled and removed then.
    ///
    /// # Errors
    /// SIGSEGV (nothing mapped there, or read-only), SIGBUS (beyond the end of the file, the block
    /// can't be allocated, or it is poisoned).
    pub fn store(&self, va: u64, from: &[u8]) -> Result<(), Errno> {
        through_mapping(self, va, from.len(), true, |target| match target {
            Backing::Anon { memory, offset } => memory.write(*offset, from),
            Backing::File { description, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                let range = BlockRange::of_bytes(*offset, from.len() as u64);
                loop {
                    if range.end * BLOCK > inode.layout(Layout::size).next_multiple_of(BLOCK) {
                        return Err(Errno::SIGBUS);
                    }
                    fault_in(self, inode, range, AllocationCause::Fault).map_err(|_| Errno::SIGBUS)?;
                    clean_unwritten(self.kernel(), inode, range);
                    let pins = pin_short(self.kernel(), inode, range, Some(self))?;
                    let there = pins.pieces.iter().all(is_writable);
                    // Read together with the pieces: a truncate may have come since the fault.
                    let inside = range.end * BLOCK <= pins.size.next_multiple_of(BLOCK);
                    let stored = match inside {
                        true => there.then(|| write_short(self.kernel(), inode, &pins, *offset, from)),
                        false => Some(Err(Errno::SIGBUS)),
                    };
                    unpin_short(self.kernel(), pins);
                    if let Some(stored) = stored {
                        return stored;
                    }
                }
            }
            Backing::Private { description, pages, offset } => {
                let (inode, _) = description.file().ok_or(Errno::SIGSEGV)?;
                let copies = copy_private(self, inode, pages, *offset, from.len() as u64)?;
                AnonRange::of_copies(copies, offset % BLOCK, true).write(0, from)
            }
        })
    }

    /// Sets how many pages this process may lock by later registrations; locked pages stay so. A
    /// forked child inherits the limit. `setrlimit` with `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    /// None but the caller's death.
    pub fn set_memlock(&self, pages: u64) -> Result<(), Errno> {
        self.syscall(|| {
            self.process().memlock.store(pages, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Maps `len` bytes of the file open as `fd` from byte `offset` (page aligned) on, shared. The
    /// mapping holds the open file. Returns its address.
    ///
    /// # Errors
    /// EBADF, EACCES (access mode), EINVAL (length 0, alignment, not a file), ENOMEM.
    pub fn mmap(&self, fd: Fd, offset: u64, len: u64, write: bool) -> Result<u64, Errno> {
        map_file(
            self,
            fd,
            (offset, len),
            write,
            |access| access.write || !write,
            |description| Ok(Backing::File { description, offset }),
        )
    }

    /// As [`Task::mmap`], private: a page shows the file's until it is stored to, or pinned for
    /// long; then it is a copy, which no change of the file reaches but a truncate, which takes it
    /// away. A descriptor for reading is enough. `mmap` with `MAP_PRIVATE`.
    ///
    /// # Errors
    /// As [`Task::mmap`]; ENOMEM for more than [`crate::ANON_MAX`] bytes of memory to copy into.
    pub fn mmap_private(&self, fd: Fd, offset: u64, len: u64, write: bool) -> Result<u64, Errno> {
        map_file(
            self,
            fd,
            (offset, len),
            write,
            |_| true,
            |description| {
                let fits = round_up(len).is_some_and(|copies| {
                    let others = self.process().mm.lock().anonymous();
                    others.saturating_add(copies) <= ANON_MAX
                });
                match fits {
                    true => {
                        if let Some((inode, _)) = description.file() {
                            // ORDERING: SeqCst, before any page of the mapping is copied: a change
                            // that makes the file shorter and misses this store has published the
                            // new size before it, and a page is copied only after a look at the
                            // size. See `publication::publish_change`.
                            inode.mapped_private.store(true, Ordering::SeqCst);
                        }
                        Ok(Backing::Private { description, pages: Arc::new(PrivatePages::new(offset)), offset: 0 })
                    }
                    false => Err((Errno::ENOMEM, Backing::File { description, offset })),
                }
            },
        )
    }

    /// Maps `len` zero bytes of anonymous shared memory. Returns its address, and the memory for
    /// the program's own use.
    ///
    /// # Errors
    /// EINVAL (length 0), ENOMEM (more than [`crate::ANON_MAX`] bytes, too many mappings).
    pub fn mmap_anonymous(&self, len: u64) -> Result<(u64, Arc<AnonMemory>), Errno> {
        map_memory(self, len, AnonMemory::new)
    }

    /// Maps `len` bytes of a device-DAX device of its own, which has no file system: persistent
    /// memory that no layout change reaches. Returns its address, and the memory.
    ///
    /// # Errors
    /// As for [`Task::mmap_anonymous`].
    pub fn mmap_device_dax(&self, len: u64) -> Result<(u64, Arc<AnonMemory>), Errno> {
        map_memory(self, len, AnonMemory::device_dax)
    }

    /// Unmaps `va..va+len`. Never waits, whatever is pinned.
    ///
    /// # Errors
    /// EINVAL (alignment, length 0).
    pub fn munmap(&self, va: u64, len: u64) -> Result<(), Errno> {
        self.syscall(|| {
            let mappings = self.process.mm.lock().unmap(va, len)?;
            // ORDERING: SeqCst, after the mappings are gone and before this call returns: an
            // access that begins later sees it.
            self.process.unmaps.fetch_add(1, Ordering::SeqCst);
            let mapped_file = mappings.iter().any(|mapping| !matches!(mapping.backing, Backing::Anon { .. }));
            let mut deferred = Deferred::default();
            for mapping in mappings {
                mapping.put(&mut deferred);
            }
            self.run_deferred(deferred);
            if mapped_file {
                // Of an open file without descriptors, a mapping can be all that keeps a lease.
                self.kernel.helper_gone(self.pid());
            }
            Ok(())
        })
    }
}

/// Maps the range (offset, length) of the file open as `fd`; `allows` judges a descriptor that can
/// read.
fn map_file(
    task: &Task,
    fd: Fd,
    (offset, len): (u64, u64),
    write: bool,
    allows: impl FnOnce(AccessMode) -> bool,
    backing: impl FnOnce(Arc<Description>) -> Result<Backing, (Errno, Backing)>,
) -> Result<u64, Errno> {
    task.syscall(|| {
        if !offset.is_multiple_of(BLOCK) || offset.checked_add(len).is_none_or(|end| end > FILE_MAX) {
            return Err(Errno::EINVAL);
        }
        let description = task.process().fds.lock().get(fd)?.get();
        let allowed = description.file().map(|(_, access)| match access.is_open() {
            true if access.read && allows(access) => Ok(()),
            true => Err(Errno::EACCES),
            false => Err(Errno::EBADF),
        });
        let mapped = match allowed {
            Some(Ok(())) => backing(description).and_then(|backing| task.process().mm.lock().map(len, write, backing)),
            refused => {
                let errno = refused.and_then(Result::err).unwrap_or(Errno::EINVAL);
                Err((errno, Backing::File { description, offset }))
            }
        };
        mapped.map_err(|(errno, backing)| {
            let mut deferred = Deferred::default();
            backing.put(&mut deferred);
            task.run_deferred(deferred);
            errno
        })
    })
}

/// Loads from a file's pages.
fn load_file(task: &Task, inode: &Inode, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
    let range = BlockRange::of_bytes(offset, into.len() as u64);
    let pins = pin_short(task.kernel(), inode, range, Some(task))?;
    // The page that holds the last byte is there as a whole.
    let reachable = pins.size.next_multiple_of(BLOCK);
    let loaded = match offset + into.len() as u64 <= reachable {
        true => read_short(task.kernel(), inode, &pins, offset, into),
        false => Err(Errno::SIGBUS),
    };
    unpin_short(task.kernel(), pins);
    loaded
}

/// Loads from a private mapping, page by page: copies, and the file's pages where there is none.
fn load_private(
    task: &Task,
    inode: &Inode,
    pages: &PrivatePages,
    offset: u64,
    mut into: &mut [u8],
) -> Result<(), Errno> {
    let mut at = offset;
    while !into.is_empty() {
        let here = (BLOCK - at % BLOCK).min(into.len() as u64) as usize;
        let (head, tail) = into.split_at_mut(here);
        match pages.copy(at) {
            Some(copy) => copy.read(at % BLOCK, head)?,
            None => load_file(task, inode, pages.in_file(at), head)?,
        }
        (at, into) = (at + here as u64, tail);
    }
    Ok(())
}

/// The copies of the pages of a private mapping that hold `len` bytes from `offset` on; those that
/// are no copies are copied first. A hole is copied as zeros, and nothing is allocated in the file.
///
/// # Errors
/// SIGBUS beyond the end of the file; EIO.
pub(crate) fn copy_private(
    task: &Task,
    inode: &Inode,
    pages: &PrivatePages,
    offset: u64,
    len: u64,
) -> Result<Vec<Arc<AnonMemory>>, Errno> {
    let (mut copies, mut bytes) = (Vec::new(), vec![0; BLOCK as usize]);
    for page in BlockRange::of_bytes(offset, len).start..BlockRange::of_bytes(offset, len).end {
        let at = page * BLOCK;
        copies.push(match pages.copy(at) {
            Some(copy) => copy,
            None => {
                load_file(task, inode, pages.in_file(at), &mut bytes)?;
                pages.copy_in(at, &bytes, || pages.in_file(at) < inode.layout(Layout::size))?
            }
        });
    }
    Ok(copies)
}

/// Maps `len` bytes of memory without a file, which `make` makes.
fn map_memory(task: &Task, len: u64, make: impl FnOnce(usize) -> AnonMemory) -> Result<(u64, Arc<AnonMemory>), Errno> {
    task.syscall(|| {
        if task.process().mm.lock().anonymous().saturating_add(len) > ANON_MAX {
            return Err(Errno::ENOMEM);
        }
        let memory = Arc::new(make(round_up(len).unwrap_or(0) as usize));
        let backing = Backing::Anon { memory: Arc::clone(&memory), offset: 0 };
        let start = task.process().mm.lock().map(len, true, backing).map_err(|(errno, _)| errno)?;
        Ok((start, memory))
    })
}

fn through_mapping(
    task: &Task,
    va: u64,
    len: usize,
    write: bool,
    access: impl FnOnce(&Backing) -> Result<(), Errno>,
) -> Result<(), Errno> {
    task.syscall(|| {
        let target = task.process().target(va, len as u64, write).map_err(|_| Errno::SIGSEGV)?;
        let mut result = access(&target);
        if let Backing::File { .. } = target {
            let gone = task.kernel().device_there().is_err();
            result = if gone { Err(Errno::SIGBUS) } else { result };
        }
        let mut deferred = Deferred::default();
        target.put(&mut deferred);
        task.run_deferred(deferred);
        // A failure that would be an error of a system call is SIGBUS here.
        if result == Err(Errno::EIO) { Err(Errno::SIGBUS) } else { result }
    })
}
