//! Calls that change the layout of one file, calls that do not, and the file they are made for.

use fs_sim::base::numbers::Fd;
use fs_sim::syscalls::fallocate::FallocateMode;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;
use fs_sim::{BLOCK, BlockRange, Errno, Task};

use super::{Actor, Lab};

pub(crate) const ALL: BlockRange = BlockRange::ALL;
pub(crate) const KEEP: FallocateMode = FallocateMode::Allocate { keep_size: true };
pub(crate) const ZERO: FallocateMode = FallocateMode::ZeroRange { keep_size: true };

pub(crate) type Call = fn(&Task, Fd) -> Result<(), Errno>;

pub(crate) fn write(task: &Task, fd: Fd, block: u64) -> Result<(), Errno> {
    task.write(fd, block * BLOCK, &[0x77; BLOCK as usize]).map(|_| ())
}

/// On the file of [`canvas`]: calls that change its layout, and what they do to the four written
/// blocks 0..4.
pub(crate) const CHANGES: [(&str, Call); 14] = [
    ("path truncate", |t, _| t.truncate("data", BLOCK)),
    ("ftruncate", |t, fd| t.ftruncate(fd, 0)),
    ("growing ftruncate", |t, fd| t.ftruncate(fd, 9 * BLOCK)),
    ("punch", |t, fd| t.fallocate(fd, FallocateMode::PunchHole, BLOCK, BLOCK)),
    ("allocate", |t, fd| t.fallocate(fd, KEEP, 4 * BLOCK, BLOCK)),
    ("allocate behind the end", |t, fd| t.fallocate(fd, KEEP, 8 * BLOCK, BLOCK)),
    ("zero range over a hole", |t, fd| t.fallocate(fd, ZERO, 3 * BLOCK, 2 * BLOCK)),
    ("write into a hole", |t, fd| write(t, fd, 4)),
    ("extending write", |t, fd| write(t, fd, 6)),
    ("open with O_TRUNC", |t, _| {
        let fd = t.open("data", OpenFlags { truncate: true, ..OpenFlags::open(AccessMode::BOTH) })?;
        t.close(fd)
    }),
    ("collapse range", |t, fd| t.fallocate(fd, FallocateMode::CollapseRange, BLOCK, BLOCK)),
    ("insert range", |t, fd| t.fallocate(fd, FallocateMode::InsertRange, BLOCK, BLOCK)),
    ("reflink within the file", |t, fd| t.reflink(fd, 0, fd, 4 * BLOCK, BLOCK)),
    ("exchange within the file", |t, fd| t.exchange_range(fd, 0, fd, 2 * BLOCK, BLOCK)),
];

/// Of [`CHANGES`], those that take written blocks away.
pub(crate) const DEPARTURES: [(&str, Call); 4] = [CHANGES[0], CHANGES[1], CHANGES[3], CHANGES[9]];

/// On the same file: calls without an effect on its layout.
pub(crate) const NO_CHANGES: [(&str, Call); 8] = [
    ("overwrite", |t, fd| write(t, fd, 1)),
    ("write into an unwritten block", |t, fd| write(t, fd, 5)),
    ("zero range over written blocks", |t, fd| t.fallocate(fd, ZERO, 0, 2 * BLOCK)),
    ("ftruncate to the same size", |t, fd| t.ftruncate(fd, 6 * BLOCK)),
    ("path truncate to the same size", |t, _| t.truncate("data", 6 * BLOCK)),
    ("punch a hole", |t, fd| t.fallocate(fd, FallocateMode::PunchHole, 4 * BLOCK, BLOCK)),
    ("punch half a block", |t, fd| t.fallocate(fd, FallocateMode::PunchHole, 100, BLOCK)),
    ("allocate what is there", |t, fd| t.fallocate(fd, KEEP, 5 * BLOCK, BLOCK)),
];

/// "data": blocks 0..4 written, 4 a hole, 5 unwritten, size 6 blocks.
pub(crate) fn canvas(a: &Actor) -> Fd {
    let fd = a.writes_file("data", 4, 1);
    a.fallocate(fd, FallocateMode::Allocate { keep_size: false }, 5 * BLOCK, BLOCK).unwrap();
    fd
}

/// "data": `blocks` written blocks, no two of them neighbours on the device.
pub(crate) fn scattered(lab: &Lab, blocks: u64) -> (Actor, Fd) {
    let a = lab.actor();
    let (fd, other) = (a.creates("data"), a.creates("other"));
    for block in 0..blocks {
        a.fills(fd, block, 1 + block as u8).unwrap();
        a.fills(fd, blocks + block, 0).unwrap();
    }
    // The blocks in between move to another file: what is left has gaps.
    for block in 0..blocks {
        a.fills(other, block, 0).unwrap();
    }
    a.exchange_range(fd, blocks * BLOCK, other, 0, blocks * BLOCK).unwrap();
    a.ftruncate(fd, blocks * BLOCK).unwrap();
    assert_eq!(a.fiemap(fd, ALL).unwrap().len(), blocks as usize, "scattered");
    (a, fd)
}
