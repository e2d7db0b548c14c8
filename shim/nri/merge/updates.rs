//! The merged changes of plugins to containers that exist.

use std::collections::BTreeMap;

use berth_proto::nri::{ContainerEviction, ContainerUpdate, LinuxResources};

use crate::nri::limits;
use crate::nri::owners::{OwnerConflict, Ownership};
use crate::nri::plugin::PluginName;

/// The merged changes to containers that exist.
#[derive(Clone, Debug, Default)]
pub struct MergedUpdates {
    updates: BTreeMap<String, ContainerUpdate>,
    /// The containers to stop.
    pub evictions: Vec<ContainerEviction>,
    owners: Ownership,
}

impl MergedUpdates {
    /// Adds the changes of a plugin.
    ///
    /// # Errors
    /// Another plugin has set one of the limits, and the failure is not to be ignored.
    pub fn add(
        &mut self,
        plugin: &PluginName,
        updates: &[ContainerUpdate],
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), OwnerConflict> {
        for update in updates {
            self.add_update(plugin, update)?;
        }
        self.evictions.extend(evictions);
        Ok(())
    }

    fn add_update(&mut self, plugin: &PluginName, update: &ContainerUpdate) -> Result<(), OwnerConflict> {
        let id = &update.container_id;
        let merged = self.updates.entry(id.clone()).or_insert_with(|| ContainerUpdate {
            container_id: id.clone(),
            linux: None,
            ignore_failure: true,
        });
        let Some(resources) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
            return Ok(());
        };
        // A conflict leaves the limits of the plugins before unchanged.
        let (mut owners, mut changed) = (self.owners.clone(), merged.clone());
        let into = changed.linux.get_or_insert_default().resources.get_or_insert_default();
        match limits::merge(&mut owners, id, plugin, into, resources) {
            Ok(()) => {
                changed.ignore_failure &= update.ignore_failure;
                (self.owners, *merged) = (owners, changed);
                Ok(())
            }
            Err(conflict) if update.ignore_failure => {
                tracing::warn!(%conflict, "an NRI update is ignored");
                Ok(())
            }
            Err(conflict) => Err(conflict),
        }
    }

    /// Takes the update of a container.
    pub fn take(&mut self, container: &str) -> Option<LinuxResources> {
        self.updates.remove(container)?.linux?.resources
    }

    /// Returns the updates, by container.
    #[must_use]
    pub fn updates(&self) -> Vec<ContainerUpdate> {
        self.updates.values().filter(|update| update.linux.is_some()).cloned().collect()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty() && self.evictions.is_empty()
    }
}
