//! A holder that is listed only when a layout change has judged the pins already.

mod common;

use common::watchdog::spawn;
use common::{Lab, preset};
use emulator::sync::atomic::{AtomicBool, Ordering};
use emulator::sync::{Arc, thread};
use fs_sim::base::numbers::Pid;
use fs_sim::design::{Axes, ChangeRule};
use fs_sim::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use fs_sim::pinning::admission::LongTermUser;
use fs_sim::pinning::registration::{PinRequest, Registration};
use fs_sim::vfs::open_file::Deferred;
use fs_sim::{BLOCK, Errno, Kernel};

/// Its registration has pinned its pages, and stops before the holder is listed.
struct SlowHolder {
    pid: Pid,
    pinned: AtomicBool,
    goes_on: AtomicBool,
}

impl PinHolder for SlowHolder {
    fn describe(&self) -> HolderInfo {
        let (fd, context, region, guest) = (None, None, None, None);
        HolderInfo { kind: "a slow holder", processes: vec![self.pid], fd, context, region, guest }
    }

    /// Asked between the pins and the listing.
    fn keeps_file(&self) -> bool {
        self.pinned.store(true, Ordering::SeqCst);
        while !self.goes_on.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        false
    }

    fn revoke(&self, _kernel: &Arc<Kernel>, _reason: RevokeReason) {}
}

/// The change has closed its pages and waits for pins that belong to no listed holder. When the
/// holder is listed, the change judges again, and is refused: it does not wait for a pin without a
/// bound.
#[test]
fn a_holder_that_appears_behind_the_verdict_is_judged() {
    let axes = Axes { stranger_change: ChangeRule::Fail, holder_change: ChangeRule::Fail, ..preset("unsafe") };
    let (lab, [a, b]) = Lab::cast(axes);
    let f = a.writes_file("data", 4, 1);
    let va = a.mmap(f, 0, 4 * BLOCK, true).unwrap();
    let holder = Arc::new(SlowHolder { pid: a.pid(), pinned: AtomicBool::new(false), goes_on: AtomicBool::new(false) });
    let (task, object) = (Arc::clone(&a.0), Arc::clone(&holder) as Arc<dyn PinHolder>);
    let want = PinRequest { va, len: 4 * BLOCK, write: true, user: LongTermUser::Rdma };
    let registering = spawn(move || task.register(want, object));
    while !holder.pinned.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    let changing = b.blocks("pins draining", |b| b.truncate("data", 0));
    holder.goes_on.store(true, Ordering::SeqCst);
    assert_eq!(changing.finish(), Err(Errno::ETXTBSY));
    let Ok(Registration::Pinned(pinned)) = registering.join() else { panic!("not pinned") };
    let mut deferred = Deferred::default();
    pinned.release(&lab.kernel, &mut deferred);
    lab.kernel.run_deferred(deferred);
    a.munmap(va, 4 * BLOCK).unwrap();
    assert_eq!(a.bytes_of(f), [1, 2, 3, 4]);
    lab.end([&a, &b]);
}
