//! Container Device Interface (CDI, github.com/cncf-tags/container-device-interface): vendors describe in files what a
//! container needs to use their devices, and a request names the device.
//!
//! * this file: finds a device in the folders of CDI files
//! * [`mod@file`]: the format of a file
//! * [`edits`]: the changes that a device makes to a container's OCI spec
//! * [`mod@file`]: the format of a vendor's CDI file

mod edits;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use berth_proto::v1::ContainerConfig;
use oci_spec::runtime::Spec;

use crate::error::CriError;
use file::{Edits, File};

/// The field of the request that contains device names.
const FIELD: &str = "CDI_devices";

/// The prefix of annotations that contain device names, separated by commas (CDI specification, "Requesting Devices").
/// Device plugins use them if their kubelet does not support the field.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Returns the devices that a container requests in the field and in annotations, each once.
///
/// # Errors
/// An annotation contains an invalid device name.
pub fn requested(config: &ContainerConfig) -> Result<Vec<String>, CriError> {
    let mut names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    let keys: BTreeSet<&String> =
        config.annotations.keys().filter(|key| key.starts_with(ANNOTATION)).collect();
    for key in keys {
        let value = config.annotations.get(key).map(String::as_str).unwrap_or_default();
        for name in value.split(',').map(str::trim) {
            if DeviceName::parse(name).is_none() {
                let field = format!("annotations[{key}]");
                return Err(CriError::invalid(field, format!("{name:?} is not a device name")));
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// The full name of a device: `vendor.com/class=name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceName {
    kind: String,
    device: String,
}

impl DeviceName {
    fn parse(text: &str) -> Option<Self> {
        let (kind, device) = text.split_once('=')?;
        (file::is_kind(kind) && file::is_device(device))
            .then(|| Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// The CDI files of all folders, those of the last folder first, and the errors of files that cannot be used.
#[derive(Debug, Default)]
struct Registry {
    files: Vec<(usize, PathBuf, File)>,
    broken: Vec<String>,
}

/// Applies the edits of the requested devices to a container's spec. Returns the host paths of their nodes, by the
/// paths in the container.
///
/// # Errors
/// A device is in no folder or in two files of one folder, or its edits are not supported.
pub fn inject(
    spec: &mut Spec,
    names: &[String],
    folders: &[PathBuf],
) -> Result<BTreeMap<String, String>, CriError> {
    let mut sources = BTreeMap::new();
    if names.is_empty() {
        return Ok(sources);
    }
    let registry = Registry::read(folders);
    let mut used: Vec<&Path> = Vec::new();
    let mut injected: Vec<DeviceName> = Vec::new();
    for text in names {
        let name = DeviceName::parse(text)
            .ok_or_else(|| CriError::invalid(FIELD, format!("{text:?} is not a device name")))?;
        if injected.contains(&name) {
            continue;
        }
        let (path, file, edits) = registry.find(&name, folders)?;
        // The edits that all devices of a file share are applied once, before the device's own.
        let common = (!used.contains(&path)).then_some(&file.edits);
        used.push(path);
        for edits in common.into_iter().chain([edits]) {
            let applied = edits::apply(spec, edits, &mut sources);
            applied.map_err(|why| {
                CriError::failed(format!("inject CDI device {name} of {}", path.display()), why)
            })?;
        }
        injected.push(name);
    }
    edits::sort_mounts(spec);
    Ok(sources)
}

/// Returns the errors of all CDI files that cannot be used.
#[must_use]
pub fn mistakes(folders: &[PathBuf]) -> Vec<String> {
    Registry::read(folders).broken
}

impl Registry {
    fn read(folders: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (priority, folder) in folders.iter().enumerate().rev() {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                match file::read(&path) {
                    Some(Ok(file)) => registry.files.push((priority, path, file)),
                    Some(Err(why)) => registry.broken.push(format!("{}: {why}", path.display())),
                    None => {}
                }
            }
        }
        for broken in &registry.broken {
            tracing::warn!(error = broken, "skipped an invalid CDI file");
        }
        registry
    }

    fn find(&self, name: &DeviceName, folders: &[PathBuf]) -> Result<(&Path, &File, &Edits), CriError> {
        let mut found = self.files.iter().filter_map(|(priority, path, file)| {
            let device = file.devices.iter().find(|device| device.name == name.device);
            device.filter(|_| file.kind == name.kind).map(|device| (priority, path, file, &device.edits))
        });
        let Some((priority, path, file, edits)) = found.next() else {
            let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let mut why = format!("{name} not found in {}", folders.join(", "));
            if !self.broken.is_empty() {
                why.push_str(&format!("; invalid files: {}", self.broken.join("; ")));
            }
            return Err(CriError::invalid(FIELD, why));
        };
        match found.next() {
            Some((other, second, ..)) if other == priority => Err(CriError::invalid(
                FIELD,
                format!("{name} is in two files: {}, {}", path.display(), second.display()),
            )),
            _ => Ok((path, file, edits)),
        }
    }
}

#[cfg(test)]
mod tests;
