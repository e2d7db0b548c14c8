//! Elements of sets and maps as text, for people: `ports4: tcp 8080 -> 10.77.0.5:80`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::blocking;
use super::elements::{self, Element, Value};
use super::sets::{self, Type};
use crate::netlink::attributes::text_of;
use crate::{Protocol, Result};

/// Returns the elements of a pod, in the order of the sets.
pub(crate) async fn elements_of(pod: &str) -> Result<Vec<String>> {
    let pod = pod.to_owned();
    blocking(format!("list the rules of {pod}"), move || list(&pod)).await
}

fn list(pod: &str) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    for (family, set) in sets::all() {
        let found = match elements::in_set(family, set) {
            // The table or the set is created with its first element.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        let own = found.into_iter().filter(|found| found.owner.as_ref().is_some_and(|o| o.container == pod));
        lines.extend(own.map(|found| line(&found.element, set.key, set.value)));
    }
    Ok(lines)
}

fn line(element: &Element, key: Type, value: Option<Type>) -> String {
    let shown = text(&element.key, key).join(" ");
    match (&element.value, value) {
        (Value::Bytes(bytes), Some(of)) => {
            format!("{}: {shown} -> {}", element.set, target(&text(bytes, of)))
        }
        _ => format!("{}: {shown}", element.set),
    }
}

/// An address and a port, as in URLs.
fn target(parts: &[String]) -> String {
    match parts {
        [address, port] if address.contains(':') => format!("[{address}]:{port}"),
        parts => parts.join(":"),
    }
}

/// The parts of a key or value. Six bits of the type's number specify the type of each part ([`Type`]); each part is
/// padded to a register.
fn text(bytes: &[u8], of: Type) -> Vec<String> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    for part in numbers(of.number) {
        let length = [Type::IPV4, Type::IPV6, Type::MAC, Type::PROTOCOL, Type::PORT, Type::LINK]
            .into_iter()
            .find(|known| known.number == part)
            .and_then(|known| usize::try_from(known.length).ok())
            .unwrap_or(rest.len());
        let (own, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        parts.push(part_text(own, part));
        rest = others;
    }
    parts
}

fn numbers(number: u32) -> Vec<u32> {
    let parts = [18, 12, 6, 0].map(|shift| (number >> shift) & 0x3f);
    parts.into_iter().filter(|part| *part != 0).collect()
}

fn part_text(bytes: &[u8], of: u32) -> String {
    let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let array4 = || <[u8; 4]>::try_from(bytes).ok();
    let shown = match of {
        of if of == Type::IPV4.number => {
            array4().map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)).to_string())
        }
        of if of == Type::IPV6.number => {
            <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes)).to_string())
        }
        of if of == Type::PORT.number => {
            array4().map(|[high, low, ..]| u16::from_be_bytes([high, low]).to_string())
        }
        of if of == Type::PROTOCOL.number => bytes.first().map(|number| {
            let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let known = known.into_iter().find(|protocol| protocol.number() == *number);
            known.map_or_else(|| format!("protocol {number}"), |protocol| protocol.name().to_owned())
        }),
        of if of == Type::LINK.number => Some(text_of(bytes)),
        of if of == Type::MAC.number => bytes
            .get(..6)
            .map(|mac| mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")),
        _ => None,
    };
    shown.unwrap_or_else(hex)
}

#[cfg(test)]
mod tests {
    use super::super::elements::joined;
    use super::*;

    fn shown(set: &'static str, key: &[&[u8]], value: &[&[u8]]) -> String {
        let (_, of) = sets::all().find(|(_, of)| of.name == set).unwrap();
        let value = if value.is_empty() { Value::None } else { Value::Bytes(joined(value)) };
        line(&Element { set, key: joined(key), value }, of.key, of.value)
    }

    #[test]
    fn elements_are_readable() {
        let (tcp, port) = ([6_u8], 8080_u16.to_be_bytes());
        let pod = [10, 77, 0, 5];
        assert_eq!(
            shown("ports4", &[&tcp, &port], &[&pod, &80_u16.to_be_bytes()]),
            "ports4: tcp 8080 -> 10.77.0.5:80"
        );
        let six = "fd77::5".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(
            shown("ports6-at", &[&six, &[17], &port], &[&six, &80_u16.to_be_bytes()]),
            "ports6-at: fd77::5 udp 8080 -> [fd77::5]:80"
        );
        assert_eq!(shown("masquerade4", &[&pod], &[]), "masquerade4: 10.77.0.5");
        let mut link = b"bv0123".to_vec();
        link.resize(16, 0);
        assert_eq!(shown("senders", &[&link, &[2, 0, 0, 0, 0, 1]], &[]), "senders: bv0123 02:00:00:00:00:01");
    }
}
