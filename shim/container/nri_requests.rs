//! The changes that NRI plugins request for containers that exist: new limits, and evictions.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use berth_proto::nri::{Container as NriContainer, LinuxResources, PodSandbox};

use super::stop::stop_container;
use super::update::{LimitParts, update_by_plugin};
use crate::nri::adaptation::NriHost;
use crate::pods::Pods;

/// The grace period of an evicted container.
const EVICTION_GRACE_SECONDS: i64 = 30;

/// The parts of the daemon that the requests of plugins use.
#[derive(Clone, Debug)]
pub struct NriRequests {
    pods: Arc<Pods>,
    limits: LimitParts,
}

impl NriRequests {
    /// Uses these parts of the daemon.
    #[must_use]
    pub fn new(pods: Arc<Pods>, limits: LimitParts) -> Self {
        Self { pods, limits }
    }
}

impl NriHost for NriRequests {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = (Vec<PodSandbox>, Vec<NriContainer>)> + Send + '_>> {
        Box::pin(self.pods.nri.snapshot())
    }

    fn update(
        &self,
        container: String,
        resources: LinuxResources,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let updated = update_by_plugin(self.limits.clone(), &container, resources).await;
            updated.map_err(|error| error.to_string())
        })
    }

    fn evict(
        &self,
        container: String,
        reason: String,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let stopped =
                stop_container(&self.pods, &self.limits.cgroups, &container, EVICTION_GRACE_SECONDS).await;
            stopped.map_err(|error| format!("{} ({reason})", error.message()))
        })
    }
}
