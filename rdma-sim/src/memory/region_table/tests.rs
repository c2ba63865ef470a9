//! Tests of the table of regions: keys, and revocation against copies in flight.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::any::Any;
use std::collections::BTreeMap;

use emulator::World;
use emulator::device::Device;
use emulator::wait::WaitQueue;
use fs_sim::design::presets;
use fs_sim::pinning::anon_range::AnonRange;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::vfs::fd_holders::FdHolders;
use fs_sim::{Kernel, KernelConfig};
use proptest::prelude::*;

use super::*;
use crate::memory::access::AccessFlags;
use crate::memory::owner::ObjectOwner;

/// A context that owns regions and nothing else.
struct TestOwner {
    kernel: Arc<Kernel>,
    drained: WaitQueue,
}

impl ObjectOwner for TestOwner {
    fn number(&self) -> u64 {
        1
    }

    fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    fn fd_holders(&self) -> &Arc<FdHolders> {
        unreachable!("anonymous memory has no pin holder")
    }

    fn drained(&self) -> &WaitQueue {
        &self.drained
    }

    fn file_pin_gone(&self) {
        unreachable!("anonymous memory pins no file")
    }

    fn abort(&self, _kernel: &Arc<Kernel>) {
        unreachable!("anonymous memory is never revoked")
    }

    fn begin_removal(&self) {
        unreachable!("this owner is on no list")
    }

    fn finish_removal(&self, _kernel: &Arc<Kernel>) {
        unreachable!("this owner is on no list")
    }

    fn revoke_region(&self, _kernel: &Arc<Kernel>, _key: u32, _holder: &dyn PinHolder) {
        unreachable!("anonymous memory is never revoked")
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

fn owner() -> Arc<dyn ObjectOwner> {
    let device = Device::memory(2 << 20).unwrap();
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(presets()[0].axes)).unwrap();
    Arc::new(TestOwner { kernel, drained: WaitQueue::new() })
}

fn region(key: u32, owner: &Arc<dyn ObjectOwner>) -> (Arc<Mr>, RegisteredRegion) {
    let mr = Arc::new(Mr::new(key, 1, AccessFlags::ALL, 0, 8, Arc::clone(owner)));
    let memory = Registration::Anonymous(AnonRange::new(Arc::new(AnonMemory::new(8)), 0, true));
    (Arc::clone(&mr), RegisteredRegion { mr, memory })
}

fn close(regions: &RegionTable, key: u32) -> bool {
    let mut deferred = Deferred::default();
    let closed = regions.close(key, &mut deferred);
    assert!(deferred.is_empty());
    closed
}

#[test]
fn the_last_access_to_leave_releases_and_no_access_enters_a_closed_region() {
    let owner = owner();
    let regions = RegionTable::new();
    let key = regions.reserve().unwrap();
    let (mr, region) = region(key, &owner);
    regions.install(key, region);
    let (first, second) = (regions.enter(key).unwrap(), regions.enter(key).unwrap());
    assert!(close(&regions, key));
    assert!(!close(&regions, key), "the second call did not close it");
    regions.forget(key);
    assert_eq!(regions.enter(key).err(), Some(WorkFault::Revoked));
    drop(first);
    assert!(!mr.is_released(), "one access is still inside");
    assert_eq!(second.mr.key(), key);
    drop(second);
    assert!(mr.is_released());
    assert_eq!(regions.live(), 0);
    assert_eq!(regions.reserve().unwrap() >> 8, key >> 8, "forgotten and drained: free again");
    assert_eq!(regions.enter(key).err(), Some(WorkFault::UnknownKey));
}

#[test]
fn a_closed_region_keeps_its_key_until_it_is_forgotten() {
    let owner = owner();
    let regions = RegionTable::new();
    let key = regions.reserve().unwrap();
    regions.install(key, region(key, &owner).1);
    close(&regions, key);
    assert_ne!(regions.reserve().unwrap() >> 8, key >> 8);
    regions.forget(key);
    assert_eq!(regions.reserve().unwrap() >> 8, key >> 8);
}

#[test]
fn a_key_comes_back_with_the_257th_use_of_its_slot() {
    let regions = RegionTable::new();
    let key = regions.reserve().unwrap();
    regions.cancel(key);
    for _ in 0..255 {
        let next = regions.reserve().unwrap();
        assert_eq!(next >> 8, key >> 8);
        assert_ne!(next, key);
        regions.cancel(next);
    }
    assert_eq!(regions.reserve().unwrap(), key);
}

#[test]
fn the_table_grows_leaf_by_leaf_and_no_region_has_key_0() {
    let regions = RegionTable::new();
    let keys: Vec<u32> = (0..LEAF * 3).map(|_| regions.reserve().unwrap()).collect();
    assert!(keys.is_sorted() && keys[0] >> 8 == 1);
    assert_eq!(regions.enter(0).err(), Some(WorkFault::UnknownKey));
    assert_eq!(regions.enter(u32::MAX).err(), Some(WorkFault::UnknownKey));
}

#[derive(Clone, Debug)]
enum Step {
    Register,
    /// End the live region at this position.
    End(prop::sample::Index),
    /// Revoke the live region at this position: closed, its key kept.
    Close(prop::sample::Index),
    /// Try a key from the whole history.
    Try(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => Just(Step::Register),
        4 => index().prop_map(Step::End),
        1 => index().prop_map(Step::Close),
        4 => index().prop_map(Step::Try),
    ];
    prop::collection::vec(step, 1..1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A key opens the region it was given for, from its installation to its close, and nothing
    /// else until its slot has been used 256 times more.
    #[test]
    fn no_key_is_resurrected(steps in steps()) {
        let owner = owner();
        let regions = RegionTable::new();
        // By key: whether it is open now. A key that was given out again stands for its newest use.
        let mut state: BTreeMap<u32, bool> = BTreeMap::new();
        let mut held: Vec<u32> = Vec::new();
        let mut history: Vec<u32> = Vec::new();
        let mut uses: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register => {
                    let key = regions.reserve().unwrap();
                    prop_assert!(!held.contains(&key) && held.iter().all(|other| other >> 8 != key >> 8));
                    let of_slot = uses.entry(key >> 8).or_default();
                    prop_assert!(!of_slot.iter().rev().take(255).any(|old| *old == key));
                    of_slot.push(key);
                    regions.install(key, region(key, &owner).1);
                    state.insert(key, true);
                    held.push(key);
                    history.push(key);
                }
                Step::End(at) if !held.is_empty() => {
                    let key = held.swap_remove(at.index(held.len()));
                    let open = state.insert(key, false).unwrap();
                    prop_assert_eq!(close(&regions, key), open);
                    regions.forget(key);
                }
                Step::Close(at) if !held.is_empty() => {
                    let key = held[at.index(held.len())];
                    let open = state.insert(key, false).unwrap();
                    prop_assert_eq!(close(&regions, key), open);
                }
                Step::Try(at) if !history.is_empty() => {
                    let key = history[at.index(history.len())];
                    let entered = regions.enter(key);
                    prop_assert_eq!(entered.is_ok(), state[&key]);
                    if let Ok(entry) = entered {
                        prop_assert_eq!(entry.mr.key(), key);
                    }
                }
                _ => {}
            }
            let open = state.values().filter(|open| **open).count();
            prop_assert_eq!(regions.live(), open as u64);
        }
    }
}
