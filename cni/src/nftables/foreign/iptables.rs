//! The matches of iptables in a rule of nftables (linux/netfilter/x_tables.h).

use super::conditions::Match;
use crate::netlink::attributes::{attribute, text_of};
use crate::nftables::uapi::{NFTA_MATCH_INFO, NFTA_MATCH_NAME};

/// Evaluates a match of iptables.
pub(super) fn iptables_match(data: &[u8]) -> Match {
    /// `struct xt_conntrack_mtinfo3` (linux/netfilter/xt_conntrack.h).
    const FLAGS: usize = 146;
    const INVERTED: usize = 148;
    const STATES: usize = 150;
    /// `XT_CONNTRACK_STATE`, `XT_CONNTRACK_STATE_BIT(IP_CT_NEW)`.
    const STATE: u16 = 1;
    const NEW: u16 = 8;
    let info = attribute(data, NFTA_MATCH_INFO).unwrap_or_default();
    let half = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    match attribute(data, NFTA_MATCH_NAME).map(text_of).as_deref() {
        Some("comment") => Match::Yes,
        Some("conntrack") => match (half(FLAGS), half(INVERTED), half(STATES)) {
            (Some(STATE), Some(inverted), Some(states)) => {
                Match::of(states & NEW != 0).negated_if(inverted & STATE != 0)
            }
            _ => Match::Maybe,
        },
        // `struct xt_state_info`: the same bits.
        Some("state") => word(0).map_or(Match::Maybe, |states| Match::of(states & u32::from(NEW) != 0)),
        // `struct xt_mark_mtinfo1`: mark, mask, invert.
        Some("mark") => match (word(0), info.get(8)) {
            (Some(mark), Some(inverted)) => Match::of(mark == 0).negated_if(*inverted != 0),
            _ => Match::Maybe,
        },
        _ => Match::Maybe,
    }
}
