//! Translates CRI configs into OCI runtime specs. The translation is pure and does not access the host.
//!
//! * [`validate`]: checks of a request before anything is done for it
//! * this file: the spec of a container; [`sandbox`]: the spec of a pod, for display
//! * [`process`]: command, environment, user, capabilities; [`mounts`], [`namespaces`], [`resources`], [`rlimits`],
//!   [`devices`]
//! * [`seccomp`]: system calls; [`pause`]: the security context of a pod
//! * [`hooks`]: hooks of the runtime; [`signal`]: stop signals; [`dns`]: resolv.conf
//! * [`annotations`]: the annotations of containerd by which agents and hooks recognize containers
//! * [`capabilities`]: capability sets: a default, plus the capabilities that the client adds, minus those that it drops
//! * [`user`]: the requested user of a container, before it is resolved in the image
//! * [`userns`]: user namespaces

mod annotations;
mod capabilities;
mod devices;
mod dns;
pub mod hooks;
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
pub use namespaces::{container_modes, has_own_uts, node_name, pod_modes};
pub use process::{exec_process, score};
pub use sandbox::sandbox_spec;
pub use signal::{stop_signal, stop_signal_number};
pub use user::user_request;

use tonic::Code;

use crate::error::{CriError, subsystem};

/// An invalid request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {why}")]
pub struct SpecError {
    /// The field of the request, by its CRI name.
    pub field: String,
    /// The reason why it is invalid.
    pub why: String,
}

/// Creates an error about a field.
impl From<SpecError> for CriError {
    fn from(error: SpecError) -> Self {
        subsystem(Code::InvalidArgument, error)
    }
}

pub(crate) fn error(field: impl Into<String>, why: impl Into<String>) -> SpecError {
    SpecError { field: field.into(), why: why.into() }
}

pub(crate) type Result<T> = std::result::Result<T, SpecError>;

/// The pod of a container.
#[derive(Clone, Copy, Debug)]
pub struct PodContext<'a> {
    /// The id of the pod.
    pub id: &'a str,
    /// The config of the pod, as the client sent it.
    pub config: &'a PodSandboxConfig,
    /// The pid of the pause in the host's PID namespace.
    pub pause_pid: i32,
    /// The place of hostname, hosts and resolv.conf.
    pub files: PodFiles<'a>,
    /// The runtime handler of the pod.
    pub runtime_handler: &'a str,
}

/// The place of a pod's files.
#[derive(Clone, Copy, Debug)]
pub enum PodFiles<'a> {
    /// The pause holds them.
    OfPause,
    /// They are in this folder of the host: an older version of the daemon has run the pod.
    In(&'a Path),
}

/// The image of a container.
#[derive(Clone, Copy, Debug)]
pub struct ImageContext<'a> {
    /// The config of the image.
    pub config: &'a ImageConfig,
    /// The name of the image in the request.
    pub name: &'a str,
    /// The id of the image.
    pub id: &'a str,
}

/// The user of a container, resolved in its image.
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

/// The properties of the host that the translation needs.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// All devices of the host, for a privileged container.
    pub privileged_devices: Vec<LinuxDevice>,
    /// The host's devices for each device request of the container.
    pub devices: Vec<Vec<LinuxDevice>>,
    /// Whether cgroups are version 2.
    pub cgroup_v2: bool,
    /// Whether scores below the daemon's are raised to it, instead of failing.
    pub restrict_oom_score_adj: bool,
    /// The highest capability number of the kernel.
    pub last_cap: u8,
    /// The capabilities of the daemon as a mask: it can give only these to containers. 0 means all.
    pub bounding: u64,
    /// The highest rlimits of containers; empty if the daemon may raise limits.
    pub rlimit_ceilings: Vec<(PosixRlimitType, u64)>,
    /// The default of RLIMIT_SIGPENDING.
    pub pending_signals: u64,
    /// The configured resource limits of every container, already checked.
    pub default_ulimits: Vec<String>,
    /// Whether devices belong to the user that the container requests.
    pub device_ownership: bool,
    /// The host's seccomp profile that the container requests.
    pub seccomp_profile: Option<LinuxSeccomp>,
    /// The daemon's oom_score_adj: without CAP_SYS_RESOURCE no process gets a lower one.
    pub oom_score_adj_floor: i32,
    /// The name of the host.
    pub node_name: String,
}

/// Returns the OCI spec of a container.
///
/// # Errors
/// The config is invalid; the error names the field.
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
        return Err(error("privileged", "no privileged container allowed in sandbox"));
    }
    let mut spec = Spec::default();
    let mut root: Root = RootBuilder::default()
        .path("rootfs")
        .readonly(security.readonly_rootfs)
        .build()
        .map_err(|oci| error("config", oci.to_string()))?;
    root.set_path("rootfs".into());
    spec.set_root(Some(root));
    spec.set_process(Some(process::build(config, pod, image, user, host, &security)?));
    let userns = pod_user_namespace(pod, &security)?;
    let (mounts, propagation) = mounts::build(config, pod, &security, userns.as_ref())?;
    spec.set_mounts(Some(mounts));
    // The hostname is that of the pod's UTS namespace.
    spec.set_hostname(None);
    spec.set_annotations(Some(annotations::of_container(config, pod, image)));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces::of_container(&security, pod, userns.is_some(), host)));
    if let Some(userns) = &userns {
        linux.set_uid_mappings(Some(userns::mappings(&userns.uids)?));
        linux.set_gid_mappings(Some(userns::mappings(&userns.gids)?));
    }
    linux.set_resources(Some(resources::build(config, &security, host)?));
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
    tracing::trace!(container = container_id, "translated the config to a spec");
    Ok(spec)
}

/// Whether a pod may contain privileged containers (CRI `LinuxSandboxSecurityContext.privileged`).
fn allows_privileged(pod: &PodSandboxConfig) -> bool {
    let security = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.is_some_and(|security| security.privileged)
}

/// Returns the pod's user namespace. Its containers must request the same one.
fn pod_user_namespace(
    pod: &PodContext<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Option<berth_runtime::plan::UserNamespace>> {
    let requested = userns::requested(&security.namespace_options.clone().unwrap_or_default())?;
    let pods = userns::requested(&pod_modes(pod.config))?;
    if requested != pods {
        return Err(error("namespace_options.userns_options", "differ from those of the pod"));
    }
    Ok(pods)
}

/// Returns the security context of a container, with the CRI's zero values if it is missing.
#[must_use]
pub fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// Whether the container is privileged.
#[must_use]
pub fn is_privileged(config: &ContainerConfig) -> bool {
    security(config).privileged
}

/// A path that other runtimes mask in addition to the client's list: the power meter of a processor reveals the
/// computations of other programs (GHSA-7ww5).
const ALWAYS_MASKED: &str = "/sys/devices/virtual/powercap";

/// Returns the masked and the read-only paths that the kubelet sends; a privileged container has none.
fn paths(security: &LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    let mut masked = security.masked_paths.clone();
    // An empty list means that the container sees everything (procMount: Unmasked).
    if !masked.is_empty() && !masked.iter().any(|path| path == ALWAYS_MASKED) {
        masked.push(ALWAYS_MASKED.to_owned());
    }
    (masked, security.readonly_paths.clone())
}
