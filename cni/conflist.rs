//! Configuration files of the CNI specification (0.3.1 to 1.1): read, checked as a whole, and turned into types before
//! anything is done with them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::Builtin;

/// A configuration that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line, key and what is wrong.
    pub why: String,
}

/// Versions of the specification that are understood.
const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.3.0"];

/// A network: its plugins are run in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) plugins: Vec<Plugin>,
    /// The file's text; `None` of the built-in network.
    pub(crate) text: Option<String>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plugin {
    /// `bridge`, done here.
    Bridge(Box<Bridge>),
    /// `loopback`, done here.
    Loopback,
    /// `portmap` that no program is there for: pods that ask for no port of the host do without.
    PortmapLater,
    /// A program by the specification.
    External(External),
}

/// A program by the specification.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct External {
    pub(crate) kind: String,
    pub(crate) program: PathBuf,
    pub(crate) config: Value,
}

/// The bridge plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Bridge {
    #[serde(rename = "bridge")]
    pub(crate) name: Option<String>,
    pub(crate) is_gateway: bool,
    pub(crate) is_default_gateway: bool,
    pub(crate) ip_masq: bool,
    pub(crate) hairpin_mode: bool,
    pub(crate) promisc_mode: bool,
    pub(crate) mtu: u32,
    pub(crate) ipam: Ipam,
}

/// The host-local plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipam {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) routes: Vec<Route>,
    /// One address is taken of each set.
    pub(crate) ranges: Vec<Vec<Range>>,
    pub(crate) subnet: Option<IpNet>,
    pub(crate) range_start: Option<IpAddr>,
    pub(crate) range_end: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    pub(crate) gw: Option<IpAddr>,
}

/// Addresses from the first to the last.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Range {
    pub(crate) subnet: IpNet,
    pub(crate) range_start: Option<IpAddr>,
    pub(crate) range_end: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
}

impl Range {
    /// The gateway: as said, or the first address of the subnet.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| nth(self.subnet, 1))
    }
}

/// The nth address of a subnet.
pub(crate) fn nth(subnet: IpNet, n: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            IpAddr::V4(u32::from(network).saturating_add(n).into())
        }
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).saturating_add(n).into()),
    }
}

impl Conflist {
    /// The network of a node without a configuration file.
    pub(crate) fn builtin(builtin: &Builtin) -> Self {
        let range = |subnet: &IpNet| {
            vec![Range { subnet: *subnet, range_start: None, range_end: None, gateway: None }]
        };
        let default = |v4: bool| if v4 { "0.0.0.0/0" } else { "::/0" };
        let routes = builtin.subnets.iter().filter_map(|subnet| {
            let dst = default(subnet.addr().is_ipv4()).parse().ok()?;
            Some(Route { dst, gw: None })
        });
        let bridge = Bridge {
            name: Some(builtin.bridge.clone()),
            is_gateway: true,
            ip_masq: true,
            hairpin_mode: true,
            mtu: builtin.mtu.unwrap_or(0),
            ipam: Ipam {
                kind: "host-local".to_owned(),
                routes: routes.collect(),
                ranges: builtin.subnets.iter().map(range).collect(),
                ..Ipam::default()
            },
            ..Bridge::default()
        };
        Self {
            name: builtin.bridge.clone(),
            version: "1.1.0".to_owned(),
            plugins: vec![Plugin::Loopback, Plugin::Bridge(Box::new(bridge)), Plugin::PortmapLater],
            text: None,
        }
    }
}

/// The first configuration file of a folder by name; `None` where there is none.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn first_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        matches!(file.extension().and_then(|e| e.to_str()), Some("conflist" | "conf" | "json"))
            && file.is_file()
    });
    files.sort();
    Ok(files.into_iter().next())
}

/// Reads and checks a configuration file.
///
/// # Errors
/// It is not valid; line and key are named.
pub(crate) fn load(file: &Path, bin_dirs: &[PathBuf]) -> Result<Conflist, ConfigError> {
    let fail = |why: String| ConfigError { file: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
    parse(&text, bin_dirs).map_err(fail)
}

/// Checks the text of a configuration file.
///
/// # Errors
/// It is not valid; line and key are named.
pub(crate) fn parse(text: &str, bin_dirs: &[PathBuf]) -> Result<Conflist, String> {
    // serde_json's errors end with line and column.
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let field = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let name =
        field("name").filter(|name| is_name(name)).ok_or("name: is missing or no name of a network")?;
    let version = field("cniVersion").unwrap_or_else(|| "0.3.1".to_owned());
    if !VERSIONS.contains(&version.as_str()) {
        return Err(format!("cniVersion: {version:?} is none of {}", VERSIONS.join(", ")));
    }
    // A file with a single plugin is that plugin itself.
    let single = [value.clone()];
    let plugins = match value.get("plugins") {
        Some(Value::Array(plugins)) if plugins.is_empty() => return Err("plugins: is empty".to_owned()),
        Some(Value::Array(plugins)) => plugins.as_slice(),
        Some(_) => return Err("plugins: is no list".to_owned()),
        None => &single,
    };
    let plugins = plugins
        .iter()
        .enumerate()
        .map(|(index, plugin)| compile(plugin, bin_dirs).map_err(|why| format!("plugins[{index}].{why}")));
    Ok(Conflist { name, version, plugins: plugins.collect::<Result<_, _>>()?, text: Some(text.to_owned()) })
}

/// Letters, digits, dots, dashes and underscores, as the specification has it for names; they become file names.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 200
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn compile(plugin: &Value, bin_dirs: &[PathBuf]) -> Result<Plugin, String> {
    let kind = plugin.get("type").and_then(Value::as_str).ok_or("type: is missing")?;
    if !is_name(kind) {
        return Err(format!("type: {kind:?} is no name of a plugin"));
    }
    let ipam = plugin.pointer("/ipam/type").and_then(Value::as_str);
    match kind {
        "loopback" => return Ok(Plugin::Loopback),
        // With another IPAM the reference plugin does the whole.
        "bridge" if matches!(ipam, Some("host-local")) => return bridge(plugin),
        _ => {}
    }
    let found = bin_dirs.iter().map(|folder| folder.join(kind)).find(|program| program.is_file());
    match (found, kind) {
        (Some(program), _) => {
            Ok(Plugin::External(External { kind: kind.to_owned(), program, config: plugin.clone() }))
        }
        (None, "portmap") => Ok(Plugin::PortmapLater),
        (None, _) => {
            let folders: Vec<_> = bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
            Err(format!("type: {kind:?} is not built in and not found in {}", folders.join(", ")))
        }
    }
}

fn bridge(plugin: &Value) -> Result<Plugin, String> {
    let mut bridge: Bridge = serde_json::from_value(plugin.clone()).map_err(|error| error.to_string())?;
    if plugin.get("vlan").and_then(Value::as_u64).unwrap_or(0) != 0 {
        return Err("vlan: is not supported yet".to_owned());
    }
    let name = bridge.name.as_deref().unwrap_or("cni0");
    if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', ':']) {
        return Err(format!("bridge: {name:?} is no name of a link"));
    }
    let ipam = &mut bridge.ipam;
    if let Some(subnet) = ipam.subnet.take() {
        let range = Range {
            subnet,
            range_start: ipam.range_start.take(),
            range_end: ipam.range_end.take(),
            gateway: ipam.gateway.take(),
        };
        ipam.ranges.insert(0, vec![range]);
    }
    if ipam.ranges.is_empty() || ipam.ranges.iter().any(Vec::is_empty) {
        return Err("ipam.ranges: is empty".to_owned());
    }
    for (place, range) in ipam.ranges.iter().flatten().enumerate() {
        check(range).map_err(|why| format!("ipam.ranges[{place}].{why}"))?;
    }
    Ok(Plugin::Bridge(Box::new(bridge)))
}

fn check(range: &Range) -> Result<(), String> {
    let subnet = range.subnet;
    if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
        return Err(format!("subnet: {subnet} has no room for pods"));
    }
    let limits =
        [("rangeStart", range.range_start), ("rangeEnd", range.range_end), ("gateway", range.gateway)];
    for (key, address) in limits {
        if let Some(address) = address.filter(|address| !subnet.contains(address)) {
            return Err(format!("{key}: {address} is not in {subnet}"));
        }
    }
    match (range.range_start, range.range_end) {
        (Some(start), Some(end)) if start > end => Err(format!("rangeEnd: {end} is before {start}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Conflist, String> {
        parse(text, &[])
    }

    const SOUND: &str = r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "mtu": 1400,
          "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }],
                    "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10" }], [{ "subnet": "fd00::/64" }]] } },
        { "type": "portmap", "capabilities": { "portMappings": true } } ] }"#;

    #[test]
    fn a_conflist_becomes_types() {
        let list = parsed(SOUND).unwrap();
        assert_eq!(list.name, "pods");
        let [Plugin::Bridge(bridge), Plugin::PortmapLater] = list.plugins.as_slice() else {
            panic!("{list:?}")
        };
        assert!(bridge.is_gateway && bridge.ip_masq && bridge.mtu == 1400);
        assert_eq!(bridge.ipam.ranges.len(), 2);
        assert_eq!(bridge.ipam.ranges[0][0].gateway().to_string(), "10.1.0.1");
    }

    #[test]
    fn the_old_form_has_one_range() {
        let text = r#"{ "name": "old", "type": "bridge",
            "ipam": { "type": "host-local", "subnet": "10.2.0.0/24", "gateway": "10.2.0.254" } }"#;
        let Plugin::Bridge(bridge) = parsed(text).unwrap().plugins.remove(0) else { panic!() };
        assert_eq!(bridge.ipam.ranges[0][0].gateway().to_string(), "10.2.0.254");
    }

    #[test]
    fn errors_name_the_key_or_the_line() {
        for (from, to, expected) in [
            ("\"pods\"", "\"../x\"", "name"),
            ("\"1.0.0\"", "\"9.9\"", "cniVersion"),
            ("\"type\": \"bridge\"", "\"type\": \"../../bin/sh\"", "plugins[0].type"),
            ("\"type\": \"bridge\"", "\"type\": \"calico\"", "calico"),
            ("10.1.0.10", "10.9.0.10", "plugins[0].ipam.ranges[0].rangeStart"),
            ("10.1.0.0/24", "10.1.0.0/31", "no room"),
            ("\"mtu\": 1400", "\"mtu\": ", "line 2"),
        ] {
            let error = parsed(&SOUND.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error:?} has no {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_fail(text in "\\PC{0,200}") {
            let _result = parsed(&text);
        }

        #[test]
        fn no_damage_makes_the_parser_fail(at in 0..400_usize, with in "\\PC{0,3}") {
            let mut text = SOUND.to_owned();
            if text.is_char_boundary(at) && at < text.len() {
                text.insert_str(at, &with);
            }
            let _result = parsed(&text);
        }
    }
}
