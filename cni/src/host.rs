//! The host's network namespace as plugins see it: its links, and the folders of persistent state.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::addresses::Indexes;
use crate::bridges::Ready;
use crate::dhcp::Dhcp;
use crate::netlink::Netlink;
use crate::nftables::InstalledParts;
use crate::nftables::conntrack::Forgetting;
use crate::ongoing::Ongoing;

/// The folders of persistent state, and the time limit of programs.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The folder of the plugins' state.
    pub(crate) state_dir: PathBuf,
    /// The folder of allocated addresses: a folder per network, in the format of the reference plugin host-local.
    pub(crate) data_dir: PathBuf,
    /// The time limit of a program.
    pub(crate) patience: Duration,
}

/// A network namespace that is the host's from the pods' point of view.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) links: Netlink,
    pub(crate) ready: Ready,
    pub(crate) made: InstalledParts,
    /// Conntrack entries that are being removed.
    pub(crate) forgetting: Forgetting,
    /// Indexes of the address files.
    pub(crate) addresses: Indexes,
    /// The DHCP client. Only a daemon has one: leases must be renewed.
    pub(crate) dhcp: Option<Dhcp>,
    /// The plugin programs that run.
    pub(crate) ongoing: Ongoing,
    places: Places,
}

impl Host {
    /// Opens the namespace of the calling thread.
    pub(crate) fn open(places: Places) -> Result<Self> {
        Ok(Self {
            links: Netlink::open()?,
            ready: Ready::default(),
            made: InstalledParts::default(),
            forgetting: Forgetting::default(),
            addresses: Indexes::default(),
            dhcp: None,
            ongoing: Ongoing::default(),
            places,
        })
    }

    /// Opens the namespace for a daemon, which renews leases.
    pub(crate) fn open_for_daemon(places: Places) -> Result<Self> {
        let dhcp = Dhcp::new(&crate::dhcp::folder(&places.state_dir))?;
        Ok(Self { dhcp: Some(dhcp), ready: Ready::watching()?, ..Self::open(places)? })
    }

    /// The folder of the plugins' state.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.places.state_dir
    }

    /// The folder of allocated addresses.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.places.data_dir
    }

    /// The time limit of a program.
    pub(crate) fn patience(&self) -> Duration {
        self.places.patience
    }
}
