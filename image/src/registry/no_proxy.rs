//! The hosts that are contacted without a proxy: `NO_PROXY`, parsed as in Go
//! (golang.org/x/net/http/httpproxy, `Config.NoProxy`), since it is usually written for programs in Go.

use std::net::IpAddr;

/// A parsed `NO_PROXY` list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NoProxy {
    all: bool,
    networks: Vec<(IpAddr, u8)>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    domains: Vec<Domain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Domain {
    /// The domain, with a dot in front.
    suffix: String,
    port: Option<u16>,
    /// The domain itself matches as well as its subdomains.
    itself: bool,
}

impl NoProxy {
    pub(super) fn parse(list: &str) -> Self {
        let mut parsed = Self::default();
        for entry in
            list.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty())
        {
            if entry == "*" {
                return Self { all: true, ..Self::default() };
            }
            if let Some(network) = network(&entry) {
                parsed.networks.push(network);
                continue;
            }
            let (host, port) = split(&entry);
            if host.is_empty() {
                continue;
            }
            if let Ok(address) = host.parse::<IpAddr>() {
                parsed.addresses.push((address, port));
                continue;
            }
            let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
            let itself = !host.starts_with('.');
            let suffix = if itself { format!(".{host}") } else { host.to_owned() };
            parsed.domains.push(Domain { suffix, port, itself });
        }
        parsed
    }

    /// Returns whether this host is contacted directly. A host on this machine always is.
    pub(super) fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_lowercase();
        let address = host.parse::<IpAddr>().ok();
        if self.all || host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let is_port = |configured: Option<u16>| configured.is_none_or(|configured| configured == port);
        match address {
            Some(address) => {
                self.networks.iter().any(|network| contains(*network, address))
                    || self
                        .addresses
                        .iter()
                        .any(|(excepted, of_port)| *excepted == address && is_port(*of_port))
            }
            None => self.domains.iter().any(|domain| {
                let own = domain.itself && domain.suffix.strip_prefix('.') == Some(&host);
                (own || host.ends_with(&domain.suffix)) && is_port(domain.port)
            }),
        }
    }
}

fn network(entry: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = entry.split_once('/')?;
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse().ok()?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (length <= longest).then_some((address, length))
}

/// Splits host and port. An IPv6 address with a port has brackets. Without a port it may have them.
fn split(entry: &str) -> (&str, Option<u16>) {
    if let Some(rest) = entry.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (host, None),
        },
        _ => (entry, None),
    }
}

fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    // An IPv4-mapped IPv6 address is the same as the IPv4 address.
    let (network, address) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(address) => (IpAddr::V4(network), IpAddr::V4(address)),
            None => return false,
        },
        other => other,
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same_start(u128::from(network.to_bits()) << 96, u128::from(address.to_bits()) << 96, length)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same_start(network.to_bits(), address.to_bits(), length)
        }
        _ => false,
    }
}

fn same_start(one: u128, other: u128, length: u8) -> bool {
    (one ^ other).checked_shr(128 - u32::from(length)).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_parsed_as_in_go() {
        for (list, host, port, direct) in [
            ("*.test", "reg.test", 5000, true),
            ("*.test", "deep.reg.test", 5000, true),
            ("*.test", "test", 5000, false),
            (".test", "reg.test", 443, true),
            (".test", "test", 443, false),
            ("test", "test", 443, true),
            ("test", "reg.test", 443, true),
            ("test", "latest", 443, false),
            ("reg.test:5000", "reg.test", 5000, true),
            ("reg.test:5000", "sub.reg.test", 5000, true),
            ("reg.test:5000", "reg.test", 443, false),
            ("REG.Test", "reg.tEST", 443, true),
            ("reg.test", "reg.test.", 443, true),
            (" a.test , reg.test ,", "reg.test", 443, true),
            ("a*.test", "ab.test", 443, false),
            ("*reg.test", "myreg.test", 443, false),
            ("10.92.0.1:5000", "10.92.0.1", 5000, true),
            ("10.92.0.1:5000", "10.92.0.1", 5001, false),
            ("10.92.0.1", "10.92.0.1", 80, true),
            ("10.92.0.0/16", "10.92.7.7", 80, true),
            ("10.92.0.0/16", "10.93.0.1", 80, false),
            ("10.92.0.0/0", "1.2.3.4", 80, true),
            ("10.92.0.0/33", "10.92.0.1", 80, false),
            ("10.92.0.0/16", "reg.test", 80, false),
            ("[fd00::1]:5000", "[fd00::1]", 5000, true),
            ("[fd00::1]:5000", "[fd00::1]", 80, false),
            ("fd00::1", "[fd00::1]", 80, true),
            ("fd00::/64", "[fd00::17]", 80, true),
            ("fd00::/64", "[fd00:1::17]", 80, false),
            ("*", "anything.test", 80, true),
            ("a.test,*", "anything.test", 80, true),
            ("", "anything.test", 80, false),
            (",,:5000,", "anything.test", 5000, false),
            ("", "localhost", 5000, true),
            ("", "127.9.8.7", 5000, true),
            ("", "[::1]", 5000, true),
            ("", "sub.localhost", 5000, false),
        ] {
            assert_eq!(NoProxy::parse(list).covers(host, port), direct, "{list:?} {host}:{port}");
        }
    }

    proptest! {
        #[test]
        fn any_list_and_any_host_are_parsed(list in "[a-z0-9.:/*,\\[\\] -]{0,60}", host in "[a-z0-9.:\\[\\]]{0,30}") {
            NoProxy::parse(&list).covers(&host, 443);
        }
    }
}
