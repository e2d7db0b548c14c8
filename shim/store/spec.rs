//! The OCI spec that a container was made from: whole on disk, and in memory what its further processes need of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use berth_runtime::seccomp::{Cache, Filter};
use oci_spec::runtime::{LinuxResources, Spec};

use super::file::{self, FileError};
use crate::error::CriError;

/// What is kept in memory.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Without the seccomp profile, whose hundreds of names are the longest part of it.
    pub spec: Arc<Spec>,
    /// The profile's filter.
    pub filter: Option<Arc<Filter>>,
}

/// A spec as it was before a change.
#[derive(Debug)]
pub struct Former {
    spec: Spec,
    filter: Option<Arc<Filter>>,
}

/// The spec of one container.
#[derive(Debug)]
pub struct SpecStore {
    file: PathBuf,
    kept: Mutex<Option<Kept>>,
}

impl SpecStore {
    /// Kept in this file.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file, kept: Mutex::new(None) }
    }

    /// Keeps a spec, with the filter of its seccomp profile.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, spec: Spec, filter: Option<Arc<Filter>>) -> Result<Kept, FileError> {
        file::replace(&self.file, &spec)?;
        Ok(self.remember(spec, filter))
    }

    fn remember(&self, mut spec: Spec, filter: Option<Arc<Filter>>) -> Kept {
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        let kept = Kept { spec: Arc::new(spec), filter };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept.clone());
        kept
    }

    /// The spec as it is on disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn whole(&self) -> Result<Spec, FileError> {
        file::read(&self.file)
    }

    /// Changes the limits of the spec, and the score that further processes start with; its devices stay. The answer is
    /// the spec as it was.
    ///
    /// # Errors
    /// As [`Self::kept`], or the file cannot be written: the spec is then as it was.
    pub fn change_limits(
        &self,
        mut limits: LinuxResources,
        oom_score_adj: i32,
        filters: &Cache,
    ) -> Result<Former, CriError> {
        let filter = self.kept(filters)?.filter;
        let former = self.whole()?;
        let mut spec = former.clone();
        if let Some(linux) = spec.linux_mut() {
            let devices = linux.resources().as_ref().and_then(|resources| resources.devices().clone());
            limits.set_devices(devices);
            linux.set_resources(Some(limits));
        }
        if let Some(process) = spec.process_mut() {
            process.set_oom_score_adj(Some(oom_score_adj));
        }
        self.keep(spec, filter.clone())?;
        Ok(Former { spec: former, filter })
    }

    /// Keeps a spec again that was changed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take_back(&self, former: Former) -> Result<(), FileError> {
        self.keep(former.spec, former.filter).map(drop)
    }

    /// What a further process needs.
    ///
    /// # Errors
    /// The file cannot be read, or its profile cannot be compiled any more.
    pub fn kept(&self, filters: &Cache) -> Result<Kept, CriError> {
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(kept);
        }
        let spec = self.whole()?;
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filter = profile.map(|profile| filters.filter(profile)).transpose()?;
        Ok(self.remember(spec, filter))
    }
}
