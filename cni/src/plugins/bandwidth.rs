//! The plugin `bandwidth`: traffic limits at the host's end of a pod's veth. That end sends what the pod receives: a
//! token bucket (tc-tbf(8)) replaces its queue. Packets from the pod arrive there and cannot be queued: they are redirected
//! through a separate device with such a queue (ifb).

use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::Search;
use crate::names::hash;
use crate::netlink::Link;
use crate::netlink::traffic::Limit;
use crate::result::{CniResult, Interface};
use crate::runtime_config::Bandwidth;
use crate::{Error, Result, keys};

/// Keys of the reference plugin that the built-in one does not support. They are rejected, not ignored.
const UNSUPPORTED: [&str; 2] = ["shapedSubnets", "unshapedSubnets"];

/// Values of such a key that have no effect.
const EMPTY: [Value; 3] = [Value::Null, Value::Bool(false), Value::Array(Vec::new())];

/// Compiles the limits of the configuration. The runtime may override them.
pub(super) fn compile(config: &Value) -> std::result::Result<Bandwidth, String> {
    for key in UNSUPPORTED {
        if config.get(key).is_some_and(|value| !EMPTY.iter().any(|empty| empty == value)) {
            let instead = "add the plugin to cni_external_plugins to run the CNI project's program";
            return Err(format!("{key}: not supported by the built-in bandwidth: {instead}"));
        }
    }
    let keys: Bandwidth = keys::parse(config)?;
    check_limits(&keys).map(|()| keys)
}

/// Checks the limits: rate and burst must be set together.
fn check_limits(keys: &Bandwidth) -> std::result::Result<(), String> {
    for (rate, burst, name) in
        [(keys.ingress_rate, keys.ingress_burst, "ingress"), (keys.egress_rate, keys.egress_burst, "egress")]
    {
        if (rate == 0) != (burst == 0) {
            return Err(format!("{name}Rate: {name}Rate and {name}Burst must be set together"));
        }
        if burst / 8 > u64::from(u32::MAX) {
            return Err(format!("{name}Burst: {burst} is too large"));
        }
    }
    Ok(())
}

fn requested(keys: &Bandwidth, call: &Call<'_>) -> Result<Bandwidth> {
    let limits = call.runtime.bandwidth.unwrap_or(*keys);
    check_limits(&limits).map_err(|why| Error::Invalid(format!("invalid bandwidth: {why}")))?;
    Ok(limits)
}

/// Converts bits to bytes.
fn limit(rate: u64, burst: u64) -> Option<Limit> {
    let burst = u32::try_from(burst / 8).unwrap_or(u32::MAX);
    (rate != 0).then_some(Limit { rate: rate / 8, burst })
}

/// The name of the device through which the pod's sent traffic is redirected.
fn device(call: &Call<'_>) -> String {
    format!("bw{:013x}", hash(&[call.network, call.container, call.interface]) >> 12)
}

/// Returns the host's end of the pod's veth.
async fn host_end(call: &Call<'_>) -> Result<Link> {
    let pod_end = call.inside().await?.existing(call.interface).await?;
    let host_end = match pod_end.parent {
        Some(index) => call.host.links.link_at(index).await?,
        None => None,
    };
    let is_veth = |link: &Link| link.kind == Some(netlink_packet_route::link::InfoKind::Veth);
    host_end.filter(is_veth).ok_or_else(|| {
        let why = format!("the pod's interface {} is not a veth", call.interface);
        Error::Invalid(format!("bandwidth: {why}, so its traffic cannot be limited from the host"))
    })
}

impl Commands for Bandwidth {
    fn read(_kind: &str, config: &Value, _search: &Search) -> std::result::Result<Choice<Self>, String> {
        compile(config).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, _config: &Value, mut previous: CniResult) -> Result<CniResult> {
        let limits = requested(self, call)?;
        let (to_pod, from_pod) = (
            limit(limits.ingress_rate, limits.ingress_burst),
            limit(limits.egress_rate, limits.egress_burst),
        );
        if to_pod.is_none() && from_pod.is_none() {
            return Ok(previous);
        }
        let (host, host_end) = (&call.host.links, host_end(call).await?);
        if let Some(limit) = to_pod {
            host.limit_sending(host_end.index, limit).await?;
        }
        if let Some(limit) = from_pod {
            let name = device(call);
            host.remove(&name).await?;
            host.add_ifb(&name, host_end.mtu).await?;
            let through = host.existing(&name).await?;
            let alias = call.alias();
            host.change(through.index, "set the alias", |link| link.alias(alias)).await?;
            host.limit_sending(through.index, limit).await?;
            host.redirect_received(host_end.index, through.index).await?;
            let (mac, mtu) = (through.mac_text(), through.mtu);
            previous.interfaces.push(Interface { name, mac, mtu, ..Interface::default() });
        }
        Ok(previous)
    }

    /// Removes the redirection device. The other queue is removed with the veth.
    async fn del(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        call.host.links.remove(&device(call)).await
    }

    async fn check(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        let limits = requested(self, call)?;
        let host = &call.host.links;
        if let Some(limit) = limit(limits.ingress_rate, limits.ingress_burst) {
            host.check_limit(host_end(call).await?.index, limit).await?;
        }
        if let Some(limit) = limit(limits.egress_rate, limits.egress_burst) {
            host.check_limit(host.existing(&device(call)).await?.index, limit).await?;
        }
        Ok(())
    }

    fn is_chained(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rate_and_burst_go_together() {
        assert!(compile(&json!({ "ingressRate": 8000, "ingressBurst": 16000 })).is_ok());
        assert!(compile(&json!({ "capabilities": { "bandwidth": true } })).is_ok());
        assert!(compile(&json!({ "egressRate": 8000 })).unwrap_err().contains("egressRate"));
        assert!(
            compile(&json!({ "ingressRate": 1, "ingressBurst": u64::MAX }))
                .unwrap_err()
                .contains("too large")
        );
        assert_eq!(limit(8000, 16000), Some(Limit { rate: 1000, burst: 2000 }));
    }

    #[test]
    fn unsupported_keys_are_rejected_if_they_have_an_effect() {
        let with = |subnets: &[&str]| compile(&json!({ "type": "bandwidth", "shapedSubnets": subnets }));
        assert!(with(&[]).is_ok());
        assert!(with(&["10.0.0.0/8"]).unwrap_err().contains("cni_external_plugins"));
    }
}
