//! DHCP leases: a DHCP client (RFC 2131) for each interface that requests a lease. It runs in the daemon; the reference
//! plugin `dhcp` has a separate daemon.
//!
//! * this file: get and release a lease, resume all leases after a restart
//! * [`message`]: the wire format; [`offer`]: the content of a server's answer; [`request_options`]: the configuration keys
//! * [`channel`]: sockets in the pod's namespace; [`exchange`]: the exchanges with servers; [`keep`]: renewals
//! * [`record`]: leases on disk

mod channel;
mod exchange;
mod keep;
mod message;
mod offer;
mod record;
mod request_options;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

pub(crate) use offer::{Lease, OfferedRoute};
pub(crate) use record::LeaseOwner;

use crate::netlink::Netlink;
use crate::{Context, Error, Result, netns};
use channel::Channel;
use exchange::Client;
use record::{LeaseRecord, LeaseRecords, Stage, now};
use request_options::RequestOptions;

/// How long a release waits for the kernel to resolve a server's hardware address. On the same link this is immediate.
const RESOLVED: Duration = Duration::from_millis(500);

/// The clients of all interfaces that have a lease. Drop ends the renewals and releases no lease.
#[derive(Clone, Debug)]
pub(crate) struct Dhcp {
    records: LeaseRecords,
    clients: Arc<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    /// The task that renews a lease, by the lease's owner.
    renewals: Mutex<HashMap<LeaseOwner, JoinHandle<()>>>,
}

impl Clients {
    fn renewals(&self) -> MutexGuard<'_, HashMap<LeaseOwner, JoinHandle<()>>> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.renewals().values().for_each(JoinHandle::abort);
    }
}

impl Dhcp {
    /// Opens the folder of lease records and creates it if necessary.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        Ok(Self { records: LeaseRecords::open(folder)?, clients: Arc::default() })
    }

    /// Gets a lease for an existing interface that has no address yet, and brings the interface up. Returns the
    /// existing lease if there is one. `ipam` is that section of the configuration, `arguments` are `CNI_ARGS`.
    ///
    /// # Errors
    /// The configuration is invalid, no server grants a lease, or the interface fails.
    pub(crate) async fn acquire(
        &self,
        owner: &LeaseOwner,
        netns: BorrowedFd<'_>,
        ipam: &Value,
        arguments: &BTreeMap<String, String>,
    ) -> Result<Lease> {
        let options = RequestOptions::compile(ipam, arguments).map_err(Error::Invalid)?;
        if let Some(record) = self.records.read(owner)?.filter(|record| usable(record).is_ok())
            && self.clients.renewals().get(owner).is_some_and(|renewal| !renewal.is_finished())
        {
            return Ok(record.lease);
        }
        let links = netns::within(netns, Netlink::open).await?;
        let link = links.existing(&owner.interface).await?;
        links.set_up(link.index, false).await?;
        let channel = Channel::open(netns, &owner.interface).await?;
        let id = owner.client_id();
        let client = Client { id: &id, options: &options };
        let ack = client.find(&channel).await?;
        drop(channel);
        let record = LeaseRecord::new(owner.clone(), &ack, &options)?;
        self.records.write(&record).await?;
        let lease = record.lease.clone();
        self.start_renewal(
            record,
            netns.try_clone_to_owned().doing("duplicate the descriptor of a network namespace")?,
        );
        Ok(lease)
    }

    /// Releases a lease, if there is one, and tells its server if the namespace still exists. The interface must still
    /// have the address.
    ///
    /// # Errors
    /// The lease's record cannot be removed.
    pub(crate) async fn release(&self, owner: &LeaseOwner, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let renewal = self.clients.renewals().remove(owner);
        if let Some(renewal) = renewal {
            renewal.abort();
            // The task must not write the record again.
            drop(renewal.await);
        }
        let record = self.records.read(owner)?;
        if let (Some(record), Some(netns)) = (record.filter(|record| usable(record).is_ok()), netns)
            && let Err(error) = give_back(&record, netns).await
        {
            // The lease expires by itself.
            tracing::warn!(%error, ?owner, "failed to release DHCP lease at its server");
        }
        self.records.remove(owner).await
    }

    /// Returns the lease of an interface.
    ///
    /// # Errors
    /// The interface has no lease or has lost it.
    pub(crate) fn check(&self, owner: &LeaseOwner) -> Result<Lease> {
        let LeaseOwner { container, network, interface } = owner;
        let attachment = format!("{interface} of {container} in network {network}");
        let record = self.records.read(owner)?;
        let record = record.ok_or_else(|| Error::Invalid(format!("{attachment} has no DHCP lease")))?;
        usable(&record)
            .map_err(|why| Error::Invalid(format!("{attachment} has lost its DHCP lease: {why}")))?;
        Ok(record.lease)
    }

    /// Resumes all leases after a restart. The lease of a pod whose namespace is gone is not renewed; it is released
    /// with the pod. Returns the owners of the resumed leases.
    pub(crate) fn resume(&self, netns_of: impl Fn(&LeaseOwner) -> Option<OwnedFd>) -> Vec<LeaseOwner> {
        let mut resumed = Vec::new();
        for record in self.records.all().into_iter().filter(|record| record.lost.is_none()) {
            if let Some(netns) = netns_of(&record.owner) {
                resumed.push(record.owner.clone());
                self.start_renewal(record, netns);
            }
        }
        resumed
    }

    /// Releases the leases of pods that are gone, without telling a server. Returns their owners.
    ///
    /// # Errors
    /// A record cannot be removed.
    pub(crate) async fn release_where(&self, gone: impl Fn(&LeaseOwner) -> bool) -> Result<Vec<LeaseOwner>> {
        let owners: Vec<_> =
            self.records.all().into_iter().map(|record| record.owner).filter(|owner| gone(owner)).collect();
        for owner in &owners {
            self.release(owner, None).await?;
        }
        Ok(owners)
    }

    fn start_renewal(&self, record: LeaseRecord, netns: OwnedFd) {
        let owner = record.owner.clone();
        let renewal = tokio::spawn(keep::renew(self.records.clone(), record, netns));
        if let Some(previous) = self.clients.renewals().insert(owner, renewal) {
            previous.abort();
        }
    }
}

/// Returns the folder of lease records.
pub(crate) fn folder(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("dhcp")
}

/// Returns the owners of all recorded leases, with their addresses. Nothing is created or changed.
pub(crate) fn recorded(folder: &Path) -> Vec<(LeaseOwner, String)> {
    let records = LeaseRecords::existing(folder).all().into_iter();
    records.map(|record| (record.owner, record.lease.address.addr().to_string())).collect()
}

/// Checks the keys of a configuration. The values of `CNI_ARGS` are not available yet.
///
/// # Errors
/// The invalid key.
pub(crate) fn check(ipam: &Value) -> std::result::Result<(), String> {
    RequestOptions::compile(ipam, &BTreeMap::new()).map(drop)
}

/// Returns an error if a lease is lost or expired.
fn usable(record: &LeaseRecord) -> std::result::Result<(), String> {
    match &record.lost {
        Some(why) => Err(why.clone()),
        None if record.stage(now()) == Stage::Ended => Err("it has expired".to_owned()),
        None => Ok(()),
    }
}

async fn give_back(record: &LeaseRecord, netns: BorrowedFd<'_>) -> Result<()> {
    let channel = Channel::open(netns, &record.owner.interface).await?;
    let (id, options) = (record.owner.client_id(), record.request_options());
    let (address, server) = (record.lease.address.addr(), record.lease.server);
    let client = Client { id: &id, options: &options };
    client.give_back(&channel, address, server).await?;
    // The kernel may have to resolve a hardware address first. It drops the packets that wait for it when the interface
    // is removed, which happens next.
    netns::within(netns, || {
        let until = Instant::now() + RESOLVED;
        while resolving() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
    .await
}

/// Whether the kernel is resolving a hardware address in the calling thread's namespace: an entry without the
/// "complete" flag (arp(7)).
fn resolving() -> bool {
    let table = fs::read_to_string("/proc/thread-self/net/arp").unwrap_or_default();
    let mut flags = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2));
    flags.any(|flags| flags == "0x0")
}

/// Parses untrusted input that a client may receive.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some(message) =
        channel::payload(bytes).or(Some(bytes)).and_then(|bytes| message::DhcpMessage::parse(bytes).ok())
    else {
        return;
    };
    let again = message::DhcpMessage::parse(&message.to_bytes());
    // An overload option remains in a re-encoded message and refers to fields that are empty there.
    assert_eq!(again.as_ref().map(|again| &again.options), Ok(&message.options));
    if let Ok(lease) = Lease::of(&message) {
        assert!(lease.routes.iter().all(|route| route.to == route.to.trunc()));
    }
    if let Some(times) = offer::Times::of(&message) {
        assert!(times.renew <= times.rebind && times.rebind <= times.end);
    }
}
