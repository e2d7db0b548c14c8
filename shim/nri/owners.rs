//! The plugins that changed each field of a container. Two plugins that set the same field are a conflict, unless the later
//! one removes the value of the first.

use std::collections::BTreeMap;
use std::fmt;

use berth_proto::nri::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};

use super::plugin::PluginName;

/// The mark of a removal, in keys and in the owner of a removed value.
const REMOVAL: char = '-';

/// Returns the name without the mark of a removal, and whether it had the mark.
#[must_use]
pub fn removal(name: &str) -> (&str, bool) {
    name.strip_prefix(REMOVAL).map_or((name, false), |name| (name, true))
}

/// Two plugins set the same field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OwnerConflict {
    /// The plugin that was called first.
    pub first: PluginName,
    /// The plugin that was called later.
    pub second: PluginName,
    /// The field.
    pub field: Field,
    /// The entry of the field, if it has entries.
    pub key: Option<String>,
}

impl fmt::Display for OwnerConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, field, key } = self;
        write!(f, "NRI plugins \"{first}\" and \"{second}\" both set {}", field.as_str_name())?;
        key.iter().try_for_each(|key| write!(f, " {key:?}"))
    }
}

/// The plugin that has changed a value last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ValueOwner {
    /// It has set the value.
    Set(PluginName),
    /// It has removed the value, and may set it.
    Removed(PluginName),
}

impl fmt::Display for ValueOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(plugin) => write!(f, "{plugin}"),
            Self::Removed(plugin) => write!(f, "{REMOVAL}{plugin}"),
        }
    }
}

/// The owners of the fields of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ContainerOwners {
    /// Fields with one value.
    values: BTreeMap<Field, ValueOwner>,
    /// Fields to which all plugins add.
    shared: BTreeMap<Field, Vec<PluginName>>,
    /// Fields with entries, by key.
    entries: BTreeMap<Field, BTreeMap<String, ValueOwner>>,
}

impl ContainerOwners {
    /// Returns the owner of a field without entries as text, as validators get it.
    fn text(&self, field: Field) -> Option<String> {
        let shared =
            || Some(self.shared.get(&field)?.iter().map(PluginName::to_string).collect::<Vec<_>>().join(","));
        self.values.get(&field).map(ValueOwner::to_string).or_else(shared)
    }

    /// Returns the message for validators.
    fn message(&self) -> FieldOwners {
        let fields = self.values.keys().chain(self.shared.keys());
        let simple = fields.filter_map(|field| Some((i32::from(*field), self.text(*field)?)));
        let compound = self.entries.iter().map(|(field, entries)| {
            let owners = entries.iter().map(|(key, owner)| (key.clone(), owner.to_string())).collect();
            (i32::from(*field), CompoundFieldOwners { owners })
        });
        FieldOwners { simple: simple.collect(), compound: compound.collect() }
    }
}

/// The owners of the fields of several containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    containers: BTreeMap<String, ContainerOwners>,
}

impl Ownership {
    /// Records that a plugin sets a field that has one value.
    ///
    /// # Errors
    /// Another plugin has set it.
    pub fn claim(&mut self, container: &str, field: Field, plugin: &PluginName) -> Result<(), OwnerConflict> {
        let owners = &mut self.of(container).values;
        check(owners.get(&field), field, None, plugin)?;
        owners.insert(field, ValueOwner::Set(plugin.clone()));
        Ok(())
    }

    /// Records that a plugin sets an entry of a field.
    ///
    /// # Errors
    /// Another plugin has set it.
    pub fn claim_entry(
        &mut self,
        container: &str,
        field: Field,
        key: &str,
        plugin: &PluginName,
    ) -> Result<(), OwnerConflict> {
        let owners = self.of(container).entries.entry(field).or_default();
        check(owners.get(key), field, Some(key), plugin)?;
        owners.insert(key.to_owned(), ValueOwner::Set(plugin.clone()));
        Ok(())
    }

    /// Records that a plugin adds to a field that all plugins share.
    pub fn share(&mut self, container: &str, field: Field, plugin: &PluginName) {
        self.of(container).shared.entry(field).or_default().push(plugin.clone());
    }

    /// Records that a plugin removes the value of a field, so that it can set the field.
    pub fn clear(&mut self, container: &str, field: Field, plugin: &PluginName) {
        self.of(container).values.insert(field, ValueOwner::Removed(plugin.clone()));
    }

    /// Records that a plugin removes an entry, so that it can set the entry.
    pub fn clear_entry(&mut self, container: &str, field: Field, key: &str, plugin: &PluginName) {
        let owners = self.of(container).entries.entry(field).or_default();
        owners.insert(key.to_owned(), ValueOwner::Removed(plugin.clone()));
    }

    /// Returns the plugins that set a field, as text.
    #[must_use]
    pub fn owner(&self, container: &str, field: Field) -> Option<String> {
        self.containers.get(container)?.text(field)
    }

    /// Returns the entries of a field with their plugins as text, sorted.
    #[must_use]
    pub fn entries(&self, container: &str, field: Field) -> Vec<(&str, String)> {
        let entries = self.containers.get(container).and_then(|owners| owners.entries.get(&field));
        entries.into_iter().flatten().map(|(key, owner)| (key.as_str(), owner.to_string())).collect()
    }

    /// Returns the message for validators.
    #[must_use]
    pub fn message(&self) -> OwningPlugins {
        let owners = self.containers.iter().map(|(container, owners)| (container.clone(), owners.message()));
        OwningPlugins { owners: owners.collect() }
    }

    fn of(&mut self, container: &str) -> &mut ContainerOwners {
        self.containers.entry(container.to_owned()).or_default()
    }
}

fn check(
    owner: Option<&ValueOwner>,
    field: Field,
    key: Option<&str>,
    plugin: &PluginName,
) -> Result<(), OwnerConflict> {
    let first = match owner {
        None => return Ok(()),
        Some(ValueOwner::Removed(owner)) if owner == plugin => return Ok(()),
        Some(ValueOwner::Set(owner) | ValueOwner::Removed(owner)) => owner.clone(),
    };
    Err(OwnerConflict { first, second: plugin.clone(), field, key: key.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str) -> PluginName {
        PluginName::of_file(name).unwrap()
    }

    #[test]
    fn a_conflict_names_both_plugins_and_the_field() {
        let mut owners = Ownership::default();
        owners.claim("c", Field::CpuShares, &plugin("10-a")).unwrap();
        owners.claim("other", Field::CpuShares, &plugin("20-b")).unwrap();
        let error = owners.claim("c", Field::CpuShares, &plugin("20-b")).unwrap_err().to_string();
        assert_eq!(error, "NRI plugins \"10-a\" and \"20-b\" both set CPUShares");
        owners.claim_entry("c", Field::Env, "A", &plugin("10-a")).unwrap();
        owners.claim_entry("c", Field::Env, "B", &plugin("20-b")).unwrap();
        let error = owners.claim_entry("c", Field::Env, "A", &plugin("20-b")).unwrap_err().to_string();
        assert_eq!(error, "NRI plugins \"10-a\" and \"20-b\" both set Env \"A\"");
        assert_eq!(owners.entries("c", Field::Env), [("A", "10-a".to_owned()), ("B", "20-b".to_owned())]);
    }

    #[test]
    fn a_removal_permits_its_plugin_to_set_the_value() {
        let mut owners = Ownership::default();
        owners.claim_entry("c", Field::Mounts, "/x", &plugin("10-a")).unwrap();
        owners.clear_entry("c", Field::Mounts, "/x", &plugin("20-b"));
        assert!(owners.clone().claim_entry("c", Field::Mounts, "/x", &plugin("30-c")).is_err());
        owners.claim_entry("c", Field::Mounts, "/x", &plugin("20-b")).unwrap();
        owners.claim("c", Field::Args, &plugin("10-a")).unwrap();
        owners.clear("c", Field::Args, &plugin("20-b"));
        owners.claim("c", Field::Args, &plugin("20-b")).unwrap();
        owners.share("c", Field::OciHooks, &plugin("10-a"));
        owners.share("c", Field::OciHooks, &plugin("20-b"));
        assert_eq!(owners.owner("c", Field::OciHooks), Some("10-a,20-b".to_owned()));
    }
}
