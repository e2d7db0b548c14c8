//! A pod's port of the bridge: the veth pair, its protection, and the announcement of the pod's addresses on the
//! bridge.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;

use super::Bridge;
use crate::bridges::ReadyBridge;
use crate::call::Call;
use crate::mac::first_mac;
use crate::names::host_link;
use crate::netlink::links::Veth;
use crate::netlink::monitor::{Group, Monitor};
use crate::netlink::{Link, Netlink};
use crate::nftables::spoof;
use crate::plugins::interface;
use crate::pod_link::{self, Configured};
use crate::result::{CniResult, Ip};
use crate::{Context, Error, Result, netns};

/// How long an attachment waits for its port to forward. The kernel needs a moment; a bridge with a spanning tree
/// listens and learns for 30 s before it forwards (`forward_delay` of ip-link(8), twice).
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a late announcement of a pod waits.
const LONG_PATIENCE: Duration = Duration::from_secs(90);

impl Bridge {
    /// Prepares the bridge and creates a veth pair with one end as its port.
    pub(super) async fn create_veth(
        &self,
        call: &Call<'_>,
        name: &str,
        mac: &Option<String>,
        ips: &[Ip],
    ) -> Result<ReadyBridge> {
        let host = &call.host.links;
        let requested = [call.runtime.mac.as_deref(), mac.as_deref(), call.argument_mac()];
        let mac = first_mac(requested)?;
        let mut made = self.bridge(call, ips, false).await?;
        let veth = |made: &ReadyBridge| {
            let (pod, netns) = (call.interface, call.pod_netns()?);
            Ok::<_, Error>(Veth {
                host: name,
                pod,
                netns,
                bridge: Some(made.bridge.index),
                mtu: self.keys.mtu(),
                mac: mac.as_deref(),
                up: !self.keys.is_guarded(),
            })
        };
        if host.add_veth(&veth(&made)?).await.is_err() {
            // The bridge may have been removed concurrently.
            made = self.bridge(call, ips, true).await?;
            host.remove(name).await?;
            host.add_veth(&veth(&made)?).await?;
        }
        // A requested hardware address may have belonged to another pod on another port.
        if let Some(mac) = &mac {
            host.forget_station(made.bridge.index, mac, None).await?;
        }
        Ok(made)
    }

    /// Connects a pod with known addresses: configures the host's and the pod's link. The host's link is up afterwards.
    /// The protection of the pod's port is in place before the pod may send.
    pub(super) async fn connect(
        &self,
        call: &Call<'_>,
        name: &str,
        result: &CniResult,
    ) -> Result<(Link, Configured)> {
        let (host_end, pod_end) = (self.host_end(call, name), self.pod_end(call, result));
        match self.keys.is_guarded() {
            true => {
                let host_end = host_end.await?;
                Ok((host_end, pod_end.await?))
            }
            false => try_join(pod_end, host_end).await.map(|(pod_end, host_end)| (host_end, pod_end)),
        }
    }

    pub(super) async fn host_end(&self, call: &Call<'_>, name: &str) -> Result<Link> {
        let host = &call.host.links;
        netns::set_interface_sysctls(name);
        let (link_name, alias) = (name.to_owned(), call.alias());
        let (hairpin, isolation) = (self.keys.hairpin_mode, self.keys.port_isolation);
        let unprotected = !self.keys.is_guarded();
        let port = host.visit(move |links| {
            let port = links.existing(&link_name)?;
            links.set_port(port.index, hairpin, isolation)?;
            if unprotected {
                links.set_up_as(port.index, &alias)?;
            }
            Ok(port)
        });
        let port = port.await?;
        if unprotected {
            return Ok(port);
        }
        self.keys.set_vlans(host, &port).await?;
        if self.keys.macspoofchk {
            let pod_end = pod_link::link(call.pod_netns()?, call.interface).await?;
            spoof::allow(&call.rules(), name, &pod_end.mac).await?;
        }
        host.set_up_as(port.index, &call.alias()).await?;
        Ok(port)
    }

    pub(super) async fn pod_end(&self, call: &Call<'_>, result: &CniResult) -> Result<Configured> {
        let (netns, interface) = (call.pod_netns()?, call.interface);
        match (self.keys.disable_container_interface, self.keys.enable_dad) {
            (true, _) => {
                let inside = pod_link::open_with(netns, interface).await?;
                Ok(Configured { link: inside.existing(interface).await?, inside })
            }
            (false, true) => interface::configure_detecting(netns, interface, result).await,
            (false, false) => pod_link::configure(netns, interface, result).await,
        }
    }

    /// Announces the pod's addresses on the bridge and to the host. Both may have entries of another pod that had the
    /// addresses before: without the announcement, packets go there and are lost.
    pub(super) async fn announce(
        &self,
        call: &Call<'_>,
        made: &ReadyBridge,
        port: &Link,
        pod: Configured,
        result: &CniResult,
    ) -> Result<()> {
        // The interface stays down: there is nothing to wait for or to announce.
        if self.keys.disable_container_interface {
            return Ok(());
        }
        let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
        let host = call.host.links.clone();
        let (name, port) = (port.name.clone(), port.index);
        let announcement = Arc::new(Announcement { port, gateway: made.gateway.index, addresses, pod });
        if announcement.send_if_forwarding(&host).await? {
            return Ok(());
        }
        if forwards(&host, port, PATIENCE).await? && announcement.send_if_forwarding(&host).await? {
            return Ok(());
        }
        tracing::info!(port = name, "bridge port does not forward yet, pod is announced later");
        tokio::spawn(async move {
            let later = async {
                if forwards(&host, port, LONG_PATIENCE).await? {
                    announcement.send_if_forwarding(&host).await?;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = later.await {
                tracing::debug!(port = name, %error, "failed to announce pod");
            }
        });
        Ok(())
    }

    /// Attaches the pod's port to the bridge again, after the bridge was created anew or the port was detached.
    pub(crate) async fn join_again(&self, call: &Call<'_>, ips: &[Ip]) -> Result<()> {
        let host = &call.host.links;
        let Some(port) = host.link(&host_link(call.container, call.interface)).await? else { return Ok(()) };
        let made = self.bridge(call, ips, false).await?;
        if port.controller == Some(made.bridge.index) && port.up {
            return Ok(());
        }
        let bridge = made.bridge.index;
        host.change(port.index, "join the bridge", |link| link.controller(bridge).up()).await?;
        host.set_port(port.index, self.keys.hairpin_mode, self.keys.port_isolation).await?;
        self.keys.set_vlans(host, &port).await
    }
}

/// A pod that is to be announced on its bridge.
struct Announcement {
    port: u32,
    /// The link through which the host reaches the pod.
    gateway: u32,
    addresses: Vec<IpAddr>,
    pod: Configured,
}

impl Announcement {
    /// Announces the pod if its port forwards. Returns whether it does.
    async fn send_if_forwarding(self: &Arc<Self>, host: &Netlink) -> Result<bool> {
        let own = self.clone();
        host.visit(move |links| {
            if !links.link_at(own.port)?.is_some_and(|port| port.forwards) {
                return Ok(false);
            }
            links.forget_neighbours(own.gateway, &own.addresses)?;
            own.pod.announce().map(|()| true)
        })
        .await
    }
}

/// Waits until a bridge port forwards. Returns whether it does.
async fn forwards(host: &Netlink, port: u32, patience: Duration) -> Result<bool> {
    let state = async || Ok::<_, Error>(host.link_at(port).await?.map(|link| link.forwards));
    match state().await? {
        Some(false) => {}
        state => return Ok(state.unwrap_or(false)),
    }
    let monitor = Monitor::open(&[Group::Links]).doing("subscribe to changes of links")?;
    let result = tokio::time::timeout(patience, async {
        loop {
            // The port may have changed before the monitor was opened.
            match state().await? {
                Some(false) => drop(monitor.next().await.doing("receive changes of links")?),
                state => return Ok(state.unwrap_or(false)),
            }
        }
    });
    result.await.unwrap_or(Ok(false))
}
