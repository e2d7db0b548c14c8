//! The rules of iptables-legacy, which the kernel keeps separate from nftables. Only the program iptables-save can read
//! them. It runs only if the kernel reports such rules.

use std::fs;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::Packet;

/// Returns whether the chain FORWARD drops a packet, as a description.
pub(super) fn obstacle(packet: &Packet) -> Option<String> {
    let (names, program) = match packet.from.addr().is_ipv4() {
        true => ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
        false => ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
    };
    // A kernel without iptables-legacy has no such file.
    if !fs::read_to_string(names).unwrap_or_default().lines().any(|table| table == "filter") {
        return None;
    }
    // The program runs without waiting for the xtables lock: its holder is changing the rules.
    let listed = Command::new(program).arg("-S").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let drops = listed.status.success() && drops(&String::from_utf8_lossy(&listed.stdout), packet);
    let description = format!("{program} chain FORWARD drops forwarded packets from {}", packet.from);
    drops.then_some(description)
}

/// Whether the rules, as iptables(8) lists them, accept no packet of this kind.
fn drops(rules: &str, packet: &Packet) -> bool {
    let closed = rules.lines().any(|line| line == "-P FORWARD DROP");
    closed && !rules.lines().any(|line| accepts(line, packet))
}

/// Whether a rule may accept the packet.
fn accepts(line: &str, packet: &Packet) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        let not = at > 0 && words.get(at - 1) == Some(&"!");
        Some((words.get(at + 1).copied().unwrap_or_default(), not))
    };
    let accepts = words.first() == Some(&"-A") && after("-j").is_some_and(|(target, _)| target == "ACCEPT");
    if !accepts || matches!(words.get(1), Some(&("INPUT" | "OUTPUT"))) {
        return false;
    }
    let is_link = |pattern: &str| match pattern.strip_suffix('+') {
        Some(start) => packet.by.starts_with(start),
        None => packet.by == pattern,
    };
    let by = after("-i").is_none_or(|(link, not)| is_link(link) != not);
    let to = after("-o").is_none_or(|(link, not)| not || !is_link(link) && link != "lo");
    let from = after("-s").is_none_or(|(net, not)| {
        not || net
            .parse::<IpNet>()
            .is_ok_and(|net| net.contains(&packet.from.addr()) || packet.from.contains(&net))
    });
    let state = ["--ctstate", "--state"].into_iter().find_map(after);
    let new = state.is_none_or(|(states, not)| states.split(',').any(|state| state == "NEW") != not);
    let mark = after("--mark").is_none_or(|(_, not)| not);
    by && to && from && new && mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_drops_may_have_a_rule_that_accepts() {
        let packet = Packet { by: "berth0".to_owned(), from: "10.88.0.0/16".parse().unwrap() };
        let with = |rules: &str| drops(&format!("-P INPUT ACCEPT\n-P FORWARD DROP\n{rules}"), &packet);
        for closed in [
            "",
            "-A FORWARD -i docker0 -j ACCEPT",
            "-A FORWARD -o berth0 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A FORWARD -s 172.17.0.0/16 -j ACCEPT",
            "-A INPUT -j ACCEPT",
        ] {
            assert!(with(closed), "{closed}");
        }
        for open in [
            "-A FORWARD -i berth0 -j ACCEPT",
            "-A FORWARD -i ber+ -j ACCEPT",
            "-A FORWARD ! -i eth0 -j ACCEPT",
            "-A FORWARD -s 10.0.0.0/8 -j ACCEPT",
            "-A FORWARD -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
            "-A FORWARD -m set --match-set pods src -j ACCEPT",
        ] {
            assert!(!with(open), "{open}");
        }
        assert!(!drops("-P FORWARD ACCEPT", &packet));
    }
}
