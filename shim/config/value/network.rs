//! The built-in pod network: its bridge, its subnets and its MTU.

use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{Described, InvalidValue, invalid};

checked_text! {
    /// The name of a network interface (netdevice(7): 15 bytes).
    BridgeName => String, interface_name,
        "the name of an interface: 1 to 15 letters, digits and `._-`"
}

checked! {
    /// Ranges of pod addresses: at least one, at most one of each family, large enough for a gateway and a pod.
    Subnets, "Vec<IpNet>", Vec<IpNet> => Vec<IpNet>, subnets,
        "at most one range of each address family: `[\"10.83.0.0/16\", \"fd83:6265:7274::/64\"]`"
}

checked! {
    /// An MTU, at least 1280 bytes (required by IPv6) and at most 65535.
    Mtu, "u32", u32 => u32, mtu,
        "1280 to 65535"
}

fn interface_name(text: String) -> Result<String, InvalidValue> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.is_empty() || text.len() > 15 || !text.bytes().all(allowed) || text == "." || text == ".." {
        return invalid(format!("{text:?} is not the name of an interface: 1 to 15 letters, digits and ._-"));
    }
    Ok(text)
}

fn subnets(subnets: Vec<IpNet>) -> Result<Vec<IpNet>, InvalidValue> {
    if subnets.is_empty() {
        return invalid("is empty; pods need a range of addresses");
    }
    for subnet in &subnets {
        if subnet.addr() != subnet.network() {
            return invalid(format!("{subnet} is an address in a range; the range is {}", subnet.trunc()));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return invalid(format!("{subnet} is too small for a gateway and a pod"));
        }
    }
    let v4 = subnets.iter().filter(|subnet| matches!(subnet, IpNet::V4(_))).count();
    if v4 > 1 || subnets.len() - v4 > 1 {
        return invalid("has two ranges of one family; a pod gets one address of each");
    }
    Ok(subnets)
}

fn mtu(mtu: u32) -> Result<u32, InvalidValue> {
    if (1280..=65535).contains(&mtu) { Ok(mtu) } else { invalid(format!("{mtu} is not from 1280 to 65535")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces() {
        assert!("berth0".parse::<BridgeName>().is_ok());
        for name in ["", "a/b", "sixteen-letters-", "..", "a b"] {
            assert!(name.parse::<BridgeName>().is_err(), "{name}");
        }
    }

    #[test]
    fn ranges_are_of_different_families_and_have_room() {
        let nets = |texts: &[&str]| subnets(texts.iter().map(|text| text.parse().unwrap()).collect());
        assert!(nets(&["10.83.0.0/16"]).is_ok());
        assert!(nets(&["10.83.0.0/16", "fd83::/64"]).is_ok());
        for wrong in [&[][..], &["10.83.0.1/16"], &["10.83.0.0/31"], &["10.1.0.0/16", "10.2.0.0/16"]] {
            assert!(nets(wrong).is_err(), "{wrong:?}");
        }
    }
}
