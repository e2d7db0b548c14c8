//! A lease is kept for as long as its pod has it: its server is asked to make it longer at T1, any server at T2, and when
//! it has ended the interface is brought down, as the reference plugin does. In between nothing runs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::time::Instant;

use super::channel::Channel;
use super::exchange::{Answer, Client, sleep_until};
use super::offer::Lease;
use super::record::{Record, Records, Stage, now};
use crate::netlink::Netlink;
use crate::{Result, netns};

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(10);
/// Not more often than so is a server asked again (RFC 2131, section 4.4.5, has a minute, of leases of hours).
const SELDOM: Duration = Duration::from_secs(60);
/// The clock of the host may be set, or stop while it sleeps: a long wait is in parts of so much.
const PART: Duration = Duration::from_secs(12 * 3600);

/// Keeps a lease until it is lost; until then it is the caller's to end this.
pub(super) async fn keep(records: Records, mut record: Record, netns: OwnedFd) {
    let mut first = true;
    loop {
        let stage = record.stage(now());
        let (server, left) = match stage {
            Stage::Bound(None) => return std::future::pending().await,
            Stage::Bound(Some(left)) => {
                first = false;
                sleep_until(Instant::now() + left.min(PART)).await;
                continue;
            }
            Stage::Renewing(left) => (Some(record.lease.server), left),
            Stage::Rebinding(left) => (None, left),
            // No daemon was there to keep it: the servers may have kept the address all the same.
            Stage::Ended if first => (None, ANSWER),
            Stage::Ended => return lose(&records, record, &netns, "the lease has ended").await,
        };
        let ended = stage == Stage::Ended;
        first = false;
        let asked = Instant::now();
        match extend(&record, &netns, server, left.min(ANSWER)).await {
            Ok(Answer::Granted(ack)) => match Record::new(record.owner.clone(), &ack, &record.wanted()) {
                Ok(longer) if longer.lease.address == record.lease.address => {
                    tracing::debug!(address = %record.lease.address, owner = ?record.owner, "the DHCP lease is longer");
                    // What else the server says now counts for pods that start now.
                    let lease = Lease { server: longer.lease.server, ..record.lease };
                    record = Record { lease, ..longer };
                    if let Err(error) = records.write(&record).await {
                        tracing::warn!(%error, "a DHCP lease is longer, which cannot be written down");
                    }
                    continue;
                }
                Ok(other) => {
                    let why = format!("the DHCP server has another address now: {}", other.lease.address);
                    return lose(&records, record, &netns, &why).await;
                }
                Err(error) => tracing::warn!(%error, owner = ?record.owner, "a DHCP server does not renew"),
            },
            Ok(Answer::Refused(why)) => return lose(&records, record, &netns, &why).await,
            Ok(Answer::Silence) => tracing::debug!(owner = ?record.owner, ?stage, "no DHCP server answers"),
            Err(error) => tracing::warn!(%error, owner = ?record.owner, "a DHCP lease is not renewed"),
        }
        if !ended {
            // After half of what is left, and in the end at once.
            let again = (left / 2).max(SELDOM).min(left).max(Duration::from_millis(100));
            sleep_until(asked + again).await;
        }
    }
}

async fn extend(
    record: &Record,
    netns: &OwnedFd,
    server: Option<std::net::Ipv4Addr>,
    patience: Duration,
) -> Result<Answer> {
    let channel = Channel::open(netns.as_fd(), &record.owner.interface).await?;
    let (id, wanted) = (record.owner.client_id(), record.wanted());
    let client = Client { id: &id, wanted: &wanted };
    client.extend(&channel, record.lease.address.addr(), server, patience).await
}

/// The address may be another's from now on.
async fn lose(records: &Records, mut record: Record, netns: &OwnedFd, why: &str) {
    tracing::error!(address = %record.lease.address, owner = ?record.owner, why, "a DHCP lease is lost: its interface goes down");
    record.lost = Some(why.to_owned());
    if let Err(error) = records.write(&record).await {
        tracing::warn!(%error, "a lost DHCP lease cannot be written down");
    }
    if let Err(error) = bring_down(netns, &record.owner.interface).await {
        tracing::error!(%error, owner = ?record.owner, "an interface without a lease stays up");
    }
}

async fn bring_down(netns: &OwnedFd, interface: &str) -> Result<()> {
    let links = netns::within(netns.as_fd(), Netlink::open).await?;
    links.cut_off(interface).await
}
