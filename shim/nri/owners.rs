//! The plugins that changed each field of a container. Two plugins that set the same field are a conflict, unless the later
//! one removes the value of the first.

use std::fmt;

use berth_proto::nri::{Field, FieldOwners, OwningPlugins};

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
    pub first: String,
    /// The plugin that was called later.
    pub second: String,
    /// The field.
    pub field: Field,
    /// The entry of the field, if it has entries.
    pub key: Option<String>,
}

impl fmt::Display for OwnerConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, field, key } = self;
        write!(f, "NRI plugins {first:?} and {second:?} both set {}", field.as_str_name())?;
        key.iter().try_for_each(|key| write!(f, " {key:?}"))
    }
}

/// The owners of the fields of several containers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ownership(OwningPlugins);

impl Ownership {
    /// Records that a plugin sets a field that has one value.
    ///
    /// # Errors
    /// Another plugin has set it.
    pub fn claim(&mut self, container: &str, field: Field, plugin: &str) -> Result<(), OwnerConflict> {
        let owners = &mut self.of(container).simple;
        check(owners.get(&field.into()), field, None, plugin)?;
        owners.insert(field.into(), plugin.to_owned());
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
        plugin: &str,
    ) -> Result<(), OwnerConflict> {
        let owners = &mut self.of(container).compound.entry(field.into()).or_default().owners;
        check(owners.get(key), field, Some(key), plugin)?;
        owners.insert(key.to_owned(), plugin.to_owned());
        Ok(())
    }

    /// Records that a plugin adds to a field that all plugins share.
    pub fn share(&mut self, container: &str, field: Field, plugin: &str) {
        let owners = &mut self.of(container).simple;
        let owner = owners.entry(field.into()).or_default();
        if !owner.is_empty() {
            owner.push(',');
        }
        owner.push_str(plugin);
    }

    /// Records that a plugin removes the value of a field, so that it can set the field.
    pub fn clear(&mut self, container: &str, field: Field, plugin: &str) {
        self.of(container).simple.insert(field.into(), format!("{REMOVAL}{plugin}"));
    }

    /// Records that a plugin removes an entry, so that it can set the entry.
    pub fn clear_entry(&mut self, container: &str, field: Field, key: &str, plugin: &str) {
        let owners = &mut self.of(container).compound.entry(field.into()).or_default().owners;
        owners.insert(key.to_owned(), format!("{REMOVAL}{plugin}"));
    }

    /// Returns the plugins that set a field.
    #[must_use]
    pub fn owner(&self, container: &str, field: Field) -> Option<&str> {
        self.0.owners.get(container)?.simple.get(&field.into()).map(String::as_str)
    }

    /// Returns the entries of a field with their plugins, sorted.
    #[must_use]
    pub fn entries(&self, container: &str, field: Field) -> Vec<(&str, &str)> {
        let owners = self.0.owners.get(container).and_then(|owners| owners.compound.get(&field.into()));
        let entries = owners.iter().flat_map(|owners| &owners.owners);
        let mut entries: Vec<_> = entries.map(|(key, plugin)| (key.as_str(), plugin.as_str())).collect();
        entries.sort_unstable();
        entries
    }

    /// Returns the message for validators.
    #[must_use]
    pub fn message(&self) -> OwningPlugins {
        self.0.clone()
    }

    fn of(&mut self, container: &str) -> &mut FieldOwners {
        self.0.owners.entry(container.to_owned()).or_default()
    }
}

fn check(owner: Option<&String>, field: Field, key: Option<&str>, plugin: &str) -> Result<(), OwnerConflict> {
    let Some(owner) = owner else { return Ok(()) };
    let (first, is_removed) = removal(owner);
    if is_removed && first == plugin {
        return Ok(());
    }
    let (first, second) = (first.to_owned(), plugin.to_owned());
    Err(OwnerConflict { first, second, field, key: key.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_both_plugins_and_the_field() {
        let mut owners = Ownership::default();
        owners.claim("c", Field::CpuShares, "10-a").unwrap();
        owners.claim("other", Field::CpuShares, "20-b").unwrap();
        let error = owners.claim("c", Field::CpuShares, "20-b").unwrap_err().to_string();
        assert_eq!(error, "NRI plugins \"10-a\" and \"20-b\" both set CPUShares");
        owners.claim_entry("c", Field::Env, "A", "10-a").unwrap();
        owners.claim_entry("c", Field::Env, "B", "20-b").unwrap();
        let error = owners.claim_entry("c", Field::Env, "A", "20-b").unwrap_err().to_string();
        assert_eq!(error, "NRI plugins \"10-a\" and \"20-b\" both set Env \"A\"");
        assert_eq!(owners.entries("c", Field::Env), [("A", "10-a"), ("B", "20-b")]);
    }

    #[test]
    fn a_removal_permits_its_plugin_to_set_the_value() {
        let mut owners = Ownership::default();
        owners.claim_entry("c", Field::Mounts, "/x", "10-a").unwrap();
        owners.clear_entry("c", Field::Mounts, "/x", "20-b");
        assert!(owners.clone().claim_entry("c", Field::Mounts, "/x", "30-c").is_err());
        owners.claim_entry("c", Field::Mounts, "/x", "20-b").unwrap();
        owners.claim("c", Field::Args, "10-a").unwrap();
        owners.clear("c", Field::Args, "20-b");
        owners.claim("c", Field::Args, "20-b").unwrap();
        owners.share("c", Field::OciHooks, "10-a");
        owners.share("c", Field::OciHooks, "20-b");
        assert_eq!(owners.owner("c", Field::OciHooks), Some("10-a,20-b"));
    }
}
