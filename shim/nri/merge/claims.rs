//! Merges the fields of a container. A plugin claims each field, or each entry of a field, that it sets.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use berth_proto::nri::{
    Field, KeyValue, LinuxContainer, LinuxContainerAdjustment, LinuxDevice, LinuxNamespace, LinuxRdt,
    LinuxResources,
};

use crate::nri::limits;
use crate::nri::owners::{OwnerConflict, Ownership, removal};
use crate::nri::plugin::PluginName;

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
pub(super) struct Claims<'a> {
    pub(super) owners: &'a mut Ownership,
    pub(super) container: &'a str,
    pub(super) plugin: &'a PluginName,
}

pub(super) type Claimed = Result<(), OwnerConflict>;

impl Claims<'_> {
    fn field(&mut self, field: Field) -> Claimed {
        self.owners.claim(self.container, field, self.plugin)
    }

    pub(super) fn entry(&mut self, field: Field, key: &str) -> Claimed {
        self.owners.claim_entry(self.container, field, key, self.plugin)
    }

    fn clear_entry(&mut self, field: Field, key: &str) {
        self.owners.clear_entry(self.container, field, key, self.plugin);
    }

    /// Merges a list whose entries have keys. An entry whose key is marked removes the entry with that key.
    pub(super) fn list<T: Clone>(
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
    pub(super) fn map<T: Clone, S: BuildHasher>(
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

    pub(super) fn env(
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
    pub(super) fn args(
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

    pub(super) fn linux(
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

    fn rdt(&mut self, requested: Option<LinuxRdt>, merged: &mut LinuxContainerAdjustment) -> Claimed {
        let Some(requested) = requested else { return Ok(()) };
        let into = merged.rdt.get_or_insert_default();
        if requested.remove {
            for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                self.owners.clear(self.container, field, self.plugin);
            }
            *into = LinuxRdt { remove: true, ..Default::default() };
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
