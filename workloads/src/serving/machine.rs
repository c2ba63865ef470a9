//! What all guests of a server share: the memory, the simulated kernel, the power.
//!
//! It owns the device and, with the power-cut model, its durable copy. Invariants: while the power
//! is failing nothing is handed out to be mapped, and no guest is admitted; a durable copy is cut
//! and restored only while nothing is mapped and no flush runs.

use std::path::Path;
use std::task::Poll;

use emulator::World;
use emulator::device::persistence::DurableImage;
use emulator::device::{Device, ImageRoom};
use emulator::pin::gate::Gate;
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::wait::{WaitError, WaitFor, WaitQueue, Waiter, WaiterId};
use fs_sim::Kernel;

use super::nic::Regions;
use crate::input::Size;

/// A filesystem with less than this many bytes free is full.
const FULL: u64 = 1 << 20;

/// Says something that happened, for people.
pub type Events = Arc<dyn Fn(&str) + Send + Sync>;

/// Where guests' memory comes from.
pub(super) enum ServedMemory {
    /// The whole of an image.
    Image(Device),
    /// Files of this kernel's volume.
    Files(Arc<Kernel>),
}

impl ServedMemory {
    pub(super) fn device(&self) -> &Device {
        match self {
            ServedMemory::Image(device) => device,
            ServedMemory::Files(kernel) => kernel.device(),
        }
    }
}

/// See the module.
pub(super) struct ServedMachine {
    backing: ServedMemory,
    durable: Option<DurableImage>,
    events: Events,
    /// For waits that no simulated task waits.
    waits: World,
    next_waiter: AtomicU64,
    /// Work that needs power passes here; closed while the power is failing.
    power: Gate,
    /// The last one left the gate.
    powerless: WaitQueue,
    ending: AtomicBool,
    nic: Regions,
}

/// The power is failing. It is back when this is dropped, whatever the cut came to.
pub(super) struct PowerOutage<'a> {
    machine: &'a ServedMachine,
}

impl Drop for PowerOutage<'_> {
    fn drop(&mut self) {
        self.machine.power.reopen();
    }
}

impl ServedMachine {
    pub(super) fn new(
        backing: ServedMemory,
        durable: Option<DurableImage>,
        seed: u64,
        events: Events,
    ) -> ServedMachine {
        ServedMachine {
            backing,
            durable,
            events,
            waits: World::real(seed),
            next_waiter: AtomicU64::new(1),
            power: Gate::new(),
            powerless: WaitQueue::new(),
            ending: AtomicBool::new(false),
            nic: Regions::default(),
        }
    }

    pub(super) fn backing(&self) -> &ServedMemory {
        &self.backing
    }

    /// The simulated kernel, if files are served.
    pub(super) fn kernel(&self) -> Option<&Arc<Kernel>> {
        match &self.backing {
            ServedMemory::Files(kernel) => Some(kernel),
            ServedMemory::Image(_) => None,
        }
    }

    pub(super) fn device(&self) -> &Device {
        self.backing.device()
    }

    pub(super) fn durable(&self) -> Option<&DurableImage> {
        self.durable.as_ref()
    }

    pub(super) fn waits(&self) -> &World {
        &self.waits
    }

    pub(super) fn waiter(&self) -> Arc<Waiter> {
        Waiter::new(WaiterId(self.next_waiter.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn tell(&self, event: &str) {
        (self.events)(event);
    }

    /// Says at the start that the image's filesystem has less room than the image takes.
    pub(super) fn warn_of_room(&self) {
        if let Some((path, room)) = self.room().filter(|(_, room)| room.missing > room.free) {
            self.tell(&format!(
                "warning: image {}: it takes {} more, and its filesystem has {} free; when that is full, a guest's store into a hole of the image kills QEMU (SIGBUS); make room, or take it now with --preallocate",
                path.display(),
                Size(room.missing),
                Size(room.free),
            ));
        }
    }

    /// Says that the image's filesystem is full, if it is: that is why a guest ended.
    pub(super) fn tell_of_full_disk(&self) {
        if let Some((path, room)) = self.room().filter(|(_, room)| room.missing > 0 && room.free < FULL) {
            self.tell(&format!(
                "image {}: its filesystem is full ({} free), and the image has no room for {} of its size: a guest's store there kills QEMU (SIGBUS); make room, and serve it with --preallocate",
                path.display(),
                Size(room.free),
                Size(room.missing),
            ));
        }
    }

    /// The image's path and room; none for files, and where the filesystem does not tell.
    fn room(&self) -> Option<(&Path, ImageRoom)> {
        let device = self.device();
        Some((device.path()?, device.room().ok()??))
    }

    pub(super) fn nic(&self) -> &Regions {
        &self.nic
    }

    /// The power begins to fail, until the outage that this returns is dropped; none if it is
    /// failing already.
    pub(super) fn fail_power(&self) -> Option<PowerOutage<'_>> {
        self.power.close().1.then_some(PowerOutage { machine: self })
    }

    pub(super) fn power_is_failing(&self) -> bool {
        self.power.is_closed()
    }

    /// Runs `body`, which no power cut interrupts: a cut waits for its end. None if the power is
    /// failing already.
    pub(super) fn under_power<R>(&self, body: impl FnOnce() -> R) -> Option<R> {
        let (done, last) = match self.power.enter() {
            Ok(()) => (Some(body()), self.power.leave()),
            Err(shut) => (None, shut.last),
        };
        if last {
            self.powerless.wake_all();
        }
        done
    }

    /// With the power failing: waits until no work needs power.
    ///
    /// # Errors
    /// `waiter` was interrupted.
    pub(super) fn wait_powerless(&self, waiter: &Arc<Waiter>) -> Result<(), WaitError> {
        let how = WaitFor::interruptible("work that needs power");
        let idle = || if self.power.inside() == 0 { Poll::Ready(()) } else { Poll::Pending };
        self.powerless.wait(&self.waits, waiter, how, idle)
    }

    /// The server ends: from now on the end of a backend process is expected.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn the_power_is_back_also_after_a_panic() {
        let memory = ServedMemory::Image(Device::memory(2 << 20).unwrap());
        let machine = ServedMachine::new(memory, None, 1, Arc::new(|_| {}));
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let _outage = machine.fail_power().unwrap();
            assert!(machine.fail_power().is_none() && machine.power_is_failing());
            assert_eq!(machine.under_power(|| ()), None);
            panic!("the cut breaks off");
        }));
        assert!(broken.is_err() && !machine.power_is_failing());
        assert_eq!(machine.under_power(|| 1), Some(1));
        drop(machine.fail_power().unwrap());
    }
}
