//! Tries nftables and the network devices of pods in a network namespace that ends afterwards.

use berth_cni::probe::{self, DeviceKind};
use nix::sched::CloneFlags;

use super::{Availability, HostFeature, in_thread, namespaces};

pub(super) fn rows() -> Vec<HostFeature> {
    vec![
        HostFeature::tried("nftables", in_namespace(probe::masquerade))
            .without("no masquerade: pods reach only hosts that route back to their addresses")
            .fix("modprobe -a nf_tables nft_masq"),
        HostFeature::tried("veth device", device(DeviceKind::Veth))
            .without("pods have the host's network or none")
            .fix("modprobe veth"),
        HostFeature::tried("bridge device", device(DeviceKind::Bridge))
            .without("the built-in network is not ready; ptp and macvlan networks are")
            .fix("modprobe bridge"),
        HostFeature::tried("macvlan device", device(DeviceKind::Macvlan))
            .without("macvlan networks are not ready")
            .fix("modprobe macvlan"),
        HostFeature::tried("ipvlan device", device(DeviceKind::Ipvlan))
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

fn device(kind: DeviceKind) -> Result<String, String> {
    in_namespace(move || probe::device(kind))
}

fn in_namespace<E: std::fmt::Display>(
    trial: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<String, String> {
    in_thread(move || {
        namespaces::make(CloneFlags::CLONE_NEWNET)?;
        trial().map(|()| "available".to_owned()).map_err(|error| error.to_string())
    })
}
