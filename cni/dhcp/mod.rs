//! Addresses that servers of the pod's network lend: a DHCP client (RFC 2131) for each interface that asks for one, in the
//! daemon, where the reference plugin `dhcp` has a daemon of its own.
//!
//! * this file: taking a lease, giving it back, going on with all after a restart
//! * [`message`]: what is on the wire; [`offer`]: what a server's answer means; [`wanted`]: the configuration's keys
//! * [`channel`]: sockets in the pod's namespace; [`exchange`]: the conversations; [`keep`]: renewals
//! * [`record`]: leases on disk

mod channel;
mod exchange;
mod keep;
mod message;
mod offer;
mod record;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

pub(crate) use offer::{Lease, Route};
pub(crate) use record::Owner;

use crate::netlink::Netlink;
use crate::{Context, Error, Result, netns};
use channel::Channel;
use exchange::Client;
use record::{Record, Records, Stage, now};
use wanted::Wanted;

/// How long a server's hardware address is looked for when a lease is given back: on the same link it takes no time.
const RESOLVED: Duration = Duration::from_millis(500);

/// The clients of all interfaces that have a lease. Drop ends their renewals and gives nothing back.
#[derive(Clone, Debug)]
pub(crate) struct Dhcp {
    records: Records,
    clients: Arc<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    /// What keeps a lease, by its owner.
    keepers: Mutex<HashMap<Owner, JoinHandle<()>>>,
}

impl Clients {
    fn keepers(&self) -> MutexGuard<'_, HashMap<Owner, JoinHandle<()>>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.keepers().values().for_each(JoinHandle::abort);
    }
}

impl Dhcp {
    /// Leases are kept in a folder, which is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        Ok(Self { records: Records::open(folder)?, clients: Arc::default() })
    }

    /// Gets a lease for an interface that is there and has no address yet; it is brought up. The same again for who has
    /// one already. `ipam` is that section of the configuration, `arguments` are `CNI_ARGS`.
    ///
    /// # Errors
    /// The configuration is not valid, no server lends an address, or the interface fails.
    pub(crate) async fn acquire(
        &self,
        owner: &Owner,
        netns: BorrowedFd<'_>,
        ipam: &Value,
        arguments: &BTreeMap<String, String>,
    ) -> Result<Lease> {
        let wanted = Wanted::compile(ipam, arguments).map_err(Error::Invalid)?;
        if let Some(record) = self.records.read(owner)?.filter(|record| usable(record).is_ok())
            && self.clients.keepers().get(owner).is_some_and(|keeper| !keeper.is_finished())
        {
            return Ok(record.lease);
        }
        let links = netns::within(netns, Netlink::open).await?;
        let link = links.existing(&owner.interface).await?;
        links.set_up(link.index, false).await?;
        let channel = Channel::open(netns, &owner.interface).await?;
        let id = owner.client_id();
        let client = Client { id: &id, wanted: &wanted };
        let ack = client.find(&channel).await?;
        drop(channel);
        let record = Record::new(owner.clone(), &ack, &wanted)?;
        self.records.write(&record).await?;
        let lease = record.lease.clone();
        self.keep(record, netns.try_clone_to_owned().doing("dup a network namespace")?);
        Ok(lease)
    }

    /// Ends a lease, and tells its server while the namespace is there; one that is not there has ended already. The
    /// address must still be the interface's.
    ///
    /// # Errors
    /// The lease's record cannot be removed.
    pub(crate) async fn release(&self, owner: &Owner, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let keeper = self.clients.keepers().remove(owner);
        if let Some(keeper) = keeper {
            keeper.abort();
            // Nothing of it may write the record again.
            drop(keeper.await);
        }
        let record = self.records.read(owner)?;
        if let (Some(record), Some(netns)) = (record.filter(|record| usable(record).is_ok()), netns)
            && let Err(error) = give_back(&record, netns).await
        {
            // It ends by itself.
            tracing::warn!(%error, ?owner, "a DHCP lease is not given back to its server");
        }
        self.records.remove(owner).await
    }

    /// The lease that an interface has.
    ///
    /// # Errors
    /// It has none, or has lost it.
    pub(crate) fn check(&self, owner: &Owner) -> Result<Lease> {
        let Owner { container, network, interface } = owner;
        let whose = format!("{interface} of {container} in network {network}");
        let record = self.records.read(owner)?;
        let record = record.ok_or_else(|| Error::Invalid(format!("{whose} has no DHCP lease")))?;
        usable(&record).map_err(|why| Error::Invalid(format!("{whose} has lost its DHCP lease: {why}")))?;
        Ok(record.lease)
    }

    /// Goes on with all leases after a restart. A pod without a namespace has none any more to renew; its lease is
    /// released with the pod. Those that go on are returned.
    pub(crate) fn resume(&self, netns_of: impl Fn(&Owner) -> Option<OwnedFd>) -> Vec<Owner> {
        let mut resumed = Vec::new();
        for record in self.records.all().into_iter().filter(|record| record.lost.is_none()) {
            if let Some(netns) = netns_of(&record.owner) {
                resumed.push(record.owner.clone());
                self.keep(record, netns);
            }
        }
        resumed
    }

    /// Ends the leases of pods that are gone, of which no server can be told; their owners.
    ///
    /// # Errors
    /// A record cannot be removed.
    pub(crate) async fn release_where(&self, gone: impl Fn(&Owner) -> bool) -> Result<Vec<Owner>> {
        let owners: Vec<_> =
            self.records.all().into_iter().map(|record| record.owner).filter(|owner| gone(owner)).collect();
        for owner in &owners {
            self.release(owner, None).await?;
        }
        Ok(owners)
    }

    fn keep(&self, record: Record, netns: OwnedFd) {
        let owner = record.owner.clone();
        let keeper = tokio::spawn(keep::keep(self.records.clone(), record, netns));
        if let Some(before) = self.clients.keepers().insert(owner, keeper) {
            before.abort();
        }
    }
}

/// Checks the keys of a configuration; what `CNI_ARGS` bring is not known yet.
///
/// # Errors
/// The key that is wrong.
pub(crate) fn check(ipam: &Value) -> std::result::Result<(), String> {
    Wanted::compile(ipam, &BTreeMap::new()).map(drop)
}

/// Why a lease is none any more.
fn usable(record: &Record) -> std::result::Result<(), String> {
    match &record.lost {
        Some(why) => Err(why.clone()),
        None if record.stage(now()) == Stage::Ended => Err("it has ended".to_owned()),
        None => Ok(()),
    }
}

async fn give_back(record: &Record, netns: BorrowedFd<'_>) -> Result<()> {
    let channel = Channel::open(netns, &record.owner.interface).await?;
    let (id, wanted) = (record.owner.client_id(), record.wanted());
    let (address, server) = (record.lease.address.addr(), record.lease.server);
    let client = Client { id: &id, wanted: &wanted };
    client.give_back(&channel, address, server).await?;
    // The kernel may have to find a hardware address first, and drops what waits for it together with the interface,
    // which is the next to go.
    netns::within(netns, || {
        let until = Instant::now() + RESOLVED;
        while resolving() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
    .await
}

/// Whether a hardware address is being looked for in the calling thread's namespace: an entry without the flag that it is
/// complete (arp(7)).
fn resolving() -> bool {
    let table = fs::read_to_string("/proc/thread-self/net/arp").unwrap_or_default();
    let mut flags = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2));
    flags.any(|flags| flags == "0x0")
}

/// What a stranger can send to a client.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some(message) =
        channel::payload(bytes).or(Some(bytes)).and_then(|bytes| message::Message::parse(bytes).ok())
    else {
        return;
    };
    let again = message::Message::parse(&message.to_bytes());
    // What said that options go on in other fields says so of fields that are empty now.
    assert_eq!(again.as_ref().map(|again| &again.options), Ok(&message.options));
    if let Ok(lease) = Lease::of(&message) {
        assert!(lease.routes.iter().all(|route| route.to == route.to.trunc()));
    }
    if let Some(times) = offer::Times::of(&message) {
        assert!(times.renew <= times.rebind && times.rebind <= times.end);
    }
}
