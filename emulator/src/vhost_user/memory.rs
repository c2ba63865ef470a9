//! The guest's memory as the frontend describes it, checked before it is mapped.
//!
//! It owns the table of regions. Invariants: a region is mapped only if its file is long enough for
//! it at that moment; a region of the device's own file is known by device and inode, whatever
//! descriptor it comes by, and is never memory for rings and buffers. Counterparts:
//! `VHOST_USER_SET_MEM_TABLE`, `VHOST_USER_ADD_MEM_REG` and `VHOST_USER_REM_MEM_REG` of QEMU's
//! docs/interop/vhost-user.rst; `vu_set_mem_table_exec` in QEMU's subprojects/libvhost-user.
//!
//! The rings of a guest must not lie in its persistent memory. Its pieces can be revoked and the
//! blocks given to another file, and an answer written through the backend's own mapping would
//! still reach those blocks.
//!
//! A frontend that shrinks its memory's file later kills each process that reads it, with SIGBUS.
//! Nothing but a seal (`F_SEAL_SHRINK`) prevents that, and QEMU sets none; it is the reason for one
//! process per guest.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::PmemPiece;
use crate::runtime::sync::Arc;

/// The most regions of one guest: what the kernel's own vhost admits, and QEMU asks for.
pub(super) const REGIONS_MAX: usize = 509;

/// A region as the frontend tells of it; bytes and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionInfo {
    pub(super) guest_address: u64,
    pub(super) size: u64,
    /// Where the frontend has it mapped: what it calls the rings by.
    pub(super) frontend_address: u64,
    pub(super) file_offset: u64,
}

/// Why a region, or the table with it, was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error(
        "memory region of {size} bytes at guest address {guest_address:#x}: empty, or past the end of all addresses"
    )]
    Range { guest_address: u64, size: u64 },
    #[error("memory region at guest address {guest_address:#x}: its file has {found} bytes, and it needs {needed}")]
    Short { guest_address: u64, found: u64, needed: u64 },
    #[error("memory region at guest address {guest_address:#x}: not a regular file")]
    NotAFile { guest_address: u64 },
    #[error("memory region at guest address {guest_address:#x}: overlaps another one")]
    Overlap { guest_address: u64 },
    #[error("{0} memory regions: at most {REGIONS_MAX} are supported")]
    TooMany(usize),
    #[error("no memory region of {size} bytes at guest address {guest_address:#x}")]
    Unknown { guest_address: u64, size: u64 },
    #[error("memory region at guest address {guest_address:#x}: {source}")]
    Os { guest_address: u64, source: io::Error },
}

/// What tells two files apart, by whichever descriptor they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(file: impl AsFd) -> io::Result<FileId> {
        let stat = rustix::fs::fstat(file)?;
        Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
    }
}

#[derive(Clone, Debug)]
struct MappedRegion {
    info: RegionInfo,
    /// None for a piece of the device itself.
    ram: Option<Arc<GuestRegionMmap>>,
}

impl MappedRegion {
    fn end(&self) -> u64 {
        self.info.guest_address + self.info.size
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct MemoryTable {
    own: FileId,
    /// Sorted by guest address; none overlap.
    regions: Vec<MappedRegion>,
}

impl MemoryTable {
    /// No memory yet, for a device whose bytes lie in `own`.
    pub(super) fn new(own: FileId) -> MemoryTable {
        MemoryTable { own, regions: Vec::new() }
    }

    /// The table of exactly `regions`.
    pub(super) fn replaced(&self, regions: Vec<(RegionInfo, File)>) -> Result<MemoryTable, MemoryError> {
        let mut table = MemoryTable::new(self.own);
        for (info, file) in regions {
            table.add(info, file)?;
        }
        Ok(table)
    }

    /// Whether `file` is the one that the device's bytes lie in.
    pub(super) fn is_own(&self, file: &File) -> io::Result<bool> {
        Ok(FileId::of(file)? == self.own)
    }

    /// Adds a region.
    pub(super) fn add(&mut self, info: RegionInfo, file: File) -> Result<(), MemoryError> {
        let RegionInfo { guest_address, size, frontend_address, file_offset } = info;
        let ends = [guest_address, frontend_address, file_offset].map(|start| start.checked_add(size));
        let [Some(end), Some(_), Some(file_end)] = ends else {
            return Err(MemoryError::Range { guest_address, size });
        };
        if size == 0 {
            return Err(MemoryError::Range { guest_address, size });
        }
        if self.regions.len() == REGIONS_MAX {
            return Err(MemoryError::TooMany(REGIONS_MAX + 1));
        }
        let at = self.regions.partition_point(|region| region.info.guest_address < guest_address);
        let overlaps = self.regions[..at].last().is_some_and(|before| before.end() > guest_address)
            || self.regions.get(at).is_some_and(|after| after.info.guest_address < end);
        if overlaps {
            return Err(MemoryError::Overlap { guest_address });
        }
        let ram = self.map(info, file, file_end)?;
        self.regions.insert(at, MappedRegion { info, ram });
        Ok(())
    }

    fn map(&self, info: RegionInfo, file: File, file_end: u64) -> Result<Option<Arc<GuestRegionMmap>>, MemoryError> {
        let guest_address = info.guest_address;
        let os = |source: io::Error| MemoryError::Os { guest_address, source };
        let stat = rustix::fs::fstat(&file).map_err(|error| os(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile { guest_address });
        }
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found < file_end {
            return Err(MemoryError::Short { guest_address, found, needed: file_end });
        }
        if (FileId { device: stat.st_dev, inode: stat.st_ino }) == self.own {
            return Ok(None);
        }
        let len = usize::try_from(info.size).map_err(|_| MemoryError::Range { guest_address, size: info.size })?;
        let mapped = MmapRegion::from_file(FileOffset::new(file, info.file_offset), len)
            .map_err(|error| os(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(mapped, GuestAddress(guest_address));
        // Past the end of all addresses was refused above.
        Ok(region.map(Arc::new))
    }

    /// Removes the region that lies exactly there.
    pub(super) fn remove(&mut self, guest_address: u64, size: u64) -> Result<(), MemoryError> {
        let at = self
            .regions
            .iter()
            .position(|region| region.info.guest_address == guest_address && region.info.size == size)
            .ok_or(MemoryError::Unknown { guest_address, size })?;
        self.regions.remove(at);
        Ok(())
    }

    /// What rings and buffers may lie in.
    pub(super) fn ram(&self) -> GuestMemoryMmap {
        let regions: Vec<_> = self.regions.iter().filter_map(|region| region.ram.clone()).collect();
        // Refused only if there is none, or if some overlap: then there is no memory.
        GuestMemoryMmap::from_arc_regions(regions).unwrap_or_default()
    }

    /// The guest's address of what the frontend has mapped at `frontend_address`; none unless it is
    /// the guest's memory.
    pub(super) fn guest_address(&self, frontend_address: u64) -> Option<u64> {
        self.regions.iter().filter(|region| region.ram.is_some()).find_map(|region| {
            let offset = frontend_address.checked_sub(region.info.frontend_address)?;
            (offset < region.info.size).then(|| region.info.guest_address + offset)
        })
    }

    /// Where the guest has its device, as far as the mapped `pieces` of it show: the address of its
    /// first byte. None if no region shows it, or if they contradict one another.
    pub(super) fn device_start(&self, pieces: &[PmemPiece]) -> Option<u64> {
        let starts = self.regions.iter().filter(|region| region.ram.is_none()).map(|region| {
            let offset = region.info.file_offset;
            let piece =
                pieces.iter().find(|piece| (piece.device_offset..piece.device_offset + piece.len).contains(&offset))?;
            region.info.guest_address.checked_sub(piece.guest_offset + (offset - piece.device_offset))
        });
        let mut starts = starts.flatten();
        let first = starts.next()?;
        starts.all(|other| other == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn file(bytes: u64) -> File {
        let fd: OwnedFd = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, bytes).unwrap();
        fd.into()
    }

    fn region(guest_address: u64, size: u64, file_offset: u64) -> RegionInfo {
        RegionInfo {
            guest_address,
            size,
            frontend_address: 0x7000_0000_0000_u64.wrapping_add(guest_address),
            file_offset,
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn our_own_file_is_known_by_device_and_inode() {
        let own = file(4 * MIB);
        let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own))).unwrap();
        let mut table = MemoryTable::new(FileId::of(&own).unwrap());
        table.add(region(0, MIB, 0), file(MIB)).unwrap();
        table.add(region(16 * MIB, 2 * MIB, 2 * MIB), again).unwrap();
        assert_eq!(table.guest_address(0x7000_0000_0000 + 5), Some(5));
        assert_eq!(table.guest_address(0x7000_0000_0000 + 17 * MIB), None, "its own bytes are no memory for rings");
        assert!(!vm_memory::GuestMemoryBackend::address_in_range(&table.ram(), GuestAddress(17 * MIB)));
        let piece = |guest_offset, device_offset| PmemPiece { guest_offset, device_offset, len: 2 * MIB };
        assert_eq!(table.device_start(&[piece(0, 2 * MIB)]), Some(16 * MIB));
        assert_eq!(table.device_start(&[piece(0, 0), piece(2 * MIB, 2 * MIB)]), Some(14 * MIB));
        assert_eq!(table.device_start(&[piece(0, 0)]), None);
        table.remove(16 * MIB, 2 * MIB).unwrap();
        assert_eq!(table.device_start(&[piece(0, 2 * MIB)]), None);
    }

    #[test]
    fn regions_that_contradict_one_another_show_no_start() {
        let own = file(4 * MIB);
        let mut table = MemoryTable::new(FileId::of(&own).unwrap());
        table.add(region(16 * MIB, MIB, 0), own.try_clone().unwrap()).unwrap();
        table.add(region(32 * MIB, MIB, MIB), own.try_clone().unwrap()).unwrap();
        assert_eq!(table.device_start(&[PmemPiece { guest_offset: 0, device_offset: 0, len: 2 * MIB }]), None);
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let own = file(MIB);
        let mut table = MemoryTable::new(FileId::of(&own).unwrap());
        table.add(region(4 * MIB, 2 * MIB, 0), file(2 * MIB)).unwrap();
        let mut refused = |info: RegionInfo, file: File| table.add(info, file).unwrap_err().to_string();
        for (info, says) in [
            (region(0, 0, 0), "empty"),
            (region(u64::MAX - 10, MIB, 0), "past the end"),
            (RegionInfo { frontend_address: u64::MAX, ..region(0, MIB, 0) }, "past the end"),
            (region(0, MIB, u64::MAX), "past the end"),
            (region(0, MIB, 4096), "has 1048576 bytes, and it needs 1052672"),
            (region(3 * MIB, 2 * MIB, 0), "overlaps"),
            (region(5 * MIB, MIB, 0), "overlaps"),
            (region(0, 64 * MIB, 0), "overlaps"),
            (region(0, MIB / 2, 1), "at guest address 0x0: "),
        ] {
            let error = refused(info, file(MIB));
            assert!(error.contains(says), "{error}");
        }
        assert!(refused(region(0, 1, 0), File::open("/dev/zero").unwrap()).contains("not a regular file"));
        let unknown = table.remove(4 * MIB, MIB).unwrap_err().to_string();
        assert!(unknown.contains("no memory region"), "{unknown}");
    }

    #[test]
    fn there_are_not_more_regions_than_it_says() {
        let own = file(MIB);
        let mut table = MemoryTable::new(FileId::of(&own).unwrap());
        for at in 0..REGIONS_MAX as u64 {
            table.add(region(at * MIB, 4096, 0), own.try_clone().unwrap()).unwrap();
        }
        let error = table.add(region(1 << 40, 4096, 0), own.try_clone().unwrap()).unwrap_err();
        assert!(matches!(error, MemoryError::TooMany(510)), "{error}");
    }
}
