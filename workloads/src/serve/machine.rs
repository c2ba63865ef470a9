//! What all guests of a server share: the memory, the simulated kernel, the power.
//!
//! It owns the device and, with the power-cut model, its durable copy. Invariants: while the power is failing nothing is handed
//! out to be mapped; a durable copy is cut and restored only once nothing is mapped and no flush runs.

use emulator::World;
use emulator::device::Device;
use emulator::persistence::Durable;
use emulator::sync::Arc;
use emulator::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use emulator::wait::{Waiter, WaiterId};
use fs_sim::Kernel;

use super::nic::Regions;

/// Says something that happened, for people.
pub type Events = Box<dyn Fn(&str) + Send + Sync>;

/// Where guests' memory comes from.
pub(super) enum Backing {
    /// The whole of an image.
    Image(Device),
    /// Files of this kernel's volume.
    Files(Arc<Kernel>),
}

impl Backing {
    pub(super) fn device(&self) -> &Device {
        match self {
            Backing::Image(device) => device,
            Backing::Files(kernel) => kernel.device(),
        }
    }
}

/// See the module.
pub(super) struct Machine {
    backing: Backing,
    durable: Option<Durable>,
    events: Events,
    /// For waits that no simulated task waits.
    waits: World,
    next_waiter: AtomicU64,
    power_is_failing: AtomicBool,
    ending: AtomicBool,
    nic: Regions,
}

impl Machine {
    pub(super) fn new(backing: Backing, durable: Option<Durable>, seed: u64, events: Events) -> Machine {
        Machine {
            backing,
            durable,
            events,
            waits: World::real(seed),
            next_waiter: AtomicU64::new(1),
            power_is_failing: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            nic: Regions::default(),
        }
    }

    pub(super) fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The simulated kernel, if files are served.
    pub(super) fn kernel(&self) -> Option<&Arc<Kernel>> {
        match &self.backing {
            Backing::Files(kernel) => Some(kernel),
            Backing::Image(_) => None,
        }
    }

    pub(super) fn device(&self) -> &Device {
        self.backing.device()
    }

    pub(super) fn durable(&self) -> Option<&Durable> {
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

    pub(super) fn nic(&self) -> &Regions {
        &self.nic
    }

    /// The power begins to fail; false if it is failing already.
    pub(super) fn fail_power(&self) -> bool {
        !self.power_is_failing.swap(true, Ordering::SeqCst)
    }

    /// The power is back.
    pub(super) fn restore_power(&self) {
        self.power_is_failing.store(false, Ordering::SeqCst);
    }

    pub(super) fn power_is_failing(&self) -> bool {
        self.power_is_failing.load(Ordering::SeqCst)
    }

    /// From now on a port's end is no accident.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}
