//! Reads all files back at the end of a run: invariant 7, byte by byte.

use std::collections::BTreeSet;

use fs_sim::Task;
use fs_sim::syscalls::open::OpenFlags;
use fs_sim::vfs::open_file::AccessMode;

use super::payloads::{PayloadFile, Payloads};

/// The most foreign words that are reported as text.
const EXAMPLES_MAX: usize = 16;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// A file that is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RaceFile {
    /// Its name.
    pub(crate) name: String,
    /// Its index, if it is a moved file.
    pub(crate) moved: Option<u64>,
}

/// The result of reading all files back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadBackReport {
    /// Files read.
    pub(crate) files: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Pieces of up to 1 MiB in which a foreign word was found.
    pub(crate) foreign: u64,
    /// The first of them, as text.
    pub(crate) foreign_examples: Vec<String>,
    /// Files and inodes that could not be accounted for.
    pub(crate) unaccounted: Vec<String>,
}

/// Reads every file of `files` that exists, from beginning to end. `task` is the only process left.
/// An inode that none of the names leads to is reported.
pub(crate) fn read_back(task: &Task, payloads: &Payloads, files: &[RaceFile]) -> ReadBackReport {
    let mut report = ReadBackReport::default();
    let mut reached = BTreeSet::new();
    let mut buffer = vec![0; CHUNK];
    for RaceFile { name, moved } in files {
        let Ok(fd) = task.open(name, OpenFlags::open(AccessMode::READ)) else { continue };
        let stat = task.stat(fd);
        match stat {
            Ok(stat) => {
                reached.insert(stat.ino);
                report.files += 1;
                let file = moved.map_or(PayloadFile::Inode(stat.ino.0), PayloadFile::Moved);
                report.read_file((task, payloads), fd, name, (file, stat.size), &mut buffer);
            }
            Err(errno) => report.unaccounted.push(format!("{name} can't be examined: {errno}")),
        }
        if let Err(errno) = task.close(fd) {
            report.unaccounted.push(format!("{name} can't be closed: {errno}"));
        }
    }
    for (ino, _) in task.kernel().inodes() {
        if !reached.contains(&ino) {
            report.unaccounted.push(format!("inode {} exists without a name and without a process", ino.0));
        }
    }
    report
}

impl ReadBackReport {
    fn read_file(
        &mut self,
        (task, payloads): (&Task, &Payloads),
        fd: fs_sim::base::numbers::Fd,
        name: &str,
        (file, size): (PayloadFile, u64),
        buffer: &mut [u8],
    ) {
        let mut offset = 0;
        while offset < size {
            let read = match task.read(fd, offset, buffer) {
                Ok(0) => {
                    self.unaccounted.push(format!("{name} ends at byte {offset}, but its size is {size}"));
                    return;
                }
                Ok(read) => read,
                Err(errno) => {
                    self.unaccounted.push(format!("{name} can't be read at byte {offset}: {errno}"));
                    return;
                }
            };
            self.bytes += read as u64;
            if let Err(foreign) = payloads.check(&buffer[..read], file, offset) {
                self.foreign += 1;
                if self.foreign_examples.len() < EXAMPLES_MAX {
                    self.foreign_examples.push(format!("{name}, {foreign}"));
                }
            }
            offset += read as u64;
        }
    }
}
