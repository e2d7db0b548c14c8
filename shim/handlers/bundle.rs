//! The bundle of a container: a folder with the spec as its OCI runtime reads it. The runtime sees the root filesystem and the
//! mounts that come from outside of the container in this folder; they exist only in the mount namespace of the process
//! that calls it (`berth_runtime::init::runtime`).

use std::path::{Path, PathBuf};

use berth_runtime::init::runtime::MOUNTS;
use berth_runtime::plan::{ContainerPlan, MountKind, RuntimePlan};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, Mount, Spec};

use crate::error::CriError;
use crate::store::container::ContainerRuntime;
use crate::store::file;

/// The time limit in seconds of a call that creates or starts a process, without hooks. It ends before that of the call to the
/// keeper.
const CALL_SECONDS: u64 = 50;

/// The prefix of mount options that only berth's own runtime has.
const OWN_OPTION: &str = "berth:";

/// The input for a bundle in addition to the spec.
#[derive(Debug)]
pub struct BundleInput<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The folder of the container.
    pub folder: &'a Path,
    /// The program that reads the bundle, and its state folder.
    pub runtime: &'a ContainerRuntime,
    /// The path of the cgroup.
    pub cgroup: &'a str,
    /// The first process of the container whose PID namespace is shared.
    pub pid_target: Option<i32>,
    /// The time that hooks take, in seconds.
    pub hooks: u64,
}

/// Writes the bundle of a container. `plan` is compiled from the same spec.
///
/// # Errors
/// A file cannot be written.
pub fn write(input: &BundleInput<'_>, spec: Spec, plan: &ContainerPlan) -> Result<RuntimePlan, CriError> {
    let bundle = input.folder.join("bundle");
    let failed = |error| CriError::internal(format!("create {}", bundle.display()), error);
    file::make_private_folder(&bundle)?;
    std::fs::create_dir_all(&input.runtime.root).map_err(failed)?;
    let spec = for_runtime(spec, plan, &bundle, input);
    file::replace(&bundle.join("config.json"), &spec)?;
    Ok(RuntimePlan {
        program: text(&input.runtime.program),
        root: text(&input.runtime.root),
        id: input.id.to_owned(),
        // The persistent folder of the daemon: `containers` and the container's folder are below it.
        covered: text(input.folder.ancestors().nth(2).unwrap_or(input.folder)),
        bundle: text(&bundle),
        seconds: CALL_SECONDS.saturating_add(input.hooks),
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Returns the spec as an OCI runtime reads it: without what only berth's own runtime understands.
fn for_runtime(mut spec: Spec, plan: &ContainerPlan, bundle: &Path, input: &BundleInput<'_>) -> Spec {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let folder = bundle.join(MOUNTS);
    let mounts = mounts.into_iter().zip(&plan.mounts).enumerate();
    let mounts = mounts.map(|(index, (mount, op))| match op.kind {
        MountKind::Bind { .. } | MountKind::Tree { .. } | MountKind::PodShm | MountKind::PodFile { .. } => {
            from_outside(mount, folder.join(index.to_string()))
        }
        _ => mount,
    });
    spec.set_mounts(Some(mounts.collect()));
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(input.cgroup.into()));
        if let Some(mut resources) = linux.resources().clone() {
            resources.set_devices(resources.devices().clone().map(with_absent_wildcards));
            linux.set_resources(Some(resources));
        }
        // They have been moved to the pod's network namespace.
        linux.set_net_devices(None);
        if let Some(pid) = input.pid_target {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            let mut shared = LinuxNamespace::default();
            shared.set_typ(LinuxNamespaceType::Pid);
            shared.set_path(Some(format!("/proc/{pid}/ns/pid").into()));
            namespaces.push(shared);
            linux.set_namespaces(Some(namespaces));
        }
    }
    spec
}

/// Returns device rules in which a wildcard is an absent number: crun 1.8 does not accept -1.
fn with_absent_wildcards(mut rules: Vec<LinuxDeviceCgroup>) -> Vec<LinuxDeviceCgroup> {
    for rule in &mut rules {
        rule.set_major(rule.major().filter(|number| *number >= 0));
        rule.set_minor(rule.minor().filter(|number| *number >= 0));
    }
    rules
}

/// Returns a mount whose source is in the bundle, with the ids mapped already.
fn from_outside(mut mount: Mount, source: PathBuf) -> Mount {
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|option| !option.starts_with(OWN_OPTION));
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.insert(0, "rbind".to_owned());
    }
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source));
    mount.set_options(Some(options));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_destination("/data".into());
        mount.set_source(Some("/srv".into()));
        mount.set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
        mount
    }

    #[test]
    fn a_mount_from_outside_is_a_bind_mount_of_the_bundle() {
        for (options, expected) in [
            (&["rbind", "berth:create", "rprivate", "ro"][..], &["rbind", "rprivate", "ro"][..]),
            (&[], &["rbind"]),
            (&["rprivate", "ro"], &["rbind", "rprivate", "ro"]),
            (&["bind", "rw"], &["bind", "rw"]),
        ] {
            let mount = from_outside(bind(options), "/b/run/mounts/3".into());
            assert_eq!(mount.options().clone().unwrap(), expected);
            assert_eq!(mount.source().as_deref(), Some(Path::new("/b/run/mounts/3")));
            assert_eq!(mount.typ().as_deref(), Some("bind"));
        }
    }
}
