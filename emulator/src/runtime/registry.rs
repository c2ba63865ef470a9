//! A concurrent map from numbers to shared objects.
//!
//! It owns the objects' registration, nothing of their life. Invariants: no guard escapes (values
//! are cloned out, callbacks see plain references and must touch nothing of
//! [`crate::runtime::sync`]), the hasher is fixed, and iteration is sorted, so that a run repeats.
//! Kernel counterpart: an `xarray` or IDR.

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;

/// See the module.
#[derive(Debug)]
pub struct Registry<K: Eq + std::hash::Hash, V>(DashMap<K, V, FxBuildHasher>);

impl<K: Eq + std::hash::Hash + Ord + Copy, V: Clone> Default for Registry<K, V> {
    fn default() -> Self {
        Registry::new()
    }
}

impl<K: Eq + std::hash::Hash + Ord + Copy, V: Clone> Registry<K, V> {
    /// An empty registry.
    pub fn new() -> Self {
        Registry(DashMap::with_hasher(FxBuildHasher))
    }

    /// Puts `value` under `key`; returns what stood there.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    /// A clone of what stands under `key`.
    pub fn get(&self, key: K) -> Option<V> {
        self.0.get(&key).map(|entry| entry.value().clone())
    }

    /// Takes out what stands under `key`.
    pub fn remove(&self, key: K) -> Option<V> {
        self.0.remove(&key).map(|(_, value)| value)
    }

    /// How many are registered.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything registered, sorted by key: a snapshot, not one moment in time if others insert
    /// meanwhile.
    pub fn snapshot(&self) -> Vec<(K, V)> {
        let mut all: Vec<(K, V)> = self.0.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }
}
