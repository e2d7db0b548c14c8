//! The default validator: rejects changes of plugins that the configuration forbids, and containers that a required plugin
//! has not processed.

use std::collections::HashMap;

use berth_proto::nri::{Container, Field, PodSandbox, security_profile::ProfileType};

use super::owners::Ownership;
use super::plugin::PluginName;
use crate::config::NriValidatorConfig;

/// The annotation of a pod with the names of the plugins that it requires.
pub const REQUIRED_PLUGINS: &str = "required-plugins.noderesource.dev";

/// A change that is not permitted, or a plugin that is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Plugins made a change that the configuration forbids.
    #[error("NRI plugin {plugins} changed {what}, which the configuration forbids ({key})")]
    Forbidden {
        /// The plugins.
        plugins: String,
        /// The part of the container.
        what: &'static str,
        /// The configuration key.
        key: &'static str,
    },
    /// Required plugins are not connected.
    #[error("required NRI plugin {0} is not connected")]
    Missing(String),
    /// An annotation is invalid.
    #[error("invalid annotation {key}: {why}")]
    Annotation {
        /// The key.
        key: String,
        /// How the value breaks the format.
        why: String,
    },
}

/// Checks the merged changes of all plugins.
///
/// # Errors
/// The first change that is not permitted, or the required plugins that are missing.
pub fn check(
    config: &NriValidatorConfig,
    pod: &PodSandbox,
    container: &Container,
    owners: &Ownership,
    plugins: &[PluginName],
) -> Result<(), Rejection> {
    if !config.enable {
        return Ok(());
    }
    let id = &container.id;
    let forbid = |plugins: String, what, key| Err(Rejection::Forbidden { plugins, what, key });
    if let Some(plugins) = owners.owner(id, Field::OciHooks).filter(|_| config.reject_oci_hook_adjustment) {
        return forbid(plugins, "OCI hooks", "reject_oci_hook_adjustment");
    }
    if let Some(plugin) = owners.owner(id, Field::SeccompPolicy) {
        let (key, is_rejected) = seccomp_rule(config, container);
        if is_rejected {
            return forbid(plugin, "the seccomp policy", key);
        }
    }
    let lists = [
        (Field::Namespace, "namespaces", "reject_namespace_adjustment", config.reject_namespace_adjustment),
        (Field::Sysctl, "sysctls", "reject_sysctl_adjustment", config.reject_sysctl_adjustment),
    ];
    for (field, what, key, is_rejected) in lists {
        let entries = owners.entries(id, field);
        if is_rejected && !entries.is_empty() {
            let plugins: Vec<_> =
                entries.iter().map(|(entry, plugin)| format!("{plugin} ({entry})")).collect();
            return forbid(plugins.join(", "), what, key);
        }
    }
    check_required(config, pod, &container.name, plugins)
}

/// Returns the rule for the seccomp profile that the container had.
fn seccomp_rule(config: &NriValidatorConfig, container: &Container) -> (&'static str, bool) {
    let profile = container.linux.as_ref().and_then(|linux| linux.seccomp_profile.as_ref());
    match profile.map_or(ProfileType::Unconfined, |profile| profile.profile_type()) {
        ProfileType::Unconfined => {
            ("reject_unconfined_seccomp_adjustment", config.reject_unconfined_seccomp_adjustment)
        }
        ProfileType::RuntimeDefault => {
            ("reject_runtime_default_seccomp_adjustment", config.reject_runtime_default_seccomp_adjustment)
        }
        ProfileType::Localhost => {
            ("reject_custom_seccomp_adjustment", config.reject_custom_seccomp_adjustment)
        }
    }
}

fn check_required(
    config: &NriValidatorConfig,
    pod: &PodSandbox,
    container: &str,
    plugins: &[PluginName],
) -> Result<(), Rejection> {
    let invalid = |key: &str, why: String| Rejection::Annotation { key: key.to_owned(), why };
    let tolerate = &config.tolerate_missing_plugins_annotation;
    if let Some((key, value)) = Some(tolerate)
        .filter(|key| !key.is_empty())
        .and_then(|key| annotation(&pod.annotations, key, container))
        && boolean(value).ok_or_else(|| invalid(&key, format!("{value:?} is not true or false")))?
    {
        return Ok(());
    }
    let mut required = config.required_plugins.clone();
    if let Some((key, value)) = annotation(&pod.annotations, REQUIRED_PLUGINS, container) {
        let names: Vec<String> =
            serde_json::from_str(value).map_err(|error| invalid(&key, error.to_string()))?;
        required.extend(names);
    }
    required
        .retain(|name| !plugins.iter().any(|plugin| *plugin.name == **name || plugin.to_string() == *name));
    match required.is_empty() {
        true => Ok(()),
        false => Err(Rejection::Missing(required.join(", "))),
    }
}

/// Returns the annotation for a container: for the container alone, for the pod, or without a scope.
fn annotation<'a>(
    annotations: &'a HashMap<String, String>,
    key: &str,
    container: &str,
) -> Option<(String, &'a str)> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.into_iter().find_map(|key| annotations.get(&key).map(|value| (key, value.as_str())))
}

/// Reads the values that Go's `strconv.ParseBool` accepts.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::nri::{LinuxContainer, SecurityProfile};

    use super::*;

    fn plugin(name: &str) -> PluginName {
        PluginName::of_file(name).unwrap()
    }

    fn enabled() -> NriValidatorConfig {
        NriValidatorConfig { enable: true, ..NriValidatorConfig::default() }
    }

    fn container(profile: ProfileType) -> Container {
        let seccomp_profile =
            Some(SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() });
        Container {
            id: "id".to_owned(),
            name: "main".to_owned(),
            linux: Some(LinuxContainer { seccomp_profile, ..LinuxContainer::default() }),
            ..Container::default()
        }
    }

    fn pod(annotations: &[(&str, &str)]) -> PodSandbox {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        PodSandbox { annotations: annotations.collect(), ..PodSandbox::default() }
    }

    #[test]
    fn each_key_rejects_its_change_and_names_the_plugin() {
        let mut owners = Ownership::default();
        owners.share("id", Field::OciHooks, &plugin("10-a"));
        owners.claim("id", Field::SeccompPolicy, &plugin("20-b")).unwrap();
        owners.claim_entry("id", Field::Namespace, "ipc", &plugin("30-c")).unwrap();
        owners.claim_entry("id", Field::Sysctl, "net.x", &plugin("40-d")).unwrap();
        let check = |config: &NriValidatorConfig, profile| {
            super::check(config, &pod(&[]), &container(profile), &owners, &[])
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(&enabled(), ProfileType::Localhost), Ok(()));
        let all: [(NriValidatorConfig, ProfileType, &str); 6] = [
            (
                NriValidatorConfig { reject_oci_hook_adjustment: true, ..enabled() },
                ProfileType::Localhost,
                "10-a",
            ),
            (
                NriValidatorConfig { reject_custom_seccomp_adjustment: true, ..enabled() },
                ProfileType::Localhost,
                "20-b",
            ),
            (
                NriValidatorConfig { reject_unconfined_seccomp_adjustment: true, ..enabled() },
                ProfileType::Unconfined,
                "20-b",
            ),
            (
                NriValidatorConfig { reject_runtime_default_seccomp_adjustment: true, ..enabled() },
                ProfileType::RuntimeDefault,
                "20-b",
            ),
            (
                NriValidatorConfig { reject_namespace_adjustment: true, ..enabled() },
                ProfileType::Localhost,
                "30-c (ipc)",
            ),
            (
                NriValidatorConfig { reject_sysctl_adjustment: true, ..enabled() },
                ProfileType::Localhost,
                "40-d (net.x)",
            ),
        ];
        for (config, profile, plugin) in all {
            let error = check(&config, profile).unwrap_err();
            assert!(error.contains(plugin), "{error}");
            let off = NriValidatorConfig { enable: false, ..config };
            assert_eq!(check(&off, profile), Ok(()));
        }
    }

    #[test]
    fn required_plugins_must_be_connected_unless_the_pod_tolerates_it() {
        let config = NriValidatorConfig {
            required_plugins: vec!["auth".to_owned()],
            tolerate_missing_plugins_annotation: "tolerate.example".to_owned(),
            ..enabled()
        };
        let check = |pod: &PodSandbox, plugins: &[PluginName]| {
            let container = container(ProfileType::Localhost);
            super::check(&config, pod, &container, &Ownership::default(), plugins)
        };
        let auth = PluginName::of_file("10-auth").unwrap();
        let gpu = PluginName::of_file("20-gpu").unwrap();
        assert_eq!(check(&pod(&[]), &[]), Err(Rejection::Missing("auth".to_owned())));
        assert_eq!(check(&pod(&[]), std::slice::from_ref(&auth)), Ok(()));
        assert_eq!(check(&pod(&[("tolerate.example", "true")]), &[]), Ok(()));
        assert!(check(&pod(&[("tolerate.example", "maybe")]), &[]).is_err());
        let requires = pod(&[("required-plugins.noderesource.dev/container.main", r#"["gpu"]"#)]);
        assert_eq!(check(&requires, std::slice::from_ref(&auth)), Err(Rejection::Missing("gpu".to_owned())));
        assert_eq!(check(&requires, &[auth.clone(), gpu]), Ok(()));
        let other = pod(&[("required-plugins.noderesource.dev/container.other", r#"["gpu"]"#)]);
        assert_eq!(check(&other, &[auth]), Ok(()));
    }
}
