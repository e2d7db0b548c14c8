//! Arithmetic of address ranges.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::runtime_config::RangeEntry as Range;

/// The gateway of a range. Default: the first address of the subnet.
pub(super) fn gateway(range: &Range) -> IpAddr {
    range.gateway.unwrap_or_else(|| nth(range.subnet, 1))
}

/// The nth address of a subnet.
pub(crate) fn nth(subnet: IpNet, n: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            IpAddr::V4(u32::from(network).saturating_add(n).into())
        }
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).saturating_add(n).into()),
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address of a family that has this number.
pub(super) fn address(number: u128, v4: bool) -> Option<IpAddr> {
    match v4 {
        true => u32::try_from(number).ok().map(|number| IpAddr::V4(number.into())),
        false => Some(IpAddr::V6(number.into())),
    }
}

/// The first and the last address of a range that pods can have.
pub(super) fn bounds(range: &Range) -> (IpAddr, IpAddr) {
    let first = range.range_start.unwrap_or_else(|| nth(range.subnet, 1));
    // The last address of an IPv4 subnet is its broadcast address.
    let last = range.range_end.unwrap_or_else(|| match range.subnet.broadcast() {
        IpAddr::V4(all) => IpAddr::V4(u32::from(all).saturating_sub(1).into()),
        v6 => v6,
    });
    (first, last)
}

pub(super) fn contains(range: &Range, address: IpAddr) -> bool {
    let (first, last) = bounds(range);
    address.is_ipv4() == first.is_ipv4() && first <= address && address <= last
}

/// Checks a range.
pub(crate) fn check(range: &Range) -> std::result::Result<(), String> {
    let subnet = range.subnet;
    if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
        return Err(format!("subnet: no room for pods in {subnet}"));
    }
    let limits =
        [("rangeStart", range.range_start), ("rangeEnd", range.range_end), ("gateway", range.gateway)];
    for (key, address) in limits {
        let outside = |address: &IpAddr| key != "gateway" && !subnet.contains(address);
        if let Some(address) = address.filter(outside) {
            return Err(format!("{key}: {address} is not in {subnet}"));
        }
        if address.is_some_and(|address| address.is_ipv4() != subnet.addr().is_ipv4()) {
            return Err(format!("{key}: not of the address family of {subnet}"));
        }
    }
    match (range.range_start, range.range_end) {
        (Some(start), Some(end)) if start > end => Err(format!("rangeEnd: {end} is before {start}")),
        (Some(start), None) if start > bounds(range).1 => {
            Err(format!("rangeStart: {start} is after the last address of {subnet}"))
        }
        (None, Some(end)) if end < bounds(range).0 => {
            Err(format!("rangeEnd: {end} is before the first address of {subnet}"))
        }
        _ => Ok(()),
    }
}

/// Rejects sets that overlap: an address could be allocated from both.
pub(crate) fn overlaps(sets: &[Vec<Range>]) -> std::result::Result<(), String> {
    for (at, set) in sets.iter().enumerate() {
        for (other_at, other) in sets.iter().enumerate().skip(at + 1) {
            let meet = |range: &Range| {
                let (first, last) = bounds(range);
                other.iter().any(|other| {
                    let (start, end) = bounds(other);
                    contains(range, start)
                        || contains(range, end)
                        || contains(other, first)
                        || contains(other, last)
                })
            };
            if set.iter().any(meet) {
                return Err(format!("ranges[{at}]: overlaps with ranges[{other_at}]"));
            }
        }
    }
    Ok(())
}
