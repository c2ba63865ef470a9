//! The table of regions: keys, revocation against copies in flight.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeMap;

use emulator::World;
use emulator::device::Device;
use fs_sim::design::presets;
use fs_sim::vfs::anon::AnonMemory;
use fs_sim::{Kernel, KernelConfig, Task};
use proptest::prelude::*;

use super::*;
use crate::verbs::context::Context;
use crate::verbs::mr::AccessFlags;

fn opened() -> (Task, Arc<Context>) {
    let device = Device::memory(2 << 20).unwrap();
    let kernel = Kernel::new(Arc::new(World::manual(1)), device, KernelConfig::new(presets()[0].axes)).unwrap();
    let task = kernel.spawn();
    let (_, context) = Context::open(&task).unwrap();
    (task, context)
}

fn region(key: u32, context: &Arc<Context>) -> (Arc<Mr>, Region) {
    let mr = Arc::new(Mr::new(key, 1, AccessFlags::ALL, 0, 8, Arc::clone(context)));
    let memory = Registration::Anonymous { memory: Arc::new(AnonMemory::new(8)), offset: 0 };
    (Arc::clone(&mr), Region { mr, memory })
}

fn close(regions: &Regions, key: u32) -> bool {
    let mut deferred = Deferred::default();
    let shut = regions.close(key, &mut deferred);
    assert!(deferred.is_empty());
    shut
}

#[test]
fn the_last_to_leave_releases_and_nobody_enters_a_closed_region() {
    let (_task, context) = opened();
    let regions = Regions::new();
    let key = regions.reserve().unwrap();
    let (mr, region) = region(key, &context);
    regions.install(key, region);
    let (first, second) = (regions.enter(key).unwrap(), regions.enter(key).unwrap());
    assert!(close(&regions, key));
    assert!(!close(&regions, key), "the second closer did not shut it");
    regions.forget(key);
    assert_eq!(regions.enter(key).err(), Some(Fault::Revoked));
    drop(first);
    assert!(!mr.is_released(), "one is still inside");
    assert_eq!(second.mr.key(), key);
    drop(second);
    assert!(mr.is_released());
    assert_eq!(regions.live(), 0);
    assert_eq!(regions.reserve().unwrap() >> 8, key >> 8, "forgotten and drained: free again");
    assert_eq!(regions.enter(key).err(), Some(Fault::UnknownKey));
}

#[test]
fn a_closed_region_keeps_its_key_until_it_is_forgotten() {
    let (_task, context) = opened();
    let regions = Regions::new();
    let key = regions.reserve().unwrap();
    regions.install(key, region(key, &context).1);
    close(&regions, key);
    assert_ne!(regions.reserve().unwrap() >> 8, key >> 8);
    regions.forget(key);
    assert_eq!(regions.reserve().unwrap() >> 8, key >> 8);
}

#[test]
fn a_key_comes_back_with_the_257th_use_of_its_slot() {
    let regions = Regions::new();
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
fn the_table_grows_leaf_by_leaf_and_key_0_is_nobodys() {
    let regions = Regions::new();
    let keys: Vec<u32> = (0..LEAF * 3).map(|_| regions.reserve().unwrap()).collect();
    assert!(keys.is_sorted() && keys[0] >> 8 == 1);
    assert_eq!(regions.enter(0).err(), Some(Fault::UnknownKey));
    assert_eq!(regions.enter(u32::MAX).err(), Some(Fault::UnknownKey));
}

#[derive(Clone, Debug)]
enum Step {
    Register,
    /// End the region at this place of the live ones.
    End(prop::sample::Index),
    /// Revoke it: closed, not forgotten.
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

    /// A key opens the region it was given for, from its installation to its close, and nothing else until its slot has been
    /// used 256 times more.
    #[test]
    fn no_key_is_resurrected(steps in steps()) {
        let (_task, context) = opened();
        let regions = Regions::new();
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
                    regions.install(key, region(key, &context).1);
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
