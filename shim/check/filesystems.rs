//! Tries the mount API and overlayfs as a container's root filesystem needs them, in a mount namespace that ends with
//! its thread.

use std::os::fd::AsFd;

use berth_runtime::sys::mount::{self, FsContext};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::files::kernel_version;
use super::{Availability, HostFeature, in_thread, namespaces};

/// The mount point of the tmpfs in the namespace of the trial: a folder that every Linux has.
const PLACE: &str = "/proc";

pub(super) fn rows() -> Vec<HostFeature> {
    vec![
        HostFeature::tried("mount API", detached().map_err(|error| error.to_string())).required(),
        HostFeature::tried("overlayfs", in_thread(overlay)).required().fix("modprobe overlay"),
        idmapped(),
        read_only(),
    ]
}

/// Tries a detached mount (fsopen(2), fsmount(2)): it is in no namespace and ends with its descriptor.
fn detached() -> Result<String, berth_runtime::sys::Error> {
    FsContext::open("tmpfs")?.mount(0)?;
    Ok("detached mounts work".to_owned())
}

fn overlay() -> Result<String, String> {
    namespaces::make(CloneFlags::CLONE_NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| format!("make the mounts private: {errno}"))?;
    let layers = tmpfs().map_err(|error| error.to_string())?;
    for name in ["lower", "upper", "work"] {
        rustix::fs::mkdirat(&layers, name, Mode::RWXU)
            .map_err(|errno| format!("make folder {name}: {errno}"))?;
    }
    overlay_over().map_err(|error| error.to_string())?;
    Ok("with an upper folder".to_owned())
}

/// Mounts a tmpfs and attaches it: on older kernels overlayfs does not take folders of detached mounts.
fn tmpfs() -> Result<std::os::fd::OwnedFd, berth_runtime::sys::Error> {
    let tmpfs = FsContext::open("tmpfs")?.mount(0)?;
    mount::attach(tmpfs.as_fd(), mount::place(PLACE)?.as_fd())?;
    Ok(tmpfs)
}

fn overlay_over() -> Result<(), berth_runtime::sys::Error> {
    let overlay = FsContext::open("overlay")?;
    for (key, folder) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        overlay.set(key, Some(&format!("{PLACE}/{folder}")))?;
    }
    overlay.mount(0).map(drop)
}

/// Derives the answer from the kernel's version: overlayfs can be ID-mapped since 5.19, tmpfs since 6.3
/// (mount_setattr(2)).
fn idmapped() -> HostFeature {
    let (found, detail) = match kernel_version() {
        Some(version) if version >= (6, 3) => (Availability::Yes, "by kernel version, including tmpfs"),
        Some(version) if version >= (5, 19) => (Availability::Yes, "by kernel version, without tmpfs"),
        Some(_) => (Availability::No, "not supported for overlayfs by this kernel"),
        None => (Availability::Unknown, "kernel version unknown"),
    };
    HostFeature::new("idmapped mounts", found, detail).without("pods with a user namespace are refused")
}

/// Tries a recursive read-only mount on a detached clone of the root, which is in no namespace.
fn read_only() -> HostFeature {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let trial = rustix::fs::statat(CWD, "/", rustix::fs::AtFlags::empty())
        .map_err(|errno| errno.to_string())
        .and_then(|_| mount::clone_path("/", true).map_err(|error| error.to_string()))
        .and_then(|tree| {
            mount::set_attributes(tree.as_fd(), MOUNT_ATTR_RDONLY, 0, 0, true)
                .map_err(|error| error.to_string())
        });
    HostFeature::tried("recursive read-only mounts", trial.map(|()| "available".to_owned()))
        .without("mounts that request them are refused")
}
