//! Filters by the content of their profile: a node has few profiles and many containers.

use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;

use super::{Filter, SeccompError, compile};

/// How many filters are kept; the one that was used longest ago makes room.
const KEPT: usize = 32;

/// Filters that were compiled, the last used one first.
#[derive(Debug, Default)]
pub struct Cache {
    filters: Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>>,
}

impl Cache {
    /// The filter of a profile, compiled unless it was before.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn filter(&self, profile: &LinuxSeccomp) -> Result<Arc<Filter>, SeccompError> {
        if let Some(known) = self.known(profile) {
            return Ok(known);
        }
        let filter = Arc::new(compile(profile)?);
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        filters.insert(0, (profile.clone(), filter.clone()));
        filters.truncate(KEPT);
        Ok(filter)
    }

    fn known(&self, profile: &LinuxSeccomp) -> Option<Arc<Filter>> {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let place = filters.iter().position(|(known, _)| known == profile)?;
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
