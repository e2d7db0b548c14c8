//! The host's device nodes, for privileged containers and for containers that request devices by path.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use berth_proto::v1::{ContainerConfig, Device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::error::CriError;

/// The entries of /dev that each container has separately.
const PER_CONTAINER: [&str; 4] = ["pts", "shm", "mqueue", "console"];

/// The depth to which /dev is searched: disks and inputs are at most four folders down.
const DEPTH: usize = 6;

/// Returns every character and block device below /dev, except those that each container has separately. Entries that
/// disappear during the search are skipped.
#[must_use]
pub fn all() -> Vec<LinuxDevice> {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), DEPTH, &mut devices);
    devices.sort_by(|a, b| a.path().cmp(b.path()));
    devices
}

/// Returns the devices for each device request of a container, under their paths in the container. A link is
/// followed. A folder means all devices in it (as in containerd's handling of `Device.host_path`).
///
/// # Errors
/// A path is neither a device nor a folder.
pub fn requested(config: &ContainerConfig) -> Result<Vec<Vec<LinuxDevice>>, CriError> {
    let without_source =
        |devices: Vec<(LinuxDevice, PathBuf)>| devices.into_iter().map(|(device, _)| device).collect();
    Ok(with_sources(config)?.into_iter().map(without_source).collect())
}

/// Returns the host's device nodes, by the paths in the container.
///
/// # Errors
/// As [`requested`].
pub fn sources(config: &ContainerConfig) -> Result<BTreeMap<String, String>, CriError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let devices = with_sources(config)?;
    Ok(devices.iter().flatten().map(|(device, source)| (text(device.path()), text(source))).collect())
}

/// Returns the devices for each request, with their nodes on the host.
fn with_sources(config: &ContainerConfig) -> Result<Vec<Vec<(LinuxDevice, PathBuf)>>, CriError> {
    let resolve = |request: &Device| {
        let (source, target) = (Path::new(&request.host_path), Path::new(&request.container_path));
        let invalid =
            |why: String| CriError::invalid("devices.host_path", format!("{:?} {why}", request.host_path));
        let metadata = fs::metadata(source).map_err(|error| invalid(error.to_string()))?;
        if !metadata.is_dir() {
            let device = device(target, &metadata).ok_or_else(|| invalid("is not a device".to_owned()))?;
            return Ok(vec![(device, source.to_owned())]);
        }
        let mut inside = Vec::new();
        collect(source, DEPTH, &mut inside);
        let placed = |mut device: LinuxDevice| {
            let node = device.path().clone();
            device.set_path(target.join(node.strip_prefix(source).unwrap_or(Path::new(""))));
            (device, node)
        };
        Ok(inside.into_iter().map(placed).collect())
    };
    config.devices.iter().map(resolve).collect()
}

fn collect(folder: &Path, depth: usize, devices: &mut Vec<LinuxDevice>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let own = folder == Path::new("/dev")
            && entry.file_name().to_str().is_some_and(|n| PER_CONTAINER.contains(&n));
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if own {
            continue;
        }
        if metadata.is_dir() && depth > 0 {
            collect(&path, depth - 1, devices);
        }
        devices.extend(device(&path, &metadata));
    }
}

fn device(path: &Path, metadata: &fs::Metadata) -> Option<LinuxDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(i64::from(rustix::fs::major(metadata.rdev())))
        .minor(i64::from(rustix::fs::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .ok()
}
