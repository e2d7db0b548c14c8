//! Applies the changes that plugins request to containers that exist.

use std::sync::Arc;

use berth_proto::nri::{ContainerEviction, ContainerUpdate};

use super::Adaptation;
use crate::nri::merge::MergedUpdates;

type Evictions = Vec<ContainerEviction>;

/// An update that could not be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedUpdate {
    /// The limits that a plugin requested, and for which container.
    pub update: ContainerUpdate,
    /// The message of the operation that failed.
    pub error: String,
}

impl Adaptation {
    /// Applies changes to containers that exist. Failures that a plugin does not ignore are returned. Containers are stopped
    /// in the background, because they may use their grace period.
    pub async fn apply(&self, updates: Vec<ContainerUpdate>, evictions: Evictions) -> Vec<FailedUpdate> {
        let Some(host) = self.host.get() else { return Vec::new() };
        for ContainerEviction { container_id: container, reason } in evictions {
            tracing::warn!(container, reason, "an NRI plugin evicts a container");
            let host = host.clone();
            tokio::spawn(async move {
                if let Err(error) = host.evict(container.clone(), reason).await {
                    tracing::warn!(container, error, "failed to evict a container for an NRI plugin");
                }
            });
        }
        let mut failures = Vec::new();
        for update in updates {
            let resources = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            if let Err(error) = host.update(update.container_id.clone(), resources).await {
                let container = &update.container_id;
                tracing::warn!(container, error, "failed to update a container for an NRI plugin");
                if !update.ignore_failure {
                    failures.push(FailedUpdate { update, error });
                }
            }
        }
        failures
    }

    /// Applies merged changes in the background.
    pub fn apply_later(self: &Arc<Self>, merged: MergedUpdates) {
        if merged.is_empty() {
            return;
        }
        let adaptation = self.clone();
        tokio::spawn(async move { adaptation.apply(merged.updates(), merged.evictions).await });
    }
}
