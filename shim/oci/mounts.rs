//! The mounts of a container: the kernel's filesystems, the pod's files, and the client's volumes.

use std::collections::BTreeMap;

use berth_proto::v1::{
    ContainerConfig, LinuxContainerSecurityContext, Mount as Volume, MountPropagation, NamespaceMode,
};
use berth_runtime::compile::{IMAGE_VOLUME, POD_FILE, POD_SHM};
use berth_runtime::plan::UserNamespace;
use oci_spec::runtime::Mount;

use super::{PodContext, PodFiles, Result, error, userns};

/// The files that the containers of a pod share, by their names in /etc.
pub const POD_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// The mount options that a client may set: flags that only restrict.
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// Returns the mounts in the order of mounting, and the propagation of the root that the volumes need.
pub(super) fn build(
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    security: &LinuxContainerSecurityContext,
    users: Option<&UserNamespace>,
) -> Result<(Vec<Mount>, Option<String>)> {
    // A later mount at the same path replaces an earlier one.
    let mut by_path: BTreeMap<(usize, String), Mount> = BTreeMap::new();
    let mut add = |mount: Mount| {
        let path = normal(&mount.destination().to_string_lossy());
        // A parent comes before the mounts inside it.
        by_path.insert((path.matches('/').count(), path), mount);
    };
    kernel_filesystems(security).into_iter().for_each(&mut add);
    pod_files(pod, security).into_iter().for_each(&mut add);
    for volume in &config.mounts {
        add(compile_volume(volume, users)?);
    }
    Ok((by_path.into_values().collect(), root_propagation(&config.mounts)))
}

/// Normalizes a path in a container: removes double and trailing slashes, `.` and `..`. This happens before links are
/// followed, as in runc (`filepath.Clean`), so that a path has one meaning everywhere. A relative path starts at the
/// root.
#[must_use]
pub fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

/// Returns the mounts that runc and containerd give every container. A privileged one may write to /sys and its
/// cgroup.
fn kernel_filesystems(security: &LinuxContainerSecurityContext) -> Vec<Mount> {
    let access = if security.privileged { "rw" } else { "ro" };
    let modes = security.namespace_options.clone().unwrap_or_default();
    let shm = if modes.ipc() == NamespaceMode::Node {
        mount("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate"])
    } else {
        mount("/dev/shm", "bind", POD_SHM, &[])
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        shm,
    ]
}

fn pod_files(pod: &PodContext<'_>, security: &LinuxContainerSecurityContext) -> Vec<Mount> {
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    POD_FILES
        .iter()
        .map(|name| {
            let target = format!("/etc/{name}");
            match pod.files {
                PodFiles::OfPause => mount(&target, "bind", &format!("{POD_FILE}{name}"), &["bind", access]),
                PodFiles::In(folder) => {
                    let source = folder.join(name);
                    mount(&target, "bind", &source.to_string_lossy(), &["rbind", "rprivate", access])
                }
            }
        })
        .collect()
}

fn compile_volume(volume: &Volume, users: Option<&UserNamespace>) -> Result<Mount> {
    let field = |name: &str| format!("mounts[{}].{name}", volume.container_path);
    let ids = userns::of_volume(field, &volume.uid_mappings, &volume.gid_mappings)?;
    if volume.image.is_some() {
        // The files keep the ids of the image, inside the pod's user namespace.
        return match ids {
            Some(ids) if users != Some(&ids) => {
                Err(error(field("uidMappings"), "differ from those of the pod"))
            }
            _ => image_volume(volume),
        };
    }
    let mut options = vec!["rbind", "berth:create"];
    options.push(match volume.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    });
    options.push(access(volume)?);
    options.extend(flags(volume)?);
    let mut mount = mount(&normal(&volume.container_path), "bind", &volume.host_path, &options);
    if let Some(ids) = ids {
        mount.set_uid_mappings(Some(userns::mappings(&ids.uids)?));
        mount.set_gid_mappings(Some(userns::mappings(&ids.gids)?));
    }
    Ok(mount)
}

/// Returns the read-only mount of an image. The image has been resolved before, and its tree is passed beside the
/// spec.
fn image_volume(volume: &Volume) -> Result<Mount> {
    let field = |name: &str| format!("mounts[{}].{name}", volume.container_path);
    if !volume.host_path.is_empty() {
        return Err(error(field("host_path"), "must be empty for an image volume"));
    }
    if !volume.readonly {
        return Err(error(field("readonly"), "must be set for an image volume"));
    }
    if volume.propagation() != MountPropagation::PropagationPrivate {
        return Err(error(field("propagation"), "must be private for an image volume"));
    }
    let image = volume.image.clone().unwrap_or_default();
    let mut source = format!("{IMAGE_VOLUME}{}", image.image);
    if !volume.image_sub_path.is_empty() {
        source = format!("{source}/{}", volume.image_sub_path.trim_matches('/'));
    }
    let mut options = vec!["rprivate", access(volume)?];
    options.extend(flags(volume)?);
    Ok(mount(&normal(&volume.container_path), "bind", &source, &options))
}

/// Returns the mount options of a client (CRI `Mount.mount_options`).
fn flags(volume: &Volume) -> Result<impl Iterator<Item = &str>> {
    let unknown = volume.mount_options.iter().find(|option| !MOUNT_OPTIONS.contains(&option.as_str()));
    match unknown {
        Some(option) => Err(error(
            format!("mounts[{}].mount_options", volume.container_path),
            format!("{option:?} is not one of {}", MOUNT_OPTIONS.join(", ")),
        )),
        None => Ok(volume.mount_options.iter().map(String::as_str)),
    }
}

/// Returns the access option. Read-only applies to the mount itself, or also to everything below it (CRI
/// `Mount.recursive_read_only`).
fn access(volume: &Volume) -> Result<&'static str> {
    let field = format!("mounts[{}].recursive_read_only", volume.container_path);
    match (volume.readonly, volume.recursive_read_only) {
        (true, true) if volume.propagation() != MountPropagation::PropagationPrivate => {
            Err(error(field, "requires the propagation PROPAGATION_PRIVATE"))
        }
        (true, true) => Ok("rro"),
        (false, true) => Err(error(field, "requires readonly")),
        (true, false) => Ok("ro"),
        (false, false) => Ok("rw"),
    }
}

/// Returns the propagation of the root. A volume that receives mounts of the host or sends mounts to it needs a root
/// that is not private.
fn root_propagation(volumes: &[Volume]) -> Option<String> {
    let strongest = volumes.iter().map(Volume::propagation).max_by_key(|propagation| i32::from(*propagation));
    Some(
        match strongest {
            Some(MountPropagation::PropagationBidirectional) => "rshared",
            Some(MountPropagation::PropagationHostToContainer) => "rslave",
            Some(MountPropagation::PropagationPrivate) | None => "rprivate",
        }
        .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn volume(container_path: &str) -> Volume {
        Volume {
            container_path: container_path.to_owned(),
            host_path: "/srv".to_owned(),
            ..Volume::default()
        }
    }

    fn compiled(volumes: Vec<Volume>) -> Result<Vec<Mount>> {
        let config = ContainerConfig { mounts: volumes, ..ContainerConfig::default() };
        let pod_config = Default::default();
        let pod = PodContext {
            id: "pod",
            config: &pod_config,
            pause_pid: 7,
            files: PodFiles::OfPause,
            runtime_handler: "",
        };
        Ok(build(&config, &pod, &Default::default(), None)?.0)
    }

    fn at<'m>(mounts: &'m [Mount], destination: &str) -> Vec<&'m Mount> {
        mounts.iter().filter(|mount| mount.destination() == Path::new(destination)).collect()
    }

    #[test]
    fn a_volume_replaces_a_default() {
        let mounts = compiled(vec![volume("/etc/hosts/"), volume("/dev//shm")]).unwrap();
        for place in ["/etc/hosts", "/dev/shm"] {
            let found = at(&mounts, place);
            assert_eq!(found.len(), 1, "{place}");
            assert_eq!(found[0].source().as_deref(), Some(Path::new("/srv")));
        }
        assert_eq!(at(&mounts, "/etc/resolv.conf").len(), 1);
    }

    #[test]
    fn paths_are_normalized_as_in_runc() {
        for (path, clean) in [
            ("/", "/"),
            ("", "/"),
            ("srv", "/srv"),
            ("//a///b/", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a/b/../../..", "/"),
            ("../etc", "/etc"),
            ("/a..b/...", "/a..b/..."),
        ] {
            assert_eq!(normal(path), clean, "{path}");
        }
        let mounts = compiled(vec![volume("/x/../dev/shm"), volume("/data/../data/./sub/")]).unwrap();
        assert_eq!(at(&mounts, "/dev/shm").len(), 1, "it replaces the default");
        assert_eq!(at(&mounts, "/data/sub").len(), 1);
    }

    #[test]
    fn parents_come_first() {
        let mounts = compiled(vec![volume("/data/sub/deep"), volume("/data")]).unwrap();
        let position = |path: &str| mounts.iter().position(|m| m.destination() == Path::new(path)).unwrap();
        assert!(position("/data") < position("/data/sub/deep"));
        assert!(position("/dev") < position("/dev/pts"));
        assert!(position("/sys") < position("/sys/fs/cgroup"));
    }

    #[test]
    fn read_only_has_two_kinds() {
        let with = |readonly, recursive_read_only, propagation: MountPropagation| {
            access(&Volume { readonly, recursive_read_only, propagation: propagation.into(), ..volume("/x") })
        };
        let private = MountPropagation::PropagationPrivate;
        assert_eq!(with(true, true, private).unwrap(), "rro");
        assert_eq!(with(true, false, private).unwrap(), "ro");
        assert!(with(false, true, private).is_err());
        assert!(with(true, true, MountPropagation::PropagationHostToContainer).is_err());
    }

    #[test]
    fn mount_options_are_an_allow_list() {
        let with = |option: &str| {
            compile_volume(&Volume { mount_options: vec![option.to_owned()], ..volume("/x") }, None)
        };
        assert!(with("noexec").unwrap().options().clone().unwrap().contains(&"noexec".to_owned()));
        assert!(with("suid").is_err());
    }
}
