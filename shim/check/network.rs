//! Tries nftables and the network devices of pods in a network namespace that ends afterwards.

use nix::sched::CloneFlags;

use super::netlink::{Family, Message, attribute, nested, request, text};
use super::{Availability, HostFeature, in_thread, namespaces};

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// The index of the first device, by which others name it as their parent.
const PARENT: i32 = 1000;

pub(super) fn rows() -> Vec<HostFeature> {
    vec![
        HostFeature::tried("nftables", in_namespace(nftables))
            .without("no masquerade: pods reach only hosts that route back to their addresses")
            .fix("modprobe -a nf_tables nft_masq"),
        HostFeature::tried("veth device", in_namespace(|| link("veth", None)))
            .without("pods have the host's network or none")
            .fix("modprobe veth"),
        HostFeature::tried("bridge device", in_namespace(|| link("bridge", None)))
            .without("the built-in network is not ready; ptp and macvlan networks are")
            .fix("modprobe bridge"),
        HostFeature::tried("macvlan device", in_namespace(|| on_veth("macvlan")))
            .without("macvlan networks are not ready")
            .fix("modprobe macvlan"),
        HostFeature::tried("ipvlan device", in_namespace(|| on_veth("ipvlan")))
            .without("ipvlan networks are not ready")
            .fix("modprobe ipvlan"),
        forwarding(),
    ]
}

/// Checks whether firewall rules of other programs drop packets that pods of the built-in network send to other hosts.
fn forwarding() -> HostFeature {
    let network = crate::config::Config::default().network;
    let builtin = berth_cni::Builtin { bridge: network.bridge, subnets: network.subnets, mtu: network.mtu };
    let what = "forwarding for pods";
    let row = match berth_cni::obstacle(&builtin) {
        Ok(None) => HostFeature::new(what, Availability::Yes, "no firewall rule drops it"),
        Ok(Some(why)) => HostFeature::new(what, Availability::No, why).fix(permit(&builtin.bridge)),
        Err(error) => HostFeature::new(
            what,
            Availability::Unknown,
            format!("failed to read the firewall rules: {error}"),
        ),
    };
    row.without("pods do not reach other hosts, and the network is not ready")
}

/// Returns the commands that accept packets from a bridge to other hosts, and their answers.
fn permit(bridge: &str) -> String {
    format!(
        "iptables -I FORWARD -i {bridge} -j ACCEPT && \
         iptables -I FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )
}

fn in_namespace(trial: fn() -> Result<(), String>) -> Result<String, String> {
    in_thread(move || {
        namespaces::make(CloneFlags::CLONE_NEWNET)?;
        trial().map(|()| "available".to_owned())
    })
}

/// Creates a device (rtnetlink(7), RTM_NEWLINK).
fn link(kind: &str, parent: Option<i32>) -> Result<(), String> {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    let index = if parent.is_none() { PARENT } else { 0 };
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend([0; 8]);
    let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &fixed)
        .with(&nested(IFLA_LINKINFO, &[text(IFLA_INFO_KIND, kind)]))
        .acknowledged();
    if let Some(parent) = parent {
        message = message.with(&attribute(IFLA_LINK, &parent.to_ne_bytes()));
    }
    request(Family::Route, &[message]).map_err(|error| format!("create a {kind} device: {error}"))
}

fn on_veth(kind: &str) -> Result<(), String> {
    link("veth", None)?;
    link(kind, Some(PARENT))
}

/// Creates a table with a masquerade chain, as the pod network uses it.
fn nftables() -> Result<(), String> {
    // struct nfgenmsg: family, version, resource (in network order).
    const IPV4: [u8; 4] = [2, 0, 0, 0];
    const BATCH: [u8; 4] = [0, 0, 0, 10];
    const SUBSYSTEM: u16 = 10 << 8;
    let table = "berth-check";
    // Hook postrouting at the priority of source NAT (linux/netfilter_ipv4.h).
    let hook = nested(4, &[attribute(1, &4_u32.to_be_bytes()), attribute(2, &100_u32.to_be_bytes())]);
    let masquerade = nested(1, &[text(1, "masq"), nested(2, &[])]);
    let create = |kind: u16| Message::new(SUBSYSTEM | kind, NLM_F_CREATE, &IPV4).acknowledged();
    request(
        Family::Netfilter,
        &[
            Message::new(16, 0, &BATCH),
            create(0).with(&text(1, table)),
            create(3).with(&text(1, table)).with(&text(3, "out")).with(&hook).with(&text(7, "nat")),
            create(6).with(&text(1, table)).with(&text(2, "out")).with(&nested(4, &[masquerade])),
            Message::new(17, 0, &BATCH),
        ],
    )
    .map_err(|error| format!("create a rule: {error}"))
}
