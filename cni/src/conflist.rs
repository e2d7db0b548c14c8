//! Configuration files of the CNI specification (0.3.0 to 1.1.0). A file is parsed into types and checked as a whole
//! before anything is done with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::Builtin;
use crate::external::Search;
use crate::names::is_name;
use crate::plugins::bridge::Bridge;
use crate::plugins::{self, Plugin};
use crate::version::Version;

/// An invalid configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct ConfigError {
    /// The file that the list was read from.
    pub file: PathBuf,
    /// The line or key, and what is wrong with it.
    pub why: String,
}

/// A network: a list of plugins that run in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) name: String,
    pub(crate) version: Version,
    /// The runtime must not call `CHECK`.
    pub(crate) disable_check: bool,
    /// The runtime must not call `GC`.
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<PluginEntry>,
    /// This is the built-in network.
    pub(crate) built_in: bool,
    /// The text of the file or of the built-in network.
    pub(crate) text: String,
}

/// A plugin of a network and its configuration as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PluginEntry {
    pub(crate) plugin: Plugin,
    pub(crate) config: Value,
}

impl PluginEntry {
    /// The plugin's type.
    pub(crate) fn kind(&self) -> &str {
        self.config.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether the plugin declares a capability (`capabilities`).
    pub(crate) fn has_capability(&self, name: &str) -> bool {
        self.config.pointer("/capabilities").and_then(|all| all.get(name)) == Some(&Value::Bool(true))
    }
}

impl Conflist {
    /// The network of a node without a configuration file.
    pub(crate) fn builtin(builtin: &Builtin) -> Result<Self, String> {
        let ranges: Vec<Value> =
            builtin.subnets.iter().map(|subnet| json!([{ "subnet": subnet.trunc() }])).collect();
        let default = |subnet: &IpNet| if subnet.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let routes: Vec<Value> =
            builtin.subnets.iter().map(|subnet| json!({ "dst": default(subnet) })).collect();
        let config = json!({
            "cniVersion": Version::V1_1_0.text(),
            "name": builtin.bridge,
            "plugins": [
                {
                    "type": "bridge", "bridge": builtin.bridge, "isGateway": true, "ipMasq": true,
                    "hairpinMode": true, "mtu": builtin.mtu.unwrap_or(0),
                    "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            ],
        });
        parse_built_in(&config.to_string())
    }
}

impl Conflist {
    /// The bridges among its plugins.
    pub(crate) fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        self.plugins.iter().filter_map(|entry| match &entry.plugin {
            Plugin::Bridge(bridge) => Some(&**bridge),
            _ => None,
        })
    }
}

/// Returns the first configuration file of a folder by name, or `None`.
pub(crate) fn first_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    Ok(files(folder)?.into_iter().next())
}

/// Returns the errors in all configuration files of a folder, including files that are not active.
#[must_use]
pub fn mistakes(folder: &Path, bin_dirs: &[PathBuf], external: &[String]) -> Vec<String> {
    let search = Search { bin_dirs: bin_dirs.to_vec(), external: external.to_vec(), daemon: true };
    match files(folder) {
        Ok(files) => {
            files.iter().filter_map(|file| load(file, &search).err()).map(|e| e.to_string()).collect()
        }
        Err(error) => vec![format!("failed to read {}: {error}", folder.display())],
    }
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        matches!(file.extension().and_then(|e| e.to_str()), Some("conflist" | "conf" | "json"))
            && file.is_file()
    });
    files.sort();
    Ok(files)
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file is invalid. The error names the line or the key.
pub(crate) fn load(file: &Path, search: &Search) -> Result<Conflist, ConfigError> {
    let fail = |why: String| ConfigError { file: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
    parse(&text, search).map_err(fail)
}

/// Checks the text of a configuration file.
///
/// # Errors
/// The text is invalid. The error names the line or the key.
pub(crate) fn parse(text: &str, search: &Search) -> Result<Conflist, String> {
    parse_with(text, |config| plugins::compile(config, search))
}

/// Checks the recorded configuration of an attached pod. A plugin that cannot be found fails when it is
/// called: the other plugins still detach the pod.
///
/// # Errors
/// As [`parse`], except for invalid plugins.
pub(crate) fn parse_recorded(text: &str, search: &Search) -> Result<Conflist, String> {
    parse_with(text, |config| Ok(plugins::compile_recorded(config, search)))
}

/// Checks the text of the built-in network. Its plugins are always the built-in ones.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_built_in(text: &str) -> Result<Conflist, String> {
    Ok(Conflist { built_in: true, ..parse(text, &Search::default())? })
}

fn parse_with(text: &str, compile: impl Fn(&Value) -> Result<Plugin, String>) -> Result<Conflist, String> {
    // serde_json's errors contain line and column.
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let name = value.get("name").and_then(Value::as_str).filter(|name| is_name(name));
    let name = name.ok_or("name: missing or invalid")?.to_owned();
    let version = Version::of(&value)?;
    // A file without a list is a single plugin.
    let single = [value.clone()];
    let plugins = match value.get("plugins") {
        Some(Value::Array(plugins)) if plugins.is_empty() => {
            return Err("plugins: must not be empty".to_owned());
        }
        Some(Value::Array(plugins)) => plugins.as_slice(),
        Some(_) => return Err("plugins: must be a list".to_owned()),
        None => &single,
    };
    let entry = |(index, config): (usize, &Value)| {
        let plugin = compile(config).map_err(|why| format!("plugins[{index}].{why}"))?;
        Ok::<_, String>(PluginEntry { plugin, config: config.clone() })
    };
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    Ok(Conflist {
        name,
        version,
        disable_check: flag("disableCheck"),
        disable_gc: flag("disableGC"),
        plugins: plugins.iter().enumerate().map(entry).collect::<Result<_, _>>()?,
        built_in: false,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Conflist, String> {
        parse(text, &Search::default())
    }

    const VALID: &str = r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "mtu": 1400,
          "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }],
                    "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10" }], [{ "subnet": "fd00::/64" }]] } },
        { "type": "portmap", "capabilities": { "portMappings": true } } ] }"#;

    #[test]
    fn a_conflist_is_parsed_into_types() {
        let list = parsed(VALID).unwrap();
        assert_eq!((list.name.as_str(), list.version), ("pods", Version::V1_0_0));
        assert_eq!(list.plugins.len(), 2);
        assert!(matches!(list.plugins[0].plugin, Plugin::Bridge(_)), "{list:?}");
        assert!(list.plugins[1].has_capability("portMappings") && !list.plugins[0].has_capability("ips"));
    }

    #[test]
    fn a_missing_plugin_does_not_prevent_others_from_detaching() {
        let text = VALID.replace("\"portmap\"", "\"gone\"");
        assert!(parsed(&text).unwrap_err().contains("gone"));
        let list = parse_recorded(&text, &Search::default()).unwrap();
        assert!(matches!(list.plugins[0].plugin, Plugin::Bridge(_)));
        assert!(matches!(list.plugins[1].plugin, Plugin::Missing(_)));
    }

    #[test]
    fn a_list_may_have_several_versions() {
        let list = parsed(&VALID.replace("\"name\"", "\"cniVersions\": [\"1.1.0\", \"2.0.0\"], \"name\""));
        assert_eq!(list.unwrap().version, Version::V1_1_0);
    }

    #[test]
    fn errors_name_the_key_or_the_line() {
        for (from, to, expected) in [
            ("\"pods\"", "\"../x\"", "name"),
            ("\"1.0.0\"", "\"9.9\"", "cniVersion"),
            ("\"type\": \"bridge\"", "\"type\": \"../../bin/sh\"", "plugins[0].type"),
            ("\"type\": \"bridge\"", "\"type\": \"calico\"", "calico"),
            ("\"cni0\"", "\"a/b\"", "plugins[0].bridge"),
            ("10.1.0.10", "10.9.0.10", "plugins[0].ipam.ranges[0].rangeStart"),
            ("10.1.0.0/24", "10.1.0.0/31", "no room"),
            ("\"mtu\": 1400", "\"mtu\": \"big\"", "plugins[0].mtu"),
            ("\"mtu\": 1400", "\"mtu\": ", "line 2"),
            ("\"mtu\": 1400", "\"enabledad\": 7", "plugins[0].enabledad"),
        ] {
            let error = parsed(&VALID.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn the_built_in_network_is_valid() {
        let subnets = vec!["10.88.0.0/16".parse().unwrap(), "fd00:88::/64".parse().unwrap()];
        let builtin = Builtin { bridge: "berth0".to_owned(), subnets, mtu: None };
        assert_eq!(Conflist::builtin(&builtin).unwrap().plugins.len(), 3);
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic_the_parser(text in "\\PC{0,200}") {
            let _result = parsed(&text);
        }

        #[test]
        fn a_damaged_conflist_does_not_panic_the_parser(at in 0..400_usize, with in "\\PC{0,3}") {
            let mut text = VALID.to_owned();
            if text.is_char_boundary(at) && at < text.len() {
                text.insert_str(at, &with);
            }
            let _result = parsed(&text);
        }
    }
}
