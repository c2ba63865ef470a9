//! What an address of a process refers to: a place in an open file or in anonymous memory.
//!
//! It owns the lookup. Invariant: a target of a file holds a reference of its own, so a later
//! unmap does not end it. Kernel counterpart: `find_vma`, `check_vma_flags`.

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::vfs::address_space::Backing;
use crate::vfs::anon::AnonMemory;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::private_pages::PrivatePages;
use crate::vfs::process::Process;

/// The object and offset behind a mapped address.
pub(crate) enum MappedTarget {
    File {
        description: Arc<Description>,
        offset: u64,
    },
    /// A private mapping of an open file; `offset` counts in the copies' memory.
    Private {
        description: Arc<Description>,
        pages: Arc<PrivatePages>,
        offset: u64,
    },
    Anon {
        memory: Arc<AnonMemory>,
        offset: u64,
    },
}

impl MappedTarget {
    /// Drops the reference to an open file, if there is one.
    pub(crate) fn put(self, deferred: &mut Deferred) {
        if let MappedTarget::File { description, .. } | MappedTarget::Private { description, .. } = self {
            description.put(deferred);
        }
    }
}

impl Process {
    /// Whether `va..va+len` lies in one mapping that allows stores.
    pub(crate) fn maps_writable(&self, va: u64, len: u64) -> bool {
        self.mm.lock().find(va, len).is_some_and(|mapping| mapping.write)
    }

    /// What is mapped at `va..va+len`, which must lie in one mapping. A file target carries a
    /// reference of its own.
    ///
    /// # Errors
    /// EINVAL if the range is not in one mapping, EFAULT if `write` and the mapping is read-only.
    pub(crate) fn target(&self, va: u64, len: u64, write: bool) -> Result<MappedTarget, Errno> {
        let mm = self.mm.lock();
        let mapping = mm.find(va, len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
        if write && !mapping.write {
            return Err(Errno::EFAULT);
        }
        let delta = va - mapping.start;
        Ok(match &mapping.backing {
            Backing::File { description, offset } => {
                MappedTarget::File { description: description.get(), offset: offset + delta }
            }
            Backing::Private { description, pages, offset } => MappedTarget::Private {
                description: description.get(),
                pages: Arc::clone(pages),
                offset: offset + delta,
            },
            Backing::Anon { memory, offset } => {
                MappedTarget::Anon { memory: Arc::clone(memory), offset: offset + delta }
            }
        })
    }
}
