//! A pod's port of the bridge: the veth pair, what guards it, and that the others on the bridge learn where the pod is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;

use super::Bridge;
use super::make::Made;
use crate::call::{Call, first_mac};
use crate::netlink::links::Veth;
use crate::netlink::monitor::{Group, Monitor};
use crate::netlink::{Link, Netlink};
use crate::netns::Configured;
use crate::nftables::spoof;
use crate::plugins::interface::{self, host_link};
use crate::result::{CniResult, Ip};
use crate::{Context, Error, Result, netns};

/// How long an attachment waits for its port. The kernel needs a moment, but a bridge with a spanning tree listens and learns
/// for 30 s before it passes frames on (`forward_delay` of ip-link(8), twice).
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the announcement of a pod may be late.
const LONG_PATIENCE: Duration = Duration::from_secs(90);

impl Bridge {
    /// The bridge, with a new veth pair whose one end is a port of it.
    pub(super) async fn make_pair(
        &self,
        call: &Call<'_>,
        name: &str,
        mac: &Option<String>,
        ips: &[Ip],
    ) -> Result<Made> {
        let host = &call.host.links;
        let asked = [call.runtime.mac.as_deref(), mac.as_deref(), call.argument_mac()];
        let mac = first_mac(asked)?;
        let mut made = self.bridge(call, ips, false).await?;
        let veth = |made: &Made| {
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
            // Somebody may have removed the bridge this very moment.
            made = self.bridge(call, ips, true).await?;
            host.remove(name).await?;
            host.add_veth(&veth(&made)?).await?;
        }
        // A hardware address that is asked for may have been another's, by another port.
        if let Some(mac) = &mac {
            host.forget_station(made.bridge.index, mac, None).await?;
        }
        Ok(made)
    }

    /// Connects a pod whose addresses are known: the links of the host and of the pod, the host's up at the end of this. What
    /// guards the pod's network is there before the pod may send.
    pub(super) async fn connect(
        &self,
        call: &Call<'_>,
        name: &str,
        result: &CniResult,
    ) -> Result<(Link, Configured)> {
        let (near, far) = (self.near_end(call, name), self.far_end(call, result));
        match self.keys.is_guarded() {
            true => {
                let near = near.await?;
                Ok((near, far.await?))
            }
            false => try_join(far, near).await.map(|(far, near)| (near, far)),
        }
    }

    pub(super) async fn near_end(&self, call: &Call<'_>, name: &str) -> Result<Link> {
        let host = &call.host.links;
        netns::set_interface_sysctls(name);
        let (name_of, alias) = (name.to_owned(), call.alias());
        let (hairpin, isolation) = (self.keys.hairpin_mode, self.keys.port_isolation);
        let at_once = !self.keys.is_guarded();
        let port = host.visit(move |links| {
            let port = links.existing(&name_of)?;
            links.set_port(port.index, hairpin, isolation)?;
            if at_once {
                links.set_up_as(port.index, &alias)?;
            }
            Ok(port)
        });
        let port = port.await?;
        if at_once {
            return Ok(port);
        }
        self.keys.tag(host, &port).await?;
        if self.keys.macspoofchk {
            let far = netns::link(call.pod_netns()?, call.interface).await?;
            spoof::allow(call, name, &far.mac).await?;
        }
        host.set_up_as(port.index, &call.alias()).await?;
        Ok(port)
    }

    pub(super) async fn far_end(&self, call: &Call<'_>, result: &CniResult) -> Result<Configured> {
        let (netns, interface) = (call.pod_netns()?, call.interface);
        match (self.keys.disable_container_interface, self.keys.enable_dad) {
            (true, _) => {
                let inside = netns::open_with(netns, interface).await?;
                Ok(Configured { link: inside.existing(interface).await?, inside })
            }
            (false, true) => interface::configure_detecting(netns, interface, result).await,
            (false, false) => netns::configure(netns, interface, result).await,
        }
    }

    /// Lets those on the bridge and the host itself know where a pod's addresses are now. They remember for a while where
    /// they were, in another pod: without this, their packets go there, and are lost.
    pub(super) async fn introduce(
        &self,
        call: &Call<'_>,
        made: &Made,
        port: &Link,
        pod: Configured,
        result: &CniResult,
    ) -> Result<()> {
        // Its interface stays down: there is nothing to wait for, and nobody to announce.
        if self.keys.disable_container_interface {
            return Ok(());
        }
        let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
        let host = call.host.links.clone();
        let (name, port) = (port.name.clone(), port.index);
        let newcomer = Arc::new(Newcomer { port, gateway: made.gateway.index, addresses, pod });
        if newcomer.is_introduced(&host).await? {
            return Ok(());
        }
        if forwards(&host, port, PATIENCE).await? && newcomer.is_introduced(&host).await? {
            return Ok(());
        }
        tracing::info!(
            port = name,
            "a bridge does not pass on a pod's frames yet: it is announced when it does"
        );
        tokio::spawn(async move {
            let announced = async {
                if forwards(&host, port, LONG_PATIENCE).await? {
                    newcomer.is_introduced(&host).await?;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = announced.await {
                tracing::debug!(port = name, %error, "a pod is gone before it could be announced");
            }
        });
        Ok(())
    }

    /// Joins a bridge that was made anew, or that somebody has taken the pod's port from.
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
        self.keys.tag(host, &port).await
    }
}

/// A pod that is to be announced on its bridge.
struct Newcomer {
    port: u32,
    /// The link by which the host reaches it.
    gateway: u32,
    addresses: Vec<IpAddr>,
    pod: Configured,
}

impl Newcomer {
    /// Announces it if its port forwards. Returns whether it does.
    async fn is_introduced(self: &Arc<Self>, host: &Netlink) -> Result<bool> {
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

/// Waits until a bridge passes frames on by a port; whether it does.
async fn forwards(host: &Netlink, port: u32, patience: Duration) -> Result<bool> {
    let does = async || Ok::<_, Error>(host.link_at(port).await?.map(|link| link.forwards));
    match does().await? {
        Some(false) => {}
        does => return Ok(does.unwrap_or(false)),
    }
    let monitor = Monitor::open(&[Group::Links]).doing("hear of changes of links")?;
    let waited = tokio::time::timeout(patience, async {
        loop {
            // The kernel may have told before somebody listened.
            match does().await? {
                Some(false) => drop(monitor.next().await.doing("hear of changes of links")?),
                does => return Ok(does.unwrap_or(false)),
            }
        }
    });
    waited.await.unwrap_or(Ok(false))
}
