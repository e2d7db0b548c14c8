//! The evaluation of a rule for a packet: its supported conditions, and its verdict (nft(8); the expressions'
//! attributes are those of linux/netfilter/nf_tables.h). iptables writes its rules with the same expressions, and with
//! its own matches where no expression exists (linux/netfilter/x_tables.h).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use super::Packet;
use super::conditions::Match;
use super::iptables::iptables_match;
use crate::netlink::attributes::{attribute, attributes, text_of};
use crate::nftables::uapi::{
    NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CONTINUE, NFT_CT_STATE,
    NFT_CT_STATUS, NFT_GOTO, NFT_JUMP, NFT_LOOKUP_F_INV, NFT_META_IIFNAME, NFT_META_L4PROTO, NFT_META_MARK,
    NFT_META_NFPROTO, NFT_META_OIFNAME, NFT_PAYLOAD_NETWORK_HEADER, NFT_REG_1, NFT_REG_4, NFT_REG_VERDICT,
    NFT_REG32_00, NFT_RETURN, NFTA_BITWISE_DREG, NFTA_BITWISE_MASK, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR,
    NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CT_KEY, NFTA_DATA_VALUE, NFTA_DATA_VERDICT,
    NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG, NFTA_LOOKUP_DREG,
    NFTA_LOOKUP_FLAGS, NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_META_DREG, NFTA_META_KEY, NFTA_PAYLOAD_BASE,
    NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_TARGET_NAME, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};

/// The outcome for a packet in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    Dropped,
    /// No rule decides.
    Undecided,
    /// The outcome depends on unknown facts.
    Unknown,
}

/// The action of a rule on matching packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleVerdict {
    None,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    Unknown,
}

/// The kind of value in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    InName,
    OutName,
    Nfproto,
    L4proto,
    Mark,
    State,
    Status,
    Source { at: usize, length: usize },
    Other,
}

/// A rule as a list of its expressions: name and attributes.
#[derive(Clone, Debug)]
pub(super) struct ForeignRule {
    expressions: Vec<(String, Vec<u8>)>,
}

/// `NF_CT_STATE_BIT(IP_CT_NEW)`: the connection state of a first packet.
const NEW: u32 = 8;

/// The attribute of the register that an expression loads: the same for all of them (`NFTA_PAYLOAD_DREG` and so on).
const DREG: u16 = NFTA_META_DREG;

impl ForeignRule {
    pub(super) fn parse(list: &[u8]) -> Self {
        let expressions = attributes(list).filter_map(|(_, element)| {
            let name = text_of(attribute(element, NFTA_EXPR_NAME)?);
            Some((name, attribute(element, NFTA_EXPR_DATA).unwrap_or_default().to_vec()))
        });
        Self { expressions: expressions.collect() }
    }

    /// Returns whether a packet matches the conditions, and the verdict if it does. `keys` lists the keys of a set.
    pub(super) fn evaluate(
        &self,
        packet: &Packet,
        keys: impl Fn(&str) -> io::Result<Vec<Vec<u8>>>,
    ) -> io::Result<(Match, RuleVerdict)> {
        let mut registers: HashMap<u32, (Loaded, Option<Vec<u8>>)> = HashMap::new();
        let mut matches = Match::Yes;
        for (name, data) in &self.expressions {
            let number = |kind: u16| number(data, kind);
            let load = |loaded: Loaded| number(DREG).map(|register| (first_of(register), (loaded, None)));
            match name.as_str() {
                "meta" => registers.extend(load(meta(number(NFTA_META_KEY)))),
                "ct" => registers.extend(load(match number(NFTA_CT_KEY) {
                    Some(NFT_CT_STATE) => Loaded::State,
                    Some(NFT_CT_STATUS) => Loaded::Status,
                    _ => Loaded::Other,
                })),
                "payload" => registers.extend(load(payload(data, packet))),
                "bitwise" => mask(data, &mut registers),
                "cmp" => matches = matches.and(compare(data, &registers, packet)),
                "lookup" if number(NFTA_LOOKUP_DREG).is_none() => {
                    let set = attribute(data, NFTA_LOOKUP_SET).map(text_of).unwrap_or_default();
                    let loaded =
                        number(NFTA_LOOKUP_SREG).and_then(|register| registers.get(&first_of(register)));
                    let not = number(NFTA_LOOKUP_FLAGS) == Some(NFT_LOOKUP_F_INV);
                    matches = matches.and(in_set(loaded, &keys(&set)?, packet).negated_if(not));
                }
                // A verdict map.
                "lookup" => return Ok((matches.and(Match::Maybe), RuleVerdict::Unknown)),
                "match" => matches = matches.and(iptables_match(data)),
                "target" => match attribute(data, NFTA_TARGET_NAME).map(text_of).as_deref() {
                    Some("REJECT" | "DROP") => return Ok((matches, RuleVerdict::Drop)),
                    Some("ACCEPT") => return Ok((matches, RuleVerdict::Accept)),
                    _ => {}
                },
                "reject" => return Ok((matches, RuleVerdict::Drop)),
                "immediate" if number(NFTA_IMMEDIATE_DREG) == Some(NFT_REG_VERDICT) => {
                    return Ok((matches, verdict(data)));
                }
                // These expressions match every packet.
                "counter" | "log" | "immediate" | "last" | "notrack" => {}
                _ => {
                    registers.extend(load(Loaded::Other));
                    matches = matches.and(Match::Maybe);
                }
            }
        }
        Ok((matches, RuleVerdict::None))
    }
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    attribute(data, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// Converts a register of 16 bytes to the first of its four registers of 4 bytes (`NFT_REG_1` is `NFT_REG32_00`).
fn first_of(register: u32) -> u32 {
    match register {
        NFT_REG_1..=NFT_REG_4 => NFT_REG32_00 + (register - NFT_REG_1) * 4,
        register => register,
    }
}

fn meta(key: Option<u32>) -> Loaded {
    match key {
        Some(NFT_META_MARK) => Loaded::Mark,
        Some(NFT_META_IIFNAME) => Loaded::InName,
        Some(NFT_META_OIFNAME) => Loaded::OutName,
        Some(NFT_META_NFPROTO) => Loaded::Nfproto,
        Some(NFT_META_L4PROTO) => Loaded::L4proto,
        _ => Loaded::Other,
    }
}

fn payload(data: &[u8], packet: &Packet) -> Loaded {
    let start = if packet.from.addr().is_ipv4() { 12 } else { 8 };
    let width = if packet.from.addr().is_ipv4() { 4 } else { 16 };
    let number = |kind: u16| number(data, kind);
    let (base, offset) = (number(NFTA_PAYLOAD_BASE), number(NFTA_PAYLOAD_OFFSET));
    let at = offset.and_then(|offset| usize::try_from(offset).ok()?.checked_sub(start));
    let length = number(NFTA_PAYLOAD_LEN).and_then(|length| usize::try_from(length).ok());
    match (base, at, length) {
        (Some(NFT_PAYLOAD_NETWORK_HEADER), Some(at), Some(length)) if at + length <= width => {
            Loaded::Source { at, length }
        }
        _ => Loaded::Other,
    }
}

/// `bitwise`: applies a mask to the loaded value.
fn mask(data: &[u8], registers: &mut HashMap<u32, (Loaded, Option<Vec<u8>>)>) {
    let of = |kind: u16| number(data, kind).map(first_of);
    let (Some(from), Some(to)) = (of(NFTA_BITWISE_SREG), of(NFTA_BITWISE_DREG)) else { return };
    let loaded = registers.get(&from).map_or(Loaded::Other, |(loaded, _)| *loaded);
    let value = |kind: u16| attribute(data, kind).and_then(|value| attribute(value, NFTA_DATA_VALUE));
    let changes = value(NFTA_BITWISE_XOR).is_some_and(|xor| xor.iter().any(|byte| *byte != 0));
    let mask = value(NFTA_BITWISE_MASK).filter(|_| !changes).map(<[u8]>::to_vec);
    let loaded = if mask.is_some() { loaded } else { Loaded::Other };
    registers.insert(to, (loaded, mask));
}

fn compare(data: &[u8], registers: &HashMap<u32, (Loaded, Option<Vec<u8>>)>, packet: &Packet) -> Match {
    let loaded = number(data, NFTA_CMP_SREG).and_then(|register| registers.get(&first_of(register)));
    let value = attribute(data, NFTA_CMP_DATA).and_then(|value| attribute(value, NFTA_DATA_VALUE));
    let value = value.unwrap_or_default();
    match (loaded, number(data, NFTA_CMP_OP)) {
        (Some((loaded, mask)), Some(operation @ (NFT_CMP_EQ | NFT_CMP_NEQ))) => {
            equals(*loaded, mask.as_deref(), value, packet).negated_if(operation == NFT_CMP_NEQ)
        }
        _ => Match::Maybe,
    }
}

/// Whether the loaded value is equal to `value`.
fn equals(loaded: Loaded, mask: Option<&[u8]>, value: &[u8], packet: &Packet) -> Match {
    const TCP: u8 = 6;
    let v4 = packet.from.addr().is_ipv4();
    match loaded {
        Loaded::InName => Match::of(is_name(&packet.by, value)),
        // The packet leaves through another link; it is unknown which.
        Loaded::OutName if is_name(&packet.by, value) || is_name("lo", value) => Match::No,
        Loaded::OutName | Loaded::Other => Match::Maybe,
        Loaded::Nfproto => Match::of(value == [if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]),
        Loaded::L4proto => Match::of(value == [TCP]),
        // Packets of pods have no mark unless a rule sets one.
        Loaded::Mark => Match::of(value.iter().all(|byte| *byte == 0)),
        Loaded::State => bits(NEW, mask, value),
        Loaded::Status => bits(0, mask, value),
        Loaded::Source { at, length } => source(packet, at, length, mask, value),
    }
}

/// Whether a value is this name or a prefix of it (`eth*`). The value of a full name includes the terminating zero.
fn is_name(name: &str, value: &[u8]) -> bool {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => value.get(..end) == Some(name.as_bytes()),
        None => name.as_bytes().starts_with(value),
    }
}

/// Compares numbers in the host's byte order.
fn bits(actual: u32, mask: Option<&[u8]>, value: &[u8]) -> Match {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_ne_bytes);
    let mask = mask.map_or(Some(u32::MAX), word);
    match (mask, word(value)) {
        (Some(mask), Some(value)) => Match::of(actual & mask == value),
        _ => Match::Maybe,
    }
}

/// Whether a part of the source address is equal to `value`: for all addresses that pods can have, for some, or for
/// none.
fn source(packet: &Packet, at: usize, length: usize, mask: Option<&[u8]>, value: &[u8]) -> Match {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (network, fixed) = (octets(packet.from.network()), octets(packet.from.netmask()));
    let part = |bytes: &[u8]| bytes.get(at..at + length).map(<[u8]>::to_vec).unwrap_or_default();
    let mut matches = Match::Yes;
    for (place, (own, fixed)) in part(&network).into_iter().zip(part(&fixed)).enumerate() {
        let mask = mask.map_or(0xff, |mask| mask.get(place).copied().unwrap_or(0xff));
        let expected = value.get(place).copied().unwrap_or_default();
        // The bits that all pods have in common decide; the other bits may have any value.
        if (own ^ expected) & mask & fixed != 0 {
            return Match::No;
        }
        if mask & !fixed != 0 {
            matches = Match::Maybe;
        }
    }
    matches
}

/// Whether the loaded value is in a set.
fn in_set(loaded: Option<&(Loaded, Option<Vec<u8>>)>, keys: &[Vec<u8>], packet: &Packet) -> Match {
    let Some((loaded, None)) = loaded else { return Match::Maybe };
    if matches!(loaded, Loaded::Other | Loaded::Source { .. } | Loaded::OutName) {
        return Match::Maybe;
    }
    let matches = keys.iter().map(|key| equals(*loaded, None, key, packet));
    matches.fold(Match::No, |all, one| match (all, one) {
        (Match::Yes, _) | (_, Match::Yes) => Match::Yes,
        (Match::No, Match::No) => Match::No,
        _ => Match::Maybe,
    })
}

/// Parses the verdict of `immediate`.
fn verdict(data: &[u8]) -> RuleVerdict {
    let verdict = attribute(data, NFTA_IMMEDIATE_DATA).and_then(|value| attribute(value, NFTA_DATA_VERDICT));
    let verdict = verdict.unwrap_or_default();
    let chain = || attribute(verdict, NFTA_VERDICT_CHAIN).map(text_of).unwrap_or_default();
    match number(verdict, NFTA_VERDICT_CODE).map(u32::cast_signed) {
        Some(NF_DROP) => RuleVerdict::Drop,
        Some(NF_ACCEPT) => RuleVerdict::Accept,
        Some(NFT_JUMP) => RuleVerdict::Jump(chain()),
        Some(NFT_GOTO) => RuleVerdict::Goto(chain()),
        Some(NFT_RETURN) => RuleVerdict::Return,
        Some(NFT_CONTINUE) => RuleVerdict::None,
        _ => RuleVerdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str) -> Packet {
        Packet { by: "berth0".to_owned(), from: from.parse().unwrap() }
    }

    fn padded(name: &str) -> Vec<u8> {
        let mut name = name.as_bytes().to_vec();
        name.resize(16, 0);
        name
    }

    #[test]
    fn a_name_matches_fully_or_as_a_prefix() {
        let packet = packet("10.88.0.0/16");
        let is = |loaded, value: &[u8]| equals(loaded, None, value, &packet);
        assert_eq!(is(Loaded::InName, &padded("berth0")), Match::Yes);
        assert_eq!(is(Loaded::InName, &padded("docker0")), Match::No);
        assert_eq!(is(Loaded::InName, b"ber"), Match::Yes);
        assert_eq!(is(Loaded::InName, b"berth01"), Match::No);
        assert_eq!(is(Loaded::OutName, &padded("berth0")), Match::No);
        assert_eq!(is(Loaded::OutName, &padded("eth0")), Match::Maybe);
    }

    #[test]
    fn a_source_matches_all_pods_some_or_none() {
        let packet = packet("10.88.0.0/16");
        let is = |value: &[u8], mask: Option<&[u8]>| source(&packet, 0, value.len(), mask, value);
        assert_eq!(is(&[10, 88], None), Match::Yes);
        assert_eq!(is(&[10], None), Match::Yes);
        assert_eq!(is(&[10, 88, 7], None), Match::Maybe);
        assert_eq!(is(&[172, 17], None), Match::No);
        assert_eq!(is(&[10, 80, 0, 0], Some(&[255, 240, 0, 0])), Match::Yes);
        assert_eq!(is(&[10, 96, 0, 0], Some(&[255, 240, 0, 0])), Match::No);
    }

    #[test]
    fn a_connection_is_new_and_unmarked() {
        let packet = packet("fd00::/64");
        let state =
            |bits: u32| equals(Loaded::State, Some(&bits.to_ne_bytes()), &[0; 4], &packet).negated_if(true);
        assert_eq!(state(2 | 4), Match::No, "established, related");
        assert_eq!(state(8), Match::Yes);
        assert_eq!(equals(Loaded::Mark, Some(&[0; 4]), &0x4000_u32.to_ne_bytes(), &packet), Match::No);
        assert_eq!(equals(Loaded::Nfproto, None, &[10], &packet), Match::Yes);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let rule = ForeignRule::parse(&bytes);
            let _result = rule.evaluate(&packet("10.88.0.0/16"), |_| Ok(Vec::new()));
        }
    }
}
