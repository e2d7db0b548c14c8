//! The persistent record of a lease. It is written before the address is used, and the next daemon resumes from it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::message::DhcpMessage;
use super::offer::{Lease, Times};
use super::request_options::RequestOptions;
use crate::files::{blocking, remove_temporary_files, replace};
use crate::{Context, Error, Result};

/// The owner of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LeaseOwner {
    /// The pod's id.
    pub(crate) container: String,
    /// The network's name.
    pub(crate) network: String,
    /// The interface in the pod.
    pub(crate) interface: String,
}

impl LeaseOwner {
    /// The client id that servers see. It equals that of the reference plugin, so a node that used that plugin keeps
    /// its addresses. The first byte marks it as not being a hardware address (RFC 2132, section 9.14).
    pub(super) fn client_id(&self) -> Vec<u8> {
        let text = format!("{}/{}/{}", self.container, self.network, self.interface);
        [0].into_iter().chain(text.into_bytes().into_iter().take(254)).collect()
    }

    fn file_name(&self) -> Result<String> {
        let parts = [&self.container, &self.network, &self.interface];
        let plain =
            |part: &&String| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0', '@']);
        match parts.iter().all(plain) {
            true => Ok(format!("{}@{}@{}.json", self.container, self.network, self.interface)),
            false => {
                Err(Error::Invalid(format!("invalid owner of a lease: {parts:?} contains an invalid name")))
            }
        }
    }
}

/// The record of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) owner: LeaseOwner,
    pub(super) lease: Lease,
    /// `None` for a lease that does not expire.
    pub(super) times: Option<Times>,
    /// When the lease was granted, since the epoch.
    pub(super) given: Duration,
    pub(super) provided: Vec<(u8, Vec<u8>)>,
    pub(super) requested: Vec<u8>,
    /// Why the lease was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lost: Option<String>,
}

/// The next step for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing to do for this time, or never.
    Bound(Option<Duration>),
    /// Request a renewal from its server; from any server after this time.
    Renewing(Duration),
    /// Request a renewal from any server; the lease expires after this time.
    Rebinding(Duration),
    Ended,
}

impl LeaseRecord {
    pub(super) fn new(owner: LeaseOwner, ack: &DhcpMessage, options: &RequestOptions) -> Result<Self> {
        let mut lease = Lease::of(ack).map_err(Error::Invalid)?;
        for route in &mut lease.routes {
            route.priority = options.priority;
        }
        Ok(Self {
            owner,
            lease,
            times: Times::of(ack),
            given: now(),
            provided: options.provided.clone().into_iter().collect(),
            requested: options.requested.clone(),
            lost: None,
        })
    }

    /// The options of the client's messages. The priority is not needed: the lease has its routes.
    pub(super) fn request_options(&self) -> RequestOptions {
        let provided = self.provided.iter().cloned().collect();
        RequestOptions { provided, requested: self.requested.clone(), priority: 0 }
    }

    /// Returns the stage at a time since the epoch.
    pub(super) fn stage(&self, now: Duration) -> Stage {
        let Some(times) = self.times else { return Stage::Bound(None) };
        // A clock that was set back must not extend a lease.
        let age = now.saturating_sub(self.given);
        let until = |time: Duration| time.checked_sub(age).filter(|left| !left.is_zero());
        if let Some(left) = until(times.renew) {
            return Stage::Bound(Some(left));
        }
        if let Some(left) = until(times.rebind) {
            return Stage::Renewing(left);
        }
        until(times.end).map_or(Stage::Ended, Stage::Rebinding)
    }
}

/// The time since the epoch. It continues during a suspend and across a restart.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The folder of records. Its disk may hang on a write: the threads that serve requests do not wait for it.
#[derive(Clone, Debug)]
pub(super) struct LeaseRecords {
    folder: PathBuf,
}

impl LeaseRecords {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).doing(format!("create {}", folder.display()))?;
        remove_temporary_files(folder);
        Ok(Self { folder: folder.to_owned() })
    }

    /// Returns the folder of records, which may be missing. Nothing is created.
    pub(super) fn existing(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Replaces a record atomically.
    pub(super) async fn write(&self, record: &LeaseRecord) -> Result<()> {
        let file = self.folder.join(record.owner.file_name()?);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from).doing("encode a lease")?;
        blocking(move || replace(&file, &text).doing(format!("write {}", file.display()))).await
    }

    /// Reads a record. Returns `None` if there is none or it is unreadable.
    pub(super) fn read(&self, owner: &LeaseOwner) -> Result<Option<LeaseRecord>> {
        let text = fs::read(self.folder.join(owner.file_name()?)).ok();
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Removes a record, if there is one.
    pub(super) async fn remove(&self, owner: &LeaseOwner) -> Result<()> {
        let file = self.folder.join(owner.file_name()?);
        blocking(move || match fs::remove_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing(format!("remove {}", file.display())),
        })
        .await
    }

    /// Returns all readable records.
    pub(super) fn all(&self) -> Vec<LeaseRecord> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        files.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str) -> LeaseOwner {
        LeaseOwner {
            container: container.to_owned(),
            network: "net".to_owned(),
            interface: "eth0".to_owned(),
        }
    }

    fn record(times: Option<[u64; 3]>) -> LeaseRecord {
        let lease = Lease {
            address: "10.0.0.2/24".parse().unwrap(),
            gateway: None,
            routes: Vec::new(),
            name_servers: Vec::new(),
            domain: None,
            mtu: None,
            server: [10, 0, 0, 1].into(),
        };
        let times = times.map(|times| times.map(Duration::from_secs));
        let times = times.map(|[renew, rebind, end]| Times { renew, rebind, end });
        let given = Duration::from_secs(1000);
        let (provided, requested) = (vec![(12, b"x".to_vec())], vec![1, 3]);
        LeaseRecord { owner: owner("a"), lease, times, given, provided, requested, lost: None }
    }

    #[test]
    fn a_lease_has_stages() {
        let record = record(Some([10, 20, 30]));
        let stage = |seconds: u64| record.stage(Duration::from_secs(seconds));
        let left = Duration::from_secs;
        assert_eq!(stage(900), Stage::Bound(Some(left(10))));
        assert_eq!(stage(1003), Stage::Bound(Some(left(7))));
        assert_eq!(stage(1010), Stage::Renewing(left(10)));
        assert_eq!(stage(1020), Stage::Rebinding(left(10)));
        assert_eq!(stage(1030), Stage::Ended);
        assert_eq!(self::record(None).stage(left(u64::MAX)), Stage::Bound(None));
    }

    #[tokio::test]
    async fn a_record_survives_a_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let records = LeaseRecords::open(folder.path()).unwrap();
        let mut record = record(Some([1, 2, 3]));
        records.write(&record).await.unwrap();
        record.lost = Some("the lease expired".to_owned());
        records.write(&record).await.unwrap();
        fs::write(folder.path().join("b@net@eth0.json"), "{").unwrap();
        assert_eq!(records.read(&owner("a")).unwrap(), Some(record.clone()));
        assert_eq!(records.read(&owner("b")).unwrap(), None);
        assert_eq!(records.all(), [record]);
        records.remove(&owner("a")).await.unwrap();
        records.remove(&owner("a")).await.unwrap();
        assert_eq!(records.all(), []);
        assert!(records.read(&owner("../a")).is_err());
    }

    #[test]
    fn a_client_id_equals_that_of_the_reference_plugin() {
        assert_eq!(owner("a").client_id(), b"\0a/net/eth0");
        assert_eq!(owner(&"a".repeat(300)).client_id().len(), 255);
    }
}
