//! The search for a free address.

use std::net::IpAddr;

use super::index::Index;
use super::ranges::{address, bounds, contains, gateway, number};
use crate::runtime_config::RangeEntry as Range;

/// Returns the first free address after the last allocated one, wrapping around, so that an address is reused as late
/// as possible. If the last one is in none of the ranges (the ranges are new, or it is of the other family), the search
/// begins at their start.
pub(super) fn next_free<'a>(
    ranges: &'a [Range],
    last: Option<IpAddr>,
    index: &Index,
) -> Option<(IpAddr, &'a Range)> {
    let in_last = last.and_then(|last| {
        let at = ranges.iter().position(|range| contains(range, last))?;
        Some((at, number(last).checked_add(1)))
    });
    let after = in_last.into_iter().flat_map(|(at, start)| {
        let rest = ranges.iter().skip(at + 1).map(|range| (range, Some(number(bounds(range).0))));
        ranges.get(at).map(|range| (range, start)).into_iter().chain(rest)
    });
    let all = ranges.iter().map(|range| (range, Some(number(bounds(range).0))));
    after.chain(all).find_map(|(range, start)| Some((free_in(range, start?, index)?, range)))
}

/// Returns the first free address of a range from a number on.
fn free_in(range: &Range, start: u128, index: &Index) -> Option<IpAddr> {
    let ((_, last), gateway) = (bounds(range), gateway(range));
    let allocated = index.allocated(last.is_ipv4());
    let mut free = allocated.next_free(start)?;
    if free == number(gateway) {
        free = allocated.next_free(free.checked_add(1)?)?;
    }
    (free <= number(last)).then(|| address(free, last.is_ipv4())).flatten()
}
