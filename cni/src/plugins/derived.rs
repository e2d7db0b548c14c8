//! The plugins `macvlan`, `ipvlan`, `vlan` and `dummy`: links of a pod with or without a parent link.

use netlink_packet_route::link::{IpVlanMode, MacVlanMode};
use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use super::interface;
use super::with_undo;
use crate::call::Call;
use crate::external::Search;
use crate::ipam::{self, Ipam};
use crate::mac::first_mac;
use crate::names::is_link_name;
use crate::netlink::links::Kind;
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Error, Result, keys, pod_link};

/// The plugins' keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DerivedKeys {
    master: String,
    mode: String,
    mtu: u32,
    vlan_id: u16,
    mac: String,
    /// The parent is in the pod's namespace instead of the host's.
    link_in_container: bool,
}

/// The type of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkType {
    MacVlan(MacVlanMode),
    IpVlan(IpVlanMode),
    Vlan(u16),
    Dummy,
}

/// A compiled configuration of `macvlan`, `ipvlan` or another type of derived link.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Derived {
    keys: DerivedKeys,
    link_type: LinkType,
    pub(super) ipam: Option<Ipam>,
}

impl Derived {
    pub(super) fn compile(kind: &str, config: &Value, search: &Search) -> std::result::Result<Self, String> {
        let keys: DerivedKeys = keys::parse(config)?;
        if !keys.master.is_empty() && !is_link_name(&keys.master) {
            return Err(format!("master: invalid link name {:?}", keys.master));
        }
        if !keys.mac.is_empty() {
            crate::mac::parse_mac(&keys.mac).map_err(|error| format!("mac: {error}"))?;
        }
        let ipam = Ipam::compile(config, search)?;
        let link_type = match kind {
            "macvlan" => LinkType::MacVlan(macvlan_mode(&keys.mode)?),
            "ipvlan" => LinkType::IpVlan(ipvlan_mode(&keys.mode)?),
            "vlan" => match (keys.vlan_id, keys.master.is_empty()) {
                (_, true) => return Err("master: missing".to_owned()),
                (0..=4094, false) => LinkType::Vlan(keys.vlan_id),
                (id, false) => return Err(format!("vlanId: invalid VLAN id {id}")),
            },
            _ if ipam.is_none() => return Err("ipam: missing".to_owned()),
            _ => LinkType::Dummy,
        };
        Ok(Self { keys, link_type, ipam })
    }

    async fn create_link(&self, call: &Call<'_>, config: &Value) -> Result<Netlink> {
        let (host, netns) = (&call.host.links, call.pod_netns()?);
        let inside = pod_link::open(netns).await?;
        let namespace = if self.keys.link_in_container { &inside } else { host };
        let parent = self.parent(namespace).await?;
        let mtu = self.mtu(parent.as_ref())?;
        let configured = Some(self.keys.mac.as_str());
        let of_args = config.pointer("/args/cni/mac").and_then(Value::as_str);
        let mac = first_mac([call.runtime.mac.as_deref(), call.argument_mac(), of_args, configured])?;
        let index = parent.as_ref().map_or(0, |parent| parent.index);
        let kind = match self.link_type {
            LinkType::MacVlan(mode) => Kind::MacVlan(index, mode),
            LinkType::IpVlan(mode) => Kind::IpVlan(index, mode),
            LinkType::Vlan(id) => Kind::Vlan(index, id),
            LinkType::Dummy => Kind::Dummy,
        };
        namespace.add_in(netns, call.interface, kind, mtu, mac.as_deref()).await?;
        pod_link::open_with(netns, call.interface).await
    }

    async fn parent(&self, namespace: &Netlink) -> Result<Option<Link>> {
        if self.link_type == LinkType::Dummy {
            return Ok(None);
        }
        if !self.keys.master.is_empty() {
            return namespace.existing(&self.keys.master).await.map(Some);
        }
        let none = || Error::Invalid("invalid master: not set, and the host has no default route".to_owned());
        let index = namespace.default_link().await?.ok_or_else(none)?;
        namespace.link_at(index).await?.ok_or_else(none).map(Some)
    }

    /// Returns the configured MTU, which must not exceed that of the parent. Default: that of the parent.
    fn mtu(&self, parent: Option<&Link>) -> Result<Option<u32>> {
        match (self.keys.mtu, parent) {
            (0, parent) => Ok(parent.map(|parent| parent.mtu)),
            (mtu, Some(parent)) if mtu > parent.mtu => {
                let why = format!("{mtu} exceeds the MTU {} of {}", parent.mtu, parent.name);
                Err(Error::Invalid(format!("invalid mtu: {why}")))
            }
            (mtu, _) => Ok(Some(mtu)),
        }
    }

    async fn configure(
        &self,
        call: &Call<'_>,
        config: &Value,
        previous: CniResult,
        inside: Netlink,
    ) -> Result<CniResult> {
        let mut result = match &self.ipam {
            // An ipvlan may get its addresses from the previous plugin.
            None if matches!(self.link_type, LinkType::IpVlan(_)) => {
                CniResult { interfaces: Vec::new(), ..previous }
            }
            ipam => ipam::allocate(ipam.as_ref(), call, config, &inside).await?,
        };
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        let link = pod_link::configure(call.pod_netns()?, call.interface, &result).await?.link;
        result.interfaces = vec![call.interface_of(&link)];
        result.dns = interface::dns(config, result.dns);
        Ok(result)
    }
}

impl Commands for Derived {
    fn read(kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(kind, config, search).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, previous: CniResult) -> Result<CniResult> {
        let created = self.create_link(call, config).await;
        let added = match created {
            Ok(inside) => self.configure(call, config, previous, inside).await,
            Err(error) => Err(error),
        };
        match added {
            Ok(result) => Ok(result),
            Err(error) => {
                let addresses = ipam::release(self.ipam.as_ref(), call, config).await;
                Err(with_undo(error, [interface::remove(call).await, addresses]))
            }
        }
    }

    async fn del(&self, call: &Call<'_>, config: &Value, _previous: &CniResult) -> Result<()> {
        // A lease is released over the link.
        if let Some(ipam) = self.ipam.as_ref().filter(|ipam| ipam.needs_link()) {
            ipam.del(call, config).await?;
        }
        // The kernel removes the link some time after the namespace. Until then, its address must not be reachable.
        match call.namespace_ends {
            true => interface::down(call).await?,
            false => interface::remove(call).await?,
        }
        ipam::release(self.ipam.as_ref(), call, config).await
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        if let Some(ipam) = &self.ipam {
            ipam.check(call, config, previous).await?;
        }
        let link = interface::check(call, previous).await?;
        let kind = link.kind.map(|kind| kind.to_string()).unwrap_or_default();
        let expected = match self.link_type {
            LinkType::MacVlan(_) => "macvlan",
            LinkType::IpVlan(_) => "ipvlan",
            LinkType::Vlan(_) => "vlan",
            LinkType::Dummy => "dummy",
        };
        match kind == expected {
            true => Ok(()),
            false => {
                Err(Error::Invalid(format!("{}: expected type {expected}, found {kind}", call.interface)))
            }
        }
    }

    fn ipam(&self) -> Option<&Ipam> {
        self.ipam.as_ref()
    }
}

fn macvlan_mode(text: &str) -> std::result::Result<MacVlanMode, String> {
    match text {
        "" | "bridge" => Ok(MacVlanMode::Bridge),
        "private" => Ok(MacVlanMode::Private),
        "vepa" => Ok(MacVlanMode::Vepa),
        "passthru" => Ok(MacVlanMode::Passthrough),
        other => Err(format!("mode: {other:?} is not one of bridge, private, vepa, passthru")),
    }
}

fn ipvlan_mode(text: &str) -> std::result::Result<IpVlanMode, String> {
    match text {
        "" | "l2" => Ok(IpVlanMode::L2),
        "l3" => Ok(IpVlanMode::L3),
        "l3s" => Ok(IpVlanMode::L3S),
        other => Err(format!("mode: {other:?} is not one of l2, l3, l3s")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_checked() {
        let search = Search::default();
        for (kind, config, why) in [
            ("macvlan", json!({ "mode": "l2" }), "mode"),
            ("ipvlan", json!({ "mode": "bridge" }), "mode"),
            ("vlan", json!({ "vlanId": 5 }), "master"),
            ("vlan", json!({ "master": "eth0", "vlanId": 4095 }), "vlanId"),
            ("dummy", json!({}), "ipam"),
            ("macvlan", json!({ "master": "a/b" }), "master"),
            ("macvlan", json!({ "mac": "02:00" }), "mac"),
        ] {
            let error = Derived::compile(kind, &config, &search).unwrap_err();
            assert!(error.contains(why), "{kind} {config}: {error}");
        }
        assert!(Derived::compile("macvlan", &json!({}), &search).is_ok());
    }

    #[test]
    fn the_mtu_must_not_exceed_that_of_the_parent() {
        let parent = Link { mtu: 1400, name: "eth0".to_owned(), ..Link::default() };
        let with = |mtu: u32| {
            let config = json!({ "mtu": mtu });
            Derived::compile("macvlan", &config, &Search::default()).unwrap().mtu(Some(&parent))
        };
        assert_eq!(with(0).unwrap(), Some(1400));
        assert_eq!(with(1300).unwrap(), Some(1300));
        assert!(with(1500).is_err());
    }
}
