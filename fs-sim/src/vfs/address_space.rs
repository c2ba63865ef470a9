//! An address space: mappings of files and of anonymous memory.
//!
//! It owns the references that mappings hold on open descriptions. Invariants: mappings never
//! overlap; addresses are page aligned and never reused within a run. Kernel counterpart:
//! mm/mmap.c, mm/vma.c.

use std::collections::BTreeMap;

use emulator::sync::Arc;

use crate::base::errno::Errno;
use crate::base::numbers::DescriptionId;
use crate::base::units::{BLOCK, round_up};
use crate::vfs::anon::AnonMemory;
use crate::vfs::memory_file::MemoryFile;
use crate::vfs::open_file::{Deferred, Description};
use crate::vfs::private_pages::PrivatePages;

/// Where a mapping gets its bytes.
#[derive(Debug)]
pub enum Backing {
    /// A shared mapping of an open file, from this byte offset (a multiple of 4 KiB) on.
    File {
        /// The open file; the mapping holds one reference.
        description: Arc<Description>,
        /// Byte offset in the file.
        offset: u64,
    },
    /// A private mapping of an open file: a page shows the file's until it is copied.
    Private {
        /// The open file; the mapping holds one reference.
        description: Arc<Description>,
        /// The copies.
        pages: Arc<PrivatePages>,
        /// Byte offset in the mapping that was made.
        offset: u64,
    },
    /// A shared mapping of a file that is not DAX, from this byte offset (a multiple of 4 KiB) on.
    Memory {
        /// The file.
        file: Arc<MemoryFile>,
        /// Byte offset in the file.
        offset: u64,
    },
    /// The volume's own device, from this byte on: device-DAX.
    Device {
        /// Byte offset on the device.
        offset: u64,
    },
    /// Anonymous memory, from this byte offset on.
    Anon {
        /// The memory.
        memory: Arc<AnonMemory>,
        /// Byte offset in it.
        offset: u64,
    },
}

/// One mapping.
#[derive(Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Length in bytes, a multiple of 4 KiB.
    pub len: u64,
    /// Whether stores are allowed.
    pub write: bool,
    /// What it maps.
    pub backing: Backing,
}

impl Backing {
    /// What lies `delta` bytes further on, with a reference of its own to an open file.
    pub(crate) fn part(&self, delta: u64) -> Backing {
        match self {
            Backing::File { description, offset } => {
                Backing::File { description: description.get(), offset: offset + delta }
            }
            Backing::Private { description, pages, offset } => {
                Backing::Private { description: description.get(), pages: Arc::clone(pages), offset: offset + delta }
            }
            Backing::Memory { file, offset } => Backing::Memory { file: Arc::clone(file), offset: offset + delta },
            Backing::Device { offset } => Backing::Device { offset: offset + delta },
            Backing::Anon { memory, offset } => Backing::Anon { memory: Arc::clone(memory), offset: offset + delta },
        }
    }

    /// Drops its reference to an open file, if it has one.
    pub(crate) fn put(self, deferred: &mut Deferred) {
        if let Backing::File { description, .. } | Backing::Private { description, .. } = self {
            description.put(deferred);
        }
    }
}

impl Mapping {
    pub(crate) fn put(self, deferred: &mut Deferred) {
        self.backing.put(deferred);
    }

    /// The part from `start` for `len` bytes (inside this mapping), with a reference of its own.
    fn part(&self, start: u64, len: u64) -> Mapping {
        Mapping { start, len, write: self.write, backing: self.backing.part(start - self.start) }
    }
}

/// How many mappings a process may have. Linux: `vm.max_map_count`.
pub const MAPPINGS_MAX: usize = 65530;

/// See the module.
#[derive(Debug)]
pub struct AddressSpace {
    mappings: BTreeMap<u64, Mapping>,
    next: u64,
}

impl Default for AddressSpace {
    fn default() -> Self {
        AddressSpace { mappings: BTreeMap::new(), next: 0x1000_0000 }
    }
}

impl AddressSpace {
    /// Bytes of anonymous memory mapped, with what private mappings can copy.
    pub(crate) fn anonymous(&self) -> u64 {
        let anonymous = |mapping: &&Mapping| matches!(mapping.backing, Backing::Private { .. } | Backing::Anon { .. });
        self.mappings.values().filter(anonymous).map(|mapping| mapping.len).sum()
    }

    /// Whether some mapping holds this open file.
    pub(crate) fn maps(&self, id: DescriptionId) -> bool {
        let held = |mapping: &Mapping| match &mapping.backing {
            Backing::File { description, .. } | Backing::Private { description, .. } => description.id() == id,
            Backing::Memory { .. } | Backing::Device { .. } | Backing::Anon { .. } => false,
        };
        self.mappings.values().any(held)
    }

    /// Maps `len` bytes (rounded up to pages) at a fresh address.
    pub(crate) fn map(&mut self, len: u64, write: bool, backing: Backing) -> Result<u64, (Errno, Backing)> {
        if len == 0 {
            return Err((Errno::EINVAL, backing));
        }
        let Some(len) = round_up(len).filter(|_| self.mappings.len() < MAPPINGS_MAX) else {
            return Err((Errno::ENOMEM, backing));
        };
        let start = self.next;
        // One unmapped page between mappings, so that running over one never reaches the next.
        let Some(next) = start.checked_add(len).and_then(|end| end.checked_add(BLOCK)) else {
            return Err((Errno::ENOMEM, backing));
        };
        self.next = next;
        self.mappings.insert(start, Mapping { start, len, write, backing });
        Ok(start)
    }

    /// The mapping that holds all of `va..va+len`.
    pub(crate) fn find(&self, va: u64, len: u64) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=va).next_back()?;
        let end = va.checked_add(len)?;
        (end <= mapping.start + mapping.len && va < mapping.start + mapping.len).then_some(mapping)
    }

    /// What is mapped at `va..va+len`, which must lie in one mapping. A file's carries a reference
    /// of its own, so a later unmap does not end it. Kernel: `find_vma`, `check_vma_flags`.
    ///
    /// # Errors
    /// EINVAL if the range is not in one mapping, EFAULT if `write` and the mapping is read-only.
    pub(crate) fn target(&self, va: u64, len: u64, write: bool) -> Result<Backing, Errno> {
        let mapping = self.find(va, len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
        if write && !mapping.write {
            return Err(Errno::EFAULT);
        }
        Ok(mapping.backing.part(va - mapping.start))
    }

    /// Walks `va..va+len` from its start as a long-term pin by a user that the design's gate
    /// refuses: `refusal` at the first page of a file (of a private mapping, one that was not
    /// copied, or any if the user does not find copies), whatever the mapping's rights and the end
    /// of the file. Kernel: `check_vma_flags`. With the error comes whether a page lies before it.
    ///
    /// # Errors
    /// `refusal`; EFAULT if the walk first meets an address that is not mapped, or memory without a
    /// file that is read-only, where `write` is asked; EINVAL if the range wraps around.
    pub(crate) fn refuse_file_pages(
        &self,
        va: u64,
        len: u64,
        write: bool,
        finds_copies: bool,
        refusal: Errno,
    ) -> Result<(), (Errno, bool)> {
        let end = va.checked_add(len).ok_or((Errno::EINVAL, false))?;
        let mut at = va;
        while at < end {
            let refused = |errno: Errno| Err((errno, at > va));
            let Some(mapping) = self.find(at, 1) else { return refused(Errno::EFAULT) };
            match &mapping.backing {
                Backing::File { .. } => return refused(refusal),
                Backing::Private { description, pages, offset }
                    if description.file().is_some()
                        && !(finds_copies && pages.is_copied(offset + (at - mapping.start))) =>
                {
                    return refused(refusal);
                }
                Backing::Memory { file, .. } if write && !file.allows_long_term_write() => {
                    return refused(Errno::EFAULT);
                }
                _ if write && !mapping.write => return refused(Errno::EFAULT),
                Backing::Private { .. } => at = (at / BLOCK + 1) * BLOCK,
                Backing::Memory { file, offset } => {
                    // Behind the page with the last byte of its file nothing is there.
                    let there = file.size().next_multiple_of(BLOCK).saturating_sub(*offset).min(mapping.len);
                    if at >= mapping.start + there {
                        return refused(Errno::EFAULT);
                    }
                    at = mapping.start + there;
                }
                Backing::Device { .. } | Backing::Anon { .. } => at = mapping.start + mapping.len,
            }
        }
        Ok(())
    }

    /// Takes out what lies in `va..va+len`, splitting mappings at the edges. `va` must be page
    /// aligned.
    pub(crate) fn unmap(&mut self, va: u64, len: u64) -> Result<Vec<Mapping>, Errno> {
        let len = round_up(len).filter(|len| *len > 0 && va.is_multiple_of(BLOCK)).ok_or(Errno::EINVAL)?;
        let end = va.checked_add(len).ok_or(Errno::EINVAL)?;
        let hit: Vec<u64> = self
            .mappings
            .range(..end)
            .rev()
            .take_while(|(start, mapping)| *start + mapping.len > va)
            .map(|(start, _)| *start)
            .collect();
        let mut removed = Vec::with_capacity(hit.len());
        for start in hit {
            let Some(mapping) = self.mappings.remove(&start) else { continue };
            let mapping_end = mapping.start + mapping.len;
            if mapping.start < va {
                self.mappings.insert(mapping.start, mapping.part(mapping.start, va - mapping.start));
            }
            if mapping_end > end {
                self.mappings.insert(end, mapping.part(end, mapping_end - end));
            }
            removed.push(mapping);
        }
        Ok(removed)
    }

    /// A forked child's copy: shared mappings of files; anonymous memory is shared too
    /// (`MAP_SHARED`). Copied pages of private mappings are copied for the child at once.
    pub(crate) fn fork(&self) -> AddressSpace {
        let mut forked: Vec<(Arc<PrivatePages>, Arc<PrivatePages>)> = Vec::new();
        let mut mappings = BTreeMap::new();
        for mapping in self.mappings.values() {
            let mut copy = mapping.part(mapping.start, mapping.len);
            if let Backing::Private { pages, .. } = &mut copy.backing {
                // Parts of one mapping share its pages in the child too.
                let known = forked.iter().find(|(parent, _)| Arc::ptr_eq(parent, pages));
                let child = known.map(|(_, child)| Arc::clone(child)).unwrap_or_else(|| Arc::new(pages.fork()));
                forked.push((Arc::clone(pages), Arc::clone(&child)));
                *pages = child;
            }
            mappings.insert(copy.start, copy);
        }
        AddressSpace { mappings, next: self.next }
    }

    /// The file that `is_open` finds open ends at `size` now: copies behind it in private mappings
    /// are gone.
    pub(crate) fn truncated(&self, is_open: &dyn Fn(&Description) -> bool, size: u64) {
        for mapping in self.mappings.values() {
            let Backing::Private { description, pages, .. } = &mapping.backing else { continue };
            if is_open(description) {
                pages.truncated(size);
            }
        }
    }

    /// The first part of `va..end` that is mapped: its address, its length, and what is there, with
    /// a reference of its own.
    pub(crate) fn next_part(&self, va: u64, end: u64) -> Option<(u64, u64, Backing)> {
        let (_, mapping) = match self.mappings.range(..=va).next_back() {
            Some((start, mapping)) if *start + mapping.len > va => (start, mapping),
            _ => self.mappings.range(va..end).next()?,
        };
        let start = mapping.start.max(va);
        let len = end.min(mapping.start + mapping.len.next_multiple_of(BLOCK)) - start;
        Some((start, len, mapping.backing.part(start - mapping.start)))
    }

    /// Every mapping, in the order of the addresses.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<Mapping> {
        std::mem::take(&mut self.mappings).into_values().collect()
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests;
