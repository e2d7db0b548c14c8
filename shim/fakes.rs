//! A daemon for unit tests: keepers, network and cgroups are fakes that note what is done to the host, and fail where
//! the test decides. It needs no root.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use berth_cni::PodAttach;
use berth_image::ImageStore;
use berth_proto::v1::CgroupDriver;
use berth_runtime::cgroup::{CgroupPath, JoinFds};
use berth_runtime::client::{ClientError, Keeper, Programs};
use berth_runtime::wire::{Call, Failure, Outcome};
use oci_spec::runtime::LinuxResources;

use crate::cgroups::{CgroupManager, Cgroups};
use crate::config::Config;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::host::HostFacts;
use crate::ids::PodId;
use crate::images;
use crate::instruments::Instruments;
use crate::keeper::KeeperLauncher;
use crate::keeper::fake::{FakeKeeper, Journal, Reaction};
use crate::network::{NetworkAttacher, PodNetwork};
use crate::pods::Pods;

/// The effects of a daemon on its host. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHost {
    pub(crate) journal: Journal,
    /// The effects that fail.
    failing: Arc<Mutex<BTreeSet<&'static str>>>,
    keepers: Arc<Mutex<Vec<FakeKeeper>>>,
}

impl FakeHost {
    /// Lets an effect fail from now on: the name of a call of the keeper, or an entry of the journal.
    pub(crate) fn fail(&self, effect: &'static str) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).insert(effect);
    }

    /// Lets an effect succeed again.
    pub(crate) fn repair(&self, effect: &'static str) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).remove(effect);
    }

    fn fails(&self, effect: &str) -> bool {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).contains(effect)
    }

    /// Notes an effect, which may fail.
    fn effect(&self, effect: &'static str) -> Result<(), String> {
        self.journal.add(effect);
        if self.fails(effect) { Err(format!("no {effect} today")) } else { Ok(()) }
    }

    fn react(&self, call: &Call) -> Reaction {
        if self.fails(call.name()) {
            let action = format!("no {} today", call.name());
            return (Err(Failure::System { action, errno: 5 }), None);
        }
        let outcome = match call {
            Call::Sandbox(_) => Outcome::Sandbox { pid: 1 },
            Call::Create { .. } => Outcome::Created { pid: 1 },
            _ => Outcome::Done,
        };
        (Ok(outcome), None)
    }
}

impl CgroupManager for FakeHost {
    fn create(&self, _: &CgroupPath, _: &LinuxResources) -> Result<JoinFds, CriError> {
        self.effect("create cgroup").map_err(|why| CriError::failed("create the cgroup", why))?;
        Ok(JoinFds::default())
    }

    fn release(&self, _: &CgroupPath) -> Result<(), CriError> {
        self.effect("release cgroup").map_err(|why| CriError::failed("release the cgroup", why))
    }
}

#[tonic::async_trait]
impl NetworkAttacher for FakeHost {
    async fn attach(&self, _: PodAttach<'_>, _: Vec<(String, String)>) -> Result<(), CriError> {
        Ok(self.effect("attach").map_err(berth_cni::Error::NotReady)?)
    }

    async fn detach(&self, _: &str, _: Option<BorrowedFd<'_>>) -> Result<(), berth_cni::Error> {
        self.effect("detach").map_err(berth_cni::Error::NotReady)
    }
}

impl KeeperLauncher for FakeHost {
    fn launch(&self, _: &PodId, folder: &Path) -> Result<Keeper, ClientError> {
        self.effect("launch").map_err(|why| ClientError::Spawn(io::Error::other(why)))?;
        let host = self.clone();
        let (fake, keeper) = FakeKeeper::launch(folder, self.journal.clone(), move |call| host.react(call));
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).push(fake);
        Ok(keeper)
    }
}

/// A daemon in a private folder, with the effects that it has on its host.
#[derive(Debug)]
pub(crate) struct FakeNode {
    pub(crate) daemon: Shared,
    pub(crate) host: FakeHost,
    _folder: tempfile::TempDir,
}

impl FakeNode {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let config = Config {
            root: place("root"),
            state: place("state"),
            cni_conf_dir: place("net.d"),
            cni_data_dir: place("addresses"),
            signature_policy: place("policy.json"),
            ..Config::default()
        };
        let host = FakeHost::default();
        let instruments = Arc::new(Instruments::default());
        let network = PodNetwork::open(&config, instruments.clone()).unwrap().attached_by(host.clone());
        let programs = Arc::new(Programs::seal(b"", b"").unwrap());
        let cgroups = Cgroups::detect(CgroupDriver::Cgroupfs, &programs, folder.path()).unwrap();
        let daemon = Daemon {
            pods: Arc::new(Pods::open(&config, network.network.clone(), instruments).unwrap()),
            images: ImageStore::open(images::options(&config)).await.unwrap(),
            network: Arc::new(network),
            cgroups: cgroups.managed_by(host.clone()),
            host: HostFacts::detect().unwrap(),
            keepers: Arc::new(host.clone()),
            filters: Arc::default(),
            sessions: Arc::default(),
            config,
        };
        let folders = &daemon.pods.folders;
        for folder in [folders.pods(), folders.containers(), folders.pods_state()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        Self { daemon: Arc::new(daemon), host, _folder: folder }
    }

    /// Returns the names of the folders of pods and containers on disk.
    pub(crate) fn folders(&self) -> Vec<String> {
        let folders = &self.daemon.pods.folders;
        let names = |folder: std::path::PathBuf| crate::store::file::names_in(&folder).unwrap();
        [folders.pods(), folders.containers(), folders.pods_state()].into_iter().flat_map(names).collect()
    }
}
