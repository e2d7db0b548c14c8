//! The host as plugins see it: its links, and where things are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::dhcp::Dhcp;
use crate::ipam::host_local::Indexes;
use crate::netlink::Netlink;
use crate::nftables::Made;
use crate::nftables::conntrack::Forgetting;
use crate::plugins::bridge::Ready;

/// Where plugins keep things, and how long a program may take.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// What plugins must know again.
    pub(crate) state_dir: PathBuf,
    /// Addresses that are taken, a folder a network, in the form of the reference plugin host-local.
    pub(crate) data_dir: PathBuf,
    /// How long a program may take.
    pub(crate) patience: Duration,
}

/// One network namespace, which is the host's for the pods.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) links: Netlink,
    pub(crate) ready: Ready,
    pub(crate) made: Made,
    /// Connections that are being forgotten.
    pub(crate) forgetting: Forgetting,
    /// What is known of the files of addresses.
    pub(crate) addresses: Indexes,
    /// Only a daemon has it: somebody must be there to renew leases.
    pub(crate) dhcp: Option<Dhcp>,
    places: Places,
}

impl Host {
    /// The namespace of the calling thread.
    pub(crate) fn open(places: Places) -> Result<Self> {
        Ok(Self {
            links: Netlink::open()?,
            ready: Ready::default(),
            made: Made::default(),
            forgetting: Forgetting::default(),
            addresses: Indexes::default(),
            dhcp: None,
            places,
        })
    }

    /// The same for a daemon, which keeps leases of addresses.
    pub(crate) fn open_for_daemon(places: Places) -> Result<Self> {
        let dhcp = Dhcp::new(&places.state_dir.join("dhcp"))?;
        Ok(Self { dhcp: Some(dhcp), ready: Ready::watching()?, ..Self::open(places)? })
    }

    /// Where plugins keep what they must know again.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.places.state_dir
    }

    /// Where addresses are that are taken.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.places.data_dir
    }

    /// How long a program may take.
    pub(crate) fn patience(&self) -> Duration {
        self.places.patience
    }
}
