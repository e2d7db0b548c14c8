//! Converts a CRI config into the input of the keeper: the root filesystem as a detached mount, the user from its
//! passwd, the OCI spec, the cgroup, and the plan with its descriptors. All of it can block, so it runs off the
//! request threads.
//!
//! * [`draft`](mod@draft): from the config to the spec; this file: from the spec to the plan

pub mod draft;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use berth_image::WritableLayer;
use berth_proto::v1::{ContainerConfig, NamespaceMode};
use berth_runtime::cgroup::CgroupPath;
use berth_runtime::compile::{self, FdList, PlanInput, PodNamespaces};
use berth_runtime::plan::{ContainerPlan, FdSlot, StdioPlan};
use berth_runtime::rootfs;
use berth_runtime::seccomp::Cache;
use oci_spec::runtime::Spec;

use super::hooks;
use super::log::LogFile;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::handlers::bundle::{self, BundleInput};
use crate::oci;
use crate::store::spec::CachedSpec;
use crate::store::{Container, Pod, Store};

pub use draft::{Draft, draft};

/// The text by which the kubelet recognizes this failure (k8s.io/cri-api/pkg/errors, `ErrImageVolumeMountFailed`).
pub(in crate::container) const IMAGE_VOLUME_FAILED: &str = "ImageVolumeMountFailed";

/// The plan of a container and its descriptors, which are sent to the keeper.
#[derive(Debug)]
pub struct Assembled {
    /// The steps of the first process.
    pub plan: ContainerPlan,
    /// The descriptors in the order of the plan's slots.
    pub descriptors: Vec<OwnedFd>,
    /// The time that an OCI runtime needs for the hooks of the creation.
    pub runtime_hooks: Duration,
}

impl Assembled {
    /// Adds the log file of the container.
    pub(in crate::container) fn add_log(&mut self, log: LogFile) {
        let slot = u32::try_from(self.descriptors.len()).unwrap_or(u32::MAX);
        self.descriptors.push(log.file);
        self.plan.stdio.log = Some(FdSlot(slot));
        self.plan.stdio.log_path = Some(log.path);
    }
}

/// Compiles the plan of a draft and creates the cgroup, which the caller removes on failure.
///
/// # Errors
/// The spec contains something impossible, or the host refuses.
pub fn build(
    filters: &Cache,
    cgroups: &Cgroups,
    store: &Store,
    pod: &Pod,
    container: &Container,
    layer: &WritableLayer,
    draft: Draft,
) -> Result<Assembled, CriError> {
    let resources = draft.limits();
    let Draft { spec, device_sources, config, rootfs, userns, mount_label, pause_pid } = draft;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = profile.map(|profile| filters.filter(profile)).transpose()?;
    let runtime = container.runtime();
    let whole = runtime.is_some().then(|| spec.clone());
    let CachedSpec { spec, filter } = container.spec.keep(spec, filter)?;
    let cgroup = container.with(|record| record.cgroup.clone());
    let cgroup = cgroups.create(&CgroupPath::from_recorded(&cgroup)?, &resources)?;

    let mut descriptors = FdList::default();
    let rootfs = descriptors.push(rootfs);
    let cgroup = descriptors.push_cgroup(cgroup);
    let userns = userns.as_ref().map(AsFd::as_fd);
    let trees = image_volumes(&config, layer, &mut descriptors, userns, mount_label.as_deref())?;
    make_root_for_hooks(&spec, container)?;
    let context = PlanInput {
        id: container.id.as_str(),
        bundle: container.folder(),
        pid_target: pid_target(store, pod, &config)?,
        pod: PodNamespaces { pause_pid },
        hierarchies: cgroups.hierarchies(),
        stdio: stdio_of(&config),
        rootfs,
        cgroup,
        directories: volumes(layer),
        users: compile::compile_users(&spec),
        trees,
        namespaces: open_namespaces(&spec, pause_pid, &mut descriptors)?,
        device_sources,
        mount_label,
        cgroup_namespace: compile::has_cgroup_namespace(&spec),
    };
    let mut plan = compile::compile_container(&spec, &context)?;
    if let (Some(runtime), Some(whole)) = (runtime, whole) {
        // The runtime runs the hooks and loads the filter.
        let hooks = plan.hooks.take();
        let runtime_hooks = hooks.map_or(Duration::ZERO, |hooks| hooks.longest(&hooks::OF_CREATE));
        let input = BundleInput {
            id: container.id.as_str(),
            folder: container.folder(),
            runtime: &runtime,
            cgroup: &container.with(|record| record.cgroup.clone()),
            pid_target: pid_of(store, context.pid_target.as_deref()),
            hooks: runtime_hooks.as_secs(),
        };
        plan.runtime = Some(bundle::write(&input, whole, &plan)?);
        return Ok(Assembled { plan, descriptors: descriptors.into_owned(), runtime_hooks });
    }
    plan.process.seccomp = filter.map(|filter| descriptors.push_filter(&filter)).transpose()?;
    let runtime_hooks = Duration::ZERO;
    Ok(Assembled { plan, descriptors: descriptors.into_owned(), runtime_hooks })
}

/// Returns the pid of a container's first process.
fn pid_of(store: &Store, container: Option<&str>) -> Option<i32> {
    store.container(container?).ok()?.state().pid()
}

/// Opens the namespaces that are not the pod's, which NRI plugins can set.
fn open_namespaces(
    spec: &Spec,
    pause_pid: i32,
    descriptors: &mut FdList,
) -> Result<BTreeMap<PathBuf, FdSlot>, CriError> {
    let of_pod = PathBuf::from(format!("/proc/{pause_pid}/ns"));
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let mut opened = BTreeMap::new();
    for path in namespaces.filter_map(|namespace| namespace.path().clone()) {
        if !path.starts_with(&of_pod) {
            let file = std::fs::File::open(&path)
                .map_err(|error| CriError::failed(format!("open namespace {}", path.display()), error))?;
            opened.insert(path, descriptors.push(file.into()));
        }
    }
    Ok(opened)
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

/// Creates the folder that the spec names as the root filesystem, which only hooks look for.
fn make_root_for_hooks(spec: &Spec, container: &Container) -> Result<(), CriError> {
    let Some(root) = spec.root().as_ref().filter(|_| spec.hooks().is_some()) else { return Ok(()) };
    let place = container.folder().join(root.path());
    std::fs::create_dir_all(&place)
        .map_err(|error| CriError::internal("create the root folder for hooks", error))
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
