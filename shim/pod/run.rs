//! RunPodSandbox: records the intent, creates the cgroup, starts keeper and pause, attaches the network. Each step
//! pushes its undo.

use std::path::Path;
use std::sync::Arc;

use berth_cni::{PodAttach, sysctls};
use berth_proto::admin::{NodeEvent, NodeEventKind};
use berth_proto::v1::{NamespaceMode, PodSandboxConfig};
use berth_runtime::cgroup::{CgroupPath, JoinFds};
use berth_runtime::client::Placeholder;
use berth_runtime::compile::FdList;
use berth_runtime::plan::{CgroupJoin, NamespaceSource, PodFile, SandboxPlan};
use berth_runtime::seccomp::default::pause_profile;
use berth_runtime::wire::Call;
use std::os::fd::AsFd;
use tonic::Status;

use super::keeper::{self, Pause, pause_of};
use super::stopper::PodStopper;
use super::{files, follow, network};
use crate::blocking::blocking;
use crate::daemon::Shared;
use crate::descriptors;
use crate::error::CriError;
use crate::host::HostFacts;
use crate::host_files;
use crate::ids::PodId;
use crate::keeper::KeeperClient;
use crate::log_folders;
use crate::lsm::selinux::{Labels, SeLinux, level_of};
use crate::nri::adaptation::NriCreation;
use crate::oci::{has_own_uts, pause, validate};
use crate::operation::{OperationKey, Progress, RunPodStep};
use crate::seccomp;
use crate::store::Level;
use crate::store::pod::{FilesLocation, PodResources};
use crate::store::{Pod, PodName, PodRecord, PodState, Store, file};
use crate::systemd::{self, ShutdownOrder};
use crate::undo::UndoStack;

/// The score of the pause, which is killed last when memory is short (the kubelet's value for pod infrastructure).
const PAUSE_OOM_SCORE_ADJ: i32 = -998;

/// Starts a pod, or joins the call that is starting the same one. A pod that `restores` is only a part of what a call
/// creates: if the daemon is killed, the next one removes it.
///
/// # Errors
/// `InvalidArgument`, `AlreadyExists` with the holder's id, or the step that failed.
pub async fn run_pod_sandbox(
    daemon: &Shared,
    config: PodSandboxConfig,
    runtime_handler: String,
    restores: bool,
) -> Result<String, Status> {
    validate::pod(&config).map_err(CriError::from)?;
    seccomp::check_pod(&config, &daemon.filters)?;
    let handlers = &daemon.config.runtime_handlers;
    validate::runtime_handler(handlers, "runtime_handler", &runtime_handler).map_err(CriError::from)?;
    let permit = descriptors::reserve("run a pod sandbox")?;
    let name = PodName::from(&config.metadata.clone().unwrap_or_default());
    let daemon = daemon.clone();
    let key = OperationKey::RunPod(name.clone());
    let operations = daemon.pods.operations.clone();
    let span = tracing::Span::current();
    operations
        .join(key, move |progress| async move {
            let _permit = permit;
            if let Some(holder) = daemon.pods.store.pod_by_name(&name) {
                return Err(CriError::already_exists(format!("pod sandbox {name}"), holder.as_str()).into());
            }
            let id = PodId::random();
            let _creating = daemon.pods.store.begin_creating(id.clone());
            span.record("pod", id.as_str());
            progress.creates(id.as_str());
            let mut builder = PodBuilder::new(daemon, id, config, runtime_handler, progress);
            builder.restores = restores;
            builder.run().await.map_err(Status::from)
        })
        .await
}

struct PodBuilder {
    daemon: Shared,
    id: PodId,
    config: PodSandboxConfig,
    runtime_handler: String,
    restores: bool,
    progress: Progress,
    undo: UndoStack,
    nri: Option<NriCreation>,
}

impl PodBuilder {
    fn new(
        daemon: Shared,
        id: PodId,
        config: PodSandboxConfig,
        runtime_handler: String,
        progress: Progress,
    ) -> Self {
        let undo = UndoStack::default();
        Self { daemon, id, config, runtime_handler, restores: false, progress, undo, nri: None }
    }

    async fn run(mut self) -> Result<String, CriError> {
        match self.run_steps().await {
            Ok(pod) => {
                self.daemon.pods.store.insert_pod(pod.clone());
                self.nri = None;
                self.daemon.pods.events.pod(&pod, Level::Started);
                Ok(self.id.as_str().to_owned())
            }
            Err(error) => {
                self.daemon.pods.events.report(self.failure(NodeEventKind::PodFailed, &error));
                self.progress.step(RunPodStep::Undo);
                // A plugin that connects from now on does not get the pod.
                self.nri = None;
                match self.undo.run().await {
                    Ok(()) => Err(error),
                    Err(undo_errors) => Err(error.with_undo_errors(&undo_errors)),
                }
            }
        }
    }

    fn failure(&self, kind: NodeEventKind, error: &CriError) -> NodeEvent {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        NodeEvent {
            kind: kind.into(),
            pod_id: self.id.as_str().to_owned(),
            namespace: metadata.namespace,
            pod: metadata.name,
            message: error.to_string(),
            ..NodeEvent::default()
        }
    }

    async fn run_steps(&mut self) -> Result<Arc<Pod>, CriError> {
        let path = self.daemon.cgroups.path_of_pod(requested_parent(&self.config), self.id.as_str())?;
        let (pod, files) = self.write_intent(&path).await?;
        self.progress.step(RunPodStep::Cgroup);
        let (cgroup, placeholder) = self.make_cgroup(path).await?;
        self.progress.step(RunPodStep::Keeper);
        let link = self.start_keeper(&pod).await?;
        self.progress.step(RunPodStep::Pause);
        let pause = self.start_pause(&pod, files, &link, cgroup).await?;
        systemd::release(placeholder).await;
        let pause_pid = pause.pid;
        pod.set_netns(Some(pause.netns));
        pod.set_userns(pause.userns);
        self.progress.step(RunPodStep::Network);
        let attached = self.attach_network(&pod, pause_pid).await;
        attached.inspect_err(|error| {
            self.daemon.pods.events.report(self.failure(NodeEventKind::NetworkFailed, error));
        })?;
        self.progress.step(RunPodStep::Record);
        let ready = pod.clone();
        blocking(move || ready.intend(|record| record.state = record.state.ready(pause_pid))).await?;
        // An exit of pause or keeper after this point finds a ready pod, and stops it.
        self.call_nri(&pod).await?;
        match pod.is_lost() {
            true => Err(CriError::failed("run a pod sandbox", "its pause or its keeper has exited")),
            false => Ok(pod),
        }
    }

    /// Notifies NRI plugins of the pod. Clients do not see it yet.
    async fn call_nri(&mut self, pod: &Arc<Pod>) -> Result<(), CriError> {
        self.progress.step(RunPodStep::Plugins);
        let nri = self.daemon.pods.nri.clone();
        let creation = nri.plugins().begin(self.id.as_str());
        let announced = creation.is_announced();
        let creation = self.nri.insert(creation);
        if announced {
            let (nri, pod) = (nri.clone(), pod.clone());
            self.undo.push("notify NRI plugins", async move {
                nri.undo_pod(&pod).await;
                Ok(())
            });
        }
        nri.run_pod(creation, pod).await?;
        Ok(creation.check()?)
    }

    /// Writes the intent to disk, before its side effects.
    async fn write_intent(&mut self, cgroup: &CgroupPath) -> Result<(Arc<Pod>, Vec<PodFile>), CriError> {
        self.progress.step(RunPodStep::Intent);
        let log_folder = self.create_log_folder().await?;
        let record = PodRecord {
            id: self.id.clone(),
            config: self.config.clone(),
            runtime_handler: self.runtime_handler.clone(),
            created_at: crate::clock::now(),
            boot_id: self.daemon.host.boot_id.clone(),
            cgroup: cgroup.to_string(),
            selinux: selinux_labels(&self.daemon.pods.store, &self.daemon.host.selinux, &self.config)?,
            log_folder,
            resources: PodResources::default(),
            files: FilesLocation::Pause,
            restores: self.restores,
            state: PodState::Creating,
        };
        let folder = self.daemon.pods.folders.pod(&self.id);
        let state_folder = self.daemon.pods.folders.pod_state(&self.id);
        let pod = Arc::new(Pod::new(record, folder.join("pod.json"), self.daemon.pods.records.clone()));
        let (gone, gone_state, undone) = (folder.clone(), state_folder.clone(), pod.clone());
        self.undo.push("remove the pod's folders", async move {
            let remove = move || {
                // The end of the keeper may still change the state of the pod.
                undone.stop_writing_record();
                file::remove_folder(&gone_state).and_then(|()| file::remove_folder(&gone))
            };
            blocking(remove).await.map_err(|error| error.to_string())
        });
        let (config, written) = (self.config.clone(), pod.clone());
        let files = blocking(move || {
            file::make_private_folder(&folder)?;
            file::make_private_folder(&state_folder)?;
            written.intend(|_| {})?;
            files::of_pod(&config)
        })
        .await?;
        Ok((pod, files))
    }

    async fn create_log_folder(&mut self) -> Result<Option<String>, CriError> {
        let (folders, id) = (self.daemon.pods.folders.clone(), self.id.clone());
        let (undone, undo_id) = (folders.clone(), id.clone());
        self.undo.push("remove the log folder", async move {
            let undo = move || {
                log_folders::undo(&undone, &undo_id);
                Ok::<_, CriError>(())
            };
            blocking(undo).await.map_err(|error| error.to_string())
        });
        let create = move |path: &Path| log_folders::create(&folders, &id, path);
        host_files::create_log_folder_by(&self.config.log_directory, create).await
    }

    async fn make_cgroup(&mut self, path: CgroupPath) -> Result<(JoinFds, Option<Placeholder>), CriError> {
        let (cgroups, gone) = (self.daemon.cgroups.clone(), path.to_string());
        self.undo.push("remove the cgroup", async move {
            cgroups.release(gone).await.map_err(|error| error.to_string())
        });
        let cgroups = self.daemon.cgroups.clone();
        let placeholder = cgroups.start_scope(&path, &Default::default(), &ShutdownOrder::of_pod()).await?;
        let cgroup = blocking(move || cgroups.create(&path, &Default::default())).await?;
        Ok((cgroup, placeholder))
    }

    async fn start_keeper(&mut self, pod: &Arc<Pod>) -> Result<KeeperClient, CriError> {
        let (keepers, id) = (self.daemon.keepers.clone(), self.id.clone());
        let folder = self.daemon.pods.folders.pod_state(&self.id);
        let place = folder.clone();
        let keeper = blocking(move || keepers.launch(&id, &folder)).await?;
        let (link, news) =
            KeeperClient::start(keeper.connection, keeper.process, place).map_err(CriError::from)?;
        let stopping = link.clone();
        self.undo.push("end the keeper", async move { keeper::shut_down(&stopping).await });
        link.hello().await?;
        pod.set_link(Some(link.clone()));
        follow::start(&PodStopper::of(&self.daemon), pod, &link, news);
        Ok(link)
    }

    async fn start_pause(
        &mut self,
        pod: &Pod,
        files: Vec<PodFile>,
        link: &KeeperClient,
        cgroup: JoinFds,
    ) -> Result<Pause, CriError> {
        let mut descriptors = FdList::default();
        let selinux = pod.with(|record| record.selinux.clone());
        let shm_size = self.daemon.config.shm_size.bytes();
        let cgroup = descriptors.push_cgroup(cgroup);
        let mut plan = sandbox_plan(&self.config, &self.daemon.host, shm_size, cgroup, selinux)?;
        let filter = self.daemon.filters.filter(&pause_profile())?;
        plan.files = files;
        plan.seccomp = Some(descriptors.push_filter(&filter).map_err(CriError::from)?);
        let (outcome, descriptors) =
            link.call(Call::Sandbox(Box::new(plan)), descriptors.into_owned()).await?;
        pause_of(outcome, descriptors)
    }

    async fn attach_network(&mut self, pod: &Arc<Pod>, pause_pid: i32) -> Result<(), CriError> {
        if pod.host_network() {
            return Ok(());
        }
        let Some(netns) = pod.netns() else {
            return Err(CriError::internal("attach the network", "the pod's network namespace is gone"));
        };
        let metadata = self.config.metadata.clone().unwrap_or_default();
        let runtime = network::runtime_config(&self.config, &pod.with(|record| record.cgroup.clone()))?;
        let (undo_network, undo_id) = (self.daemon.network.clone(), self.id.clone());
        let undo_pod = pod.clone();
        self.undo.push("detach the network", async move {
            let netns = undo_pod.netns();
            let detached = undo_network.detach(undo_id.as_str(), netns.as_ref().map(AsFd::as_fd)).await;
            undo_pod.set_netns(None);
            detached.map_err(|error| error.to_string())
        });
        let attach = PodAttach {
            id: self.id.as_str(),
            netns: netns.as_fd(),
            netns_path: &format!("/proc/{pause_pid}/ns/net"),
            name: &metadata.name,
            namespace: &metadata.namespace,
            uid: &metadata.uid,
            runtime,
        };
        self.daemon.network.attach(attach, sysctls_of(&self.config, sysctls::is_of_interface)).await
    }
}

/// Returns the labels of a pod on a host with SELinux, with a level that no other pod has.
fn selinux_labels(
    store: &Store,
    selinux: &SeLinux,
    config: &PodSandboxConfig,
) -> Result<Option<Labels>, CriError> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let pods = store.pods();
    let used = pods.iter().filter_map(|pod| pod.with(|record| record.selinux.as_ref().and_then(level_of)));
    selinux.of_pod(security.and_then(|security| security.selinux_options.as_ref()), &used.collect())
}

/// Returns the requested parent of the pod's cgroup.
fn requested_parent(config: &PodSandboxConfig) -> Option<&str> {
    config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).filter(|name| !name.is_empty())
}

/// Returns the sysctls of a pod with matching names, sorted.
fn sysctls_of(config: &PodSandboxConfig, matches: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let all = config.linux.iter().flat_map(|linux| &linux.sysctls);
    let mut sysctls: Vec<_> =
        all.filter(|(name, _)| matches(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    sysctls.sort();
    sysctls
}

fn sandbox_plan(
    config: &PodSandboxConfig,
    host: &HostFacts,
    shm_size: u64,
    cgroup: CgroupJoin,
    selinux: Option<Labels>,
) -> Result<SandboxPlan, CriError> {
    let modes = crate::oci::pod_modes(config);
    let source = |mode: NamespaceMode| match mode {
        NamespaceMode::Node => NamespaceSource::Host,
        _ => NamespaceSource::New,
    };
    let net = source(modes.network());
    let ipc = source(modes.ipc());
    let uts = if has_own_uts(config) { NamespaceSource::New } else { NamespaceSource::Host };
    let user = pause::user(config)?;
    let sysctls = sysctls_of(config, |name| !sysctls::is_of_interface(name));
    Ok(SandboxPlan {
        net,
        userns: crate::oci::userns::requested(&modes)?,
        ipc,
        uts,
        pid: if modes.pid() == NamespaceMode::Pod { NamespaceSource::New } else { NamespaceSource::Host },
        hostname: (uts == NamespaceSource::New && !config.hostname.is_empty())
            .then(|| config.hostname.clone()),
        sysctls,
        shm_size: (ipc == NamespaceSource::New).then_some(shm_size),
        cgroup,
        seccomp: None,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        apparmor: host.apparmor.of_pause(&pause::security(config))?,
        selinux: selinux.as_ref().map(|labels| labels.process.clone()),
        mount_label: selinux.map(|labels| labels.mount),
        files: Vec::new(),
        oom_score_adj: Some(PAUSE_OOM_SCORE_ADJ.max(host.oom_score_adj)),
    })
}
