//! Short-term pins against layout changes, where the test holds the pin: S16 and S49. What can be
//! tested from outside is in `tests/`.

use emulator::World;
use emulator::device::Device;
use emulator::pin::PageRange;
use emulator::sync::thread::JoinHandle;

use super::*;
use crate::base::numbers::Fd;
use crate::base::units::BLOCK;
use crate::design::{Axes, ChangeRule, LeaseRules, PinGate, presets};
use crate::holders::holder::{HolderInfo, PinHolder, RevokeReason};
use crate::leases::layout::kind::LeaseKind;
use crate::pinning::admission::LongTermUser;
use crate::pinning::registration::{PinRequest, Registration};
use crate::syscalls::fallocate::FallocateMode;
use crate::syscalls::open::OpenFlags;
use crate::vfs::kernel::KernelConfig;
use crate::vfs::open_file::Deferred;
use crate::vfs::signals::{Disposition, Signal};
use emulator::sync::atomic::Ordering;

fn kernel(axes: Axes) -> Arc<Kernel> {
    let device = Device::memory(2 << 20).expect("a device");
    Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(axes)).expect("a kernel")
}

/// A process with the file "data" of four blocks.
fn actor(kernel: &Arc<Kernel>) -> (Arc<Task>, Fd) {
    let task = Arc::new(kernel.spawn());
    task.process().set_disposition(Signal::Sigusr1, Disposition::Handler);
    let fd = task.open("data", OpenFlags::create()).expect("open");
    if task.stat(fd).expect("stat").size == 0 {
        task.write(fd, 0, &[7; 4 * BLOCK as usize]).expect("write");
    }
    (task, fd)
}

/// Runs `call` in a thread of its own and returns once it sleeps for `reason`.
fn blocks<R: Send + 'static>(
    task: &Arc<Task>,
    reason: &str,
    call: impl FnOnce(&Task) -> R + Send + 'static,
) -> JoinHandle<R> {
    let own = Arc::clone(task);
    let thread = thread::spawn(move || call(&own));
    let (world, id) = (task.kernel().world(), task.waiter().id());
    while !world.sleepers().iter().any(|sleeper| sleeper.waiter == id && sleeper.reason == reason) {
        assert!(!thread.is_finished(), "returned instead of blocking: {reason}");
        thread::yield_now();
    }
    thread
}

fn at_rest(kernel: &Arc<Kernel>, tasks: &[&Arc<Task>]) {
    tasks.iter().for_each(|task| task.exit());
    assert_eq!(kernel.check_at_rest(), Vec::<String>::new());
    assert_eq!(kernel.counters.stale_dma.get(), 0);
}

/// S16: a change waits for a short-term pin in every design but the one that frees pinned pages; a
/// pinner that comes meanwhile waits at the closed page and finds the new layout; an interrupted
/// change leaves the old one.
#[test]
fn s16_change_waits_for_a_short_term_pin() {
    for preset in presets().iter().filter(|preset| preset.axes.stranger_change != ChangeRule::Proceed) {
        for interrupted in [false, true] {
            let kernel = kernel(preset.axes);
            let ((a, fd), (b, _), (c, fc)) = (actor(&kernel), actor(&kernel), actor(&kernel));
            let inode = a.inode(fd).unwrap();
            let pins = pin_short(&kernel, &inode, BlockRange::new(2, 3), None).unwrap();
            let changing = blocks(&b, "pins draining", |b| b.truncate("data", BLOCK));
            assert_eq!(kernel.counters.closes_met_pin.get(), 1, "{}", preset.name);
            let reading = blocks(&c, "pages of a layout change", move |c| {
                let mut byte = [0];
                c.read(fc, 3 * BLOCK, &mut byte).map(|len| (len, byte[0]))
            });
            if interrupted {
                a.kill(b.pid(), Signal::Sigusr1).unwrap();
                assert_eq!(changing.join().unwrap(), Err(Errno::EINTR));
                assert_eq!(reading.join().unwrap(), Ok((1, 7)), "the pages are open again");
                assert_eq!(a.stat(fd).unwrap().blocks, 4);
                unpin_short(&kernel, pins);
            } else {
                assert_eq!(a.stat(fd).unwrap().size, 4 * BLOCK, "not visible yet");
                unpin_short(&kernel, pins);
                assert_eq!(changing.join().unwrap(), Ok(()));
                assert_eq!(reading.join().unwrap(), Ok((0, 0)), "behind the new end");
                assert_eq!((a.stat(fd).unwrap().blocks, kernel.usage().allocated), (1, 1));
            }
            at_rest(&kernel, &[&a, &b, &c]);
        }
    }
}

/// A lease request that comes while a change drains short-term pins is granted after the change:
/// it is neither ignored nor refused.
#[test]
fn lease_waits_for_a_settled_change() {
    for preset in presets() {
        let rules = preset.axes.lease_rules;
        if rules == LeaseRules::None || preset.axes.stranger_change == ChangeRule::Proceed {
            continue;
        }
        let kind = if rules == LeaseRules::Chinner { LeaseKind::WRITE } else { LeaseKind::WRITE_U };
        let kernel = kernel(preset.axes);
        let ((a, fd), (b, fb)) = (actor(&kernel), actor(&kernel));
        let inode = a.inode(fd).unwrap();
        let pins = pin_short(&kernel, &inode, BlockRange::new(2, 3), None).unwrap();
        let punch = |b: &Task, fb| b.fallocate(fb, FallocateMode::PunchHole, 2 * BLOCK, BLOCK);
        let changing = blocks(&b, "pins draining", move |b| punch(b, fb));
        assert_eq!(a.lease(fd, kind, BlockRange::new(0, 2)), Ok(()), "another range");
        let asking = blocks(&a, "layout change under way", move |a| a.lease(fd, kind, BlockRange::ALL));
        unpin_short(&kernel, pins);
        assert_eq!((changing.join().unwrap(), asking.join().unwrap()), (Ok(()), Ok(())));
        assert_eq!(a.stat(fd).unwrap().blocks, 3, "the lease came after the change");
        at_rest(&kernel, &[&a, &b]);
    }
}

struct SilentHolder;

impl PinHolder for SilentHolder {
    fn describe(&self) -> HolderInfo {
        HolderInfo { kind: "no holder", processes: Vec::new(), fd: None, context: None, region: None, guest: None }
    }

    fn revoke(&self, _kernel: &Arc<Kernel>, _reason: RevokeReason) {}
}

/// S49: while a change waits for a long-term pin its pages are open: short-term pins come and go,
/// and the change misses none of them when the long-term one is gone. A registration that meets a
/// closed page tries again.
#[test]
fn s49_short_term_pins_go_on_while_a_change_waits() {
    let unguarded = presets().iter().find(|preset| preset.axes.stranger_change == ChangeRule::Proceed).unwrap();
    let kernel = kernel(Axes { stranger_change: ChangeRule::Wait, ..unguarded.axes });
    let ((a, fd), (b, _), (c, fc)) = (actor(&kernel), actor(&kernel), actor(&kernel));
    let inode = a.inode(fd).unwrap();
    let va = a.mmap(fd, 0, 4 * BLOCK, true).unwrap();
    let want = PinRequest { va, len: 4 * BLOCK, write: true, user: LongTermUser::Rdma };
    let Ok(Registration::Pinned(region)) = a.register(want, Arc::new(SilentHolder)) else { panic!("open gate") };
    let changing = blocks(&b, "long-term pins", |b| b.truncate("data", BLOCK));
    let mut block = [0; BLOCK as usize];
    for _ in 0..3 {
        assert_eq!((c.read(fc, 3 * BLOCK, &mut block), block[0]), (Ok(BLOCK as usize), 7));
        assert_eq!(c.write(fc, 3 * BLOCK, &[7; BLOCK as usize]), Ok(BLOCK as usize));
    }
    assert_eq!(kernel.counters.pin_retries.get(), 0, "no pinner was held up");
    let pins = pin_short(&kernel, &inode, BlockRange::new(3, 4), None).unwrap();
    let mut deferred = Deferred::default();
    region.release(&kernel, &mut deferred);
    kernel.run_deferred(deferred);
    while !kernel.world().sleepers().iter().any(|sleeper| sleeper.reason == "pins draining") {
        thread::yield_now();
    }
    let cva = c.mmap(fc, 0, 4 * BLOCK, true).unwrap();
    let want = PinRequest { va: cva, ..want };
    assert_eq!(c.register(want, Arc::new(SilentHolder)).err(), Some(Errno::EAGAIN), "the change said that it waits");
    unpin_short(&kernel, pins);
    assert_eq!(changing.join().unwrap(), Ok(()));
    assert_eq!(c.register(want, Arc::new(SilentHolder)).err(), Some(Errno::EFAULT), "past the new end");
    at_rest(&kernel, &[&a, &b, &c]);
}

/// A refused registration leaves no pin, no charge and no gate count behind, wherever it fails:
/// here in the middle of its pages.
#[test]
fn refused_in_the_middle_nothing_stays_pinned() {
    let preset = presets().iter().find(|preset| preset.axes.lease_rules == LeaseRules::ManPage).unwrap();
    let kernel = kernel(preset.axes);
    let ((a, fd), (b, _)) = (actor(&kernel), actor(&kernel));
    let inode = a.inode(fd).unwrap();
    let last = inode.layout(|layout| layout.lookup(3)).map(|extent| extent.block + 3 - extent.file_block).unwrap();
    let va = a.mmap(fd, 0, 4 * BLOCK, true).unwrap();
    let want = PinRequest { va, len: 4 * BLOCK, write: true, user: LongTermUser::Rdma };
    let closing = kernel.pins.close(PageRange::new(last, 1)).unwrap();
    let turn = inode.turn.try_take(&kernel, kernel.new_waiter().id(), BlockRange::ALL).unwrap();
    turn.pages_closed();
    let registering = blocks(&a, "pages of a layout change", move |a| match a.register(want, Arc::new(SilentHolder)) {
        Ok(Registration::Pinned(region)) => {
            let mut deferred = Deferred::default();
            region.release(a.kernel(), &mut deferred);
            a.kernel().run_deferred(deferred);
            Ok(())
        }
        other => other.map(|_| ()),
    });
    assert!(kernel.pins.census(PageRange::new(0, kernel.pins.pages())).is_zero(), "what it had counted it took back");
    assert_eq!(inode.holders().len(), 0, "not committed, not a holder");
    drop(closing);
    turn.pages_reopened();
    drop(turn);
    assert_eq!(registering.join().unwrap(), Ok(()));
    at_rest(&kernel, &[&a, &b]);
}

struct Told(emulator::sync::atomic::AtomicBool);

impl PinHolder for Told {
    fn describe(&self) -> HolderInfo {
        SilentHolder.describe()
    }

    fn revoke(&self, _kernel: &Arc<Kernel>, _reason: RevokeReason) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// S27 between gate and commit: a lease lost while a registration under it is in progress is lost
/// for that region too, although the region was not listed when the lease went.
#[test]
fn s27_lease_lost_while_a_registration_is_in_flight() {
    use crate::design::{LeaseLost, UnlockRule};
    for preset in presets() {
        let releases = preset.axes.unlock_while_pinned == Some(UnlockRule::Release);
        if !releases || preset.axes.pin_gate != PinGate::Unbreakable {
            continue;
        }
        let kernel = kernel(preset.axes);
        let (a, fd) = actor(&kernel);
        let helper = Arc::new(a.thread());
        let inode = a.inode(fd).unwrap();
        a.lease(fd, LeaseKind::READ_U, BlockRange::ALL).unwrap();
        let page = inode.layout(|layout| layout.lookup(0)).unwrap().block;
        let va = a.mmap(fd, 0, BLOCK, true).unwrap();
        let want = PinRequest { va, len: BLOCK, write: true, user: LongTermUser::Rdma };
        let told = Arc::new(Told(false.into()));
        let holder = Arc::clone(&told);
        let closing = kernel.pins.close(PageRange::new(page, 1)).unwrap();
        let turn = inode.turn.try_take(&kernel, kernel.new_waiter().id(), BlockRange::ALL).unwrap();
        turn.pages_closed();
        let registering = blocks(&a, "pages of a layout change", move |a| a.register(want, holder));
        helper.unlock(fd, BlockRange::ALL).unwrap();
        drop(closing);
        turn.pages_reopened();
        drop(turn);
        let Ok(Registration::Pinned(region)) = registering.join().unwrap() else { panic!("it was let through") };
        let aborts = preset.axes.on_lease_lost == Some(LeaseLost::Abort);
        assert_eq!(told.0.load(Ordering::SeqCst), aborts, "{}", preset.name);
        let mut deferred = Deferred::default();
        region.release(&kernel, &mut deferred);
        kernel.run_deferred(deferred);
        at_rest(&kernel, &[&a]);
    }
}
