//! The spec of a bundle. Parts that would have no effect are rejected by name.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use serde_json::Value;

use crate::error::{At, Error, Result};

/// Parts of a spec that the runtime does not carry out, as JSON pointers.
const UNSUPPORTED: &[&str] = &[
    "/domainname",
    "/process/scheduler",
    "/process/execCPUAffinity",
    "/linux/personality",
    "/linux/intelRdt",
    "/linux/memoryPolicy",
    "/linux/netDevices",
    "/linux/resources/blockIO",
    "/linux/resources/network",
    "/linux/resources/rdma",
    "/linux/resources/memory/kernel",
    "/linux/resources/memory/kernelTCP",
    "/linux/resources/memory/swappiness",
    "/linux/resources/memory/disableOOMKiller",
    "/linux/resources/cpu/realtimeRuntime",
    "/linux/resources/cpu/realtimePeriod",
    "/linux/resources/cpu/burst",
    "/linux/resources/cpu/idle",
    "/process/ioPriority",
    "/vm",
];

/// Devices that every container may use (OCI runtime specification, "Default Devices"): type, major, minor, access. The
/// first two allow to create any node, and the last two are terminals.
const ALLOWED: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// A bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The absolute path.
    pub(crate) folder: PathBuf,
    /// The absolute path of the root filesystem.
    pub(crate) rootfs: PathBuf,
    pub(crate) spec: Spec,
    /// The spec as it was read.
    pub(crate) text: Vec<u8>,
}

impl Bundle {
    /// Reads the bundle in a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().at("find", folder)?;
        let path = folder.join("config.json");
        let text = fs::read(&path).at("read", &path)?;
        let json: Value = serde_json::from_slice(&text).at("read", &path)?;
        check(&json)?;
        let mut spec: Spec = serde_json::from_value(json).at("read", &path)?;
        let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
        let rootfs = folder.join(root.path());
        let rootfs = rootfs.canonicalize().at("find the root filesystem", &rootfs)?;
        resolve_sources(&mut spec, &folder);
        allow_default_devices(&mut spec);
        Ok(Self { folder, rootfs, spec, text })
    }
}

fn missing(field: &'static str) -> Error {
    Error::Invalid { field, why: "it is missing".to_owned() }
}

fn check(json: &Value) -> Result<()> {
    let version = json.pointer("/ociVersion").and_then(Value::as_str).ok_or_else(|| missing("ociVersion"))?;
    if !version.starts_with("1.") {
        let why = format!("version {version:?} is not supported");
        return Err(Error::Invalid { field: "ociVersion", why });
    }
    if let Some(field) = UNSUPPORTED.iter().find(|field| json.pointer(field).is_some_and(is_set)) {
        return Err(Error::Unsupported(field.trim_start_matches('/').replace('/', ".")));
    }
    let namespaces = json.pointer("/linux/namespaces").and_then(Value::as_array);
    for namespace in namespaces.into_iter().flatten() {
        let kind = namespace.get("type").and_then(Value::as_str).unwrap_or_default();
        let has_path = namespace.get("path").and_then(Value::as_str).is_some_and(|path| !path.is_empty());
        match (kind, has_path) {
            ("network" | "ipc" | "uts" | "pid" | "user" | "time", _) | ("mount" | "cgroup", false) => {}
            (kind, true) => {
                return Err(Error::Unsupported(format!("a namespace of type {kind} by its path")));
            }
            (kind, false) => return Err(Error::Unsupported(format!("a namespace of type {kind}"))),
        }
    }
    Ok(())
}

/// Whether a part of a spec requests something. Zero, false and empty parts do not.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => map.values().any(is_set),
    }
}

/// Makes the sources of bind mounts absolute: they are relative to the bundle (OCI runtime specification, "Mounts").
fn resolve_sources(spec: &mut Spec, folder: &Path) {
    let Some(mounts) = spec.mounts_mut() else { return };
    for mount in mounts {
        let binds = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let binds = binds || mount.typ().as_deref() == Some("bind");
        if let Some(source) = mount.source().clone().filter(|source| binds && source.is_relative()) {
            mount.set_source(Some(folder.join(source)));
        }
    }
}

/// Adds the default devices to rules for devices. Without rules, all devices are allowed.
fn allow_default_devices(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else { return };
    let Some(mut resources) = linux.resources().clone() else { return };
    let Some(mut rules) = resources.devices().clone().filter(|rules| !rules.is_empty()) else { return };
    for (kind, major, minor, access) in ALLOWED {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rules.push(rule);
    }
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_parts_are_named() {
        let base = |more: Value| {
            let mut json = serde_json::json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" } });
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check(&json).map_err(|error| error.to_string())
        };
        assert_eq!(base(serde_json::json!({})), Ok(()));
        assert_eq!(base(serde_json::json!({ "linux": { "intelRdt": null } })), Ok(()));
        let unset =
            serde_json::json!({ "blockIO": { "weight": 0 }, "memory": { "disableOOMKiller": false } });
        assert_eq!(base(serde_json::json!({ "linux": { "resources": unset } })), Ok(()));
        for (json, expected) in [
            (serde_json::json!({ "linux": { "resources": { "cpu": { "idle": 1 } } } }), "cpu.idle"),
            (serde_json::json!({ "ociVersion": "0.5.0" }), "0.5.0"),
            (serde_json::json!({ "linux": { "intelRdt": { "closID": "a" } } }), "linux.intelRdt"),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "other" }] } }),
                "a namespace of type other",
            ),
            (
                serde_json::json!({ "linux": { "namespaces": [{ "type": "mount", "path": "/x" }] } }),
                "by its path",
            ),
        ] {
            let error = base(json).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
