//! A cache of filters by the content of their profile. A node has few profiles and many containers.

use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;

use super::{Filter, SeccompError, compile};

/// The capacity of the cache. The least recently used filter is removed first.
const CAPACITY: usize = 32;

/// Compiled filters, the most recently used one first.
#[derive(Debug, Default)]
pub struct Cache {
    filters: Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>>,
}

impl Cache {
    /// Returns the filter of a profile, from the cache or newly compiled.
    ///
    /// # Errors
    /// Those of [`compile`].
    pub fn filter(&self, profile: &LinuxSeccomp) -> Result<Arc<Filter>, SeccompError> {
        if let Some(cached) = self.cached(profile) {
            return Ok(cached);
        }
        let filter = Arc::new(compile(profile)?);
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        filters.insert(0, (profile.clone(), filter.clone()));
        filters.truncate(CAPACITY);
        Ok(filter)
    }

    fn cached(&self, profile: &LinuxSeccomp) -> Option<Arc<Filter>> {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let place = filters.iter().position(|(cached, _)| cached == profile)?;
        filters.get_mut(..=place)?.rotate_right(1);
        filters.first().map(|(_, filter)| filter.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::default;
    use super::*;

    #[test]
    fn a_profile_is_compiled_once() {
        let cache = Cache::default();
        let first = cache.filter(&default::profile(0).unwrap()).unwrap();
        let other = cache.filter(&default::profile(1 << 21).unwrap()).unwrap();
        assert!(!Arc::ptr_eq(&first, &other), "capabilities are part of the content");
        assert!(Arc::ptr_eq(&first, &cache.filter(&default::profile(0).unwrap()).unwrap()));
        assert!(Arc::ptr_eq(&other, &cache.filter(&default::profile(1 << 21).unwrap()).unwrap()));
    }
}
