//! The plugins that are built in, each a file with its type's name: keys that are checked when the configuration is read,
//! and what is done for the commands of the CNI specification.
//!
//! Making an interface: [`bridge`], [`ptp`], [`derived`] (macvlan, ipvlan, vlan, dummy), [`host_device`], [`loopback`].
//! Changing what another has made: [`portmap`], [`bandwidth`], [`tuning`], [`firewall`], [`sbr`], [`vrf`]. [`interface`] is what the
//! first have in common.

pub(crate) mod bandwidth;
pub(crate) mod bridge;
pub(crate) mod derived;
pub(crate) mod firewall;
pub(crate) mod host_device;
pub(crate) mod interface;
pub(crate) mod loopback;
pub(crate) mod portmap;
pub(crate) mod ptp;
pub(crate) mod sbr;
pub(crate) mod tuning;
pub(crate) mod vrf;

use std::path::PathBuf;

use serde_json::Value;

use crate::call::{Bandwidth, Call};
use crate::conflist::{Search, Version, is_name};
use crate::external::Program;
use crate::result::CniResult;
use crate::{Error, Result};

/// A plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plugin {
    Bridge(Box<bridge::Bridge>),
    Ptp(Box<ptp::Ptp>),
    Derived(Box<derived::Derived>),
    HostDevice(Box<host_device::HostDevice>),
    Loopback,
    Portmap(portmap::Portmap),
    Bandwidth(Bandwidth),
    Tuning(Box<tuning::Tuning>),
    Sbr(sbr::Sbr),
    Vrf(vrf::Vrf),
    Firewall(firewall::Firewall),
    /// A program by the specification.
    External(Program),
    /// One that a pod was attached by and that is not there any more, and why.
    Missing(String),
}

/// The types that are built in.
pub const BUILT_IN: [&str; 14] = [
    "bandwidth",
    "bridge",
    "dummy",
    "firewall",
    "host-device",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "tuning",
    "vlan",
    "vrf",
];

/// Reads and checks the configuration of one plugin.
pub(crate) fn compile(config: &Value, search: &Search) -> std::result::Result<Plugin, String> {
    let kind = config.get("type").and_then(Value::as_str).ok_or("type: is missing")?;
    if !is_name(kind) {
        return Err(format!("type: {kind:?} is no name of a plugin"));
    }
    if search.external.iter().any(|external| external == kind) {
        return find(kind, search).map(Plugin::External);
    }
    for (of, key) in NOT_FOLLOWED {
        if of == kind && config.get(key).is_some_and(|value| !EMPTY.iter().any(|empty| empty == value)) {
            let instead = "name the plugin in cni_external_plugins to run the CNI project's own";
            return Err(format!("{key}: is not followed by the {kind} that is built in: {instead}"));
        }
    }
    Ok(match kind {
        "bridge" => Plugin::Bridge(Box::new(bridge::Bridge::compile(config, search)?)),
        "ptp" => Plugin::Ptp(Box::new(ptp::Ptp::compile(config, search)?)),
        "macvlan" | "ipvlan" | "vlan" | "dummy" => {
            Plugin::Derived(Box::new(derived::Derived::compile(kind, config, search)?))
        }
        "host-device" => Plugin::HostDevice(Box::new(host_device::HostDevice::compile(config, search)?)),
        "loopback" => Plugin::Loopback,
        "portmap" => match portmap::Portmap::compile(config)? {
            Ok(portmap) => Plugin::Portmap(portmap),
            // About rules that another program makes: that program may be there.
            Err(key) => Plugin::External(find(kind, search).map_err(|why| {
                format!(
                    "{key}: is not for the portmap that is built in, which has nftables of its own; {why}"
                )
            })?),
        },
        "firewall" => match firewall::Firewall::compile(config, search)? {
            Ok(firewall) => Plugin::Firewall(firewall),
            Err(program) => Plugin::External(program),
        },
        "sbr" => Plugin::Sbr(sbr::Sbr::compile(config)?),
        "vrf" => Plugin::Vrf(vrf::Vrf::compile(config)?),
        "bandwidth" => Plugin::Bandwidth(bandwidth::compile(config)?),
        "tuning" => Plugin::Tuning(Box::new(tuning::Tuning::compile(config)?)),
        kind => Plugin::External(find(kind, search)?),
    })
}

/// Keys of the reference plugins that the built-in ones do not follow: they are refused, never passed over.
const NOT_FOLLOWED: [(&str, &str); 2] = [("bandwidth", "shapedSubnets"), ("bandwidth", "unshapedSubnets")];

/// Values by which such a key asks for nothing.
const EMPTY: [Value; 3] = [Value::Null, Value::Bool(false), Value::Array(Vec::new())];

/// The program of a type.
pub(crate) fn find(kind: &str, search: &Search) -> std::result::Result<Program, String> {
    // A link to this program is none: it would run itself for ever.
    let own = std::env::current_exe().and_then(|own| own.canonicalize()).ok();
    let is_other = |program: &PathBuf| own.is_none() || program.canonicalize().ok() != own;
    let programs = search.bin_dirs.iter().map(|folder| folder.join(kind));
    let found = programs.filter(is_other).find(|program| program.is_file());
    match found {
        Some(path) if is_name(kind) => Ok(Program { kind: kind.to_owned(), path }),
        _ => {
            let folders: Vec<_> = search.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
            Err(format!("type: {kind:?} is not built in and not found in {}", folders.join(", ")))
        }
    }
}

impl Plugin {
    /// `ADD`: attaches. What it has made before an error it has taken back, but for what `del` takes.
    pub(crate) async fn add(
        &self,
        call: &Call<'_>,
        config: &Value,
        previous: CniResult,
    ) -> Result<CniResult> {
        match self {
            Self::Bridge(bridge) => bridge.add(call, config).await,
            Self::Ptp(ptp) => ptp.add(call, config).await,
            Self::Derived(derived) => derived.add(call, config, previous).await,
            Self::HostDevice(device) => device.add(call, config).await,
            Self::Loopback => loopback::add(call, previous).await,
            Self::Portmap(portmap) => portmap.add(call, previous).await,
            Self::Bandwidth(keys) => bandwidth::add(keys, call, previous).await,
            Self::Tuning(tuning) => tuning.add(call, config, previous).await,
            Self::Sbr(sbr) => sbr.add(call, previous).await,
            Self::Vrf(vrf) => vrf.add(call, previous).await,
            Self::Firewall(firewall) => firewall.add(call, config, previous).await,
            Self::Missing(why) => Err(missing(why)),
            Self::External(program) => {
                let before = previous.to_value(call.version);
                let before = (previous != CniResult::default()).then_some(&before);
                let answer = program.run(call, "ADD", config, before).await?;
                CniResult::parse(&answer).map_err(|why| program.failed(why))
            }
        }
    }

    /// Puts the rules of an attachment back, which somebody has taken away; whether it has any. Links are as they were.
    pub(crate) async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        match self {
            Self::Bridge(bridge) => bridge.restore(call, result).await,
            Self::Ptp(ptp) => ptp.restore(call, result).await,
            Self::Portmap(portmap) => {
                let any = !call.runtime.port_mappings.is_empty();
                portmap.add(call, result.clone()).await.map(|_| any)
            }
            Self::Firewall(firewall) => firewall.restore(call, result).await,
            _ => Ok(false),
        }
    }

    /// `DEL`: detaches; what is not there is detached already.
    pub(crate) async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.del(call, config, previous).await,
            Self::Ptp(ptp) => ptp.del(call, config, previous).await,
            Self::Derived(derived) => derived.del(call, config).await,
            Self::HostDevice(device) => device.del(call, config).await,
            Self::Loopback => loopback::del(call).await,
            Self::Portmap(_) => portmap::del(call, previous).await,
            Self::Bandwidth(_) => bandwidth::del(call).await,
            Self::Tuning(tuning) => tuning.del(call).await,
            Self::Sbr(_) => sbr::Sbr::del(call).await,
            Self::Vrf(vrf) => vrf.del(call).await,
            Self::Firewall(firewall) => firewall.del(call, config, previous).await,
            Self::Missing(why) => Err(missing(why)),
            Self::External(program) => {
                let before = previous.to_value(call.version);
                // Before 0.4.0 a plugin was not told of it.
                let told = call.version >= Version::V0_4_0 && *previous != CniResult::default();
                program.run(call, "DEL", config, told.then_some(&before)).await.map(drop)
            }
        }
    }

    /// `CHECK`: whether what was attached is still as it was.
    pub(crate) async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.check(call, config, previous).await,
            Self::Ptp(ptp) => ptp.check(call, config, previous).await,
            Self::Derived(derived) => derived.check(call, config, previous).await,
            Self::HostDevice(device) => device.check(call, config, previous).await,
            Self::Loopback => loopback::check(call).await,
            Self::Portmap(portmap) => portmap.check(call, previous).await,
            Self::Bandwidth(keys) => bandwidth::check_links(keys, call).await,
            Self::Tuning(tuning) => tuning.check(call, config).await,
            Self::Sbr(_) => sbr::Sbr::check(call, previous).await,
            Self::Vrf(vrf) => vrf.check(call).await,
            Self::Firewall(firewall) => firewall.check(call, config, previous).await,
            Self::Missing(why) => Err(missing(why)),
            Self::External(program) => {
                let before = previous.to_value(call.version);
                program.run(call, "CHECK", config, Some(&before)).await.map(drop)
            }
        }
    }

    /// `STATUS`: whether it could attach a pod (since 1.1).
    pub(crate) async fn status(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        let ipam = match self {
            Self::Bridge(bridge) => bridge.ipam.as_ref(),
            Self::Ptp(ptp) => ptp.ipam.as_ref(),
            Self::Derived(derived) => derived.ipam.as_ref(),
            Self::HostDevice(device) => device.ipam.as_ref(),
            Self::External(program) if call.version >= Version::V1_1_0 => {
                return program.run(call, "STATUS", config, None).await.map(drop);
            }
            _ => None,
        };
        match ipam {
            Some(ipam) => ipam.status(call, config).await,
            None => Ok(()),
        }
    }

    /// Whether it changes what another has made.
    pub(crate) fn is_chained(&self) -> bool {
        matches!(
            self,
            Self::Portmap(_)
                | Self::Bandwidth(_)
                | Self::Tuning(_)
                | Self::Sbr(_)
                | Self::Vrf(_)
                | Self::Firewall(_)
        )
    }

    /// Whether programs have a part in it, which know namespaces by paths alone.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::External(_)) || self.ipam().is_some_and(crate::ipam::Ipam::is_external)
    }

    /// The link by which the host has packets of pods to pass on; none where they do not go through it.
    pub(crate) fn routes_by(&self) -> Option<String> {
        match self {
            Self::Bridge(bridge) => bridge.routes_by(),
            // Each has a link of its own, of such a name.
            Self::Ptp(_) => Some(interface::host_link("0000000000000", "eth0")),
            _ => None,
        }
    }

    /// The part that gives addresses.
    pub(crate) fn ipam(&self) -> Option<&crate::ipam::Ipam> {
        match self {
            Self::Bridge(bridge) => bridge.ipam.as_ref(),
            Self::Ptp(ptp) => ptp.ipam.as_ref(),
            Self::Derived(derived) => derived.ipam.as_ref(),
            Self::HostDevice(device) => device.ipam.as_ref(),
            _ => None,
        }
    }
}

fn missing(why: &str) -> Error {
    Error::Plugin { plugin: "of an earlier configuration".to_owned(), message: why.to_owned() }
}

/// An error, with those of taking back what was done before it.
pub(crate) fn with_undo(error: Error, undone: impl IntoIterator<Item = Result<()>>) -> Error {
    let errors: Vec<Error> = undone.into_iter().filter_map(Result::err).collect();
    match errors.is_empty() {
        true => error,
        false => Error::Several([error].into_iter().chain(errors).collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_are_not_followed_are_refused_where_they_say_something() {
        let search = Search::default();
        let with =
            |subnets: &[&str]| compile(&json!({ "type": "bandwidth", "shapedSubnets": subnets }), &search);
        assert!(with(&[]).is_ok());
        assert!(with(&["10.0.0.0/8"]).unwrap_err().contains("cni_external_plugins"));
    }
}
