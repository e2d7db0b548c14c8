//! The host's device nodes, for privileged containers and those that ask for some by name.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use berth_proto::v1::{ContainerConfig, Device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::error::CriError;

/// Folders of /dev that a container has of its own.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "console"];

/// How deep /dev is searched: disks and inputs are at most four folders down.
const DEPTH: usize = 6;

/// Every character and block device below /dev but those that a container has of its own. What vanishes meanwhile is
/// passed over.
#[must_use]
pub fn all() -> Vec<LinuxDevice> {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), DEPTH, &mut devices);
    devices.sort_by(|a, b| a.path().cmp(b.path()));
    devices
}

/// The devices that a container asks for, by its requests, under the paths that they have in it. A link is followed; a
/// folder stands for the devices in it (as containerd treats `Device.host_path`).
///
/// # Errors
/// A path is neither a device nor a folder.
pub fn wanted(config: &ContainerConfig) -> Result<Vec<Vec<LinuxDevice>>, CriError> {
    let alone = |found: Vec<(LinuxDevice, PathBuf)>| found.into_iter().map(|(device, _)| device).collect();
    Ok(found(config)?.into_iter().map(alone).collect())
}

/// The host's nodes of these devices, by the paths in the container.
///
/// # Errors
/// As [`wanted`].
pub fn sources(config: &ContainerConfig) -> Result<BTreeMap<String, String>, CriError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let found = found(config)?;
    Ok(found.iter().flatten().map(|(device, source)| (text(device.path()), text(source))).collect())
}

/// Each device with its node on the host, by the requests.
fn found(config: &ContainerConfig) -> Result<Vec<Vec<(LinuxDevice, PathBuf)>>, CriError> {
    let one = |wanted: &Device| {
        let (source, target) = (Path::new(&wanted.host_path), Path::new(&wanted.container_path));
        let none =
            |why: String| CriError::invalid("devices.host_path", format!("{:?} {why}", wanted.host_path));
        let metadata = fs::metadata(source).map_err(|error| none(error.to_string()))?;
        if !metadata.is_dir() {
            let device = device(target, &metadata).ok_or_else(|| none("is no device".to_owned()))?;
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
    config.devices.iter().map(one).collect()
}

fn collect(folder: &Path, depth: usize, devices: &mut Vec<LinuxDevice>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let own = folder == Path::new("/dev") && entry.file_name().to_str().is_some_and(|n| OWN.contains(&n));
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
