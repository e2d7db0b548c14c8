//! The built-in plugins, a file each with its type's name: the keys, which are checked when the configuration is read,
//! and the implementation of the commands of the CNI specification.
//!
//! Plugins that create an interface: [`bridge`], [`ptp`], [`derived`] (macvlan, ipvlan, vlan, dummy), [`host_device`],
//! [`loopback`]. Plugins that change an existing interface: [`portmap`], [`bandwidth`], [`tuning`], [`firewall`],
//! [`sbr`], [`vrf`]. [`interface`] contains what the first group shares.

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

use serde_json::Value;

use crate::call::Call;
use crate::external::{Program, Search, find};
use crate::names::{self, is_name};
use crate::result::CniResult;
use crate::runtime_config::Bandwidth;
use crate::version::Version;
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
    /// A plugin program.
    External(Program),
    /// A plugin of a recorded configuration that does not exist any longer, and the reason.
    Missing(String),
}

/// The types of the built-in plugins.
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

/// Compiles and checks the configuration of one plugin.
pub(crate) fn compile(config: &Value, search: &Search) -> std::result::Result<Plugin, String> {
    let kind = config.get("type").and_then(Value::as_str).ok_or("type: missing")?;
    if !is_name(kind) {
        return Err(format!("type: invalid plugin name {kind:?}"));
    }
    if search.external.iter().any(|external| external == kind) {
        return find(kind, search).map(Plugin::External);
    }
    for (of, key) in UNSUPPORTED {
        if of == kind && config.get(key).is_some_and(|value| !EMPTY.iter().any(|empty| empty == value)) {
            let instead = "add the plugin to cni_external_plugins to run the CNI project's program";
            return Err(format!("{key}: not supported by the built-in {kind}: {instead}"));
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
            // The key concerns rules of another firewall backend, which the program supports.
            Err(key) => Plugin::External(find(kind, search).map_err(|why| {
                format!("{key}: not supported by the built-in portmap, which uses nftables directly; {why}")
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

/// Keys of the reference plugins that the built-in ones do not support. They are rejected, not ignored.
const UNSUPPORTED: [(&str, &str); 2] = [("bandwidth", "shapedSubnets"), ("bandwidth", "unshapedSubnets")];

/// Values of such a key that have no effect.
const EMPTY: [Value; 3] = [Value::Null, Value::Bool(false), Value::Array(Vec::new())];

impl Plugin {
    /// `ADD`: attaches a pod. After an error, nothing remains except what `del` removes.
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
                let recorded = previous.to_value(call.version);
                let recorded = (previous != CniResult::default()).then_some(&recorded);
                let answer = program.run(call, "ADD", config, recorded).await?;
                CniResult::parse(&answer).map_err(|why| program.failed(why))
            }
        }
    }

    /// Installs the rules of an attachment again and returns whether it has any. Links are not changed.
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

    /// `DEL`: detaches a pod, as far as it is attached.
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
                let recorded = previous.to_value(call.version);
                // Versions before 0.4.0 do not pass the result.
                let has_result = call.version >= Version::V0_4_0 && *previous != CniResult::default();
                program.run(call, "DEL", config, has_result.then_some(&recorded)).await.map(drop)
            }
        }
    }

    /// `CHECK`: checks that an attachment is unchanged.
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
                let recorded = previous.to_value(call.version);
                program.run(call, "CHECK", config, Some(&recorded)).await.map(drop)
            }
        }
    }

    /// `STATUS`: whether the plugin can attach a pod (since 1.1).
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

    /// Whether the plugin changes an interface that another plugin has created.
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

    /// Whether programs are involved, which address namespaces by path.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::External(_)) || self.ipam().is_some_and(crate::ipam::Ipam::is_external)
    }

    /// Returns the link through which the host receives packets of pods to forward; `None` if they bypass the host.
    pub(crate) fn routes_by(&self) -> Option<String> {
        match self {
            Self::Bridge(bridge) => bridge.routes_by(),
            // Each pod has a separate link with such a name.
            Self::Ptp(_) => Some(names::host_link("0000000000000", "eth0")),
            _ => None,
        }
    }

    /// The IPAM part of the plugin.
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

/// Combines an error with the errors of the rollback.
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
    fn unsupported_keys_are_rejected_if_they_have_an_effect() {
        let search = Search::default();
        let with =
            |subnets: &[&str]| compile(&json!({ "type": "bandwidth", "shapedSubnets": subnets }), &search);
        assert!(with(&[]).is_ok());
        assert!(with(&["10.0.0.0/8"]).unwrap_err().contains("cni_external_plugins"));
    }
}
