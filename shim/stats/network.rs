//! The traffic of a pod's interfaces, as reported by the kernel in the network namespace of its pause
//! (proc_pid_net(5), `dev`).

use berth_proto::v1::{NetworkInterfaceUsage, NetworkUsage};
use berth_runtime::sys::fs::read_records;
use rustix::fs::CWD;

use super::usage::value;

/// The usual name of a pod's interface with its addresses.
const DEFAULT: &str = "eth0";

/// The traffic of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// The traffic of an interface in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) drops: u64,
}

/// Returns the interfaces in the network namespace of a process, without `lo`; none if the process does not exist.
pub(crate) fn interfaces(pid: i32) -> Option<Vec<Interface>> {
    Some(parse(&read_records(CWD, format!("/proc/{pid}/net/dev")).ok()?))
}

/// Returns the traffic of the network namespace of a process; none if the process does not exist.
pub(super) fn of(pid: i32, at: i64) -> Option<NetworkUsage> {
    Some(usage(interfaces(pid)?.into_iter().map(message).collect(), at))
}

fn message(interface: Interface) -> NetworkInterfaceUsage {
    let Interface { name, received, sent } = interface;
    NetworkInterfaceUsage {
        name,
        rx_bytes: value(received.bytes),
        rx_errors: value(received.errors),
        tx_bytes: value(sent.bytes),
        tx_errors: value(sent.errors),
    }
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

/// Parses lines such as `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop ...`.
fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        let traffic = |start: usize| match figures.get(start..)? {
            &[bytes, packets, errors, drops, ..] => Some(Traffic { bytes, packets, errors, drops }),
            _ => None,
        };
        Some(Interface { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? })
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
        let text = "Inter-|   Receive |  Transmit\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 500 5 1 3 0 0 0 0 700 7 2 4 0 0 0 0\n";
        let received = Traffic { bytes: 500, packets: 5, errors: 1, drops: 3 };
        let sent = Traffic { bytes: 700, packets: 7, errors: 2, drops: 4 };
        let eth0 = Interface { name: "eth0".to_owned(), received, sent };
        assert_eq!(parse(text), [eth0]);
    }
}
