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
use crate::extent_map::lookup::{is_writable, pieces_in};
use crate::extent_map::{Layout, Piece};
use crate::layout_change::changes::allocate::{AllocationCause, clean_unwritten, fault_in};
use crate::pinning::dma::{read_short, store_short, write_short};
use crate::pinning::gup::{is_run, pin_short, unpin_short};
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::inode::Inode;
use crate::vfs::lifecycle::LastReference;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::names::{drop_open, lookup};
use crate::vfs::open_file::{AccessMode, Deferred, Description};
use crate::vfs::page_run::PageRun;
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
            Backing::Memory { file, offset } => file.fault(*offset, into.len() as u64)?.read(0, into),
            Backing::Device { offset } => self.kernel().device.read(*offset, into).map_err(|_| Errno::SIGBUS),
            Backing::Private { description, pages, offset } => load_private(self, description, pages, *offset, into),
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
                        true => there.then(|| {
                            let _storing = store_short(self.kernel(), &pins);
                            write_short(self.kernel(), inode, &pins, *offset, from)
                        }),
                        false => Some(Err(Errno::SIGBUS)),
                    };
                    unpin_short(self.kernel(), pins);
                    if let Some(stored) = stored {
                        return stored;
                    }
                }
            }
            Backing::Memory { file, offset } => file.fault(*offset, from.len() as u64)?.write(0, from),
            Backing::Device { offset } => self.kernel().device.write(*offset, from).map_err(|_| Errno::SIGBUS),
            Backing::Private { description, pages, offset } => {
                copy_private(self, description, pages, *offset, from.len() as u64)?.write(0, from)
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
            |description| Ok(shared(self, description, offset)),
        )
    }

    /// As [`Task::mmap`], with `MAP_SYNC`: what a store needs of the file system is durable before
    /// the store, as in every mapping of the volume's files here. `mmap` with
    /// `MAP_SHARED_VALIDATE`.
    ///
    /// # Errors
    /// As [`Task::mmap`]; EOPNOTSUPP (the file is not DAX).
    pub fn mmap_sync(&self, fd: Fd, offset: u64, len: u64, write: bool) -> Result<u64, Errno> {
        map_file(
            self,
            fd,
            (offset, len),
            write,
            |access| access.write || !write,
            |description| match MemoryFile::of(&description) {
                Some(_) => Err((Errno::EOPNOTSUPP, Backing::File { description, offset })),
                None => Ok(Backing::File { description, offset }),
            },
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
                let copies = round_up(len).filter(|copies| {
                    let others = self.process().mm.lock().anonymous();
                    others.saturating_add(*copies) <= ANON_MAX
                });
                match copies {
                    Some(copies) => {
                        if let Some((inode, _)) = description.file() {
                            // ORDERING: SeqCst, before any page of the mapping is copied: a change
                            // that makes the file shorter and misses this store has published the
                            // new size before it, and a page is copied only after a look at the
                            // size. See `publication::publish_change`.
                            inode.mapped_private.store(true, Ordering::SeqCst);
                        }
                        Ok(Backing::Private {
                            description,
                            pages: Arc::new(PrivatePages::new(offset, copies)),
                            offset: 0,
                        })
                    }
                    None => Err((Errno::ENOMEM, Backing::File { description, offset })),
                }
            },
        )
    }

    /// As [`Task::mmap_private`], with `MAP_SYNC`, which Linux heeds in a private mapping of a file
    /// with an address space of its own to say so; tmpfs passes over it.
    ///
    /// # Errors
    /// As [`Task::mmap_private`]; EOPNOTSUPP (the file is in page cache).
    pub fn mmap_private_sync(&self, fd: Fd, offset: u64, len: u64, write: bool) -> Result<u64, Errno> {
        let description = self.process().fds.lock().get(fd)?.get();
        let cached = MemoryFile::of(&description).is_some_and(|file| !file.allows_long_term_write());
        let mut deferred = Deferred::default();
        description.put(&mut deferred);
        self.run_deferred(deferred);
        if cached { Err(Errno::EOPNOTSUPP) } else { self.mmap_private(fd, offset, len, write) }
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

    /// Maps the pages of the volume's own device that `len` bytes from byte `offset` (page aligned)
    /// of the file called `name` have now, as a device-DAX device over the same memory would: the
    /// mapping stays at these pages, whatever file has them later. Returns its address. Linux gives
    /// a namespace to a file system or to device-DAX; a host has both of the memory of a guest.
    ///
    /// # Errors
    /// ENOENT, EINVAL (alignment, length 0), ENXIO (the range is not one run of blocks), ENOMEM,
    /// EIO.
    pub fn mmap_device(&self, name: &str, offset: u64, len: u64) -> Result<u64, Errno> {
        self.syscall(|| {
            let inode = lookup(self.kernel(), name, LastReference::Call(self))?;
            let mapped = map_device(self, &inode, offset, len);
            drop_open(self.kernel(), &inode, LastReference::Call(self));
            mapped
        })
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
            let of_open_file = |backing: &Backing| matches!(backing, Backing::File { .. } | Backing::Private { .. });
            let mapped_file = mappings.iter().any(|mapping| of_open_file(&mapping.backing));
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
        let access = match MemoryFile::of(&description) {
            Some(_) => Some(AccessMode::BOTH),
            None => description.file().map(|(_, access)| access),
        };
        let allowed = access.map(|access| match access.is_open() {
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

fn map_device(task: &Task, inode: &Inode, offset: u64, len: u64) -> Result<u64, Errno> {
    task.kernel().mount.check()?;
    if len == 0 || !offset.is_multiple_of(BLOCK) || offset.checked_add(len).is_none_or(|end| end > FILE_MAX) {
        return Err(Errno::EINVAL);
    }
    let range = BlockRange::of_bytes(offset, len);
    let pieces = inode.layout(|layout| pieces_in(layout, range));
    let first = match pieces.first() {
        Some(Piece::Mapped(extent)) if is_run(&pieces, range, extent.block) => Some(extent.block),
        _ => None,
    };
    let backing = Backing::Device { offset: first.ok_or(Errno::ENXIO)? * BLOCK };
    task.process().mm.lock().map(len, true, backing).map_err(|(errno, _)| errno)
}

/// A shared mapping of an open file. One of a file that is not DAX needs no reference to it.
fn shared(task: &Task, description: Arc<Description>, offset: u64) -> Backing {
    let Some(file) = MemoryFile::of(&description) else { return Backing::File { description, offset } };
    let mut deferred = Deferred::default();
    description.put(&mut deferred);
    task.run_deferred(deferred);
    Backing::Memory { file, offset }
}

/// Loads from the pages of the open file of a private mapping.
fn load_open(task: &Task, description: &Description, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
    match (description.file(), MemoryFile::of(description)) {
        (Some((inode, _)), _) => load_file(task, inode, offset, into),
        (None, Some(file)) => file.fault(offset, into.len() as u64)?.read(0, into),
        (None, None) => Err(Errno::SIGSEGV),
    }
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
    description: &Description,
    pages: &PrivatePages,
    offset: u64,
    mut into: &mut [u8],
) -> Result<(), Errno> {
    let mut at = offset;
    while !into.is_empty() {
        let here = (BLOCK - at % BLOCK).min(into.len() as u64) as usize;
        let (head, tail) = into.split_at_mut(here);
        match pages.copies(at, here as u64) {
            Some(copy) => copy.read(0, head)?,
            None => load_open(task, description, pages.in_file(at), head)?,
        }
        (at, into) = (at + here as u64, tail);
    }
    Ok(())
}

/// Copies the pages of a private mapping that hold `len` bytes from `offset` on, but for those that
/// are copies, and returns the copies. A hole is copied as zeros; a DAX file gets no block for it.
///
/// # Errors
/// SIGBUS beyond the end of the file; EIO.
pub(crate) fn copy_private(
    task: &Task,
    description: &Description,
    pages: &PrivatePages,
    offset: u64,
    len: u64,
) -> Result<PageRun, Errno> {
    let mut bytes = vec![0; BLOCK as usize];
    loop {
        for page in BlockRange::of_bytes(offset, len).start..BlockRange::of_bytes(offset, len).end {
            let at = page * BLOCK;
            if !pages.is_copied(at) {
                load_open(task, description, pages.in_file(at), &mut bytes)?;
                let inside = || pages.in_file(at) < size_of(description);
                pages.copy_in(at, &bytes, inside)?;
            }
        }
        // A truncate may have taken a copy meanwhile: then the file is shorter, or has grown anew.
        if let Some(copies) = pages.copies(offset, len) {
            return Ok(copies);
        }
    }
}

/// The size of the open file of a private mapping.
fn size_of(description: &Description) -> u64 {
    match description.file() {
        Some((inode, _)) => inode.layout(Layout::size),
        None => MemoryFile::of(description).map_or(0, |file| file.size()),
    }
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
        if let Backing::File { .. } | Backing::Device { .. } = target {
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
