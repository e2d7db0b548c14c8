//! The spec of a pod for display (`crictl inspectp`). The pause is not created from it.

use std::path::PathBuf;

use berth_proto::v1::NamespaceMode;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process, Root, Spec, User};

use super::namespaces::pod_modes as modes_of;
use super::{PodContext, Result, annotations, namespaces, pause};

/// Returns the OCI spec of a pod.
///
/// # Errors
/// The config is invalid; RunPodSandbox has checked it before.
pub fn sandbox_spec(pod: &PodContext<'_>) -> Result<Spec> {
    let mut spec = Spec::default();
    spec.set_hostname(Some(pod.config.hostname.clone()).filter(|name| !name.is_empty()));
    spec.set_annotations(Some(annotations::of_sandbox(pod)));
    spec.set_mounts(None);
    let user = pause::user(pod.config)?;
    let mut process = Process::default();
    let mut oci_user = User::default();
    oci_user.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups));
    process
        .set_user(oci_user)
        .set_args(Some(vec!["berth-pause".to_owned()]))
        .set_env(None)
        .set_capabilities(None)
        .set_rlimits(None)
        .set_no_new_privileges(Some(true));
    spec.set_process(Some(process));
    // The root is read-only, whatever the client requests: nothing writes to it.
    let mut root = Root::default();
    root.set_readonly(Some(true));
    spec.set_root(Some(root));
    let mut linux = Linux::default();
    linux.set_namespaces(Some(of_pause(pod)));
    let requested = pod.config.linux.clone().unwrap_or_default();
    linux.set_sysctl(Some(requested.sysctls).filter(|sysctls| !sysctls.is_empty()));
    linux.set_cgroups_path(Some(PathBuf::from(requested.cgroup_parent).join(pod.id)));
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Returns the namespaces that the pause holds.
fn of_pause(pod: &PodContext<'_>) -> Vec<LinuxNamespace> {
    let modes = modes_of(pod.config);
    let own_uts = namespaces::has_own_uts(pod.config);
    let mut held = Vec::new();
    let mut hold = |kind, file| held.push(namespaces::of_pause(pod.pause_pid, kind, file));
    if modes.network() != NamespaceMode::Node {
        hold(LinuxNamespaceType::Network, "net");
    }
    if own_uts {
        hold(LinuxNamespaceType::Uts, "uts");
    }
    if modes.ipc() != NamespaceMode::Node {
        hold(LinuxNamespaceType::Ipc, "ipc");
    }
    if modes.pid() == NamespaceMode::Pod {
        hold(LinuxNamespaceType::Pid, "pid");
    }
    held
}
