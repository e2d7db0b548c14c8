//! The namespaces of a container, and the paths of the pod's namespaces.

use berth_proto::v1::{
    ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{Host, PodContext};

/// Returns a namespace of the pod's pause, as a path.
pub(super) fn of_pause(pause_pid: i32, kind: LinuxNamespaceType, file: &str) -> LinuxNamespace {
    let mut namespace = new(kind);
    namespace.set_path(Some(format!("/proc/{pause_pid}/ns/{file}").into()));
    namespace
}

/// Returns a new namespace.
pub(super) fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

/// Returns the namespace modes of a pod's config.
#[must_use]
pub fn pod_modes(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// Returns the name of the node, which a new UTS namespace inherits (uts_namespaces(7)).
#[must_use]
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Whether a pod has a separate UTS namespace. A pod in the host's network has the host's, unless it requests a
/// hostname.
#[must_use]
pub fn has_own_uts(pod: &PodSandboxConfig) -> bool {
    pod_modes(pod).network() != NamespaceMode::Node || !pod.hostname.is_empty()
}

/// Returns the modes of a container. The mode POD, which is also the default, means the host's namespace if the pod
/// shares that with the host.
pub(super) fn modes(security: &LinuxContainerSecurityContext, pod: &PodSandboxConfig) -> NamespaceOption {
    let of_pod = pod_modes(pod);
    let mut modes = security.namespace_options.clone().unwrap_or_default();
    let (node, shared) = (i32::from(NamespaceMode::Node), i32::from(NamespaceMode::Pod));
    for (own, pod_mode) in
        [(&mut modes.network, of_pod.network), (&mut modes.pid, of_pod.pid), (&mut modes.ipc, of_pod.ipc)]
    {
        if *own == shared && pod_mode == node {
            *own = node;
        }
    }
    modes
}

/// Returns the modes of a container by its config.
#[must_use]
pub fn container_modes(config: &ContainerConfig, pod: &PodSandboxConfig) -> NamespaceOption {
    modes(&super::security(config), pod)
}

/// Returns the namespaces that a container does not share with the host.
pub(super) fn of_container(
    security: &LinuxContainerSecurityContext,
    pod: &PodContext<'_>,
    users: bool,
    host: &Host,
) -> Vec<LinuxNamespace> {
    let modes = security.namespace_options.clone().unwrap_or_default();
    let mut namespaces = vec![new(LinuxNamespaceType::Mount)];
    // A privileged container manages the host's cgroups on v2, as with containerd and CRI-O.
    if !(security.privileged && host.cgroup_v2) {
        namespaces.push(new(LinuxNamespaceType::Cgroup));
    }
    if users {
        namespaces.push(of_pause(pod.pause_pid, LinuxNamespaceType::User, "user"));
    }
    match modes.pid() {
        NamespaceMode::Container => namespaces.push(new(LinuxNamespaceType::Pid)),
        NamespaceMode::Pod => namespaces.push(of_pause(pod.pause_pid, LinuxNamespaceType::Pid, "pid")),
        // The target is passed beside the spec: its pid could belong to another process when the namespace is joined.
        NamespaceMode::Node | NamespaceMode::Target => {}
    }
    if modes.ipc() != NamespaceMode::Node {
        namespaces.push(of_pause(pod.pause_pid, LinuxNamespaceType::Ipc, "ipc"));
    }
    let in_pods_network = modes.network() != NamespaceMode::Node;
    if in_pods_network {
        namespaces.push(of_pause(pod.pause_pid, LinuxNamespaceType::Network, "net"));
    }
    let host_network = pod_modes(pod.config).network() == NamespaceMode::Node;
    if in_pods_network || host_network && has_own_uts(pod.config) {
        namespaces.push(of_pause(pod.pause_pid, LinuxNamespaceType::Uts, "uts"));
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    use super::*;
    use crate::oci::PodFiles;

    fn pod(options: NamespaceOption, hostname: &str) -> PodSandboxConfig {
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        PodSandboxConfig { linux: Some(linux), hostname: hostname.to_owned(), ..Default::default() }
    }

    fn joined(
        security: &LinuxContainerSecurityContext,
        config: &PodSandboxConfig,
    ) -> Vec<LinuxNamespaceType> {
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(modes(security, config)),
            ..security.clone()
        };
        let files = PodFiles::OfPause;
        let pod = PodContext { id: "pod", config, pause_pid: 7, files, runtime_handler: "" };
        let all = of_container(&security, &pod, false, &Host::default());
        all.iter().filter(|namespace| namespace.path().is_some()).map(LinuxNamespace::typ).collect()
    }

    #[test]
    fn a_container_without_modes_shares_the_namespaces_of_its_pod() {
        use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
        let node = i32::from(NamespaceMode::Node);
        let host = NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
        let silent = LinuxContainerSecurityContext::default();
        assert_eq!(joined(&silent, &pod(host.clone(), "")), []);
        assert_eq!(joined(&silent, &pod(host.clone(), "name")), [Uts], "the requested hostname");
        assert_eq!(joined(&silent, &pod(NamespaceOption::default(), "")), [Pid, Ipc, Network, Uts]);
        let host_pids = NamespaceOption { pid: node, ..Default::default() };
        assert_eq!(joined(&silent, &pod(host_pids.clone(), "")), [Ipc, Network, Uts]);
        // A mode that a container requests is kept.
        let own = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
        let own = LinuxContainerSecurityContext { namespace_options: Some(own), ..Default::default() };
        assert_eq!(modes(&own, &pod(host_pids, "")).pid(), NamespaceMode::Container);
    }
}
