//! Connection tracking entries (linux/netfilter/nfnetlink_conntrack.h). Packets of a client that keeps sending from the
//! same port follow the entry of the first packet, even if another pod has the host port meanwhile, or none has. Any
//! UDP packet refreshes the entry. A TCP client that opens a new connection from the same port would match the old
//! entry for five days (`nf_conntrack_tcp_timeout_established`).

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netlink_packet_core::NLA_F_NESTED;
use rustix::io::Errno;

use super::blocking;
use super::expression::{IpVersion, bytes};
use crate::Result;
use crate::netlink::attributes::{Attributes, attribute};
use crate::netlink::netfilter::{Subsystem, dump, request};

// Messages and attributes, under their names in linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_FILTER_F_CTA_IP_SRC: u32 = 1;
/// `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`.
const SOURCE: [u16; 2] = [1, 3];
/// `CTA_IP_V4_DST`, `CTA_IP_V6_DST`.
const DESTINATION: [u16; 2] = [2, 4];

const UDP: u8 = 17;

/// Removes the entries of UDP connections to these host ports.
pub(crate) async fn forget_ports(ports: Vec<u16>) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    blocking("remove conntrack entries of UDP host ports".to_owned(), move || {
        let matches = |entry: &[u8]| udp_port_of(entry).is_some_and(|port| ports.contains(&port));
        IpVersion::BOTH.into_iter().try_for_each(|version| forget(version, &Attributes::default(), matches))
    })
    .await
}

/// Removes the entries of connections that lead to these addresses of removed pods through another address: a host port
/// or a service. The kernel walks through all buckets of its table for each address (20 ms for 262,144 buckets).
pub(crate) async fn forget_pods(pods: Vec<IpAddr>) -> Result<()> {
    blocking("remove conntrack entries of a pod".to_owned(), move || {
        for pod in pods {
            // The kernel filters the entries (since Linux 5.8).
            let mut only = Attributes::default();
            let v6 = usize::from(pod.is_ipv6());
            only.nested(CTA_TUPLE_REPLY, |tuple| {
                tuple.nested(CTA_TUPLE_IP, |ip| ip.bytes(SOURCE.get(v6).copied().unwrap_or(0), &bytes(pod)));
            });
            only.nested(CTA_FILTER, |filter| {
                filter.bytes(CTA_FILTER_ORIG_FLAGS, &0_u32.to_ne_bytes());
                filter.bytes(CTA_FILTER_REPLY_FLAGS, &CTA_FILTER_F_CTA_IP_SRC.to_ne_bytes());
            });
            forget(IpVersion::of(pod), &only, |entry| leads_to(entry, pod))?;
        }
        Ok(())
    })
    .await
}

/// The delay of the walk through the table: meanwhile the kernel does nothing else on that processor
/// (`local_bh_disable`), and a teardown waits for all processors (RCU) more than once.
const AFTER_TEARDOWN: Duration = Duration::from_millis(200);

/// Addresses whose entries are being removed in the background; a teardown does not wait for it. A new pod with such an
/// address waits: otherwise its connections would be removed, too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forgetting {
    pending: Arc<Mutex<HashSet<IpAddr>>>,
    serial: Arc<tokio::sync::Mutex<()>>,
    /// Notified when a pod waits for an address.
    urgent: Arc<tokio::sync::Notify>,
}

impl Forgetting {
    fn pending(&self) -> MutexGuard<'_, HashSet<IpAddr>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the removal. Needs a tokio runtime.
    pub(crate) fn start(&self, pods: Vec<IpAddr>) {
        self.pending().extend(&pods);
        let own = self.clone();
        tokio::spawn(async move {
            // The removal starts after a notification or the timeout.
            drop(tokio::time::timeout(AFTER_TEARDOWN, own.urgent.notified()).await);
            let _one_at_a_time = own.serial.lock().await;
            if let Err(error) = forget_pods(pods.clone()).await {
                tracing::warn!(?pods, %error, "failed to remove the conntrack entries of a removed pod");
            }
            own.pending().retain(|pending| !pods.contains(pending));
        });
    }

    /// Waits until the entries of these addresses are removed.
    pub(crate) async fn wait_for(&self, pods: &[IpAddr]) {
        while pods.iter().any(|pod| self.pending().contains(pod)) {
            self.urgent.notify_waiters();
            drop(self.serial.lock().await);
            tokio::task::yield_now().await;
        }
    }
}

fn forget(version: IpVersion, only: &Attributes, condition: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let entries =
        match dump(Subsystem::Conntrack.message_type(IPCTNL_MSG_CT_GET), version.number(), only.as_bytes()) {
            // The kernel has no connection tracking.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(()),
            entries => entries?,
        };
    for entry in entries.iter().filter(|entry| condition(entry)) {
        let mut body = Attributes::default();
        for (kind, flag) in [(CTA_TUPLE_ORIG, NLA_F_NESTED), (CTA_ZONE, 0)] {
            if let Some(value) = attribute(entry, kind) {
                body.bytes(kind | flag, value);
            }
        }
        match request(
            Subsystem::Conntrack.message_type(IPCTNL_MSG_CT_DELETE),
            version.number(),
            body.as_bytes(),
        ) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            deleted => deleted?,
        }
    }
    Ok(())
}

/// Whether a pod answers a connection that was opened to another address.
fn leads_to(entry: &[u8], pod: IpAddr) -> bool {
    let pod = bytes(pod);
    let of = |tuple: u16, kinds: [u16; 2]| {
        let addresses = attribute(attribute(entry, tuple)?, CTA_TUPLE_IP)?;
        kinds.into_iter().find_map(|kind| attribute(addresses, kind))
    };
    of(CTA_TUPLE_REPLY, SOURCE) == Some(&*pod) && of(CTA_TUPLE_ORIG, DESTINATION) != Some(&*pod)
}

/// Returns the destination port of a UDP connection's first packet.
fn udp_port_of(entry: &[u8]) -> Option<u16> {
    let protocol = attribute(attribute(entry, CTA_TUPLE_ORIG)?, CTA_TUPLE_PROTO)?;
    let udp = attribute(protocol, CTA_PROTO_NUM)? == [UDP];
    let port = attribute(protocol, CTA_PROTO_DST_PORT)?.try_into().ok().map(u16::from_be_bytes)?;
    udp.then_some(port)
}
