//! Merges the changes of all plugins to one container that is being created, and to others. Each plugin sees the container with the changes of
//! the plugins before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use berth_proto::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Field, Hooks, KeyValue,
    LinuxContainer, LinuxContainerAdjustment, LinuxDevice, LinuxNamespace, LinuxResources, Mount,
};

use super::limits;
use super::owners::{OwnerConflict, Ownership, removal};

/// The changes of a plugin cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Two plugins set the same field.
    #[error(transparent)]
    Conflict(#[from] OwnerConflict),
    /// A plugin updates the container that is being created.
    #[error("NRI plugin {plugin:?} updates container {container} while it is being created")]
    UpdateOfNew {
        /// The name of the plugin that sent the update.
        plugin: String,
        /// The id of the new container.
        container: String,
    },
}

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
        plugin: &str,
        updates: &[ContainerUpdate],
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), OwnerConflict> {
        for update in updates {
            self.add_update(plugin, update)?;
        }
        self.evictions.extend(evictions);
        Ok(())
    }

    fn add_update(&mut self, plugin: &str, update: &ContainerUpdate) -> Result<(), OwnerConflict> {
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

/// The merged changes to a container that is being created.
#[derive(Clone, Debug)]
pub struct MergedCreation {
    /// The container as the next plugin sees it.
    pub container: Container,
    /// The changes.
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
        plugin: &str,
        updates: &[ContainerUpdate],
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), MergeError> {
        if updates.iter().any(|update| update.container_id == self.container.id) {
            let (plugin, container) = (plugin.to_owned(), self.container.id.clone());
            return Err(MergeError::UpdateOfNew { plugin, container });
        }
        Ok(self.others.add(plugin, updates, evictions)?)
    }

    /// Adds the changes of a plugin to the container.
    ///
    /// # Errors
    /// A conflict with another plugin.
    pub fn adjust(&mut self, plugin: &str, requested: ContainerAdjustment) -> Result<(), MergeError> {
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

/// Sets a field with one value in the container and in the merged changes.
macro_rules! set_values {
    ($claims:expr, $from:expr, $container:expr, $merged:expr, $($value:ident: $field:ident,)+) => {
        $(if $from.$value.is_some() {
            $claims.field(Field::$field)?;
            $container.$value.clone_from(&$from.$value);
            $merged.$value = $from.$value;
        })+
    };
}

/// The claims of one plugin to fields of one container.
struct Claims<'a> {
    owners: &'a mut Ownership,
    container: &'a str,
    plugin: &'a str,
}

type Claimed = Result<(), OwnerConflict>;

impl Claims<'_> {
    fn field(&mut self, field: Field) -> Claimed {
        self.owners.claim(self.container, field, self.plugin)
    }

    fn entry(&mut self, field: Field, key: &str) -> Claimed {
        self.owners.claim_entry(self.container, field, key, self.plugin)
    }

    fn clear_entry(&mut self, field: Field, key: &str) {
        self.owners.clear_entry(self.container, field, key, self.plugin);
    }

    /// Merges a list whose entries have keys. An entry whose key is marked removes the entry with that key.
    fn list<T: Clone>(
        &mut self,
        field: Field,
        requested: Vec<T>,
        container: &mut Vec<T>,
        merged: &mut Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> Claimed {
        let name = |entry: &T| removal(&key(entry)).0.to_owned();
        let (removed, added): (Vec<T>, Vec<T>) =
            requested.into_iter().partition(|entry| removal(&key(entry)).1);
        let removed_names: BTreeSet<String> = removed.iter().map(&name).collect();
        let added_names: BTreeSet<String> = added.iter().map(&name).collect();
        for entry in merged.iter().map(&key).filter(|entry| removed_names.contains(entry)) {
            self.clear_entry(field, &entry);
        }
        merged.retain(|entry| !removed_names.contains(&name(entry)));
        container.retain(|entry| !removed_names.contains(&key(entry)) && !added_names.contains(&key(entry)));
        for entry in &added_names {
            self.entry(field, entry)?;
        }
        merged.extend(removed.into_iter().filter(|entry| !added_names.contains(&name(entry))));
        merged.extend(added.iter().cloned());
        container.extend(added);
        Ok(())
    }

    /// Merges a map in the same way.
    fn map<T: Clone, S: BuildHasher>(
        &mut self,
        field: Field,
        requested: HashMap<String, T, S>,
        container: &mut HashMap<String, T, S>,
        merged: &mut HashMap<String, T, S>,
    ) -> Claimed {
        let mut pairs: Vec<(String, T)> = requested.into_iter().collect();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut before: Vec<(String, T)> = container.drain().collect();
        let mut all: Vec<(String, T)> = merged.drain().collect();
        let done = self.list(field, pairs, &mut before, &mut all, |(key, _)| key.clone());
        container.extend(before);
        merged.extend(all);
        done
    }

    fn env(
        &mut self,
        requested: Vec<KeyValue>,
        container: &mut Vec<String>,
        merged: &mut Vec<KeyValue>,
    ) -> Claimed {
        let pair = |variable: &String| {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            KeyValue { key: key.to_owned(), value: value.to_owned() }
        };
        let mut variables: Vec<KeyValue> = container.iter().map(pair).collect();
        self.list(Field::Env, requested, &mut variables, merged, |variable| variable.key.clone())?;
        *container = variables.into_iter().map(|KeyValue { key, value }| format!("{key}={value}")).collect();
        Ok(())
    }

    /// Arguments that begin with an empty one replace those of an earlier plugin.
    fn args(
        &mut self,
        mut requested: Vec<String>,
        container: &mut Vec<String>,
        merged: &mut Vec<String>,
    ) -> Claimed {
        if requested.is_empty() {
            return Ok(());
        }
        if requested.first().is_some_and(String::is_empty) {
            self.owners.clear(self.container, Field::Args, self.plugin);
            requested.remove(0);
        }
        self.field(Field::Args)?;
        container.clone_from(&requested);
        *merged = requested;
        Ok(())
    }

    fn linux(
        &mut self,
        requested: LinuxContainerAdjustment,
        container: &mut LinuxContainer,
        merged: &mut LinuxContainerAdjustment,
    ) -> Claimed {
        self.list(
            Field::Devices,
            requested.devices,
            &mut container.devices,
            &mut merged.devices,
            |device: &LinuxDevice| device.path.clone(),
        )?;
        if let Some(resources) = &requested.resources {
            for into in [&mut container.resources, &mut merged.resources] {
                // Both get the same values, claimed once.
                let mut owners = self.owners.clone();
                let into = into.get_or_insert_default();
                limits::merge(&mut owners, self.container, self.plugin, into, resources)?;
            }
            let mut claimed = LinuxResources::default();
            limits::merge(self.owners, self.container, self.plugin, &mut claimed, resources)?;
        }
        if !requested.cgroups_path.is_empty() {
            self.field(Field::CgroupsPath)?;
            container.cgroups_path.clone_from(&requested.cgroups_path);
            merged.cgroups_path = requested.cgroups_path;
        }
        set_values!(self, requested, container, merged,
            oom_score_adj: OomScoreAdj,
            io_priority: IoPriority,
            seccomp_policy: SeccompPolicy,
            scheduler: LinuxSched,
        );
        if requested.memory_policy.is_some() {
            self.field(Field::MemoryPolicy)?;
            merged.memory_policy = requested.memory_policy;
        }
        self.namespaces(requested.namespaces, &mut container.namespaces, &mut merged.namespaces)?;
        self.map(Field::Sysctl, requested.sysctl, &mut container.sysctl, &mut merged.sysctl)?;
        self.map(
            Field::LinuxNetDevices,
            requested.net_devices,
            &mut container.net_devices,
            &mut merged.net_devices,
        )?;
        self.rdt(requested.rdt, merged)
    }

    /// A namespace belongs to the plugin that sets or removes it.
    fn namespaces(
        &mut self,
        requested: Vec<LinuxNamespace>,
        container: &mut Vec<LinuxNamespace>,
        merged: &mut Vec<LinuxNamespace>,
    ) -> Claimed {
        for namespace in requested {
            let (kind, is_removed) = removal(&namespace.r#type);
            self.entry(Field::Namespace, kind)?;
            container.retain(|other| other.r#type != kind);
            if !is_removed {
                container.push(namespace.clone());
            }
            merged.push(namespace);
        }
        Ok(())
    }

    fn rdt(
        &mut self,
        requested: Option<berth_proto::nri::LinuxRdt>,
        merged: &mut LinuxContainerAdjustment,
    ) -> Claimed {
        let Some(requested) = requested else { return Ok(()) };
        let into = merged.rdt.get_or_insert_default();
        if requested.remove {
            for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                self.owners.clear(self.container, field, self.plugin);
            }
            *into = berth_proto::nri::LinuxRdt { remove: true, ..Default::default() };
        }
        let mut kept = into.clone();
        set_values!(self, requested, kept, into,
            clos_id: RdtClosId,
            schemata: RdtSchemata,
            enable_monitoring: RdtEnableMonitoring,
        );
        Ok(())
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
