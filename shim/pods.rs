//! The pods and containers of the daemon, the operations on them and the events about them. Everything here is also on
//! disk or in a keeper.

use std::sync::Arc;
use std::time::Duration;

use berth_cni::Network;

use crate::blocking::blocking;
use crate::config::Config;
use crate::error::CriError;
use crate::event::Events;
use crate::instruments::Instruments;
use crate::keeper::KeeperClient;
use crate::nri::adaptation::Adaptation;
use crate::nri_events::NriEvents;
use crate::operation::Operations;
use crate::store::{Container, Folders, RecordWriter, Store};

/// The pods and containers.
#[derive(Debug)]
pub struct Pods {
    /// The pods and containers by id and by name.
    pub store: Arc<Store>,
    /// Their folders on disk.
    pub folders: Folders,
    /// Writes records in the background.
    pub records: RecordWriter,
    /// The operations in flight.
    pub operations: Operations,
    /// The subscribers of container events.
    pub events: Events,
    /// The daemon's own metrics.
    pub instruments: Arc<Instruments>,
    /// The NRI plugins, which are called at events.
    pub nri: Arc<NriEvents>,
}

/// The time limit for writing the exits of containers.
const LAST_WRITES: Duration = Duration::from_secs(1);

impl Pods {
    /// Starts without pods; recovery loads them. The addresses in events come from `network`.
    ///
    /// # Errors
    /// The thread that writes records cannot be started.
    pub fn open(config: &Config, network: Network, instruments: Arc<Instruments>) -> Result<Self, CriError> {
        let store = Arc::new(Store::default());
        let records =
            RecordWriter::start().map_err(|error| CriError::internal("start the record writer", error))?;
        Ok(Self {
            nri: NriEvents::new(
                Adaptation::new(&config.nri, &config.nri_validator),
                store.clone(),
                network.clone(),
            ),
            events: Events::new(store.clone(), network),
            store,
            folders: Folders::new(&config.root, &config.state),
            records,
            operations: Operations::new(instruments.clone()),
            instruments,
        })
    }

    /// Returns the keeper of a container's pod; none if it has ended.
    ///
    /// # Errors
    /// The pod does not exist.
    pub fn keeper_of(&self, container: &Container) -> Result<Option<KeeperClient>, CriError> {
        Ok(self.store.pod(container.pod.as_str())?.link())
    }

    /// Writes the exits of containers to disk. Only the daemon and the keeper have them, so they are written before
    /// the keeper ends, unless the disk hangs.
    pub async fn write_exits(&self) {
        if self.records.pending() == 0 {
            return;
        }
        let records = self.records.clone();
        let written = blocking(move || Ok::<_, CriError>(records.flush(LAST_WRITES))).await;
        if !written.unwrap_or(false) {
            tracing::warn!("timed out writing the exits of containers; ending their keeper");
        }
    }
}
