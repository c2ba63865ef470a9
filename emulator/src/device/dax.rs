//! The DAX device: a region of shared memory that simulated files live in and simulated NICs write
//! to.
//!
//! It owns the mapping and the file behind it (an anonymous memory file, or an image). Invariants:
//! an access either lies wholly inside the device or fails without touching anything; concurrent
//! accesses never tear an aligned 8-byte word; memory is used only where something was written.
//! Kernel counterpart: `struct dax_device` (drivers/dax/super.c) over `pmem_dax_direct_access`
//! (drivers/nvdimm/pmem.c).
//!
//! Nothing here orders anything: bytes are copied by relaxed word accesses (see `copy`), as a real
//! DMA does it. A reader sees a copy once it has synchronised with the copier: through a
//! completion, a mutex, a pin word.
//!
//! # Drop order
//! The mapping of a [`Device`] is unmapped, then its file closes and with it the image's lock goes.
//! So no other run can take the image while this one could still write to it.
//!
//! # What makes stores durable
//! `fdatasync` of the file, alone. It covers every dirty page of it, whichever process stored, and
//! through whichever mapping: the kernel write-protects a page's mappings before it writes it back,
//! and the next store dirties the page again (`folio_mkclean`, `->page_mkwrite`). `msync(MS_SYNC)`
//! is the same `vfs_fsync_range` (mm/msync.c), so both would do the work twice.
//! `tests/durability.rs` asks the kernel: after [`Device::sync`], `cachestat` counts no dirty page.

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags, SeekFrom};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use super::copy;
use super::open::{ImageRoom, ImageSpace, OpenError, OpenedImage, check_size};
use super::poison::{Damage, Poison};
use crate::runtime::pages::PageRange;
use crate::runtime::sync::atomic::{AtomicBool, AtomicU32};
use crate::runtime::sync::machine::{AtomicU64, Ordering};
use crate::runtime::sync::{Arc, Mutex};

/// Bytes in a page, the unit of a pin.
pub const PAGE: u64 = 4096;
/// 8-byte words in a page.
pub(super) const PAGE_WORDS: usize = PAGE as usize / 8;

/// Why an access was refused. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not wholly inside the device.
    #[error("{len} bytes at offset {offset} of a device of {bytes} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The size of the device in bytes.
        bytes: u64,
    },
    /// An atomic access that is not aligned to its 8 bytes.
    #[error("atomic access at offset {offset}, which is not a multiple of 8")]
    Misaligned {
        /// The byte asked for.
        offset: u64,
    },
    /// It touches a poisoned page.
    #[error("page {page} is poisoned")]
    Poisoned {
        /// The first such page.
        page: u64,
    },
    /// The device was taken away.
    #[error("the device is gone")]
    Gone,
}

/// What is behind the mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DeviceBacking {
    Memory,
    Image(PathBuf),
}

/// A file, and all of a device's bytes in it mapped. It is unmapped before the file closes.
#[derive(Debug)]
struct FileMapping {
    base: NonNull<u8>,
    bytes: u64,
    file: File,
    /// For a pool.
    written: WrittenBlocks,
}

// SAFETY: the mapping belongs to no thread, and shared access to its bytes is by atomic words only.
unsafe impl Send for FileMapping {}
// SAFETY: as above.
unsafe impl Sync for FileMapping {}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no reference outlives the devices over it. Each has an
        // `Arc` of it. An error could only mean that it isn't mapped.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

/// Memory devices one after the other in the same memory: a device gets that of one that is gone,
/// with zeros in it, where the system would make it from new pages. Zeros cost less than a page
/// fault for each page.
///
/// It is for devices of one process: one whose descriptor another process has must not come from a
/// pool.
///
/// ```
/// use emulator::device::{DevicePool, FOLIO};
///
/// let pool = DevicePool::default();
/// pool.memory(FOLIO)?.write(100, b"hello")?;
/// let mut bytes = [1; 5];
/// pool.memory(FOLIO)?.read(100, &mut bytes)?;
/// assert_eq!(bytes, [0; 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct DevicePool(Mutex<Vec<Arc<FileMapping>>>);

impl DevicePool {
    /// As [`Device::memory`]. Memory of devices of other sizes that are gone is given back.
    ///
    /// # Errors
    /// As [`Device::memory`].
    pub fn memory(&self, bytes: u64) -> Result<Device, OpenError> {
        let free = {
            let mut pool = self.0.lock();
            pool.retain(|mapping| mapping.bytes == bytes || Arc::strong_count(mapping) > 1);
            let at = pool.iter().position(|mapping| mapping.bytes == bytes && Arc::strong_count(mapping) == 1);
            at.map(|at| pool.swap_remove(at))
        };
        // `get_mut` is none while a device uses it, and orders this after the last access of one
        // that is gone.
        let wiped = free.and_then(|mut mapping| Arc::get_mut(&mut mapping)?.wipe().then_some(mapping));
        let mut device = match wiped {
            Some(mapping) => Device::over(mapping, DeviceBacking::Memory),
            None => Device::memory(bytes)?,
        };
        device.pooled = Some(Arc::clone(&device.mapping));
        self.0.lock().push(Arc::clone(&device.mapping));
        Ok(device)
    }
}

/// How much memory a pooled device keeps: its first written bytes, so many. More would cost more to
/// clear than it saves.
const POOLED_BYTES: u64 = 16 << 20;

impl FileMapping {
    /// Makes a memory file read as zero. False if that failed.
    fn wipe(&mut self) -> bool {
        // Memory comes one page after the other, and goes by a hole alone: as many blocks as after
        // the last look are the same ones.
        let blocks = self.blocks();
        let same = blocks.is_some() && blocks == self.written.blocks && !self.written.holes.load(Ordering::SeqCst);
        if !same && self.look().is_err() {
            return false;
        }
        for extent in &self.written.extents {
            let words = (extent.end - extent.start) / 8;
            // SAFETY: inside the mapping, which no device uses (`&mut self`); data begins and ends
            // at a page.
            unsafe { copy::fill_words(self.base.as_ptr().add(extent.start as usize), 0, words as usize) };
        }
        true
    }

    /// How much memory the file takes.
    fn blocks(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.blocks())
    }

    /// Looks where the file takes memory, and gives back what is more than [`POOLED_BYTES`].
    fn look(&mut self) -> io::Result<()> {
        let (mut extents, mut at, mut room) = (Vec::new(), 0, POOLED_BYTES);
        while at < self.bytes {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Err(rustix::io::Errno::NXIO) => break,
                start => start?,
            };
            if room == 0 {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, punch, start, self.bytes - start)?;
                break;
            }
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?.min(start + room);
            extents.push(start..end);
            (at, room) = (end, room - (end - start));
        }
        self.written = WrittenBlocks { extents, blocks: self.blocks(), holes: AtomicBool::new(false) };
        Ok(())
    }
}

/// Where a memory file takes memory.
#[derive(Debug, Default)]
struct WrittenBlocks {
    /// In bytes of the file.
    extents: Vec<Range<u64>>,
    /// How many blocks these are; none if no look was taken.
    blocks: Option<u64>,
    /// Whether memory was given back since.
    holes: AtomicBool,
}

/// A DAX device: shared memory, or an image file, mapped once. Threads share it by reference.
///
/// ```
/// use emulator::device::{AccessError, Device, FOLIO};
///
/// let device = Device::memory(FOLIO)?;
/// device.write(100, b"hello")?;
/// let mut bytes = [0; 5];
/// device.read(100, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// assert!(matches!(device.write(FOLIO, b"x"), Err(AccessError::OutOfRange { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Device {
    base: NonNull<u8>,
    bytes: u64,
    medium: DeviceBacking,
    /// The mapping behind `base`.
    mapping: Arc<FileMapping>,
    poison: Poison,
    /// If this device comes from a pool, or is once more one that does: the pool's mapping, which
    /// the pool leaves alone as long as it is held here.
    pooled: Option<Arc<FileMapping>>,
    /// The descriptor that another process handed over: the image's lock may hang on it.
    handed_over: Option<OwnedFd>,
    /// The error of the first sync that failed, 0 as long as none did.
    sync_error: AtomicU32,
}

// SAFETY: the mapping belongs to no thread, and shared access to its bytes is by atomic words only.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// A device of `bytes` in anonymous shared memory, all zero. Memory is taken page by page as it
    /// is written. The file's size is sealed (`F_SEAL_SHRINK`, `F_SEAL_GROW`).
    ///
    /// # Errors
    /// [`OpenError::Size`], or [`OpenError::Os`].
    pub fn memory(bytes: u64) -> Result<Device, OpenError> {
        check_size(bytes)?;
        let os = |source: rustix::io::Errno| OpenError::Os {
            what: format!("making a memory device of {bytes} bytes"),
            source: source.into(),
        };
        let file = rustix::fs::memfd_create("daxlab", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(os)?;
        rustix::fs::ftruncate(&file, bytes).map_err(os)?;
        // A guest's QEMU has this descriptor too. Without the seals it could shrink the file, and
        // the next access of this process beyond the new end would be a SIGBUS.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(os)?;
        Device::map(file.into(), bytes, DeviceBacking::Memory)
    }

    /// A device of `bytes` over the image file at `path`: made sparse if there is none (or an empty
    /// one), else opened as it is; of a larger one the first `bytes` are used. A path that is a
    /// symbolic link is followed to a regular file of the caller only. The file stays locked
    /// (`flock`) for the life of the device, and must not be truncated by others meanwhile: as with
    /// any mapped file, an access past its end is a SIGBUS, and so is a write for which its
    /// filesystem has no room left ([`Device::room`]).
    ///
    /// # Errors
    /// Any [`OpenError`]; an image that existed is unchanged then, and no new one is left.
    pub fn image(path: &Path, bytes: u64) -> Result<Device, OpenError> {
        Device::image_with(path, bytes, ImageSpace::Sparse)
    }

    /// As [`Device::image`]; `space` says when it takes its room.
    ///
    /// # Errors
    /// Any [`OpenError`]; an image that existed has its bytes and its size then, and no new one is
    /// left.
    pub fn image_with(path: &Path, bytes: u64, space: ImageSpace) -> Result<Device, OpenError> {
        check_size(bytes)?;
        let opened = OpenedImage::open(path, bytes, space)?;
        let device = Device::map(opened.file()?, bytes, DeviceBacking::Image(path.to_path_buf()))?;
        opened.keep();
        Ok(device)
    }

    /// The room that the image still takes and its filesystem still has; none for a memory device.
    ///
    /// # Errors
    /// Those of statvfs(3) and stat(2).
    pub fn room(&self) -> io::Result<Option<ImageRoom>> {
        self.path().map(|_| ImageRoom::of(&self.mapping.file, self.bytes)).transpose()
    }

    /// A device of `bytes` over the file behind `fd`, which another process opened (and locked) as
    /// an image or made as a memory device. Nothing is created or enlarged, and no lock is taken;
    /// one that hangs on `fd` stays as long as the device.
    ///
    /// The file is opened once more: a failed write-back is reported once for each open file
    /// (`file_check_and_advance_wb_err`, mm/filemap.c), so over a shared one the other process's
    /// sync could take the report that ours has to make. A file that can't be opened again, because
    /// it is on no filesystem (`ENXIO`), is used as it is.
    ///
    /// # Errors
    /// [`OpenError::Size`], [`OpenError::NotAFile`], [`OpenError::TooSmall`], [`OpenError::Os`]
    /// (such as a descriptor that can't write).
    pub fn from_fd(fd: OwnedFd, bytes: u64) -> Result<Device, OpenError> {
        check_size(bytes)?;
        let entry = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let named = std::fs::read_link(&entry).unwrap_or_else(|_| PathBuf::from(&entry));
        let os = |what: &str, source: io::Error| OpenError::Os { what: format!("{what} {}", named.display()), source };
        let given = File::from(fd);
        let looked = given.metadata().map_err(|error| os("looking at", error))?;
        if !looked.is_file() {
            return Err(OpenError::NotAFile { path: named });
        }
        if looked.len() < bytes {
            return Err(OpenError::TooSmall { path: named, asked: bytes, found: looked.len() });
        }
        let mode = rustix::fs::fcntl_getfl(&given).map_err(|error| os("looking at", error.into()))?;
        if !mode.contains(OFlags::RDWR) {
            return Err(os(
                "using",
                io::Error::new(io::ErrorKind::PermissionDenied, "not open for reading and writing"),
            ));
        }
        let (file, handed_over) = match OpenOptions::new().read(true).write(true).open(&entry) {
            Ok(again) => (again, Some(given.into())),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => (given, None),
            Err(error) => return Err(os("opening again", error)),
        };
        let memory = looked.nlink() == 0 && named.as_os_str().as_bytes().starts_with(MEMFD_LINK);
        let medium = if memory { DeviceBacking::Memory } else { DeviceBacking::Image(named) };
        let mut device = Device::map(file, bytes, medium)?;
        device.handed_over = handed_over;
        Ok(device)
    }

    fn map(file: File, bytes: u64, medium: DeviceBacking) -> Result<Device, OpenError> {
        let os = |source| OpenError::Os { what: format!("mapping a device of {bytes} bytes"), source };
        let len = usize::try_from(bytes).map_err(|error| os(io::Error::other(error)))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        };
        let base = NonNull::new(base.map_err(|error| os(error.into()))?.cast())
            .ok_or_else(|| os(io::Error::other("mapped at address 0")))?;
        let mapping = FileMapping { base, bytes, file, written: WrittenBlocks::default() };
        Ok(Device::over(Arc::new(mapping), medium))
    }

    fn over(mapping: Arc<FileMapping>, medium: DeviceBacking) -> Device {
        let (base, bytes) = (mapping.base, mapping.bytes);
        let (poison, sync_error) = (Poison::default(), AtomicU32::new(0));
        Device { base, bytes, medium, mapping, poison, pooled: None, handed_over: None, sync_error }
    }

    /// The same device mapped once more, with the same poison, and not gone even if this one is:
    /// what a machine finds when it starts again. Both see the same bytes, and the image stays
    /// locked until both are dropped.
    ///
    /// # Errors
    /// [`OpenError::Os`].
    pub fn map_again(&self) -> Result<Device, OpenError> {
        let os = |source| OpenError::Os { what: "opening the device again".to_owned(), source };
        let file = self.mapping.file.try_clone().map_err(os)?;
        let handed_over = self.handed_over.as_ref().map(OwnedFd::try_clone).transpose().map_err(os)?;
        let mut again = Device::map(file, self.bytes, self.medium.clone())?;
        again.handed_over = handed_over;
        again.pooled = self.pooled.clone();
        self.poison.pages().into_iter().for_each(|page| again.poison.poison(PageRange::new(page, 1)));
        Ok(again)
    }

    /// Its poisoned pages, and the switch that takes it away.
    pub fn poison(&self) -> &Poison {
        &self.poison
    }

    /// Its size in bytes: a multiple of 2 MiB.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its size in 4 KiB pages.
    pub fn pages(&self) -> u64 {
        self.bytes / PAGE
    }

    /// The image's path; none for a memory device.
    pub fn path(&self) -> Option<&Path> {
        match &self.medium {
            DeviceBacking::Memory => None,
            DeviceBacking::Image(path) => Some(path),
        }
    }

    /// The file behind the device, of at least [`Device::bytes`] bytes: for mapping it elsewhere,
    /// such as into a guest.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.file.as_fd()
    }

    /// Reads `into.len()` bytes at byte `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Poisoned`], [`AccessError::Gone`]; so for every
    /// access below.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        let at = self.sound(offset, into.len() as u64)?;
        // SAFETY: inside the mapping, whose ends are word-aligned; every access is by words.
        unsafe { copy::load(at, into) };
        Ok(())
    }

    /// Writes `from` at byte `offset`. Concurrent writes to neighbouring bytes are never lost.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Poisoned`], [`AccessError::Gone`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        let at = self.sound(offset, from.len() as u64)?;
        // SAFETY: inside the mapping, whose ends are word-aligned; every access is by words.
        unsafe { copy::store(at, from) };
        Ok(())
    }

    /// Copies `len` bytes from byte `src` to byte `dst`; the two may overlap.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn copy_within(&self, src: u64, dst: u64, len: u64) -> Result<(), AccessError> {
        let (from, to) = (self.sound(src, len)?, self.sound(dst, len)?);
        if (src | dst | len).is_multiple_of(8) && src.abs_diff(dst) >= len {
            // SAFETY: both lie inside the mapping, are aligned, and do not overlap. `len` fits: the
            // mapping is longer.
            unsafe { copy::copy_words(to, from, (len / 8) as usize) };
            return Ok(());
        }
        // By way of a private piece; from the end if the source's tail would be overwritten before
        // it is read.
        let mut piece = [0u8; PAGE as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(PAGE);
            let skip = if dst > src { len - done - now } else { done };
            let piece = &mut piece[..now as usize];
            self.read(src + skip, piece)?;
            self.write(dst + skip, piece)?;
            done += now;
        }
        Ok(())
    }

    /// Sets every byte of `pages` to `byte`, and heals them if they were poisoned. Takes memory for
    /// pages that had none; see [`Device::discard`].
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn fill(&self, pages: PageRange, byte: u8) -> Result<(), AccessError> {
        let (offset, len) = self.bytes_of(pages)?;
        let at = self.at(offset, len)?;
        if let Err(Damage::Gone) = self.poison.check(pages) {
            return Err(AccessError::Gone);
        }
        self.poison.clear(pages);
        // SAFETY: whole pages inside the mapping. `len` fits: the mapping is longer.
        unsafe { copy::fill_words(at, u64::from_ne_bytes([byte; 8]), (len / 8) as usize) };
        Ok(())
    }

    /// [`Device::fill`] with 0.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn zero(&self, pages: PageRange) -> Result<(), AccessError> {
        self.fill(pages, 0)
    }

    /// Gives the memory (or the image's disk space) behind `pages` back; they read as zero from
    /// then on, and take memory again when written. True if it was given back; false if what holds
    /// the device can't punch holes and the pages were overwritten with zeros instead. The device
    /// keeps its size, and accesses that run meanwhile see old bytes or zeros.
    ///
    /// A real device has nothing like it (its memory is always there): it exists so that a run over
    /// a large sparse device stays as small as its live data.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn discard(&self, pages: PageRange) -> Result<bool, AccessError> {
        let (offset, len) = self.bytes_of(pages)?;
        if len == 0 {
            return Ok(true);
        }
        if let Some(mapping) = &self.pooled {
            mapping.written.holes.store(true, Ordering::SeqCst);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.mapping.file, punch, offset, len).is_ok() {
            return Ok(true);
        }
        self.zero(pages)?;
        Ok(false)
    }

    /// Loads the 8 bytes at `offset`, in the machine's byte order. SeqCst, like all the atomics
    /// here: an RDMA atomic is ordered against everything of its queue pair.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Misaligned`].
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        Ok(self.word(offset)?.load(Ordering::SeqCst))
    }

    /// Stores `value` to the 8 bytes at `offset`; never torn. Errors as [`Device::load_u64`].
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Misaligned`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.word(offset)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Adds `value` to the 8 bytes at `offset`, wrapping, and returns what stood there. RDMA
    /// FETCH_ADD.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Misaligned`].
    pub fn fetch_add_u64(&self, offset: u64, value: u64) -> Result<u64, AccessError> {
        Ok(self.word(offset)?.fetch_add(value, Ordering::SeqCst))
    }

    /// Puts `new` into the 8 bytes at `offset` if `expected` stands there; returns what stood
    /// there. RDMA CMP_SWAP.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::Misaligned`].
    pub fn compare_exchange_u64(&self, offset: u64, expected: u64, new: u64) -> Result<u64, AccessError> {
        let outcome = self.word(offset)?.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        Ok(outcome.unwrap_or_else(|found| found))
    }

    /// Writes what was stored to the image, by whatever process and mapping, and waits until its
    /// disk has it. Nothing to do for a memory device.
    ///
    /// # Errors
    /// What `fdatasync` returned; what is durable is unknown then, and stays unknown: the kernel
    /// takes pages it could not write for clean, and the next `fdatasync` succeeds
    /// (`mapping_set_error`, include/linux/pagemap.h). So from the first failure on every sync of
    /// this device returns that error.
    pub fn sync(&self) -> io::Result<()> {
        self.write_back(|| rustix::fs::fdatasync(&self.mapping.file))
    }

    /// As [`Device::sync`], for `pages` only.
    ///
    /// # Errors
    /// As for [`Device::sync`]; `InvalidInput` for pages that the device does not have.
    pub fn sync_pages(&self, pages: PageRange) -> io::Result<()> {
        let refused = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let (offset, len) = self.bytes_of(pages).map_err(refused)?;
        let at = self.at(offset, len).map_err(refused)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: whole pages inside the mapping, which is alive; msync changes no byte of it.
        self.write_back(|| unsafe { rustix::mm::msync(at.cast(), len as usize, MsyncFlags::SYNC) })
    }

    /// `write`, unless there is nothing to write to or an earlier one failed.
    fn write_back(&self, write: impl FnOnce() -> rustix::io::Result<()>) -> io::Result<()> {
        if self.medium == DeviceBacking::Memory {
            return Ok(());
        }
        // ORDERING: Relaxed: no data hangs on it. A sync that begins after a failed one returned
        // sees its store, because the caller's ordering of the two syncs orders the store as well.
        match self.sync_error.load(Ordering::Relaxed) {
            0 => write().map_err(|error| {
                self.sync_error.store(error.raw_os_error().unsigned_abs(), Ordering::Relaxed);
                error.into()
            }),
            failed => Err(io::Error::from_raw_os_error(failed.cast_signed())),
        }
    }

    /// The words of `page`, poisoned or not: for what happens to the medium itself.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub(super) fn page_words(&self, page: u64) -> Result<&[AtomicU64; PAGE_WORDS], AccessError> {
        let at = self.at(page.saturating_mul(PAGE), PAGE)?;
        // SAFETY: a whole page inside the mapping, which lives as long as `self`; aligned; every
        // access is by words.
        Ok(unsafe { &*at.cast() })
    }

    /// The first pages of `among` that take memory or disk space, up to where a hole begins;
    /// `end..end` if all are a hole. All of them, if what holds the device can't tell. Pages that
    /// are stored to meanwhile may or may not count.
    pub(crate) fn data_pages(&self, among: Range<u64>) -> Range<u64> {
        let end = among.end.min(self.pages());
        if among.start >= end {
            return end..end;
        }
        let clamp = |byte: u64| byte.clamp(among.start.saturating_mul(PAGE), end.saturating_mul(PAGE));
        // (The file's position that this moves has no other user: all other accesses are mapped or
        // name an offset.)
        let seek = |to| rustix::fs::seek(&self.mapping.file, to).map(clamp);
        let start = match seek(SeekFrom::Data(clamp(0))) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return end..end,
            Err(_) => return among.start..end,
        };
        // In a memory file SEEK_HOLE looks at every page up to the hole, however far (50 ns each);
        // asking page by page stops where `among` does (200 ns each).
        let stop = if (end - among.start) * 4 >= self.pages() {
            seek(SeekFrom::Hole(start)).unwrap_or(clamp(u64::MAX)).div_ceil(PAGE)
        } else {
            let data = |page: &u64| *page < end && seek(SeekFrom::Data(page * PAGE)) == Ok(page * PAGE);
            (start / PAGE + 1..=end).find(|page| !data(page)).unwrap_or(end)
        };
        start / PAGE..stop
    }

    /// The address of byte `offset`, from which `len` bytes lie inside the device.
    fn at(&self, offset: u64, len: u64) -> Result<*mut u8, AccessError> {
        if offset > self.bytes || len > self.bytes - offset {
            return Err(AccessError::OutOfRange { offset, len, bytes: self.bytes });
        }
        // SAFETY: at most one past the end of the mapping.
        Ok(unsafe { self.base.as_ptr().add(offset as usize) })
    }

    /// As [`Device::at`], for an access that damage forbids.
    fn sound(&self, offset: u64, len: u64) -> Result<*mut u8, AccessError> {
        let at = self.at(offset, len)?;
        let first = offset / PAGE;
        self.poison.check(PageRange::new(first, (offset + len).div_ceil(PAGE) - first)).map_err(
            |damage| match damage {
                Damage::Page(page) => AccessError::Poisoned { page },
                Damage::Gone => AccessError::Gone,
            },
        )?;
        Ok(at)
    }

    /// The word at `offset`.
    fn word(&self, offset: u64) -> Result<&AtomicU64, AccessError> {
        self.at(offset, 8)?;
        if !offset.is_multiple_of(8) {
            return Err(AccessError::Misaligned { offset });
        }
        let at = self.sound(offset, 8)?;
        // SAFETY: inside the mapping, which lives as long as `self`; aligned, because the mapping
        // is; words only.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// Byte offset and length of `pages`; checked for overflow, not against the device's size.
    fn bytes_of(&self, pages: PageRange) -> Result<(u64, u64), AccessError> {
        let (offset, len) = (pages.start().saturating_mul(PAGE), pages.len().saturating_mul(PAGE));
        self.at(offset, len)?;
        Ok((offset, len))
    }
}

/// What the kernel calls a memory file in `/proc/PID/fd` (`memfd_create`, mm/memfd.c).
const MEMFD_LINK: &[u8] = b"/memfd:";
