//! The content of a server's answer: the lease's times and the parameters of the pod's network.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::message::{DhcpMessage, option};

/// A leased address and its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The pod's address with the prefix length of its subnet.
    pub(crate) address: Ipv4Net,
    /// The first router.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Routes, the default route among them.
    pub(crate) routes: Vec<OfferedRoute>,
    /// Name servers.
    pub(crate) name_servers: Vec<Ipv4Addr>,
    /// The search domain.
    pub(crate) domain: Option<String>,
    /// The MTU in bytes.
    pub(crate) mtu: Option<u16>,
    /// The server that granted the lease.
    pub(crate) server: Ipv4Addr,
}

/// A route from a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OfferedRoute {
    /// The network that the route leads to.
    pub(crate) to: Ipv4Net,
    /// The router; `None` for a destination on the link.
    pub(crate) via: Option<Ipv4Addr>,
    /// The metric from the network's configuration; 0 is the kernel's default.
    pub(crate) priority: u32,
}

/// The times of a lease, counted from its beginning (RFC 2131, section 4.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Times {
    /// T1: request a renewal from its server.
    pub(crate) renew: Duration,
    /// T2: request a renewal from any server.
    pub(crate) rebind: Duration,
    /// The lease expires.
    pub(crate) end: Duration,
}

/// The lease time if the server specifies none, as in the reference plugin.
const DEFAULT_LEASE_TIME: u32 = 3600;
/// The lease time that means infinity (RFC 2131, section 3.3).
const FOREVER: u32 = u32::MAX;
/// The smallest valid MTU (RFC 2132, section 5.1).
const SMALLEST_MTU: u16 = 68;

impl Times {
    /// Returns the times of an answer; `None` for a lease that does not expire.
    pub(crate) fn of(ack: &DhcpMessage) -> Option<Self> {
        let end = ack.number(option::LEASE_TIME).unwrap_or(DEFAULT_LEASE_TIME);
        if end == FOREVER {
            return None;
        }
        // A lease time of zero is unusable; one second is enough to request a renewal.
        let end = end.max(1);
        let part = |percent: u64| u64::from(end) * percent / 100;
        let rebind = ack.number(option::REBINDING_TIME).map(u64::from).filter(|time| *time <= u64::from(end));
        let rebind = rebind.unwrap_or(part(85));
        let renew = ack.number(option::RENEWAL_TIME).map(u64::from).filter(|time| *time <= rebind);
        let renew = renew.unwrap_or(part(50).min(rebind));
        let seconds = Duration::from_secs;
        Some(Self { renew: seconds(renew), rebind: seconds(rebind), end: seconds(u64::from(end)) })
    }
}

impl Lease {
    /// Parses the lease of an answer.
    ///
    /// # Errors
    /// The answer contains no address that a pod can have.
    pub(crate) fn of(ack: &DhcpMessage) -> Result<Self, String> {
        let mask = match ack.addresses(option::SUBNET_MASK).as_slice() {
            [mask] => *mask,
            _ => return Err("the DHCP server sent no subnet mask".to_owned()),
        };
        let address = ack.yours;
        if address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast()
        {
            return Err(format!("the DHCP server offered {address}, which is not a host address"));
        }
        let address = Ipv4Net::with_netmask(address, mask)
            .map_err(|_| format!("the DHCP server sent an invalid subnet mask {mask}"))?;
        let server = *ack
            .addresses(option::SERVER)
            .first()
            .ok_or("the DHCP server sent no server identifier (option 54)")?;
        let mtu = ack.option(option::MTU).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
        Ok(Self {
            address,
            gateway: ack.addresses(option::ROUTER).first().copied(),
            routes: routes(ack),
            name_servers: ack.addresses(option::NAME_SERVER),
            domain: ack.option(option::DOMAIN_NAME).and_then(name),
            mtu: mtu.filter(|mtu| *mtu >= SMALLEST_MTU),
            server,
        })
    }
}

/// Parses the routes. Classless routes replace all others (RFC 3442, "DHCP Client Behavior").
fn routes(ack: &DhcpMessage) -> Vec<OfferedRoute> {
    let classless = classless(ack.option(option::CLASSLESS_ROUTE).unwrap_or_default());
    if !classless.is_empty() {
        return classless;
    }
    let (pairs, _rest) = ack.option(option::STATIC_ROUTE).unwrap_or_default().as_chunks::<8>();
    let mut routes: Vec<OfferedRoute> = pairs
        .iter()
        .map(|&[a, b, c, d, e, f, g, h]| OfferedRoute {
            to: of_class(Ipv4Addr::new(a, b, c, d)),
            via: Some(Ipv4Addr::new(e, f, g, h)),
            priority: 0,
        })
        .collect();
    if let Some(&router) = ack.addresses(option::ROUTER).first() {
        routes.push(OfferedRoute { to: Ipv4Net::default(), via: Some(router), priority: 0 });
    }
    routes
}

/// Parses routes: a prefix length, the significant bytes of the destination, and the router. A truncated route ends the
/// list.
fn classless(mut rest: &[u8]) -> Vec<OfferedRoute> {
    let mut routes = Vec::new();
    while let Some((&length, after)) = rest.split_first() {
        let Some((significant, after)) = after.split_at_checked(usize::from(length).div_ceil(8)) else {
            break;
        };
        let Some((&router, after)) = after.split_first_chunk::<4>() else { break };
        let mut destination = [0; 4];
        for (byte, &known) in destination.iter_mut().zip(significant) {
            *byte = known;
        }
        let Ok(to) = Ipv4Net::new(destination.into(), length) else { break };
        let router = Ipv4Addr::from(router);
        routes.push(OfferedRoute {
            to: to.trunc(),
            via: Some(router).filter(|router| !router.is_unspecified()),
            priority: 0,
        });
        rest = after;
    }
    routes
}

/// A classful network: its first bits determine its class (RFC 791, section 3.2).
fn of_class(network: Ipv4Addr) -> Ipv4Net {
    let length = match network.octets() {
        [0, 0, 0, 0] => 0,
        [0..=127, ..] => 8,
        [128..=191, ..] => 16,
        [192..=223, ..] => 24,
        _ => 32,
    };
    Ipv4Net::new(network, length).map(|net| net.trunc()).unwrap_or_else(|_| network.into())
}

/// Parses a domain name that is valid in resolv.conf. Returns `None` for anything else.
fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(['\0', '.']);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!text.is_empty() && text.len() < 254 && text.bytes().all(allowed)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::message::{MessageType, Sender};

    fn ack(options: &[(u8, &[u8])]) -> DhcpMessage {
        let mut message = DhcpMessage::of_client(MessageType::Ack, 1, [2; 6]);
        message.from = Sender::Server;
        message.yours = Ipv4Addr::new(10, 5, 0, 7);
        let usual: [(u8, &[u8]); 2] = [(1, &[255, 255, 255, 0]), (54, &[10, 5, 0, 1])];
        for (number, value) in usual.iter().chain(options) {
            message.options.insert(*number, value.to_vec());
        }
        message
    }

    fn routes_of(options: &[(u8, &[u8])]) -> Vec<String> {
        let lease = Lease::of(&ack(options)).unwrap();
        let text = |route: &OfferedRoute| match route.via {
            Some(via) => format!("{} via {via}", route.to),
            None => format!("{} on link", route.to),
        };
        lease.routes.iter().map(text).collect()
    }

    #[test]
    fn a_lease_is_parsed() {
        let lease = Lease::of(&ack(&[
            (3, &[10, 5, 0, 1, 10, 5, 0, 2]),
            (6, &[192, 0, 2, 53]),
            (15, b"x.example\0"),
            (26, &[5, 120]),
        ]));
        let lease = lease.unwrap();
        assert_eq!(lease.address.to_string(), "10.5.0.7/24");
        assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 5, 0, 1)));
        assert_eq!(lease.name_servers, [Ipv4Addr::new(192, 0, 2, 53)]);
        assert_eq!((lease.domain.as_deref(), lease.mtu), (Some("x.example"), Some(1400)));
        assert_eq!(
            Lease::of(&ack(&[(15, b"x\nnameserver 192.0.2.66"), (26, &[0, 1])])).unwrap().domain,
            None
        );
    }

    #[test]
    fn an_invalid_address_is_rejected() {
        assert!(Lease::of(&ack(&[(1, &[255, 0, 255, 0])])).unwrap_err().contains("255.0.255.0"));
        assert!(Lease::of(&ack(&[(1, &[])])).unwrap_err().contains("mask"));
        assert!(Lease::of(&ack(&[(54, &[])])).is_err());
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            let mut none = ack(&[]);
            none.yours = address.into();
            assert!(Lease::of(&none).is_err(), "{address:?}");
        }
    }

    #[test]
    fn classless_routes_replace_all_others() {
        let router: (u8, &[u8]) = (3, &[10, 5, 0, 1]);
        let classful: (u8, &[u8]) = (33, &[172, 16, 0, 0, 10, 5, 0, 9, 198, 51, 100, 0, 10, 5, 0, 8]);
        assert_eq!(
            routes_of(&[router, classful]),
            ["172.16.0.0/16 via 10.5.0.9", "198.51.100.0/24 via 10.5.0.8", "0.0.0.0/0 via 10.5.0.1"]
        );
        // The examples of RFC 3442, and an on-link route.
        let classless: (u8, &[u8]) =
            (121, &[0, 10, 5, 0, 2, 17, 10, 229, 0, 10, 5, 0, 3, 32, 10, 27, 129, 1, 0, 0, 0, 0, 25, 10, 0]);
        assert_eq!(
            routes_of(&[router, classful, classless]),
            ["0.0.0.0/0 via 10.5.0.2", "10.229.0.0/17 via 10.5.0.3", "10.27.129.1/32 on link"]
        );
    }

    #[test]
    fn times_are_in_order() {
        let seconds = |options: &[(u8, &[u8])]| {
            Times::of(&ack(options))
                .map(|times| [times.renew, times.rebind, times.end].map(|time| time.as_secs()))
        };
        assert_eq!(seconds(&[]), Some([1800, 3060, 3600]));
        assert_eq!(seconds(&[(51, &[0, 0, 0, 100])]), Some([50, 85, 100]));
        assert_eq!(
            seconds(&[(51, &[0, 0, 0, 100]), (58, &[0, 0, 0, 10]), (59, &[0, 0, 0, 20])]),
            Some([10, 20, 100])
        );
        assert_eq!(
            seconds(&[(51, &[0, 0, 0, 100]), (58, &[0, 0, 1, 10]), (59, &[0, 0, 1, 20])]),
            Some([50, 85, 100])
        );
        assert_eq!(seconds(&[(51, &[0, 0, 0, 0])]), Some([0, 0, 1]));
        assert_eq!(seconds(&[(51, &[255; 4])]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_options_do_not_panic(
            options in proptest::collection::btree_map(any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            mask in 0_u8..=32,
        ) {
            let mut message = ack(&[(1, &Ipv4Net::new(Ipv4Addr::UNSPECIFIED, mask).unwrap().netmask().octets())]);
            message.options.extend(options);
            if let Some(times) = Times::of(&message) {
                prop_assert!(times.renew <= times.rebind && times.rebind <= times.end);
            }
            if let Ok(lease) = Lease::of(&message) {
                prop_assert!(lease.routes.iter().all(|route| route.to == route.to.trunc()));
                let text = serde_json::to_string(&lease).unwrap();
                prop_assert_eq!(serde_json::from_str::<Lease>(&text).unwrap(), lease);
            }
        }
    }
}
