//! Poison: pages of the device whose contents are lost, and the loss of the device as a whole.
//!
//! It owns the set of poisoned pages and the switch that takes the device away. Invariants: an
//! access that touches a poisoned page fails and transfers nothing; other pages are unaffected;
//! once the device is gone every access fails, for good. While nothing is wrong an access pays one
//! relaxed load. Kernel counterpart: the badblocks of a pmem namespace (drivers/nvdimm/pmem.c:
//! `pmem_recovery_write`, `pmem_dax_zero_page_range`) and memory-failure.c.
//!
//! Only whole pages are cleared: by zeroing them, or by a [`Poison::clear`] of the caller that
//! overwrites them through the driver next, as a `write` does. A store by a CPU or a DMA clears
//! nothing.

use std::collections::BTreeSet;

use crate::runtime::pages::PageRange;
use crate::runtime::sync::Mutex;
use crate::runtime::sync::atomic::{AtomicU64, Ordering};

/// The device is gone; the other bits count poisoned pages.
const GONE: u64 = 1 << 63;

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It touches this poisoned page (the first one).
    Page(u64),
    /// The device is gone.
    Gone,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Poison {
    marks: AtomicU64,
    pages: Mutex<BTreeSet<u64>>,
}

impl Poison {
    /// What is wrong with `pages`.
    pub fn check(&self, pages: PageRange) -> Result<(), Damage> {
        // ORDERING: Relaxed: damage has no order with accesses in flight; one that comes after it
        // is reported sees it.
        match self.marks.load(Ordering::Relaxed) {
            0 => Ok(()),
            marks => self.look(marks, pages),
        }
    }

    #[cold]
    fn look(&self, marks: u64, pages: PageRange) -> Result<(), Damage> {
        if marks & GONE != 0 {
            return Err(Damage::Gone);
        }
        match self.pages.lock().range(pages.start()..pages.end()).next() {
            Some(page) => Err(Damage::Page(*page)),
            None => Ok(()),
        }
    }

    /// Poisons `pages`.
    pub fn poison(&self, pages: PageRange) {
        let mut poisoned = self.pages.lock();
        let before = poisoned.len();
        poisoned.extend(pages.start()..pages.end());
        let added = poisoned.len() - before;
        self.marks.fetch_add(added as u64, Ordering::Relaxed);
    }

    /// Clears the poison of `pages`. Their contents are undefined until the caller overwrites them.
    pub fn clear(&self, pages: PageRange) {
        if self.marks.load(Ordering::Relaxed) & !GONE == 0 {
            return;
        }
        let mut poisoned = self.pages.lock();
        let healed: Vec<u64> = poisoned.range(pages.start()..pages.end()).copied().collect();
        for page in &healed {
            poisoned.remove(page);
        }
        self.marks.fetch_sub(healed.len() as u64, Ordering::Relaxed);
    }

    /// Whether nothing is poisoned and the device is there.
    pub fn is_clean(&self) -> bool {
        self.marks.load(Ordering::Relaxed) == 0
    }

    /// The poisoned pages, in order.
    pub fn pages(&self) -> Vec<u64> {
        self.pages.lock().iter().copied().collect()
    }

    /// Takes the device away.
    pub fn lose_device(&self) {
        self.marks.fetch_or(GONE, Ordering::SeqCst);
    }

    /// Whether the device is gone.
    pub fn is_gone(&self) -> bool {
        self.marks.load(Ordering::SeqCst) & GONE != 0
    }
}

#[cfg(all(test, not(any(daxlab_loom, daxlab_shuttle))))]
mod tests {
    use super::*;
    use crate::device::dax::{AccessError, Device, PAGE};

    const fn page(n: u64) -> PageRange {
        PageRange::new(n, 1)
    }

    #[test]
    fn an_access_that_touches_a_poisoned_page_fails_and_transfers_nothing() {
        let device = Device::memory(2 << 20).unwrap();
        device.write(0, &[7; 3 * PAGE as usize]).unwrap();
        device.poison().poison(page(1));
        device.poison().poison(page(1));
        let poisoned = Err(AccessError::Poisoned { page: 1 });
        let mut bytes = [9; 2];
        assert_eq!(device.read(PAGE - 1, &mut bytes), poisoned);
        assert_eq!(bytes, [9, 9]);
        assert_eq!(device.write(PAGE - 1, &[1; 2]), poisoned);
        assert_eq!(device.fetch_add_u64(PAGE, 1), Err(AccessError::Poisoned { page: 1 }));
        assert_eq!(device.copy_within(0, PAGE, PAGE), poisoned);
        assert_eq!(device.copy_within(PAGE, 0, PAGE), poisoned);
        assert_eq!((device.read(PAGE - 2, &mut bytes), bytes), (Ok(()), [7, 7]), "its neighbours are fine");
        assert_eq!(device.read(2 * PAGE, &mut bytes), Ok(()));

        device.zero(page(1)).unwrap();
        assert_eq!((device.read(PAGE, &mut bytes), bytes), (Ok(()), [0, 0]), "zeroed as a whole");
        assert!(device.poison().pages().is_empty());
        assert_eq!(device.poison().check(PageRange::new(0, 512)), Ok(()));
    }

    #[test]
    fn the_poison_goes_along_when_the_device_is_mapped_again() {
        let device = Device::memory(2 << 20).unwrap();
        device.write(5 * PAGE, &[3]).unwrap();
        device.poison().poison(page(4));
        device.poison().lose_device();
        let mut byte = [0];
        assert_eq!(device.read(5 * PAGE, &mut byte), Err(AccessError::Gone));
        assert_eq!(device.zero(page(5)), Err(AccessError::Gone));
        let again = device.map_again().unwrap();
        assert_eq!((again.read(5 * PAGE, &mut byte), byte), (Ok(()), [3]));
        assert_eq!(again.read(4 * PAGE, &mut byte), Err(AccessError::Poisoned { page: 4 }));
    }
}
