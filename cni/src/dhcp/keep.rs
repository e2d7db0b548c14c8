//! Renews a lease for as long as its pod has it: from its server at T1, from any server at T2. If the lease expires,
//! the interface is brought down, as by the reference plugin. Between renewals the task sleeps.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::time::Instant;

use super::channel::Channel;
use super::exchange::{Client, DhcpAnswer, sleep_until};
use super::offer::Lease;
use super::record::{LeaseRecord, LeaseRecords, Stage, now};
use crate::netlink::Netlink;
use crate::{Result, netns};

/// The time limit for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest interval between requests (RFC 2131, section 4.4.5: 60 seconds).
const MIN_INTERVAL: Duration = Duration::from_secs(60);
/// The longest sleep. The host's clock may be set, or stop while the host is suspended, so a long wait is split.
const MAX_SLEEP: Duration = Duration::from_secs(12 * 3600);

/// Renews a lease until it is lost. The caller aborts the task when the lease is released.
pub(super) async fn renew(records: LeaseRecords, mut record: LeaseRecord, netns: OwnedFd) {
    let mut first = true;
    loop {
        let stage = record.stage(now());
        let (server, left) = match stage {
            Stage::Bound(None) => return std::future::pending().await,
            Stage::Bound(Some(left)) => {
                first = false;
                sleep_until(Instant::now() + left.min(MAX_SLEEP)).await;
                continue;
            }
            Stage::Renewing(left) => (Some(record.lease.server), left),
            Stage::Rebinding(left) => (None, left),
            // The lease expired while no daemon ran. The servers may have kept the address.
            Stage::Ended if first => (None, ANSWER_TIMEOUT),
            Stage::Ended => return lose(&records, record, &netns, "the lease expired").await,
        };
        let expired = stage == Stage::Ended;
        first = false;
        let sent = Instant::now();
        match extend(&record, &netns, server, left.min(ANSWER_TIMEOUT)).await {
            Ok(DhcpAnswer::Granted(ack)) => {
                match LeaseRecord::new(record.owner.clone(), &ack, &record.request_options()) {
                    Ok(renewed) if renewed.lease.address == record.lease.address => {
                        tracing::debug!(address = %record.lease.address, owner = ?record.owner, "renewed DHCP lease");
                        // Other changes that the server reports only affect pods that start later.
                        let lease = Lease { server: renewed.lease.server, ..record.lease };
                        record = LeaseRecord { lease, ..renewed };
                        if let Err(error) = records.write(&record).await {
                            tracing::warn!(%error, "failed to record renewed DHCP lease");
                        }
                        continue;
                    }
                    Ok(other) => {
                        let why = format!("the DHCP server offered another address: {}", other.lease.address);
                        return lose(&records, record, &netns, &why).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, owner = ?record.owner, "invalid answer of a DHCP server")
                    }
                }
            }
            Ok(DhcpAnswer::Refused(why)) => return lose(&records, record, &netns, &why).await,
            Ok(DhcpAnswer::Silence) => {
                tracing::debug!(owner = ?record.owner, ?stage, "no DHCP server answered")
            }
            Err(error) => tracing::warn!(%error, owner = ?record.owner, "failed to renew DHCP lease"),
        }
        if !expired {
            // Retries after half of the remaining time; shortly before the end, immediately.
            let again = (left / 2).max(MIN_INTERVAL).min(left).max(Duration::from_millis(100));
            sleep_until(sent + again).await;
        }
    }
}

async fn extend(
    record: &LeaseRecord,
    netns: &OwnedFd,
    server: Option<std::net::Ipv4Addr>,
    limit: Duration,
) -> Result<DhcpAnswer> {
    let channel = Channel::open(netns.as_fd(), &record.owner.interface).await?;
    let (id, options) = (record.owner.client_id(), record.request_options());
    let client = Client { id: &id, options: &options };
    client.extend(&channel, record.lease.address.addr(), server, limit).await
}

/// Handles the loss of a lease: the address may be given to another host.
async fn lose(records: &LeaseRecords, mut record: LeaseRecord, netns: &OwnedFd, why: &str) {
    tracing::error!(address = %record.lease.address, owner = ?record.owner, why, "DHCP lease lost: bringing its interface down");
    record.lost = Some(why.to_owned());
    if let Err(error) = records.write(&record).await {
        tracing::warn!(%error, "failed to record lost DHCP lease");
    }
    if let Err(error) = bring_down(netns, &record.owner.interface).await {
        tracing::error!(%error, owner = ?record.owner, "failed to bring down interface without a lease");
    }
}

async fn bring_down(netns: &OwnedFd, interface: &str) -> Result<()> {
    let links = netns::within(netns.as_fd(), Netlink::open).await?;
    links.cut_off(interface).await
}
