//! Connections that the kernel remembers (linux/netfilter/nfnetlink_conntrack.h). A client of UDP goes on sending from the
//! same port: its packets go where the first one went, until that is forgotten, even if another pod has the port by now.

use std::io;

use rustix::io::Errno;

use super::blocking;
use super::message::{Attributes, attribute, dump, request};
use crate::Result;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// `CTA_TUPLE_ORIG`, in it `CTA_TUPLE_PROTO`, in that `CTA_PROTO_NUM` and `CTA_PROTO_DST_PORT`.
const ORIGINAL: u16 = 1;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// `CTA_ZONE`.
const ZONE: u16 = 18;

const UDP: u8 = 17;

/// Forgets the connections of UDP to these ports of the host.
pub(crate) async fn forget(ports: Vec<u16>) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    blocking("forget connections of UDP".to_owned(), move || forget_now(&ports)).await
}

fn forget_now(ports: &[u16]) -> io::Result<()> {
    // AF_INET, AF_INET6.
    for family in [2, 10] {
        let known = match dump(GET, family, &[]) {
            // A kernel without it remembers nothing.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(()),
            known => known?,
        };
        for entry in known.iter().filter(|entry| port_of(entry).is_some_and(|port| ports.contains(&port))) {
            let mut body = Attributes::default();
            for kind in [ORIGINAL, ZONE] {
                if let Some(value) = attribute(entry, kind) {
                    let nested = if kind == ORIGINAL { 0x8000 } else { 0 };
                    body.bytes(kind | nested, value);
                }
            }
            match request(DELETE, family, body.as_bytes()) {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
                deleted => deleted?,
            }
        }
    }
    Ok(())
}

/// The port that the first packet of a connection of UDP was for.
fn port_of(entry: &[u8]) -> Option<u16> {
    let protocol = attribute(attribute(entry, ORIGINAL)?, PROTOCOL)?;
    let udp = attribute(protocol, NUMBER)? == [UDP];
    let port = attribute(protocol, DESTINATION_PORT)?.try_into().ok().map(u16::from_be_bytes)?;
    udp.then_some(port)
}
