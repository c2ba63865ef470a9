//! The descriptor table.
//!
//! It owns the references that descriptors hold. Invariant: the lowest free number is given out, as
//! POSIX demands, and never more than [`FDS_MAX`] are open. Kernel counterpart: fs/file.c.

use std::collections::BTreeMap;

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::Fd;
use crate::vfs::open_file::Description;

/// `RLIMIT_NOFILE`.
pub const FDS_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct FdTable(BTreeMap<Fd, Arc<Description>>);

impl FdTable {
    /// Installs a description at the lowest free number.
    pub(crate) fn install(&mut self, description: Arc<Description>) -> Result<Fd, Arc<Description>> {
        if self.is_full() {
            return Err(description);
        }
        let mut lowest = 0;
        for fd in self.0.keys() {
            if fd.0 != lowest {
                break;
            }
            lowest += 1;
        }
        self.0.insert(Fd(lowest), description);
        Ok(Fd(lowest))
    }

    /// Whether no number is free.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= FDS_MAX
    }

    /// Puts a description at `fd`; returns what was there.
    pub(crate) fn replace(&mut self, fd: Fd, description: Arc<Description>) -> Option<Arc<Description>> {
        self.0.insert(fd, description)
    }

    /// Looks a descriptor up.
    pub(crate) fn get(&self, fd: Fd) -> Result<&Arc<Description>, Errno> {
        self.0.get(&fd).ok_or(Errno::EBADF)
    }

    /// Takes a descriptor out.
    pub(crate) fn take(&mut self, fd: Fd) -> Result<Arc<Description>, Errno> {
        self.0.remove(&fd).ok_or(Errno::EBADF)
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<Arc<Description>> {
        std::mem::take(&mut self.0).into_values().collect()
    }

    /// All descriptors.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Fd, &Arc<Description>)> {
        self.0.iter().map(|(fd, description)| (*fd, description))
    }
}
