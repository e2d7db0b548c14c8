//! The built-in plugins as programs for other runtimes (CNI specification, "Section 2: Execution Protocol"): parameters
//! in the environment, the configuration on standard input.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Call, parse_args};
use crate::external::Search;
use crate::gc::Owned;
use crate::host::{Host, Places};
use crate::ipam::Ipam;
use crate::names::{is_link_name, is_name};
use crate::nftables::{self, masquerade};
use crate::plugins::{self, Plugin};
use crate::result::CniResult;
use crate::runtime_config::RuntimeConfig;
use crate::version::Version;
use crate::{Error, Result};

/// The folder of the plugins' state, apart from addresses.
const STATE: &str = "/var/lib/cni/berth";

/// The folder of allocated addresses.
const ADDRESSES: &str = "/var/lib/cni/networks";

/// The time limit of a program that a plugin delegates to.
const PATIENCE: Duration = Duration::from_secs(90);

/// IPAM plugins that can be called as programs. `dhcp` needs a daemon.
pub const SERVED_IPAM: [&str; 2] = ["host-local", "static"];

/// The parameters of a plugin program.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// The plugin: a name in [`crate::BUILT_IN`] or [`SERVED_IPAM`]. Default: the configuration's `type`.
    pub kind: Option<String>,
    /// The operation: `ADD`, `DEL`, `CHECK` and so on (`CNI_COMMAND`).
    pub command: String,
    /// The id of the container; runtimes pass that of the pod (`CNI_CONTAINERID`).
    pub container: String,
    /// The path of the network namespace (`CNI_NETNS`).
    pub netns: String,
    /// The name of the interface in the namespace (`CNI_IFNAME`).
    pub interface: String,
    /// Further arguments, as `KEY=value` pairs with semicolons between (`CNI_ARGS`).
    pub args: String,
    /// The folders of plugin programs, with colons between (`CNI_PATH`).
    pub path: String,
    /// The configuration on standard input.
    pub config: Vec<u8>,
}

/// A failure in the form of the specification.
#[derive(Debug)]
pub struct Failure {
    /// The error code of the specification ("Error"), or a code of berth from 100 on.
    pub code: u32,
    /// The error message.
    pub message: String,
    /// The `cniVersion` of the answer.
    version: String,
}

impl Failure {
    const INCOMPATIBLE_VERSION: u32 = 1;
    const INVALID_ENVIRONMENT: u32 = 4;
    const DECODE: u32 = 6;
    const INVALID_CONFIG: u32 = 7;
    const TRY_AGAIN: u32 = 11;
    const OTHER: u32 = 100;

    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), version: Version::V1_1_0.text().to_owned() }
    }

    /// The JSON that is written to standard output.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!({ "cniVersion": self.version, "code": self.code, "msg": self.message }).to_string()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Config(_) => Self::INVALID_CONFIG,
            Error::NotReady(_) => Self::TRY_AGAIN,
            _ => Self::OTHER,
        };
        Self::new(code, error.to_string())
    }
}

/// Runs a plugin and returns its answer, if it has one. Needs a tokio runtime.
///
/// # Errors
/// The failure to report to the caller.
pub async fn run(invocation: Invocation) -> std::result::Result<Option<String>, Failure> {
    if invocation.command == "VERSION" {
        return Ok(Some(versions()));
    }
    let config: Value = serde_json::from_slice(&invocation.config)
        .map_err(|error| Failure::new(Failure::DECODE, format!("invalid configuration: {error}")))?;
    let version = Version::of(&config).map_err(|why| Failure::new(Failure::INCOMPATIBLE_VERSION, why))?;
    answer(&invocation, &config, version)
        .await
        .map_err(|failure| Failure { version: version.text().to_owned(), ..failure })
}

fn versions() -> String {
    let supported: Vec<_> = Version::ALL.iter().map(|version| version.text()).collect();
    json!({ "cniVersion": Version::V1_1_0.text(), "supportedVersions": supported }).to_string()
}

/// A plugin or an IPAM plugin.
enum RequestedPlugin {
    Plugin(Plugin),
    Addresses(Ipam),
}

fn kind(
    invocation: &Invocation,
    config: &Value,
    search: &Search,
) -> std::result::Result<RequestedPlugin, Failure> {
    let invalid = |why: String| Failure::new(Failure::INVALID_CONFIG, why);
    let of_config = config.get("type").and_then(Value::as_str).unwrap_or_default();
    let name = invocation.kind.as_deref().unwrap_or(of_config);
    if SERVED_IPAM.contains(&name) {
        let mut named = config.clone();
        if let Some(ipam) = named.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.insert("type".to_owned(), json!(name));
        }
        // Values that a runtime may add are already in the configuration.
        let ipam = Ipam::compile_for_program(&named, search).map_err(invalid)?;
        return ipam
            .map(RequestedPlugin::Addresses)
            .ok_or_else(|| invalid("invalid ipam: missing".to_owned()));
    }
    if !plugins::BUILT_IN.contains(&name) {
        return Err(invalid(format!("invalid type {name:?}: not a built-in plugin")));
    }
    let mut named = config.clone();
    if let Some(named) = named.as_object_mut() {
        named.insert("type".to_owned(), json!(name));
        named.insert("capabilities".to_owned(), json!({ "ipRanges": true, "ips": true, "deviceID": true }));
    }
    plugins::compile(&named, search).map(RequestedPlugin::Plugin).map_err(invalid)
}

/// Opens the network namespace. For commands that also work without it, it may be gone.
fn open_netns(invocation: &Invocation) -> std::result::Result<Option<File>, Failure> {
    match File::open(&invocation.netns) {
        Ok(netns) => Ok(Some(netns)),
        // The namespace is gone with its last process. DEL removes what is outside it.
        Err(_) if invocation.command != "ADD" && invocation.command != "CHECK" => Ok(None),
        Err(error) => {
            let why = format!("CNI_NETNS: open {}: {error}", invocation.netns);
            Err(Failure::new(Failure::INVALID_ENVIRONMENT, why))
        }
    }
}

/// Parses the result of the plugins before this one.
fn previous_result(
    invocation: &Invocation,
    config: &Value,
    kind: &RequestedPlugin,
) -> std::result::Result<CniResult, Failure> {
    let given = config.get("prevResult");
    let previous = CniResult::parse(given.unwrap_or(&Value::Null))
        .map_err(|why| Failure::new(Failure::DECODE, format!("prevResult: {why}")))?;
    if let RequestedPlugin::Plugin(plugin) = kind
        && plugin.is_chained()
        && given.is_none()
        && matches!(invocation.command.as_str(), "ADD" | "CHECK")
    {
        return Err(Failure::new(
            Failure::INVALID_CONFIG,
            "prevResult: missing: this plugin must be chained after another",
        ));
    }
    Ok(previous)
}

async fn answer(
    invocation: &Invocation,
    config: &Value,
    version: Version,
) -> std::result::Result<Option<String>, Failure> {
    let network = config.get("name").and_then(Value::as_str).filter(|name| is_name(name));
    let network = network.ok_or_else(|| Failure::new(Failure::INVALID_CONFIG, "name: missing or invalid"))?;
    let with_attachment = matches!(invocation.command.as_str(), "ADD" | "DEL" | "CHECK");
    if with_attachment {
        check_environment(invocation)?;
    }
    let bin_dirs: Vec<PathBuf> = std::env::split_paths(&invocation.path).collect();
    let search = Search { bin_dirs, ..Search::default() };
    let kind = kind(invocation, config, &search)?;
    let netns = open_netns(invocation)?;
    let runtime = match config.get("runtimeConfig") {
        Some(runtime) => RuntimeConfig::deserialize(berth_json::NullIsAbsent(runtime))
            .map_err(|error| Failure::new(Failure::DECODE, format!("runtimeConfig: {error}")))?,
        None => RuntimeConfig::default(),
    };
    let host = Host::open(Places {
        state_dir: Path::new(STATE).to_owned(),
        data_dir: Path::new(ADDRESSES).to_owned(),
        patience: PATIENCE,
    })?;
    let args: BTreeMap<String, String> = parse_args(&invocation.args);
    let call = Call {
        network,
        version,
        container: &invocation.container,
        interface: &invocation.interface,
        netns: netns.as_ref().map(AsFd::as_fd),
        sandbox: &invocation.netns,
        namespace_ends: false,
        knows_all: false,
        runtime: &runtime,
        args: &args,
        args_text: &invocation.args,
        bin_path: &invocation.path,
        data_dir: host.data_dir(),
        host: &host,
    };
    let previous = previous_result(invocation, config, &kind)?;
    let result = command(&invocation.command, &kind, &call, config, previous).await?;
    Ok(result.map(|result| result.to_value(version).to_string()))
}

async fn command(
    command: &str,
    kind: &RequestedPlugin,
    call: &Call<'_>,
    config: &Value,
    previous: CniResult,
) -> std::result::Result<Option<CniResult>, Failure> {
    match (command, kind) {
        ("ADD", RequestedPlugin::Plugin(plugin)) => Ok(Some(plugin.add(call, config, previous).await?)),
        ("ADD", RequestedPlugin::Addresses(ipam)) => Ok(Some(ipam.add(call, config).await?)),
        ("DEL", RequestedPlugin::Plugin(plugin)) => {
            plugin.del(call, config, &previous).await?;
            clean(call).await?;
            Ok(None)
        }
        ("DEL", RequestedPlugin::Addresses(ipam)) => Ok(ipam.del(call, config).await.map(|()| None)?),
        ("CHECK", RequestedPlugin::Plugin(plugin)) => {
            Ok(plugin.check(call, config, &previous).await.map(|()| None)?)
        }
        ("CHECK", RequestedPlugin::Addresses(ipam)) => {
            Ok(ipam.check(call, config, &previous).await.map(|()| None)?)
        }
        ("STATUS", RequestedPlugin::Plugin(plugin)) => {
            Ok(plugin.status(call, config).await.map(|()| None)?)
        }
        ("STATUS", RequestedPlugin::Addresses(ipam)) => Ok(ipam.status(call, config).await.map(|()| None)?),
        ("GC", kind) => {
            let live = attachments(config)?;
            let ipam = match kind {
                RequestedPlugin::Plugin(plugin) => plugin.ipam(),
                RequestedPlugin::Addresses(ipam) => Some(ipam),
            };
            if let Some(ipam) = ipam {
                ipam.gc(call.host, call.network, &live).await?;
            }
            if let RequestedPlugin::Plugin(_) = kind {
                Owned { host: call.host, network: call.network }.release(&live).await?;
                clean(call).await?;
            }
            Ok(None)
        }
        (other, _) => {
            Err(Failure::new(Failure::INVALID_ENVIRONMENT, format!("CNI_COMMAND: unknown command {other:?}")))
        }
    }
}

/// Removes unused rules: the next call is another process, which does not know them.
async fn clean(call: &Call<'_>) -> Result<()> {
    masquerade::remove_unused(&call.host.made).await?;
    nftables::remove_if_unused(&call.host.made).await
}

/// Returns the pods of the live attachments (CNI specification, `GC`).
fn attachments(config: &Value) -> std::result::Result<HashSet<String>, Failure> {
    let list = config.get("cni.dev/valid-attachments").and_then(Value::as_array);
    // A missing list is a mistake of the caller, not an order to free everything.
    let missing = || Failure::new(Failure::INVALID_CONFIG, "cni.dev/valid-attachments: missing");
    let ids = list.ok_or_else(missing)?.iter().filter_map(|entry| entry.get("containerID")?.as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn check_environment(invocation: &Invocation) -> std::result::Result<(), Failure> {
    let invalid = |why: String| Failure::new(Failure::INVALID_ENVIRONMENT, why);
    if !is_name(&invocation.container) {
        return Err(invalid(format!("invalid CNI_CONTAINERID {:?}", invocation.container)));
    }
    if !is_link_name(&invocation.interface) {
        return Err(invalid(format!("invalid CNI_IFNAME {:?}", invocation.interface)));
    }
    if invocation.netns.is_empty() && invocation.command != "DEL" {
        return Err(invalid("invalid CNI_NETNS: missing".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation_of(command: &str, config: Value) -> Invocation {
        Invocation {
            kind: Some("bridge".to_owned()),
            command: command.to_owned(),
            container: "c".to_owned(),
            netns: "/nowhere".to_owned(),
            interface: "eth0".to_owned(),
            config: config.to_string().into_bytes(),
            ..Invocation::default()
        }
    }

    #[tokio::test]
    async fn failures_have_the_codes_of_the_specification() {
        let valid = json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge" });
        let with = |key: &str, value: Value| {
            let mut config = valid.clone();
            config[key] = value;
            config
        };
        for (invocation, code) in [
            (invocation_of("ADD", with("cniVersion", json!("9.0.0"))), 1),
            (invocation_of("ADD", valid.clone()), 4),
            (Invocation { container: "../x".to_owned(), ..invocation_of("ADD", valid.clone()) }, 4),
            (Invocation { interface: "a/b".to_owned(), ..invocation_of("DEL", valid.clone()) }, 4),
            (Invocation { config: b"{".to_vec(), ..invocation_of("ADD", valid.clone()) }, 6),
            (invocation_of("ADD", with("name", json!(""))), 7),
            (invocation_of("DEL", with("vlan", json!(5000))), 7),
            (invocation_of("GC", valid.clone()), 7),
        ] {
            let input = format!("{invocation:?}");
            let failure = run(invocation).await.unwrap_err();
            assert_eq!(failure.code, code, "{input}: {}", failure.message);
            assert!(failure.to_json().contains("\"code\":"));
        }
    }

    #[tokio::test]
    async fn versions_are_reported_without_a_configuration() {
        let invocation = Invocation { command: "VERSION".to_owned(), ..Invocation::default() };
        let answer: Value = serde_json::from_str(&run(invocation).await.unwrap().unwrap()).unwrap();
        assert!(answer["supportedVersions"].as_array().unwrap().contains(&json!("0.4.0")));
    }
}
