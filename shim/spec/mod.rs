//! From the CRI's words to an OCI runtime spec: pure translation, nothing of the host is touched here.
//!
//! * [`validate`]: what a request must look like before anything is done for it
//! * this file: a container's spec as a whole; [`sandbox`]: a pod's, for those who look
//! * [`process`]: command, environment, user, capabilities; [`mounts`], [`namespaces`], [`resources`], [`rlimits`],
//!   [`devices`]
//! * [`seccomp`]: system calls; [`pause`]: the security context of a pod
//! * [`signal`]: stop signals; [`dns`]: resolv.conf

mod annotations;
mod capabilities;
mod devices;
mod dns;
mod mounts;
mod namespaces;
pub mod pause;
mod process;
pub mod resources;
pub mod rlimits;
mod sandbox;
pub mod seccomp;
mod signal;
mod user;
pub mod userns;
pub mod validate;

use std::path::Path;

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxSeccomp, PosixRlimitType, Root, RootBuilder, Spec};

pub use annotations::classes;
pub use dns::resolv_conf;
pub use mounts::{POD_FILES, normal};
pub use namespaces::has_own_uts;
pub use process::{exec_process, score};
pub use sandbox::sandbox_spec;
pub use signal::{stop_signal, stop_signal_number};
pub use user::user_request;

/// A request that asks for what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct SpecError {
    /// The field of the request, as the CRI names it.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// An error about a field.
pub(crate) fn error(field: impl Into<String>, why: impl Into<String>) -> SpecError {
    SpecError { field: field.into(), why: why.into() }
}

pub(crate) type Result<T> = std::result::Result<T, SpecError>;

/// The pod that a container is made in.
#[derive(Clone, Copy, Debug)]
pub struct PodContext<'a> {
    /// Its id.
    pub id: &'a str,
    /// As the client gave it.
    pub config: &'a PodSandboxConfig,
    /// Its pause, in the host's process namespace.
    pub pause_pid: i32,
    /// Its hostname, hosts and resolv.conf.
    pub files: PodFiles<'a>,
    /// The handler it was run with.
    pub runtime_handler: &'a str,
}

/// Where the files of a pod are.
#[derive(Clone, Copy, Debug)]
pub enum PodFiles<'a> {
    /// With its pause.
    OfPause,
    /// In this folder of the host: of a pod that an older daemon has run.
    In(&'a Path),
}

/// The image of a container.
#[derive(Clone, Copy, Debug)]
pub struct ImageContext<'a> {
    /// Its config.
    pub config: &'a ImageConfig,
    /// As the client named it.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
}

/// The user of a container, looked up in its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: Option<String>,
}

/// What must be known of the host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// All its devices, for a privileged container.
    pub privileged_devices: Vec<LinuxDevice>,
    /// The devices that the container asks for, as they are on the host, by their requests.
    pub devices: Vec<Vec<LinuxDevice>>,
    /// Cgroups are version 2.
    pub cgroup_v2: bool,
    /// Scores below the daemon's own are raised to it instead of failing.
    pub restrict_oom_score_adj: bool,
    /// The newest capability that the kernel knows.
    pub last_cap: u8,
    /// The capabilities that the daemon has and so can hand on, as a mask; 0 is all.
    pub bounding: u64,
    /// The most that a container can be given of what; more than the daemon has only where that may raise limits.
    pub rlimit_ceilings: Vec<(PosixRlimitType, u64)>,
    /// How many signals may wait for the processes of a user.
    pub pending_signals: u64,
    /// Resource limits of every container, checked when the configuration was read.
    pub default_ulimits: Vec<String>,
    /// Devices belong to the user that the container asks to run as.
    pub device_ownership: bool,
    /// The seccomp profile of the host that the container asks for.
    pub seccomp_profile: Option<LinuxSeccomp>,
    /// The daemon's own score: without CAP_SYS_RESOURCE nothing can go below it.
    pub oom_score_adj_floor: i32,
    /// Its name.
    pub node_name: String,
}

/// The OCI spec of a container.
///
/// # Errors
/// The config asks for what cannot be; the field is named.
pub fn container_spec(
    container_id: &str,
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    image: &ImageContext<'_>,
    user: &User,
    host: &Host,
    cgroup_path: &str,
) -> Result<Spec> {
    let mut security = security(config);
    security.namespace_options = Some(namespaces::modes(&security, pod.config));
    if security.privileged && !allows_privileged(pod.config) {
        return Err(error("privileged", "is set: no privileged container allowed in sandbox"));
    }
    let mut spec = Spec::default();
    let mut root: Root = RootBuilder::default()
        .path("rootfs")
        .readonly(security.readonly_rootfs)
        .build()
        .map_err(|oci| error("config", oci.to_string()))?;
    root.set_path("rootfs".into());
    spec.set_root(Some(root));
    spec.set_process(Some(process::process(config, pod, image, user, host, &security)?));
    let userns = pods_users(pod, &security)?;
    let (mounts, propagation) = mounts::mounts(config, pod, &security, userns.as_ref())?;
    spec.set_mounts(Some(mounts));
    // The name is that of the UTS namespace, which is the pod's.
    spec.set_hostname(None);
    spec.set_annotations(Some(annotations::of_container(config, pod, image)));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces::of_container(&security, pod, userns.is_some(), host)));
    if let Some(userns) = &userns {
        linux.set_uid_mappings(Some(userns::mappings(&userns.uids)?));
        linux.set_gid_mappings(Some(userns::mappings(&userns.gids)?));
    }
    linux.set_resources(Some(resources::resources(config, &security, host)?));
    linux.set_cgroups_path(Some(cgroup_path.into()));
    linux.set_rootfs_propagation(propagation);
    linux.set_devices(Some(devices::nodes(config, &security, host)?));
    let (masked, readonly) = paths(&security);
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(readonly));
    linux.set_sysctl(None);
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().clone());
    linux.set_seccomp(seccomp::profile(&security, capabilities.as_ref(), host)?);
    spec.set_linux(Some(linux));
    tracing::trace!(container = container_id, "translated");
    Ok(spec)
}

/// Whether a pod may have privileged containers (CRI `LinuxSandboxSecurityContext.privileged`).
fn allows_privileged(pod: &PodSandboxConfig) -> bool {
    let security = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.is_some_and(|security| security.privileged)
}

/// The pod's user namespace, which its containers must ask for as well.
fn pods_users(
    pod: &PodContext<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Option<berth_runtime::plan::UserNamespace>> {
    let own = userns::wanted(&security.namespace_options.clone().unwrap_or_default())?;
    let pods = userns::wanted(&crate::store::pod::namespaces(pod.config))?;
    if own != pods {
        return Err(error("namespace_options.userns_options", "differ from those of the pod"));
    }
    Ok(pods)
}

/// The security context, with the CRI's zero values where it is missing.
#[must_use]
pub fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The container is to be privileged.
#[must_use]
pub fn is_privileged(config: &ContainerConfig) -> bool {
    security(config).privileged
}

/// What other runtimes hide beside what the client asks for: the power meter of a processor tells what others compute
/// (GHSA-7ww5).
const ALWAYS_MASKED: &str = "/sys/devices/virtual/powercap";

/// Masked and read-only paths, as the kubelet sends them; a privileged container has none.
fn paths(security: &LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    let mut masked = security.masked_paths.clone();
    // An empty list is a container that is to see everything (procMount: Unmasked).
    if !masked.is_empty() && !masked.iter().any(|path| path == ALWAYS_MASKED) {
        masked.push(ALWAYS_MASKED.to_owned());
    }
    (masked, security.readonly_paths.clone())
}
