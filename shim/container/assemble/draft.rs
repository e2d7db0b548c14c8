//! The draft of a container: its root filesystem, and its spec with everything that depends on the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use berth_image::WritableLayer;
use berth_proto::v1::{ContainerConfig, LinuxContainerResources};
use berth_runtime::plan::UserNamespace;
use berth_runtime::users;
use oci_spec::runtime::{LinuxNetDevice, LinuxResources, Spec};

use crate::cdi;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::devices;
use crate::error::CriError;
use crate::handlers::annotations;
use crate::hook_folders;
use crate::host::HostFacts;
use crate::lsm::apparmor::AppArmor;
use crate::lsm::selinux::{self, Labels, SeLinux};
use crate::oci::{self, Host, ImageContext, PodContext, User};
use crate::seccomp;
use crate::store::container::RecordedUser;
use crate::store::{Container, Pod};

/// A container before its plan is compiled.
#[derive(Debug)]
pub struct Draft {
    pub(in crate::container) spec: Spec,
    /// The paths of the host's device nodes, by their paths in the container.
    pub(in crate::container) device_sources: BTreeMap<String, String>,
    pub(super) config: ContainerConfig,
    pub(super) rootfs: OwnedFd,
    pub(super) userns: Option<OwnedFd>,
    pub(super) mount_label: Option<String>,
    pub(super) pause_pid: i32,
}

impl Draft {
    /// Returns the spec.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Returns the network devices of the host that the container requests, with their names in the pod, sorted.
    #[must_use]
    pub fn net_devices(&self) -> Vec<(String, String)> {
        let devices = self.spec.linux().iter().flat_map(|linux| linux.net_devices().iter().flatten());
        let name =
            |device: &LinuxNetDevice, host: &String| device.name().clone().unwrap_or_else(|| host.clone());
        let mut devices: Vec<_> = devices.map(|(host, device)| (host.clone(), name(device, host))).collect();
        devices.sort();
        devices
    }

    /// Returns the limits of the spec.
    #[must_use]
    pub fn limits(&self) -> LinuxResources {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.resources().clone()).unwrap_or_default()
    }
}

/// Mounts the root filesystem and translates the config to a spec.
///
/// # Errors
/// The config requests something impossible, or the host refuses.
pub fn draft(
    daemon: &Daemon,
    pod: &Pod,
    container: &Container,
    layer: &WritableLayer,
    pause_pid: i32,
) -> Result<Draft, CriError> {
    let config = container.with(|record| record.config.clone());
    let userns = prepare_userns(pod, layer)?;
    let labels = selinux_labels(&daemon.host.selinux, pod, &config)?;
    let mount_label = labels.as_ref().map(|labels| labels.mount.clone());
    let rootfs = daemon.roots.mount(layer, userns.as_ref().map(AsFd::as_fd), mount_label.as_deref())?;
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
        &daemon.cgroups.spec_path(cgroup, container.id.as_str())?,
    )?;
    if let Some(handler) = daemon.config.handlers.get(&record.runtime_handler) {
        annotations::add(&mut spec, &handler.annotations, &config.annotations, &record.config.annotations);
    }
    record_user_and_limits(container, &user, &limits_of(&config, &spec))?;
    confine(&daemon.host.apparmor, &config, labels.as_ref(), &mut spec)?;
    let cdi_devices = cdi::requested(&config)?;
    let mut device_sources = devices::sources(&config)?;
    device_sources.extend(cdi::inject(&mut spec, &cdi_devices, &daemon.config.cdi_spec_dirs)?);
    inject_hooks(&daemon.config.hooks_dirs, pod, &config, &mut spec)?;
    Ok(Draft { spec, device_sources, config, rootfs, userns, mount_label, pause_pid })
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
fn limits_of(config: &ContainerConfig, spec: &Spec) -> LinuxContainerResources {
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
    spec: &mut Spec,
) -> Result<(), CriError> {
    // A key of the pod takes precedence, as in CRI-O.
    let mut annotations = config.annotations.clone();
    annotations.extend(pod.with(|record| record.config.annotations.clone()));
    let has_bind_mounts = config.mounts.iter().any(|mount| !mount.host_path.is_empty());
    hook_folders::inject(spec, &annotations, has_bind_mounts, folders)
        .map_err(|why| CriError::failed("select the hooks of the container", why))
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
) -> Result<Spec, CriError> {
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
    spec: &mut Spec,
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
