//! What a rule says to a packet: its conditions, as far as they are understood, and its verdict (nft(8); the expressions'
//! attributes are those of linux/netfilter/nf_tables.h). iptables writes its rules with the same expressions, and with its own
//! matches where there is none (linux/netfilter/x_tables.h).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use super::super::message::{attribute, attributes, text_of};
use super::Packet;

/// Whether a packet fulfils a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// Nobody knows here.
    Perhaps,
}

impl Answer {
    fn of(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Perhaps,
        }
    }

    fn unless(self, not: bool) -> Self {
        match (self, not) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (answer, _) => answer,
        }
    }
}

/// How a packet's way through a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Accepted,
    Dropped,
    /// No rule has decided.
    Through,
    /// It depends on what is not known here.
    Open,
}

/// What a rule does with what fulfils its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    None,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    Unknown,
}

/// What a register holds.
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

/// A rule, as a list of its expressions: name and attributes.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    expressions: Vec<(String, Vec<u8>)>,
}

/// `NF_CT_STATE_BIT(IP_CT_NEW)`: what a first packet's connection is.
const NEW: u32 = 8;

impl Rule {
    pub(super) fn read(list: &[u8]) -> Self {
        let expressions = attributes(list).filter_map(|(_, element)| {
            Some((text_of(attribute(element, 1)?), attribute(element, 2).unwrap_or_default().to_vec()))
        });
        Self { expressions: expressions.collect() }
    }

    /// Whether a packet fulfils the conditions, and what becomes of it then. `keys`: what is in a set.
    pub(super) fn ask(
        &self,
        packet: &Packet,
        keys: impl Fn(&str) -> io::Result<Vec<Vec<u8>>>,
    ) -> io::Result<(Answer, Verdict)> {
        let mut registers: HashMap<u32, (Loaded, Option<Vec<u8>>)> = HashMap::new();
        let mut answer = Answer::Yes;
        for (name, data) in &self.expressions {
            let number = |kind: u16| number(data, kind);
            let load = |loaded: Loaded| number(1).map(|register| (first_of(register), (loaded, None)));
            match name.as_str() {
                "meta" => registers.extend(load(meta(number(2)))),
                "ct" => registers.extend(load(match number(2) {
                    Some(0) => Loaded::State,
                    Some(2) => Loaded::Status,
                    _ => Loaded::Other,
                })),
                "payload" => registers.extend(load(payload(data, packet))),
                "bitwise" => mask(data, &mut registers),
                "cmp" => answer = answer.and(compare(data, &registers, packet)),
                "lookup" if number(3).is_none() => {
                    let set = attribute(data, 1).map(text_of).unwrap_or_default();
                    let loaded = number(2).and_then(|register| registers.get(&first_of(register)));
                    let not = number(5) == Some(1);
                    answer = answer.and(among(loaded, &keys(&set)?, packet).unless(not));
                }
                // A map of verdicts.
                "lookup" => return Ok((answer.and(Answer::Perhaps), Verdict::Unknown)),
                "match" => answer = answer.and(iptables_match(data)),
                "target" => match attribute(data, 1).map(text_of).as_deref() {
                    Some("REJECT" | "DROP") => return Ok((answer, Verdict::Drop)),
                    Some("ACCEPT") => return Ok((answer, Verdict::Accept)),
                    _ => {}
                },
                "reject" => return Ok((answer, Verdict::Drop)),
                "immediate" if number(1) == Some(0) => return Ok((answer, verdict(data))),
                // They let everything through that they see.
                "counter" | "log" | "immediate" | "last" | "notrack" => {}
                _ => {
                    registers.extend(load(Loaded::Other));
                    answer = answer.and(Answer::Perhaps);
                }
            }
        }
        Ok((answer, Verdict::None))
    }
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    attribute(data, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// A register of 16 bytes is the first of four of 4 bytes (`NFT_REG_1` is `NFT_REG32_00`).
fn first_of(register: u32) -> u32 {
    if (1..=4).contains(&register) { 8 + (register - 1) * 4 } else { register }
}

fn meta(key: Option<u32>) -> Loaded {
    match key {
        Some(3) => Loaded::Mark,
        Some(6) => Loaded::InName,
        Some(7) => Loaded::OutName,
        Some(15) => Loaded::Nfproto,
        Some(16) => Loaded::L4proto,
        _ => Loaded::Other,
    }
}

fn payload(data: &[u8], packet: &Packet) -> Loaded {
    const NETWORK: u32 = 1;
    let start = if packet.from.addr().is_ipv4() { 12 } else { 8 };
    let width = if packet.from.addr().is_ipv4() { 4 } else { 16 };
    let (base, offset, length) = (number(data, 2), number(data, 3), number(data, 4));
    let at = offset.and_then(|offset| usize::try_from(offset).ok()?.checked_sub(start));
    let length = length.and_then(|length| usize::try_from(length).ok());
    match (base, at, length) {
        (Some(NETWORK), Some(at), Some(length)) if at + length <= width => Loaded::Source { at, length },
        _ => Loaded::Other,
    }
}

/// `bitwise`: what is loaded, with a mask.
fn mask(data: &[u8], registers: &mut HashMap<u32, (Loaded, Option<Vec<u8>>)>) {
    let of = |kind: u16| number(data, kind).map(first_of);
    let (Some(from), Some(to)) = (of(1), of(2)) else { return };
    let loaded = registers.get(&from).map_or(Loaded::Other, |(loaded, _)| *loaded);
    let value = |kind: u16| attribute(data, kind).and_then(|value| attribute(value, 1));
    let changes = value(5).is_some_and(|xor| xor.iter().any(|byte| *byte != 0));
    let known = value(4).filter(|_| !changes).map(<[u8]>::to_vec);
    let loaded = if known.is_some() { loaded } else { Loaded::Other };
    registers.insert(to, (loaded, known));
}

fn compare(data: &[u8], registers: &HashMap<u32, (Loaded, Option<Vec<u8>>)>, packet: &Packet) -> Answer {
    let loaded = number(data, 1).and_then(|register| registers.get(&first_of(register)));
    let value = attribute(data, 3).and_then(|value| attribute(value, 1)).unwrap_or_default();
    match (loaded, number(data, 2)) {
        (Some((loaded, mask)), Some(operation @ (0 | 1))) => {
            equals(*loaded, mask.as_deref(), value, packet).unless(operation == 1)
        }
        _ => Answer::Perhaps,
    }
}

/// Whether what is loaded is this value.
fn equals(loaded: Loaded, mask: Option<&[u8]>, value: &[u8], packet: &Packet) -> Answer {
    const TCP: u8 = 6;
    let v4 = packet.from.addr().is_ipv4();
    match loaded {
        Loaded::InName => Answer::of(is_name(&packet.by, value)),
        // Another host is behind another link; whether it is this one, nobody knows.
        Loaded::OutName if is_name(&packet.by, value) || is_name("lo", value) => Answer::No,
        Loaded::OutName | Loaded::Other => Answer::Perhaps,
        Loaded::Nfproto => Answer::of(value == [if v4 { 2 } else { 10 }]),
        Loaded::L4proto => Answer::of(value == [TCP]),
        // Packets of pods have no mark but what rules give them.
        Loaded::Mark => Answer::of(value.iter().all(|byte| *byte == 0)),
        Loaded::State => bits(NEW, mask, value),
        Loaded::Status => bits(0, mask, value),
        Loaded::Source { at, length } => source(packet, at, length, mask, value),
    }
}

/// A name, or the beginning of one (`eth*`): whether that ends shows in the length, which is that of all names.
fn is_name(name: &str, value: &[u8]) -> bool {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => value.get(..end) == Some(name.as_bytes()),
        None => name.as_bytes().starts_with(value),
    }
}

/// Numbers of the host's byte order.
fn bits(known: u32, mask: Option<&[u8]>, value: &[u8]) -> Answer {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_ne_bytes);
    let mask = mask.map_or(Some(u32::MAX), word);
    match (mask, word(value)) {
        (Some(mask), Some(value)) => Answer::of(known & mask == value),
        _ => Answer::Perhaps,
    }
}

/// Whether a part of the source's address is this: of all addresses that pods can have, or of none of them.
fn source(packet: &Packet, at: usize, length: usize, mask: Option<&[u8]>, value: &[u8]) -> Answer {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (network, fixed) = (octets(packet.from.network()), octets(packet.from.netmask()));
    let part = |bytes: &[u8]| bytes.get(at..at + length).map(<[u8]>::to_vec).unwrap_or_default();
    let mut answer = Answer::Yes;
    for (place, (own, fixed)) in part(&network).into_iter().zip(part(&fixed)).enumerate() {
        let mask = mask.map_or(0xff, |mask| mask.get(place).copied().unwrap_or(0xff));
        let wanted = value.get(place).copied().unwrap_or_default();
        // Bits that all pods have in common decide; the others may be so or so.
        if (own ^ wanted) & mask & fixed != 0 {
            return Answer::No;
        }
        if mask & !fixed != 0 {
            answer = Answer::Perhaps;
        }
    }
    answer
}

/// Whether what is loaded is in a set.
fn among(loaded: Option<&(Loaded, Option<Vec<u8>>)>, keys: &[Vec<u8>], packet: &Packet) -> Answer {
    let Some((loaded, None)) = loaded else { return Answer::Perhaps };
    if matches!(loaded, Loaded::Other | Loaded::Source { .. } | Loaded::OutName) {
        return Answer::Perhaps;
    }
    let answers = keys.iter().map(|key| equals(*loaded, None, key, packet));
    answers.fold(Answer::No, |all, one| match (all, one) {
        (Answer::Yes, _) | (_, Answer::Yes) => Answer::Yes,
        (Answer::No, Answer::No) => Answer::No,
        _ => Answer::Perhaps,
    })
}

/// A match of iptables (`NFTA_MATCH_NAME`, `NFTA_MATCH_INFO`).
fn iptables_match(data: &[u8]) -> Answer {
    /// `struct xt_conntrack_mtinfo3` (linux/netfilter/xt_conntrack.h).
    const FLAGS: usize = 146;
    const INVERTED: usize = 148;
    const STATES: usize = 150;
    /// `XT_CONNTRACK_STATE`, `XT_CONNTRACK_STATE_BIT(IP_CT_NEW)`.
    const STATE: u16 = 1;
    const NEW: u16 = 8;
    let info = attribute(data, 3).unwrap_or_default();
    let half = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    match attribute(data, 1).map(text_of).as_deref() {
        Some("comment") => Answer::Yes,
        Some("conntrack") => match (half(FLAGS), half(INVERTED), half(STATES)) {
            (Some(STATE), Some(inverted), Some(states)) => {
                Answer::of(states & NEW != 0).unless(inverted & STATE != 0)
            }
            _ => Answer::Perhaps,
        },
        // `struct xt_state_info`: bits as above.
        Some("state") => word(0).map_or(Answer::Perhaps, |states| Answer::of(states & u32::from(NEW) != 0)),
        // `struct xt_mark_mtinfo1`: mark, mask, invert.
        Some("mark") => match (word(0), info.get(8)) {
            (Some(mark), Some(inverted)) => Answer::of(mark == 0).unless(*inverted != 0),
            _ => Answer::Perhaps,
        },
        _ => Answer::Perhaps,
    }
}

/// The verdict of `immediate`.
fn verdict(data: &[u8]) -> Verdict {
    let verdict = attribute(data, 2).and_then(|value| attribute(value, 2)).unwrap_or_default();
    let chain = || attribute(verdict, 2).map(text_of).unwrap_or_default();
    match number(verdict, 1).map(u32::cast_signed) {
        Some(0) => Verdict::Drop,
        Some(1) => Verdict::Accept,
        Some(-3) => Verdict::Jump(chain()),
        Some(-4) => Verdict::Goto(chain()),
        Some(-5) => Verdict::Return,
        Some(-1) => Verdict::None,
        _ => Verdict::Unknown,
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
    fn names_are_whole_or_beginnings() {
        let packet = packet("10.88.0.0/16");
        let is = |loaded, value: &[u8]| equals(loaded, None, value, &packet);
        assert_eq!(is(Loaded::InName, &padded("berth0")), Answer::Yes);
        assert_eq!(is(Loaded::InName, &padded("docker0")), Answer::No);
        assert_eq!(is(Loaded::InName, b"ber"), Answer::Yes);
        assert_eq!(is(Loaded::InName, b"berth01"), Answer::No);
        assert_eq!(is(Loaded::OutName, &padded("berth0")), Answer::No);
        assert_eq!(is(Loaded::OutName, &padded("eth0")), Answer::Perhaps);
    }

    #[test]
    fn a_source_is_all_pods_some_or_none() {
        let packet = packet("10.88.0.0/16");
        let is = |value: &[u8], mask: Option<&[u8]>| source(&packet, 0, value.len(), mask, value);
        assert_eq!(is(&[10, 88], None), Answer::Yes);
        assert_eq!(is(&[10], None), Answer::Yes);
        assert_eq!(is(&[10, 88, 7], None), Answer::Perhaps);
        assert_eq!(is(&[172, 17], None), Answer::No);
        assert_eq!(is(&[10, 80, 0, 0], Some(&[255, 240, 0, 0])), Answer::Yes);
        assert_eq!(is(&[10, 96, 0, 0], Some(&[255, 240, 0, 0])), Answer::No);
    }

    #[test]
    fn a_connection_is_new_and_unmarked() {
        let packet = packet("fd00::/64");
        let state =
            |bits: u32| equals(Loaded::State, Some(&bits.to_ne_bytes()), &[0; 4], &packet).unless(true);
        assert_eq!(state(2 | 4), Answer::No, "established, related");
        assert_eq!(state(8), Answer::Yes);
        assert_eq!(equals(Loaded::Mark, Some(&[0; 4]), &0x4000_u32.to_ne_bytes(), &packet), Answer::No);
        assert_eq!(equals(Loaded::Nfproto, None, &[10], &packet), Answer::Yes);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes: Vec<u8>) {
            let rule = Rule::read(&bytes);
            let _asked = rule.ask(&packet("10.88.0.0/16"), |_| Ok(Vec::new()));
        }
    }
}
