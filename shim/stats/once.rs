//! Values that several pods of one request share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Values of one request by key. Each is computed once, by the first thread that needs it, although several pods need
/// it: pods can share a parent cgroup, and to read it for each of them would take quadratic time.
#[derive(Debug)]
pub(crate) struct OncePerKey<K, V> {
    values: Mutex<HashMap<K, Arc<OnceLock<V>>>>,
}

impl<K, V> Default for OncePerKey<K, V> {
    fn default() -> Self {
        Self { values: Mutex::default() }
    }
}

impl<K: Eq + Hash, V: Clone> OncePerKey<K, V> {
    /// Returns the value of a key. `compute` may use values of other keys.
    pub(crate) fn get(&self, key: K, compute: impl FnOnce() -> V) -> V {
        // The lock is not held while the value is computed.
        let value =
            self.values.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        value.get_or_init(compute).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_value_is_computed_once_by_several_threads() {
        let (values, computed) = (OncePerKey::default(), AtomicUsize::new(0));
        let get = |key: usize| {
            values.get(key, || {
                computed.fetch_add(1, Ordering::Relaxed);
                key * 10
            })
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|key| assert_eq!(get(key), key * 10)));
            }
        });
        assert_eq!(computed.into_inner(), 100);
    }

    #[test]
    fn a_value_can_depend_on_others() {
        fn sum(values: &OncePerKey<u64, u64>, number: u64) -> u64 {
            values.get(number, || if number == 0 { 0 } else { number + sum(values, number - 1) })
        }
        assert_eq!(sum(&OncePerKey::default(), 50), 1275);
    }
}
