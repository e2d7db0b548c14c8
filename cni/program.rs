//! The built-in plugins for other runtimes: this program acts as one of them by the CNI specification ("Section 2: Execution
//! Protocol"), with parameters in the environment and the configuration on standard input.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Call, RuntimeConfig, parse_args};
use crate::conflist::{Search, Version, is_link_name, is_name};
use crate::gc::Owned;
use crate::host::{Host, Places};
use crate::ipam::Ipam;
use crate::nftables::{self, masquerade};
use crate::plugins::{self, Plugin};
use crate::result::CniResult;
use crate::{Error, Result};

/// What the plugins keep beside addresses.
const STATE: &str = "/var/lib/cni/berth";

/// Addresses that are taken.
const ADDRESSES: &str = "/var/lib/cni/networks";

/// How long a program that a plugin delegates to may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Types that give addresses and are no plugins of a network by themselves. `dhcp` needs a daemon.
pub const SERVED_IPAM: [&str; 2] = ["host-local", "static"];

/// What a plugin is run with.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// The plugin: a name of [`crate::BUILT_IN`] or [`SERVED_IPAM`]; without one, what the configuration says.
    pub kind: Option<String>,
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// Standard input.
    pub config: Vec<u8>,
}

/// A failure, as the specification wants it told.
#[derive(Debug)]
pub struct Failure {
    /// Its number in the specification ("Error"), or one of berth's own from 100 on.
    pub code: u32,
    /// Why.
    pub message: String,
    /// The version that the answer is written in.
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

    /// The answer on standard output.
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

/// Runs a plugin; its answer, where it has one. Needs a tokio runtime.
///
/// # Errors
/// What the caller is to be told.
pub async fn run(invocation: Invocation) -> std::result::Result<Option<String>, Failure> {
    if invocation.command == "VERSION" {
        return Ok(Some(versions()));
    }
    let config: Value = serde_json::from_slice(&invocation.config)
        .map_err(|error| Failure::new(Failure::DECODE, format!("the configuration: {error}")))?;
    let version = Version::of(&config).map_err(|why| Failure::new(Failure::INCOMPATIBLE_VERSION, why))?;
    answer(&invocation, &config, version)
        .await
        .map_err(|failure| Failure { version: version.text().to_owned(), ..failure })
}

fn versions() -> String {
    let supported: Vec<_> = Version::ALL.iter().map(|version| version.text()).collect();
    json!({ "cniVersion": Version::V1_1_0.text(), "supportedVersions": supported }).to_string()
}

/// The plugin, or the part of one that gives addresses.
enum Kind {
    Plugin(Plugin),
    Addresses(Ipam),
}

fn kind(invocation: &Invocation, config: &Value, search: &Search) -> std::result::Result<Kind, Failure> {
    let invalid = |why: String| Failure::new(Failure::INVALID_CONFIG, why);
    let of_config = config.get("type").and_then(Value::as_str).unwrap_or_default();
    let name = invocation.kind.as_deref().unwrap_or(of_config);
    if SERVED_IPAM.contains(&name) {
        let mut named = config.clone();
        if let Some(ipam) = named.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.insert("type".to_owned(), json!(name));
        }
        // What a runtime may bring is here already.
        let ipam = Ipam::compile_for_program(&named, search).map_err(invalid)?;
        return ipam.map(Kind::Addresses).ok_or_else(|| invalid("ipam: is missing".to_owned()));
    }
    if !plugins::BUILT_IN.contains(&name) {
        return Err(invalid(format!("type: {name:?} is not built in")));
    }
    let mut named = config.clone();
    if let Some(named) = named.as_object_mut() {
        named.insert("type".to_owned(), json!(name));
        named.insert("capabilities".to_owned(), json!({ "ipRanges": true, "ips": true, "deviceID": true }));
    }
    plugins::compile(&named, search).map(Kind::Plugin).map_err(invalid)
}

async fn answer(
    invocation: &Invocation,
    config: &Value,
    version: Version,
) -> std::result::Result<Option<String>, Failure> {
    let network = config.get("name").and_then(Value::as_str).filter(|name| is_name(name));
    let network = network
        .ok_or_else(|| Failure::new(Failure::INVALID_CONFIG, "name: is missing or no name of a network"))?;
    let with_attachment = matches!(invocation.command.as_str(), "ADD" | "DEL" | "CHECK");
    if with_attachment {
        check_environment(invocation)?;
    }
    let bin_dirs: Vec<PathBuf> = std::env::split_paths(&invocation.path).collect();
    let search = Search { bin_dirs, ..Search::default() };
    let kind = kind(invocation, config, &search)?;
    let netns = match File::open(&invocation.netns) {
        Ok(netns) => Some(netns),
        // Gone with its last process: DEL takes away what is outside.
        Err(_) if invocation.command != "ADD" && invocation.command != "CHECK" => None,
        Err(error) => {
            let why = format!("CNI_NETNS: open {}: {error}", invocation.netns);
            return Err(Failure::new(Failure::INVALID_ENVIRONMENT, why));
        }
    };
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
        runtime: &runtime,
        args: &args,
        args_text: &invocation.args,
        bin_path: &invocation.path,
        host: &host,
    };
    let previous = CniResult::parse(config.get("prevResult").unwrap_or(&Value::Null))
        .map_err(|why| Failure::new(Failure::DECODE, format!("prevResult: {why}")))?;
    if let Kind::Plugin(plugin) = &kind
        && plugin.is_chained()
        && config.get("prevResult").is_none()
        && matches!(invocation.command.as_str(), "ADD" | "CHECK")
    {
        return Err(Failure::new(
            Failure::INVALID_CONFIG,
            "prevResult: is missing: this plugin follows another",
        ));
    }
    let result = command(&invocation.command, &kind, &call, config, previous).await?;
    Ok(result.map(|result| result.to_value(version).to_string()))
}

async fn command(
    command: &str,
    kind: &Kind,
    call: &Call<'_>,
    config: &Value,
    previous: CniResult,
) -> std::result::Result<Option<CniResult>, Failure> {
    match (command, kind) {
        ("ADD", Kind::Plugin(plugin)) => Ok(Some(plugin.add(call, config, previous).await?)),
        ("ADD", Kind::Addresses(ipam)) => Ok(Some(ipam.add(call, config).await?)),
        ("DEL", Kind::Plugin(plugin)) => {
            plugin.del(call, config, &previous).await?;
            clean(call).await?;
            Ok(None)
        }
        ("DEL", Kind::Addresses(ipam)) => Ok(ipam.del(call, config).await.map(|()| None)?),
        ("CHECK", Kind::Plugin(plugin)) => Ok(plugin.check(call, config, &previous).await.map(|()| None)?),
        ("CHECK", Kind::Addresses(ipam)) => Ok(ipam.check(call, config, &previous).await.map(|()| None)?),
        ("STATUS", Kind::Plugin(plugin)) => Ok(plugin.status(call, config).await.map(|()| None)?),
        ("STATUS", Kind::Addresses(ipam)) => Ok(ipam.status(call, config).await.map(|()| None)?),
        ("GC", kind) => {
            let live = attachments(config)?;
            let ipam = match kind {
                Kind::Plugin(plugin) => plugin.ipam(),
                Kind::Addresses(ipam) => Some(ipam),
            };
            if let Some(ipam) = ipam {
                ipam.gc(call.host, call.network, &live).await?;
            }
            if let Kind::Plugin(_) = kind {
                Owned { host: call.host, network: call.network }.release(&live).await?;
                clean(call).await?;
            }
            Ok(None)
        }
        (other, _) => {
            Err(Failure::new(Failure::INVALID_ENVIRONMENT, format!("CNI_COMMAND: {other:?} is no command")))
        }
    }
}

/// Rules that nobody needs any more: the next call is another process, which does not know of them.
async fn clean(call: &Call<'_>) -> Result<()> {
    masquerade::remove_unused(&call.host.made).await?;
    nftables::remove_if_unused(&call.host.made).await
}

/// The pods of attachments that live (CNI specification, `GC`).
fn attachments(config: &Value) -> std::result::Result<HashSet<String>, Failure> {
    let list = config.get("cni.dev/valid-attachments").and_then(Value::as_array);
    // Without the list nothing is known to live: that is a mistake of the caller's, not an order to free everything.
    let missing = || Failure::new(Failure::INVALID_CONFIG, "cni.dev/valid-attachments: is missing");
    let ids = list.ok_or_else(missing)?.iter().filter_map(|entry| entry.get("containerID")?.as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn check_environment(invocation: &Invocation) -> std::result::Result<(), Failure> {
    let wrong = |why: String| Failure::new(Failure::INVALID_ENVIRONMENT, why);
    if !is_name(&invocation.container) {
        return Err(wrong(format!("CNI_CONTAINERID: {:?} is no id", invocation.container)));
    }
    if !is_link_name(&invocation.interface) {
        return Err(wrong(format!("CNI_IFNAME: {:?} is no name of a link", invocation.interface)));
    }
    if invocation.netns.is_empty() && invocation.command != "DEL" {
        return Err(wrong("CNI_NETNS: is missing".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(command: &str, config: Value) -> Invocation {
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
    async fn failures_have_the_numbers_of_the_specification() {
        let sound = json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge" });
        let with = |key: &str, value: Value| {
            let mut config = sound.clone();
            config[key] = value;
            config
        };
        for (invocation, code) in [
            (asked("ADD", with("cniVersion", json!("9.0.0"))), 1),
            (asked("ADD", sound.clone()), 4),
            (Invocation { container: "../x".to_owned(), ..asked("ADD", sound.clone()) }, 4),
            (Invocation { interface: "a/b".to_owned(), ..asked("DEL", sound.clone()) }, 4),
            (Invocation { config: b"{".to_vec(), ..asked("ADD", sound.clone()) }, 6),
            (asked("ADD", with("name", json!(""))), 7),
            (asked("DEL", with("vlan", json!(5000))), 7),
            (asked("GC", sound.clone()), 7),
        ] {
            let words = format!("{invocation:?}");
            let failure = run(invocation).await.unwrap_err();
            assert_eq!(failure.code, code, "{words}: {}", failure.message);
            assert!(failure.to_json().contains("\"code\":"));
        }
    }

    #[tokio::test]
    async fn versions_are_told_without_a_configuration() {
        let invocation = Invocation { command: "VERSION".to_owned(), ..Invocation::default() };
        let answer: Value = serde_json::from_str(&run(invocation).await.unwrap().unwrap()).unwrap();
        assert!(answer["supportedVersions"].as_array().unwrap().contains(&json!("0.4.0")));
    }
}
