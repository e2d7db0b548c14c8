//! The OCI spec of a container: complete on disk, and in memory the parts that its further processes need.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use berth_runtime::seccomp::{Cache, Filter};
use oci_spec::runtime::{LinuxResources, Spec};

use super::file::{self, FileError};
use crate::error::CriError;

/// The part of a spec that is cached in memory.
#[derive(Clone, Debug)]
pub struct CachedSpec {
    /// The spec without its seccomp profile. The profile's hundreds of syscall names are the largest part of
    /// a spec.
    pub spec: Arc<Spec>,
    /// The compiled filter of the profile.
    pub filter: Option<Arc<Filter>>,
}

/// A spec before a change.
#[derive(Debug)]
pub struct PreviousSpec {
    spec: Spec,
    filter: Option<Arc<Filter>>,
}

/// The spec of one container.
#[derive(Debug)]
pub struct SpecStore {
    file: PathBuf,
    cached: Mutex<Option<CachedSpec>>,
}

impl SpecStore {
    /// Creates a store for a spec in this file.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file, cached: Mutex::new(None) }
    }

    /// Writes a spec and caches it, with the filter of its seccomp profile.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, spec: Spec, filter: Option<Arc<Filter>>) -> Result<CachedSpec, FileError> {
        file::replace(&self.file, &spec)?;
        Ok(self.cache(spec, filter))
    }

    fn cache(&self, mut spec: Spec, filter: Option<Arc<Filter>>) -> CachedSpec {
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        let cached = CachedSpec { spec: Arc::new(spec), filter };
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(cached.clone());
        cached
    }

    /// Reads the complete spec from disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn whole(&self) -> Result<Spec, FileError> {
        file::read(&self.file)
    }

    /// Changes the limits of the spec and the OOM score of further processes; the devices stay. Returns the
    /// previous spec.
    ///
    /// # Errors
    /// As [`Self::cached`], or the file cannot be written: the spec is then unchanged.
    pub fn change_limits(
        &self,
        mut limits: LinuxResources,
        oom_score_adj: i32,
        filters: &Cache,
    ) -> Result<PreviousSpec, CriError> {
        let filter = self.cached(filters)?.filter;
        let previous = self.whole()?;
        let mut spec = previous.clone();
        if let Some(linux) = spec.linux_mut() {
            let devices = linux.resources().as_ref().and_then(|resources| resources.devices().clone());
            limits.set_devices(devices);
            // The CRI cannot change this limit, which NRI plugins set.
            if limits.pids().is_none() {
                limits.set_pids(linux.resources().as_ref().and_then(|before| *before.pids()));
            }
            linux.set_resources(Some(limits));
        }
        if let Some(process) = spec.process_mut() {
            process.set_oom_score_adj(Some(oom_score_adj));
        }
        self.keep(spec, filter.clone())?;
        Ok(PreviousSpec { spec: previous, filter })
    }

    /// Restores the spec before a change.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn restore(&self, previous: PreviousSpec) -> Result<(), FileError> {
        self.keep(previous.spec, previous.filter).map(drop)
    }

    /// Returns the spec if it is in memory.
    #[must_use]
    pub fn in_memory(&self) -> Option<Arc<Spec>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().map(|cached| cached.spec.clone())
    }

    /// Returns what a further process needs, reading the spec from disk if it is not cached.
    ///
    /// # Errors
    /// The file cannot be read, or its profile cannot be compiled.
    pub fn cached(&self, filters: &Cache) -> Result<CachedSpec, CriError> {
        if let Some(cached) = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(cached);
        }
        let spec = self.whole()?;
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filter = profile.map(|profile| filters.filter(profile)).transpose()?;
        Ok(self.cache(spec, filter))
    }
}
