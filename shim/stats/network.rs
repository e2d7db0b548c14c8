//! The traffic of a pod's interfaces, as reported by the kernel in the network namespace of its pause
//! (proc_pid_net(5), `dev`).

use std::fs;

use berth_proto::v1::{NetworkInterfaceUsage, NetworkUsage};

use super::usage::value;

/// The usual name of a pod's interface with its addresses.
const DEFAULT: &str = "eth0";

/// Returns the traffic of the network namespace of a process; none if the process does not exist.
pub(super) fn of(pid: i32, at: i64) -> Option<NetworkUsage> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(usage(parse(&text), at))
}

/// Selects the default interface: `eth0`, or else the first.
fn usage(mut interfaces: Vec<NetworkInterfaceUsage>, at: i64) -> NetworkUsage {
    let named = interfaces.iter().position(|interface| interface.name == DEFAULT);
    let default = named.or(if interfaces.is_empty() { None } else { Some(0) });
    NetworkUsage {
        timestamp: at,
        default_interface: default.map(|place| interfaces.remove(place)),
        interfaces,
    }
}

/// Parses lines such as `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs ...`.
fn parse(text: &str) -> Vec<NetworkInterfaceUsage> {
    let interface = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        let figure = |place: usize| figures.get(place).copied().and_then(value);
        Some(NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: figure(0),
            rx_errors: figure(2),
            tx_bytes: figure(8),
            tx_errors: figure(10),
        })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_interface_is_eth0_or_the_first() {
        let of = |names: &[&str]| {
            let interface =
                |name: &&str| NetworkInterfaceUsage { name: (*name).to_owned(), ..Default::default() };
            let usage = usage(names.iter().map(interface).collect(), 7);
            let name = |interface: NetworkInterfaceUsage| interface.name;
            (usage.default_interface.map(name), usage.interfaces.into_iter().map(name).collect::<Vec<_>>())
        };
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&["net1", "eth0"]), (Some("eth0".to_owned()), owned(&["net1"])));
        assert_eq!(of(&["ens5", "net1"]), (Some("ens5".to_owned()), owned(&["net1"])));
        assert_eq!(of(&[]), (None, Vec::new()));
    }

    #[test]
    fn figures_are_read_by_their_place() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 500 5 1 0 0 0 0 0 700 7 2 0 0 0 0 0\n";
        let interfaces = parse(text);
        assert_eq!(interfaces.len(), 1);
        let figures = |usage: &NetworkInterfaceUsage| {
            [usage.rx_bytes, usage.rx_errors, usage.tx_bytes, usage.tx_errors]
                .map(|figure| figure.unwrap().value)
        };
        assert_eq!(figures(&interfaces[0]), [500, 1, 700, 2]);
    }
}
