//! Merges the changes of all plugins to one container that is being created, and to others. Each plugin sees the container with the changes of
//! the plugins before it.
//!
//! * this file: a container that is being created; [`updates`]: containers that exist
//! * [`claims`]: the fields of a container

mod claims;
pub mod updates;

use berth_proto::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Field, Hooks, Mount,
};

use super::owners::{OwnerConflict, Ownership};
use super::plugin::PluginName;
use claims::Claims;
pub use updates::MergedUpdates;

/// The changes of a plugin cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Two plugins set the same field.
    #[error(transparent)]
    Conflict(#[from] OwnerConflict),
    /// A plugin updates the container that is being created.
    #[error("NRI plugin \"{plugin}\" updates container {container} while it is being created")]
    UpdateOfNew {
        /// The name of the plugin that sent the update.
        plugin: PluginName,
        /// The id of the new container.
        container: String,
    },
}

/// The merged changes to a container that is being created.
#[derive(Clone, Debug)]
pub struct MergedCreation {
    /// The container as the next plugin sees it.
    pub container: Container,
    /// The changes to this container.
    pub adjustment: ContainerAdjustment,
    /// The plugins that made them.
    pub owners: Ownership,
    /// The changes to other containers.
    pub others: MergedUpdates,
}

impl MergedCreation {
    /// Starts without changes.
    #[must_use]
    pub fn new(container: Container) -> Self {
        Self {
            container,
            adjustment: ContainerAdjustment::default(),
            owners: Ownership::default(),
            others: MergedUpdates::default(),
        }
    }

    /// Adds the changes of a plugin to other containers.
    ///
    /// # Errors
    /// A conflict with another plugin, or an update of the container that is being created.
    pub fn update(
        &mut self,
        plugin: &PluginName,
        updates: &[ContainerUpdate],
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), MergeError> {
        if updates.iter().any(|update| update.container_id == self.container.id) {
            let (plugin, container) = (plugin.clone(), self.container.id.clone());
            return Err(MergeError::UpdateOfNew { plugin, container });
        }
        Ok(self.others.add(plugin, updates, evictions)?)
    }

    /// Adds the changes of a plugin to the container.
    ///
    /// # Errors
    /// A conflict with another plugin.
    pub fn adjust(&mut self, plugin: &PluginName, requested: ContainerAdjustment) -> Result<(), MergeError> {
        let id = self.container.id.clone();
        let mut claims = Claims { owners: &mut self.owners, container: &id, plugin };
        let (container, merged) = (&mut self.container, &mut self.adjustment);
        claims.map(
            Field::Annotations,
            requested.annotations,
            &mut container.annotations,
            &mut merged.annotations,
        )?;
        claims.list(
            Field::Mounts,
            requested.mounts,
            &mut container.mounts,
            &mut merged.mounts,
            |mount: &Mount| mount.destination.clone(),
        )?;
        claims.env(requested.env, &mut container.env, &mut merged.env)?;
        claims.args(requested.args, &mut container.args, &mut merged.args)?;
        if let Some(hooks) = requested.hooks.filter(has_hooks) {
            claims.owners.share(&id, Field::OciHooks, plugin);
            append(container.hooks.get_or_insert_default(), &hooks);
            append(merged.hooks.get_or_insert_default(), &hooks);
        }
        for limit in requested.rlimits {
            claims.entry(Field::Rlimits, &limit.r#type)?;
            container.rlimits.retain(|other| other.r#type != limit.r#type);
            container.rlimits.push(limit.clone());
            merged.rlimits.push(limit);
        }
        for device in requested.cdi_devices {
            claims.entry(Field::CdiDevices, &device.name)?;
            merged.cdi_devices.push(device);
        }
        if let Some(linux) = requested.linux {
            let container = container.linux.get_or_insert_default();
            claims.linux(linux, container, merged.linux.get_or_insert_default())?;
        }
        Ok(())
    }
}

fn has_hooks(hooks: &Hooks) -> bool {
    *hooks != Hooks::default()
}

fn append(into: &mut Hooks, from: &Hooks) {
    into.prestart.extend(from.prestart.iter().cloned());
    into.create_runtime.extend(from.create_runtime.iter().cloned());
    into.create_container.extend(from.create_container.iter().cloned());
    into.start_container.extend(from.start_container.iter().cloned());
    into.poststart.extend(from.poststart.iter().cloned());
    into.poststop.extend(from.poststop.iter().cloned());
}

#[cfg(test)]
mod tests;
