//! Making a file of a given size with all blocks written.
//!
//! It owns the checks of the arguments. Kernel counterpart: `fallocate` with
//! `FALLOC_FL_WRITE_ZEROES`.

use crate::base::errno::Errno;
use crate::base::units::{BLOCK, FILE_MAX};
use crate::layout_change::changes::provision::Provision;
use crate::layout_change::driver::change_layout;
use crate::layout_change::plan::Patience;
use crate::syscalls::open::OpenFlags;
use crate::vfs::task::Task;

impl Task {
    /// Makes a file called `name` of `bytes` bytes, all allocated, written and zero: in exactly
    /// `runs` runs of the device if that is given, else in as few as possible.
    ///
    /// # Errors
    /// EINVAL (`bytes` not a positive multiple of 4 KiB, `runs` 0 or more than there are blocks),
    /// EFBIG; the errors of an exclusive open ([`Task::open`]); ENOSPC: too few free blocks, or,
    /// with `runs`, no run of free blocks as long as the file. Refused, there is no file.
    pub fn provision(&self, name: &str, bytes: u64, runs: Option<u64>) -> Result<(), Errno> {
        let blocks = bytes / BLOCK;
        if bytes > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) || runs.is_some_and(|runs| runs == 0 || runs > blocks) {
            return Err(Errno::EINVAL);
        }
        let fd = self.open(name, OpenFlags { exclusive: true, ..OpenFlags::create() })?;
        let made = self.with_file(fd, |_, inode, _| {
            let change = Provision { blocks, parts: runs.unwrap_or(1) };
            change_layout(self, inode, &change, Patience::Waits)?;
            let found = inode.layout(crate::extent_map::lookup::runs);
            if runs.is_some_and(|runs| runs != found) { Err(Errno::ENOSPC) } else { Ok(()) }
        });
        self.close(fd)?;
        // Another task may have removed it already.
        made.inspect_err(|_| {
            let _gone = self.unlink(name);
        })
    }
}
