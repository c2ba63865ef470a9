//! RAM disks, and I/O between them and mappings that stays in flight.
//!
//! It owns a scenario's disks and the devices that hold its I/O back: one for each request, since
//! a device lets all its I/O go at once. Invariants: a disk is used by one scenario of this machine
//! at a time; dropping the disks lets all I/O end. Only a machine that may be spoiled is used, as
//! the contents of its RAM disks are lost. Kernel counterpart: drivers/block/brd.c,
//! drivers/md/dm-linear.c.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use emulator::sync::machine::{AtomicU64, Ordering};
use rustix::fs::{FlockOperation, flock, major, minor};

use super::child::wire::{ChildRequest, MappedIo};
use super::device_mapper::{DeviceMapper, HeldDevice};
use super::names::{NamedThing, ScenarioNames};
use super::request::{self, PreparedOp};
use crate::machines::machine::Trouble;
use crate::ops::{ByteRange, Op};

const SECTOR: u64 = 512;
/// How many RAM disks the kernel makes unless it is told otherwise (CONFIG_BLK_DEV_RAM_COUNT).
const DISKS: u32 = 16;
/// The number of devices that this process has made so far: their names must differ.
static DEVICES: AtomicU64 = AtomicU64::new(0);

/// A scenario's disks; see the module.
#[derive(Debug, Default)]
pub(super) struct RamDisks {
    disks: Vec<LockedRamDisk>,
    /// With the process that has submitted the I/O.
    held: BTreeMap<u32, (String, HeldDevice)>,
    submitted: u32,
}

#[derive(Debug)]
struct LockedRamDisk {
    mapper: DeviceMapper,
    /// Locked against other scenarios and processes.
    _file: File,
    device: (u32, u32),
    sectors: u64,
}

impl RamDisks {
    /// Whether the scenario has none.
    pub(super) fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Finds a disk that nothing uses, and fills its first `len` bytes with zeros.
    pub(super) fn open(&mut self, len: u64) -> Result<NamedThing, Trouble> {
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(Trouble::Script("a RAM disk has whole sectors of 512 bytes".to_owned()));
        }
        let lacks = |what: String| Trouble::CannotRun(format!("no disk whose I/O can be held back: {what}"));
        let mapper = DeviceMapper::open()
            .map_err(|error| lacks(format!("/dev/mapper/control: {error} (CONFIG_BLK_DEV_DM, module dm_mod)")))?;
        for number in 0..DISKS {
            let path = format!("/dev/ram{number}");
            let unusable = |error: std::io::Error| lacks(format!("{path}: {error} (CONFIG_BLK_DEV_RAM, module brd)"));
            // A disk that is mounted, or used for swap, can't be opened exclusively. The device
            // mapper opens it so later.
            let options = || File::options().read(true).write(true).clone();
            match options().custom_flags(libc::O_EXCL).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => continue,
                other => drop(other.map_err(unusable)?),
            }
            let mut file = options().open(&path).map_err(unusable)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if file.seek(SeekFrom::End(0)).map_err(unusable)? < len {
                return Err(lacks(format!("{path} is smaller than {}", crate::input::Size(len))));
            }
            let zeros = vec![0; usize::try_from(len).map_err(|_| lacks("it is too large".to_owned()))?];
            file.rewind().and_then(|()| file.write_all(&zeros)).and_then(|()| file.sync_all()).map_err(unusable)?;
            let device = file.metadata().map_err(unusable)?.rdev();
            let device = (major(device), minor(device));
            self.disks.push(LockedRamDisk { mapper, _file: file, device, sectors: len / SECTOR });
            return Ok(NamedThing::Disk(self.disks.len() - 1));
        }
        Err(lacks(format!("all {DISKS} RAM disks are in use")))
    }

    /// Prepares I/O of the process `who` that stays in flight.
    pub(super) fn submit(&mut self, op: &Op, who: &str, names: &ScenarioNames) -> Result<PreparedOp, Trouble> {
        let (disk, range, map, at, write) = match op {
            Op::SubmitReadInto { fd, range, map, at } => (fd, range, map, at, false),
            Op::SubmitWriteFrom { fd, range, map, at } => (fd, range, map, at, true),
            other => return Err(Trouble::CannotRun(format!("a real Linux can't do `{}`", other.verb()))),
        };
        let NamedThing::Disk(disk) = names.get(disk)? else {
            let why = "on a real Linux direct I/O of a file with DAX is never in flight; a RAM disk's can be";
            return Err(Trouble::CannotRun(why.to_owned()));
        };
        let place = request::place(names, who, map, Some(ByteRange { offset: at.0, len: range.len }), false)?;
        let Ok((at, len)) = place else { return Ok(PreparedOp::Plain("EFAULT")) };
        if len < range.len {
            // It leaves the mapping; Linux would transfer what lies before.
            return Ok(PreparedOp::Plain("EFAULT"));
        }
        let disk = self.disks.get(*disk).ok_or_else(|| Trouble::Script("there is no such disk".to_owned()))?;
        // ORDERING: Relaxed: only the numbers' difference matters.
        let device = DEVICES.fetch_add(1, Ordering::Relaxed);
        let name = format!("daxlab-{}-{device}", std::process::id());
        let held = disk
            .mapper
            .hold(&name, disk.device, disk.sectors)
            .map_err(|errno| Trouble::CannotRun(format!("a device that holds I/O back can't be made: {errno}")))?;
        let (number, path) = (self.submitted, held.path());
        self.submitted += 1;
        self.held.insert(number, (who.to_owned(), held));
        let offset = i64::try_from(range.offset).unwrap_or(i64::MAX);
        Ok(PreparedOp::Ask(ChildRequest::SubmitIo(MappedIo { number, disk: path, write, offset, at, len: range.len })))
    }

    /// Whether I/O of this process is held back.
    pub(super) fn holds_io_of(&self, process: &str) -> bool {
        self.held.values().any(|(owner, _)| owner == process)
    }

    /// Lets the I/O with this number end.
    pub(super) fn release(&mut self, number: u32) {
        self.held.remove(&number);
    }

    /// Lets all I/O end.
    pub(super) fn release_all(&mut self) {
        self.held.clear();
    }
}
