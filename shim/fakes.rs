//! A daemon for unit tests: keepers, network, cgroups and root filesystems are fakes that note what is done to the host, and fail where
//! the test decides. It needs no root.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use berth_cni::PodAttach;
use berth_image::{ImageStore, WritableLayer};
use berth_proto::v1::{CgroupDriver, ContainerConfig, PodSandboxConfig};
use berth_runtime::cgroup::{CgroupPath, JoinFds};
use berth_runtime::client::{ClientError, Keeper, Programs};
use berth_runtime::wire::{Call, Failure, Outcome};
use oci_spec::runtime::LinuxResources;

use crate::cgroups::{CgroupManager, Cgroups};
use crate::config::Config;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::host::HostFacts;
use crate::ids::{ContainerId, PodId};
use crate::images;
use crate::instruments::Instruments;
use crate::keeper::KeeperLauncher;
use crate::keeper::fake::{FakeKeeper, Journal, Reaction};
use crate::network::{NetworkAttacher, PodNetwork};
use crate::pods::Pods;
use crate::root_mount::RootMounter;
use crate::store::container::RecordedUser;
use crate::store::pod::{FilesLocation, PodResources};
use crate::store::{Container, ContainerRecord, ContainerState, Pod, PodRecord, PodState};

/// The effects of a daemon on its host. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHost {
    pub(crate) journal: Journal,
    /// The effects that fail.
    failing: Arc<Mutex<BTreeSet<&'static str>>>,
    keepers: Arc<Mutex<Vec<FakeKeeper>>>,
    /// Events that happen at the same time as an effect.
    hooks: Arc<Mutex<Vec<(&'static str, Coincidence)>>>,
}

/// An event that happens at the same time as an effect.
struct Coincidence(Box<dyn Fn() + Send>);

impl fmt::Debug for Coincidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Coincidence")
    }
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

    /// Calls a function at each time of an effect.
    pub(crate) fn on(&self, effect: &'static str, call: impl Fn() + Send + 'static) {
        let coincidence = Coincidence(Box::new(call));
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push((effect, coincidence));
    }

    fn fails(&self, effect: &str) -> bool {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).contains(effect)
    }

    /// Notes an effect, which may fail.
    fn effect(&self, effect: &'static str) -> Result<(), String> {
        self.journal.add(effect);
        for (at, coincidence) in &*self.hooks.lock().unwrap_or_else(PoisonError::into_inner) {
            if *at == effect {
                coincidence.0();
            }
        }
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

impl RootMounter for FakeHost {
    fn mount(
        &self,
        layer: &WritableLayer,
        _: Option<BorrowedFd<'_>>,
        _: Option<&str>,
    ) -> Result<OwnedFd, CriError> {
        self.effect("mount root").map_err(|why| CriError::failed("mount the root filesystem", why))?;
        Ok(File::open(&layer.upper).unwrap().into())
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
            roots: Arc::new(host.clone()),
            filters: Arc::default(),
            sessions: Arc::default(),
            config,
        };
        let folders = &daemon.pods.folders;
        for folder in [folders.pods(), folders.containers(), folders.pods_state()] {
            fs::create_dir_all(folder).unwrap();
        }
        Self { daemon: Arc::new(daemon), host, _folder: folder }
    }

    /// Creates a pod and a container in it, with their folders. They are neither in the store nor on disk.
    pub(crate) fn objects(&self, pod: PodState, container: ContainerState) -> (Pod, Container) {
        let pods = &self.daemon.pods;
        let pod = self.pod_record(pod);
        let container = self.container_record(pod.id.clone(), container);
        let folder = pods.folders.container(&container.id);
        for folder in [&pods.folders.pod(&pod.id), &pods.folders.pod_state(&pod.id), &folder] {
            fs::create_dir_all(folder).unwrap();
        }
        let file = pods.folders.pod(&pod.id).join("pod.json");
        (Pod::new(pod, file, pods.records.clone()), Container::new(container, folder, pods.records.clone()))
    }

    fn pod_record(&self, state: PodState) -> PodRecord {
        PodRecord {
            id: PodId::random(),
            config: PodSandboxConfig::default(),
            runtime_handler: String::new(),
            created_at: 1,
            boot_id: self.daemon.host.boot_id.clone(),
            cgroup: "/berth-unit-test/pod".to_owned(),
            selinux: None,
            log_folder: None,
            resources: PodResources::default(),
            files: FilesLocation::Pause,
            restores: false,
            state,
        }
    }

    fn container_record(&self, pod: PodId, state: ContainerState) -> ContainerRecord {
        ContainerRecord {
            id: ContainerId::random(),
            pod,
            config: ContainerConfig::default(),
            image_id: String::new(),
            image_ref: String::new(),
            created_at: 1,
            boot_id: self.daemon.host.boot_id.clone(),
            log_path: None,
            cgroup: "/berth-unit-test/container".to_owned(),
            stop_signal: 15,
            user: RecordedUser::default(),
            resources: None,
            update_annotations: BTreeMap::new(),
            restores: false,
            runtime: None,
            image: None,
            state,
        }
    }

    /// Returns the names of the folders of pods and containers on disk.
    pub(crate) fn folders(&self) -> Vec<String> {
        let folders = &self.daemon.pods.folders;
        let names = |folder: std::path::PathBuf| crate::store::file::names_in(&folder).unwrap();
        [folders.pods(), folders.containers(), folders.pods_state()].into_iter().flat_map(names).collect()
    }
}
