//! `bandwidth`: limits of a pod's traffic, on the host's end of its veth. What the pod receives is what that end sends: a
//! token bucket (tc-tbf(8)) stands in the place of its queue. What the pod sends comes in there, where nothing can be
//! queued: it is sent through a device of its own that has such a queue (ifb).

use serde_json::Value;

use super::interface::hash;
use crate::call::{Bandwidth, Call};
use crate::ipam;
use crate::netlink::Link;
use crate::netlink::traffic::Limit;
use crate::result::{CniResult, Interface};
use crate::{Error, Result};

/// What the configuration says; the runtime says otherwise where it can.
pub(super) fn compile(config: &Value) -> std::result::Result<Bandwidth, String> {
    let keys: Bandwidth = ipam::keys(config)?;
    check(&keys).map(|()| keys)
}

/// Rate and burst go together.
fn check(keys: &Bandwidth) -> std::result::Result<(), String> {
    for (rate, burst, name) in
        [(keys.ingress_rate, keys.ingress_burst, "ingress"), (keys.egress_rate, keys.egress_burst, "egress")]
    {
        if (rate == 0) != (burst == 0) {
            return Err(format!("{name}Rate: and {name}Burst are both set or neither is"));
        }
        if burst / 8 > u64::from(u32::MAX) {
            return Err(format!("{name}Burst: {burst} is too much"));
        }
    }
    Ok(())
}

fn asked(keys: &Bandwidth, call: &Call<'_>) -> Result<Bandwidth> {
    let asked = call.runtime.bandwidth.unwrap_or(*keys);
    check(&asked).map_err(|why| Error::Invalid(format!("bandwidth: {why}")))?;
    Ok(asked)
}

/// Bits to bytes.
fn limit(rate: u64, burst: u64) -> Option<Limit> {
    let burst = u32::try_from(burst / 8).unwrap_or(u32::MAX);
    (rate != 0).then_some(Limit { rate: rate / 8, burst })
}

/// The device through which a pod's traffic goes.
fn device(call: &Call<'_>) -> String {
    format!("bw{:013x}", hash(&[call.network, call.container, call.interface]) >> 12)
}

/// The host's end of the pod's veth.
async fn near_end(call: &Call<'_>) -> Result<Link> {
    let far = call.inside().await?.existing(call.interface).await?;
    let found = match far.parent {
        Some(index) => call.host.links.link_at(index).await?,
        None => None,
    };
    let is_veth = |link: &Link| link.kind == Some(netlink_packet_route::link::InfoKind::Veth);
    found.filter(is_veth).ok_or_else(|| {
        let why = format!("{} of the pod is no veth", call.interface);
        Error::Invalid(format!("bandwidth: {why}: its traffic cannot be limited from the host"))
    })
}

pub(super) async fn add(keys: &Bandwidth, call: &Call<'_>, mut previous: CniResult) -> Result<CniResult> {
    let asked = asked(keys, call)?;
    let (to_pod, from_pod) =
        (limit(asked.ingress_rate, asked.ingress_burst), limit(asked.egress_rate, asked.egress_burst));
    if to_pod.is_none() && from_pod.is_none() {
        return Ok(previous);
    }
    let (host, near) = (&call.host.links, near_end(call).await?);
    if let Some(limit) = to_pod {
        host.limit_sending(near.index, limit).await?;
    }
    if let Some(limit) = from_pod {
        let name = device(call);
        host.remove(&name).await?;
        host.add_ifb(&name, near.mtu).await?;
        let through = host.existing(&name).await?;
        let alias = call.alias();
        host.change(through.index, "set the alias", |link| link.alias(alias)).await?;
        host.limit_sending(through.index, limit).await?;
        host.redirect_received(near.index, through.index).await?;
        let (mac, mtu) = (through.mac_text(), through.mtu);
        previous.interfaces.push(Interface { name, mac, mtu, ..Interface::default() });
    }
    Ok(previous)
}

/// The veth takes its queue along.
pub(super) async fn del(call: &Call<'_>) -> Result<()> {
    call.host.links.remove(&device(call)).await
}

pub(super) async fn check_links(keys: &Bandwidth, call: &Call<'_>) -> Result<()> {
    let asked = asked(keys, call)?;
    let host = &call.host.links;
    if let Some(limit) = limit(asked.ingress_rate, asked.ingress_burst) {
        host.check_limit(near_end(call).await?.index, limit).await?;
    }
    if let Some(limit) = limit(asked.egress_rate, asked.egress_burst) {
        host.check_limit(host.existing(&device(call)).await?.index, limit).await?;
    }
    Ok(())
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
            compile(&json!({ "ingressRate": 1, "ingressBurst": u64::MAX })).unwrap_err().contains("too much")
        );
        assert_eq!(limit(8000, 16000), Some(Limit { rate: 1000, burst: 2000 }));
    }
}
