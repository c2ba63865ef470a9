//! The guest's memory as the frontend describes it, checked before the daemon maps it.
//!
//! It owns the table of regions, and no mapping. Invariants: a region is admitted only if its file
//! is long enough for it at that moment and can be mapped for writing; a region of the device's own
//! file is known by device and inode, whatever descriptor it comes by, and is never memory for
//! rings and buffers. Counterparts: `VHOST_USER_SET_MEM_TABLE` of QEMU's docs/interop/
//! vhost-user.rst; `vu_set_mem_table_exec` in QEMU's subprojects/libvhost-user.
//!
//! The rings of a guest must not lie in its persistent memory. Its pieces can be revoked and the
//! blocks given to another file, and an answer written through the backend's own mapping would
//! still reach those blocks.
//!
//! A frontend that shrinks its memory's file later kills each process that reads it, with SIGBUS.
//! Nothing but a seal (`F_SEAL_SHRINK`) prevents that, and QEMU sets none; it is the reason for one
//! process per guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};

use super::PmemPiece;
use super::wire::FILES_MAX;
use crate::device::PAGE;

/// Bytes before the regions: le32 their number, le32 padding.
pub(super) const TABLE_HEAD: usize = 8;
/// Bytes of a region: guest address, size, frontend address and file offset, each le64.
pub(super) const REGION_BYTES: usize = 32;
/// A region as the frontend tells of it; bytes and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionInfo {
    pub(super) guest_address: u64,
    pub(super) size: u64,
    /// Where the frontend has it mapped: what it calls the rings by.
    pub(super) frontend_address: u64,
    pub(super) file_offset: u64,
}

impl RegionInfo {
    pub(super) fn parse(bytes: &[u8; REGION_BYTES]) -> RegionInfo {
        let word = |at: usize| bytes[8 * at..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
        RegionInfo { guest_address: word(0), size: word(1), frontend_address: word(2), file_offset: word(3) }
    }
}

/// Why a table was refused.
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
    #[error("memory region at guest address {guest_address:#x}: its file can't be written to")]
    ReadOnly { guest_address: u64 },
    #[error(
        "memory region at guest address {guest_address:#x}: begins at byte {file_offset} of its file, which is no multiple of {PAGE}"
    )]
    Unaligned { guest_address: u64, file_offset: u64 },
    #[error("memory region at guest address {guest_address:#x}: overlaps another one")]
    Overlap { guest_address: u64 },
    #[error("{found} memory regions: 1 to {FILES_MAX} are supported")]
    Count { found: usize },
    #[error("no region of the memory table is the guest's own memory")]
    NoMemory,
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

#[derive(Clone, Copy, Debug)]
struct TableRegion {
    info: RegionInfo,
    file: FileId,
}

/// How many regions of each kind a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegionCensus {
    /// Of the file that holds guest address 0, or the lowest address.
    pub(super) ram: usize,
    /// Of the device's own file: pieces of this device, and of others of the same server.
    pub(super) own: usize,
    /// Of other files: devices of other servers, or memory of another NUMA node.
    pub(super) other: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct MemoryTable {
    own: FileId,
    /// In the frontend's order; none overlap.
    regions: Vec<TableRegion>,
}

impl MemoryTable {
    /// No memory yet, for a device whose bytes lie in `own`.
    pub(super) fn new(own: FileId) -> MemoryTable {
        MemoryTable { own, regions: Vec::new() }
    }

    /// The table of exactly `regions`, each with its file.
    pub(super) fn replaced(&self, regions: &[(RegionInfo, OwnedFd)]) -> Result<MemoryTable, MemoryError> {
        if regions.is_empty() || regions.len() > FILES_MAX {
            return Err(MemoryError::Count { found: regions.len() });
        }
        let mut table = MemoryTable::new(self.own);
        for (info, file) in regions {
            table.add(*info, file.as_fd())?;
        }
        if table.regions.iter().all(|region| table.is_own(region)) { Err(MemoryError::NoMemory) } else { Ok(table) }
    }

    /// Whether the region at `at` of the frontend's table is a piece of the device.
    pub(super) fn is_piece(&self, at: usize) -> bool {
        self.regions.get(at).is_some_and(|region| self.is_own(region))
    }

    fn is_own(&self, region: &TableRegion) -> bool {
        region.file == self.own
    }

    fn add(&mut self, info: RegionInfo, file: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let RegionInfo { guest_address, size, frontend_address, file_offset } = info;
        let ends = [guest_address, frontend_address, file_offset].map(|start| start.checked_add(size));
        let [Some(end), Some(_), Some(file_end)] = ends else {
            return Err(MemoryError::Range { guest_address, size });
        };
        if size == 0 {
            return Err(MemoryError::Range { guest_address, size });
        }
        if !file_offset.is_multiple_of(PAGE) {
            return Err(MemoryError::Unaligned { guest_address, file_offset });
        }
        let overlaps = |other: &TableRegion| {
            other.info.guest_address < end && guest_address < other.info.guest_address + other.info.size
        };
        if self.regions.iter().any(overlaps) {
            return Err(MemoryError::Overlap { guest_address });
        }
        let os = |source: rustix::io::Errno| MemoryError::Os { guest_address, source: source.into() };
        let stat = rustix::fs::fstat(file).map_err(os)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile { guest_address });
        }
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found < file_end {
            return Err(MemoryError::Short { guest_address, found, needed: file_end });
        }
        let region = TableRegion { info, file: FileId { device: stat.st_dev, inode: stat.st_ino } };
        let flags = rustix::fs::fcntl_getfl(file).map_err(os)?;
        // The daemon maps the others.
        if !self.is_own(&region) && (flags & OFlags::RWMODE != OFlags::RDWR || flags.contains(OFlags::PATH)) {
            return Err(MemoryError::ReadOnly { guest_address });
        }
        self.regions.push(region);
        Ok(())
    }

    /// The guest's address of what the frontend has mapped at `frontend_address`, and how many
    /// bytes of that region follow; none unless it is the guest's memory.
    pub(super) fn guest_address(&self, frontend_address: u64) -> Option<(u64, u64)> {
        // The first one that has it, as in the daemon's table.
        self.regions.iter().filter(|region| !self.is_own(region)).find_map(|TableRegion { info, .. }| {
            let offset = frontend_address.checked_sub(info.frontend_address)?;
            (offset < info.size).then(|| (info.guest_address + offset, info.size - offset))
        })
    }

    /// Where the guest has its device, as far as the mapped `pieces` of it show: the address of its
    /// first byte. None if no region shows it, or if they contradict one another.
    pub(super) fn device_start(&self, pieces: &[PmemPiece]) -> Option<u64> {
        let starts = self.regions.iter().filter(|region| self.is_own(region)).map(|TableRegion { info, .. }| {
            let offset = info.file_offset;
            let piece =
                pieces.iter().find(|piece| (piece.device_offset..piece.device_offset + piece.len).contains(&offset))?;
            info.guest_address.checked_sub(piece.guest_offset + (offset - piece.device_offset))
        });
        let mut starts = starts.flatten();
        let first = starts.next()?;
        starts.all(|other| other == first).then_some(first)
    }

    /// The parts of this device's own file that the machine has as memory: offset and length.
    pub(super) fn own_parts(&self) -> Vec<(u64, u64)> {
        let own = self.regions.iter().filter(|region| self.is_own(region));
        own.map(|TableRegion { info, .. }| (info.file_offset, info.size)).collect()
    }

    /// How many regions there are of each kind.
    pub(super) fn census(&self) -> RegionCensus {
        let memory = self.regions.iter().filter(|region| !self.is_own(region));
        let ram = memory.min_by_key(|region| region.info.guest_address).map(|region| region.file);
        let mut census = RegionCensus::default();
        for region in &self.regions {
            match region.file {
                file if file == self.own => census.own += 1,
                file if Some(file) == ram => census.ram += 1,
                _ => census.other += 1,
            }
        }
        census
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(bytes: u64) -> OwnedFd {
        let fd = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, bytes).unwrap();
        fd
    }

    fn region(guest_address: u64, size: u64, file_offset: u64) -> RegionInfo {
        // The frontend has guest address 0 at 0x7000_0000_0000.
        RegionInfo { guest_address, size, frontend_address: guest_address.wrapping_add(0x7000_0000_0000), file_offset }
    }

    #[test]
    fn the_devices_own_file_is_no_memory_by_whichever_descriptor_it_comes() {
        let own = file(4 * MIB);
        let none = MemoryTable::new(FileId::of(&own).unwrap());
        let table = none
            .replaced(&[(region(0, MIB, 0), file(MIB)), (region(16 * MIB, 2 * MIB, 2 * MIB), own.try_clone().unwrap())])
            .unwrap();
        assert_eq!(table.guest_address(0x7000_0000_0000 + 5), Some((5, MIB - 5)));
        assert_eq!(table.guest_address(0x7000_0000_0000 + 17 * MIB), None, "its own bytes are no memory for rings");
        assert_eq!([0, 1, 2].map(|at| table.is_piece(at)), [false, true, false]);
        let piece = |guest_offset, device_offset| PmemPiece { guest_offset, device_offset, len: 2 * MIB };
        assert_eq!(table.device_start(&[piece(0, 2 * MIB)]), Some(16 * MIB));
        assert_eq!(table.device_start(&[piece(0, 0), piece(2 * MIB, 2 * MIB)]), Some(14 * MIB));
        assert_eq!(table.device_start(&[piece(0, 0)]), None);
        let error = none.replaced(&[(region(0, MIB, 0), own)]).unwrap_err().to_string();
        assert!(error.contains("guest's own memory"), "{error}");
    }

    #[test]
    fn regions_that_contradict_one_another_show_no_start() {
        let own = file(4 * MIB);
        let pieces = [region(16 * MIB, MIB, 0), region(32 * MIB, MIB, MIB)].map(|at| (at, own.try_clone().unwrap()));
        let [one, other] = pieces;
        let table = MemoryTable::new(FileId::of(&own).unwrap());
        let table = table.replaced(&[(region(0, MIB, 0), file(MIB)), one, other]).unwrap();
        assert_eq!(table.device_start(&[PmemPiece { guest_offset: 0, device_offset: 0, len: 2 * MIB }]), None);
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let none = MemoryTable::new(FileId::of(file(MIB)).unwrap());
        let refused = |info: RegionInfo, memory: OwnedFd| {
            none.replaced(&[(region(4 * MIB, 2 * MIB, 0), file(2 * MIB)), (info, memory)]).unwrap_err().to_string()
        };
        for (info, says) in [
            (region(0, 0, 0), "empty"),
            (region(u64::MAX - 10, MIB, 0), "past the end"),
            (RegionInfo { frontend_address: u64::MAX, ..region(0, MIB, 0) }, "past the end"),
            (region(0, MIB, u64::MAX), "past the end"),
            (region(0, MIB, 4096), "has 1048576 bytes, and it needs 1052672"),
            (region(3 * MIB, 2 * MIB, 0), "overlaps"),
            (region(5 * MIB, MIB, 0), "overlaps"),
            (region(0, 64 * MIB, 0), "overlaps"),
            (region(0, MIB / 2, 1), "no multiple of 4096"),
        ] {
            let error = refused(info, file(MIB));
            assert!(error.contains(says), "{error}");
        }
        assert!(refused(region(0, 1, 0), File::open("/dev/zero").unwrap().into()).contains("not a regular file"));
        assert!(refused(region(0, 1, 0), File::open("/proc/self/exe").unwrap().into()).contains("can't be written"));
        let path = rustix::fs::open("/etc/passwd", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(refused(region(0, 1, 0), path).contains("can't be written"));
        assert!(none.replaced(&[]).unwrap_err().to_string().starts_with("0 memory regions"));
    }

    #[test]
    fn the_whole_machines_regions_are_counted() {
        let (own, ram, foreign) = (file(4 * MIB), file(8 * MIB), file(MIB));
        let again = |file: &OwnedFd| file.try_clone().unwrap();
        let table = MemoryTable::new(FileId::of(&own).unwrap());
        assert_eq!(table.census(), RegionCensus::default());
        let table = table
            .replaced(&[
                (region(64 * MIB, MIB, 0), foreign),
                (region(0, 2 * MIB, 0), again(&ram)),
                (region(32 * MIB, MIB, 0), own),
                (region(4 * MIB, 2 * MIB, 4 * MIB), again(&ram)),
            ])
            .unwrap();
        assert_eq!(table.census(), RegionCensus { ram: 2, own: 1, other: 1 });
    }
}
