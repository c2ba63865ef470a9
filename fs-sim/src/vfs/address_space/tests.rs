//! The walk of a long-term pin that the gate refuses, over mappings that touch.

use emulator::sync::Arc;

use super::{AddressSpace, Backing};
use crate::base::errno::Errno;
use crate::base::numbers::DescriptionId;
use crate::base::units::BLOCK;
use crate::vfs::anon::AnonMemory;
use crate::vfs::fd_holders::FdHolders;
use crate::vfs::open_file::{Deferred, Description, OpenObject, OpenTarget, Passing};

struct Nothing;

impl OpenObject for Nothing {
    fn release(&self, _kernel: &Arc<crate::vfs::kernel::Kernel>, _deferred: &mut Deferred) {}

    fn may_pass(&self, _kernel: &crate::vfs::kernel::Kernel, _pass: Passing) -> bool {
        true
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync> {
        self
    }
}

fn file() -> Backing {
    let description =
        Description::new(DescriptionId(1), OpenTarget::Object(Arc::new(Nothing)), Arc::new(FdHolders::default()));
    Backing::File { description, offset: 0 }
}

fn anon() -> Backing {
    Backing::Anon { memory: Arc::new(AnonMemory::new(BLOCK as usize)), offset: 0 }
}

/// Maps pages that touch each other; the first address.
fn mapped(mm: &mut AddressSpace, pages: impl IntoIterator<Item = (Backing, bool)>) -> u64 {
    let first = mm.next;
    for (backing, write) in pages {
        mm.map(BLOCK, write, backing).map_err(|(errno, _)| errno).expect("there is room");
        mm.next -= BLOCK;
    }
    mm.next += BLOCK;
    first
}

#[test]
fn the_first_page_that_refuses_decides() {
    let mut mm = AddressSpace::default();
    let walk = |mm: &AddressSpace, va: u64, pages: u64, write: bool| {
        mm.refuse_file_pages(va, pages * BLOCK, write, true, Errno::EOPNOTSUPP)
    };
    let halves = mapped(&mut mm, [(anon(), true), (file(), false)]);
    assert_eq!(walk(&mm, halves, 1, true), Ok(()));
    assert_eq!(walk(&mm, halves, 2, true), Err((Errno::EOPNOTSUPP, true)), "half of it is anonymous");
    assert_eq!(walk(&mm, halves + BLOCK, 1, true), Err((Errno::EOPNOTSUPP, false)), "a read-only mapping");
    assert_eq!(walk(&mm, halves + BLOCK, 2, true), Err((Errno::EOPNOTSUPP, false)), "beyond the mapping");
    assert_eq!(walk(&mm, halves + 2 * BLOCK, 1, true), Err((Errno::EFAULT, false)), "not mapped");
    assert_eq!(walk(&mm, halves - BLOCK, 3, true), Err((Errno::EFAULT, false)), "not mapped at its start");
    let gap = mapped(&mut mm, [(anon(), false), (anon(), true), (anon(), true)]);
    assert_eq!(walk(&mm, gap, 3, false), Ok(()));
    assert_eq!(walk(&mm, gap, 3, true), Err((Errno::EFAULT, false)), "read-only memory without a file");
    assert_eq!(walk(&mm, gap + BLOCK, 3, true), Err((Errno::EFAULT, true)), "the last page is not mapped");
    assert_eq!(walk(&mm, gap, u64::MAX / BLOCK, true), Err((Errno::EINVAL, false)));
}
