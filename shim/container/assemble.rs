//! Converts a CRI config into the input of the keeper: the root filesystem as a detached mount, the user from its
//! passwd, the OCI spec, the cgroup, and the plan with its descriptors. All of it can block, so it runs off the
//! request threads.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use berth_image::WritableLayer;
use berth_proto::v1::{ContainerConfig, LinuxContainerResources, NamespaceMode};
use berth_runtime::cgroup::CgroupPath;
use berth_runtime::compile::{self, FdList, PlanInput, PodNamespaces};
use berth_runtime::plan::{ContainerPlan, FdSlot, StdioPlan, UserNamespace};
use berth_runtime::{rootfs, users};

use super::log::LogFile;
use crate::cdi;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::devices;
use crate::error::CriError;
use crate::hook_folders;
use crate::host::HostFacts;
use crate::lsm::apparmor::AppArmor;
use crate::lsm::selinux::{self, Labels, SeLinux};
use crate::oci::{self, Host, ImageContext, PodContext, User};
use crate::seccomp;
use crate::store::container::RecordedUser;
use crate::store::spec::CachedSpec;
use crate::store::{Container, Pod, Store};

/// The text by which the kubelet recognizes this failure (k8s.io/cri-api/pkg/errors, `ErrImageVolumeMountFailed`).
pub(super) const IMAGE_VOLUME_FAILED: &str = "ImageVolumeMountFailed";

/// The plan of a container and its descriptors, which are sent to the keeper.
#[derive(Debug)]
pub struct Assembled {
    /// The steps of the first process.
    pub plan: ContainerPlan,
    /// The descriptors in the order of the plan's slots.
    pub descriptors: Vec<OwnedFd>,
}

impl Assembled {
    /// Adds the log file of the container.
    pub(super) fn add_log(&mut self, log: LogFile) {
        let slot = u32::try_from(self.descriptors.len()).unwrap_or(u32::MAX);
        self.descriptors.push(log.file);
        self.plan.stdio.log = Some(FdSlot(slot));
        self.plan.stdio.log_path = Some(log.path);
    }
}

/// Assembles a container and creates its cgroup, which the caller removes on failure.
///
/// # Errors
/// The config requests something impossible, or the host refuses.
pub fn build(
    daemon: &Daemon,
    pod: &Pod,
    container: &Container,
    layer: &WritableLayer,
    pause_pid: i32,
) -> Result<Assembled, CriError> {
    let config = container.with(|record| record.config.clone());
    let userns = prepare_userns(pod, layer)?;
    let userns = userns.as_ref().map(AsFd::as_fd);
    let labels = selinux_labels(&daemon.host.selinux, pod, &config)?;
    let label = labels.as_ref().map(|labels| labels.mount.as_str());
    let rootfs = rootfs::overlay(&layer.lower, Some(&layer.upper), Some(&layer.work), userns, label)?;
    let user = resolve_user(&config, layer, &rootfs)?;
    let host = host_of(&daemon.config, &daemon.host, daemon.cgroups.is_v2(), &config)?;
    let cgroup = container.with(|record| record.cgroup.clone());
    let record = pod.record();
    let folder = daemon.pods.folders.pod_state(&record.id);
    let pod_context = PodContext {
        id: record.id.as_str(),
        config: &record.config,
        pause_pid,
        files: record.files(&folder),
        runtime_handler: &record.runtime_handler,
    };
    let mut spec = container_spec(
        container.id.as_str(),
        &config,
        &pod_context,
        layer,
        &user,
        &host,
        &daemon.cgroups.spec_path(cgroup.clone(), container.id.as_str())?,
    )?;
    record_user_and_limits(container, &user, &limits_of(&config, &spec))?;
    confine(&daemon.host.apparmor, &config, labels.as_ref(), &mut spec)?;
    let cdi_devices = cdi::requested(&config)?;
    let mut device_sources = devices::sources(&config)?;
    device_sources.extend(cdi::inject(&mut spec, &cdi_devices, &daemon.config.cdi_spec_dirs)?);
    inject_hooks(&daemon.config.hooks_dirs, pod, &config, &mut spec)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(|profile| daemon.filters.filter(profile)).transpose()?;
    let CachedSpec { spec, filter } = container.spec.keep(spec, filter)?;
    let cgroup = daemon.cgroups.create(&CgroupPath::from_recorded(&cgroup)?, &resources)?;

    let mut descriptors = FdList::default();
    let rootfs = descriptors.push(rootfs);
    let cgroup = descriptors.push_cgroup(cgroup);
    let trees = image_volumes(&config, layer, &mut descriptors, userns, label)?;
    make_root_for_hooks(&spec, container)?;
    let context = PlanInput {
        id: container.id.as_str(),
        bundle: container.folder(),
        pid_target: pid_target(&daemon.pods.store, pod, &config)?,
        pod: PodNamespaces { pause_pid },
        hierarchies: daemon.cgroups.hierarchies(),
        stdio: stdio_of(&config),
        rootfs,
        cgroup,
        directories: volumes(layer),
        users: compile::compile_users(&spec),
        trees,
        namespaces: BTreeMap::new(),
        device_sources,
        mount_label: label.map(str::to_owned),
        cgroup_namespace: compile::has_cgroup_namespace(&spec),
    };
    let mut plan = compile::compile_container(&spec, &context)?;
    plan.process.seccomp = filter.map(|filter| descriptors.push_filter(&filter)).transpose()?;
    Ok(Assembled { plan, descriptors: descriptors.into_owned() })
}

/// Returns the standard streams, without a log: the log is on a disk that the client names. It is opened last, when no
/// other step waits.
fn stdio_of(config: &ContainerConfig) -> StdioPlan {
    StdioPlan {
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        log_path: None,
        log: None,
    }
}

/// Records the user and the limits of a container, for the status.
fn record_user_and_limits(
    container: &Container,
    user: &User,
    limits: &LinuxContainerResources,
) -> Result<(), CriError> {
    container.intend(|record| {
        record.user = RecordedUser { uid: user.uid, gid: user.gid, groups: user.groups.clone() };
        record.resources = Some(limits.clone());
    })?;
    Ok(())
}

/// Returns the limits in effect, for the status.
fn limits_of(config: &ContainerConfig, spec: &oci_spec::runtime::Spec) -> LinuxContainerResources {
    let requested =
        config.linux.as_ref().and_then(|linux| linux.resources.as_ref()).cloned().unwrap_or_default();
    let score = spec.process().as_ref().and_then(oci_spec::runtime::Process::oom_score_adj);
    oci::resources::applied(&requested, score.unwrap_or_default())
}

/// Adds the hooks of the hook folders that match the container.
fn inject_hooks(
    folders: &[PathBuf],
    pod: &Pod,
    config: &ContainerConfig,
    spec: &mut oci_spec::runtime::Spec,
) -> Result<(), CriError> {
    // A key of the pod takes precedence, as in CRI-O.
    let mut annotations = config.annotations.clone();
    annotations.extend(pod.with(|record| record.config.annotations.clone()));
    let has_bind_mounts = config.mounts.iter().any(|mount| !mount.host_path.is_empty());
    hook_folders::inject(spec, &annotations, has_bind_mounts, folders)
        .map_err(|why| CriError::failed("select the hooks of the container", why))
}

/// Creates the folder that the spec names as the root filesystem, which only hooks look for.
fn make_root_for_hooks(spec: &oci_spec::runtime::Spec, container: &Container) -> Result<(), CriError> {
    let Some(root) = spec.root().as_ref().filter(|_| spec.hooks().is_some()) else { return Ok(()) };
    let place = container.folder().join(root.path());
    std::fs::create_dir_all(&place)
        .map_err(|error| CriError::internal("create the root folder for hooks", error))
}

/// Returns the pod's user namespace, if it has one, and prepares the writable layer for it.
fn prepare_userns(pod: &Pod, layer: &WritableLayer) -> Result<Option<OwnedFd>, CriError> {
    let Some(users) = oci::userns::requested(&pod.namespaces())? else { return Ok(None) };
    let gone = || CriError::internal("map ids", "the pod's user namespace is gone");
    let userns = pod.userns().ok_or_else(gone)?;
    set_owner_of_upper(&users, layer)?;
    Ok(Some(userns))
}

/// Gives the root of the writable layer the owner that it has in the image, mapped by the pod's user namespace: files
/// that a container writes have the host's ids on disk.
fn set_owner_of_upper(users: &UserNamespace, layer: &WritableLayer) -> Result<(), CriError> {
    let failed = |error: std::io::Error| CriError::internal("change the owner of the writable layer", error);
    let Some(top) = layer.lower.first() else { return Ok(()) };
    let stat = std::fs::metadata(top).map_err(failed)?;
    let gids = UserNamespace { uids: users.gids.clone(), gids: Vec::new() };
    let (uid, gid) = (users.host_uid(stat.uid()), gids.host_uid(stat.gid()));
    std::os::unix::fs::chown(&layer.upper, uid, gid).map_err(failed)
}

fn resolve_user(config: &ContainerConfig, layer: &WritableLayer, rootfs: &OwnedFd) -> Result<User, CriError> {
    let request = oci::user_request(config, &layer.image.config)?;
    let user = users::resolve_user(rootfs.as_fd(), &request)?;
    Ok(User { uid: user.uid, gid: user.gid, groups: user.groups, home: user.home })
}

fn container_spec(
    id: &str,
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    layer: &WritableLayer,
    user: &User,
    host: &Host,
    cgroup: &str,
) -> Result<oci_spec::runtime::Spec, CriError> {
    let image_id = layer.image.id.to_string();
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let image = ImageContext { config: &layer.image.config, name, id: &image_id };
    Ok(oci::container_spec(id, config, pod, &image, user, host, cgroup)?)
}

/// Returns the properties of the host that the spec of a container depends on.
fn host_of(
    daemon_config: &Config,
    facts: &HostFacts,
    cgroup_v2: bool,
    config: &ContainerConfig,
) -> Result<Host, CriError> {
    Ok(Host {
        privileged_devices: if oci::is_privileged(config) { devices::all() } else { Vec::new() },
        devices: devices::requested(config)?,
        seccomp_profile: seccomp::requested(config)?,
        default_ulimits: daemon_config.default_ulimits.clone(),
        device_ownership: daemon_config.device_ownership_from_security_context,
        bounding: facts.capabilities,
        rlimit_ceilings: facts.rlimit_ceilings.clone(),
        pending_signals: facts.pending_signals,
        cgroup_v2,
        restrict_oom_score_adj: daemon_config.restrict_oom_score_adj,
        last_cap: facts.last_capability,
        oom_score_adj_floor: facts.oom_score_adj,
        node_name: crate::oci::node_name(),
    })
}

/// Returns the SELinux labels of a container, if the host has SELinux. Relabels the volumes that request it.
fn selinux_labels(
    selinux: &SeLinux,
    pod: &Pod,
    config: &ContainerConfig,
) -> Result<Option<Labels>, CriError> {
    let requested = oci::security(config).selinux_options;
    let labels = pod.with(|record| selinux.of_container(requested.as_ref(), record.selinux.as_ref()))?;
    if let Some(labels) = &labels {
        for mount in config.mounts.iter().filter(|mount| mount.selinux_relabel && !mount.host_path.is_empty())
        {
            selinux::relabel(Path::new(&mount.host_path), &labels.mount)?;
        }
    }
    Ok(labels)
}

/// Sets the AppArmor profile and the SELinux labels. A privileged container keeps the daemon's SELinux process label.
fn confine(
    apparmor: &AppArmor,
    config: &ContainerConfig,
    labels: Option<&Labels>,
    spec: &mut oci_spec::runtime::Spec,
) -> Result<(), CriError> {
    let security = oci::security(config);
    let profile = apparmor.profile(&security)?;
    if let Some(process) = spec.process_mut() {
        process.set_apparmor_profile(profile);
        process
            .set_selinux_label(labels.filter(|_| !security.privileged).map(|labels| labels.process.clone()));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(labels.map(|labels| labels.mount.clone()));
    }
    Ok(())
}

/// Returns the container that shares its PID namespace (CRI `NamespaceMode.TARGET`, for debug containers).
fn pid_target(store: &Store, pod: &Pod, config: &ContainerConfig) -> Result<Option<String>, CriError> {
    let options = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    if options.pid() != NamespaceMode::Target {
        return Ok(None);
    }
    let target = store.container(&options.target_id)?;
    if target.pod != pod.id {
        return Err(CriError::invalid("namespace_options.target_id", "is a container of another pod"));
    }
    Ok(Some(target.id.as_str().to_owned()))
}

/// Mounts the image volumes. Returns their slots by the paths in the container.
fn image_volumes(
    config: &ContainerConfig,
    layer: &WritableLayer,
    descriptors: &mut FdList,
    userns: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<BTreeMap<String, FdSlot>, CriError> {
    let mounts = config.mounts.iter().filter(|mount| mount.image.is_some());
    let mut trees = BTreeMap::new();
    for (mount, volume) in mounts.zip(&layer.volumes) {
        let tree =
            rootfs::image_volume(&volume.lower, &mount.image_sub_path, userns, label).map_err(|error| {
                let operation = format!("mount the image volume of mounts[{}]", mount.container_path);
                let path = &mount.image_sub_path;
                let why = format!("{IMAGE_VOLUME_FAILED}: {path:?} of image {}: {error}", volume.image.id);
                CriError::failed(operation, why)
            })?;
        trees.insert(oci::normal(&mount.container_path), descriptors.push(tree));
    }
    Ok(trees)
}

/// Returns the image's VOLUME paths. They become folders of the writable layer, as with CRI-O's `image_volumes =
/// "mkdir"`: nothing is copied out of the image (CVE-2022-23648).
fn volumes(layer: &WritableLayer) -> Vec<String> {
    layer.image.config.volumes.iter().map(|path| oci::normal(path)).collect()
}
