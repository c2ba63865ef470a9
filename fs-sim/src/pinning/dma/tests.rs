//! The check after a copy, with a layout change in the middle of the copy.

use emulator::World;
use emulator::device::Device;
use emulator::sync::Arc;

use super::*;
use crate::design::{Axes, ChangeRule, presets};
use crate::holders::holder::{PinHolder, RevokeReason};
use crate::leases::layout::kind::LeaseKind;
use crate::pinning::admission::LongTermUser;
use crate::pinning::registration::{PinRequest, Registration};
use crate::syscalls::open::OpenFlags;
use crate::vfs::kernel::KernelConfig;

struct SilentHolder;

impl PinHolder for SilentHolder {
    fn describe(&self) -> HolderInfo {
        HolderInfo { kind: "test region", processes: Vec::new(), fd: None, context: None, region: None, guest: None }
    }

    fn revoke(&self, _kernel: &Arc<Kernel>, _reason: RevokeReason) {}
}

fn preset(name: &str) -> Axes {
    presets().iter().find(|preset| preset.name == name).expect("a preset").axes
}

/// A holder pins a file of two blocks and copies from its first block. The file is truncated to
/// nothing in the middle of the copy, after the first check of the ledger. Returns how many
/// accesses were found stale, and how many went to orphaned blocks.
fn truncated_in_the_middle_of_a_copy(axes: Axes) -> (u64, u64) {
    let device = Device::memory(2 << 20).expect("a device");
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).expect("a kernel");
    let task = kernel.spawn();
    let fd = task.open("data", OpenFlags::create()).expect("set-up");
    task.write(fd, 0, &[7; 2 * BLOCK as usize]).expect("set-up");
    if axes.stranger_change != ChangeRule::Proceed {
        task.lease(fd, LeaseKind::WRITE, crate::base::range::BlockRange::ALL).expect("set-up");
    }
    let va = task.mmap(fd, 0, 2 * BLOCK, true).expect("set-up");
    let request = PinRequest { va, len: 2 * BLOCK, write: true, user: LongTermUser::Rdma };
    let Ok(Registration::Pinned(region)) = task.register(request, Arc::new(SilentHolder)) else { panic!("pinned") };

    let counts = || (kernel.counters.stale_dma.get(), kernel.counters.orphan_dma.get());
    let subject = AccessSubject { region: Some(&region), ino: region.inode.ino(), file_block: 0 };
    let first = PageRange::new(region.holder.pages[0].start(), 1);
    watched(&kernel, first, region.read_point, &subject, || ());
    assert_eq!(counts(), (0, 0), "no change, nothing is found");
    watched(&kernel, first, region.read_point, &subject, || task.ftruncate(fd, 0)).expect("the design lets it through");
    let found = counts();
    assert_eq!(kernel.attached::<StaleFindings>().all().len() as u64, found.0);

    let mut deferred = crate::vfs::open_file::Deferred::default();
    region.release(&kernel, &mut deferred);
    kernel.run_deferred(deferred);
    task.exit();
    found
}

#[test]
fn page_freed_in_the_middle_of_a_copy_is_found_by_the_check_after_it() {
    assert_eq!(truncated_in_the_middle_of_a_copy(preset("unsafe")), (1, 0), "(stale, orphaned)");
}

#[test]
fn page_orphaned_in_the_middle_of_a_copy_is_found_by_the_check_after_it() {
    assert_eq!(truncated_in_the_middle_of_a_copy(preset("chinner-2019")), (0, 1), "(stale, orphaned)");
}
