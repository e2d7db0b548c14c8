//! The namespaces of a container, and the paths by which those of the pod are named.

use berth_proto::v1::{LinuxContainerSecurityContext, NamespaceMode};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{Host, PodContext};

/// A namespace of the pod's pause, as a path.
pub(super) fn pods(pause_pid: i32, kind: LinuxNamespaceType, file: &str) -> LinuxNamespace {
    let mut namespace = new(kind);
    namespace.set_path(Some(format!("/proc/{pause_pid}/ns/{file}").into()));
    namespace
}

/// A new namespace.
pub(super) fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

/// The namespaces that a container does not share with the host.
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
        namespaces.push(pods(pod.pause_pid, LinuxNamespaceType::User, "user"));
    }
    match modes.pid() {
        NamespaceMode::Container => namespaces.push(new(LinuxNamespaceType::Pid)),
        NamespaceMode::Pod => namespaces.push(pods(pod.pause_pid, LinuxNamespaceType::Pid, "pid")),
        // That of the target is named beside the spec: by the time it is joined its pid could be another's.
        NamespaceMode::Node | NamespaceMode::Target => {}
    }
    if modes.ipc() != NamespaceMode::Node {
        namespaces.push(pods(pod.pause_pid, LinuxNamespaceType::Ipc, "ipc"));
    }
    if modes.network() != NamespaceMode::Node {
        namespaces.push(pods(pod.pause_pid, LinuxNamespaceType::Network, "net"));
        namespaces.push(pods(pod.pause_pid, LinuxNamespaceType::Uts, "uts"));
    }
    namespaces
}
