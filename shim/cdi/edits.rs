//! The changes that a CDI device makes to a container's OCI spec (CDI specification, "Container edits").

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use berth_runtime::plan::HookKind;
use oci_spec::runtime::{
    Hook as OciHook, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount as OciMount, Process, Spec,
};

use super::file::{DeviceNode, Edits, Hook, Mount};
use crate::oci::{hooks, normal};

/// Applies the edits to `spec`. Adds the host paths of the device nodes to `sources`.
pub(super) fn apply(
    spec: &mut Spec,
    edits: &Edits,
    sources: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    refuse_unsupported(edits)?;
    if let Some(process) = spec.process_mut() {
        set_env(process, &edits.env);
        add_groups(process, &edits.additional_gids);
    }
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    for node in &edits.device_nodes {
        let linux = spec.linux_mut().as_mut().ok_or("the container has no linux section")?;
        add_node(linux, node, user.unwrap_or_default())?;
        let source = node.host_path.clone().unwrap_or_else(|| node.path.clone());
        sources.insert(node.path.clone(), source);
    }
    for mount in &edits.mounts {
        add_mount(spec, mount);
    }
    for hook in &edits.hooks {
        add_hook(spec, hook)?;
    }
    Ok(())
}

/// Refuses edits that are not supported, instead of ignoring them.
fn refuse_unsupported(edits: &Edits) -> Result<(), String> {
    if let Some(device) = edits.net_devices.first() {
        return Err(format!("network device {} is not supported", device.host_interface_name));
    }
    match edits.intel_rdt {
        Some(_) => Err("Intel RDT classes are not supported".to_owned()),
        None => Ok(()),
    }
}

/// Adds a hook to the spec.
fn add_hook(spec: &mut Spec, hook: &Hook) -> Result<(), String> {
    let mut added = OciHook::default();
    added
        .set_path(hook.path.clone().into())
        .set_args(Some(hook.args.clone()))
        .set_env(Some(hook.env.clone()))
        .set_timeout(hook.timeout);
    let kind = HookKind::from_name(&hook.hook_name)
        .ok_or_else(|| format!("invalid hook name {:?}", hook.hook_name))?;
    hooks::add(spec, kind, added);
    Ok(())
}

fn set_env(process: &mut Process, variables: &[String]) {
    let mut env = process.env().clone().unwrap_or_default();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in variables {
        env.retain(|existing| name(existing) != name(variable));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
}

fn add_groups(process: &mut Process, gids: &[u32]) {
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in gids.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

/// Adds a device node with its cgroup rule. Fields that the file omits are taken from the host's node; a user other
/// than root owns the node.
fn add_node(linux: &mut Linux, node: &DeviceNode, (uid, gid): (u32, u32)) -> Result<(), String> {
    let host_path = node.host_path.as_deref().unwrap_or(&node.path);
    let host_node = HostNode::at(host_path);
    let kind = match (&node.kind, &host_node) {
        (Some(kind), _) => kind_of(kind).ok_or_else(|| format!("invalid device type {kind:?}"))?,
        (None, Ok(host_node)) => host_node.kind,
        (None, Err(error)) => return Err(format!("device {host_path}: {error}")),
    };
    let number = |requested: Option<i64>, host: Result<i64, String>| match (requested, kind) {
        (Some(number), _) => Ok(number),
        (None, LinuxDeviceType::P) => Ok(0),
        (None, _) => host.map_err(|error| format!("device {host_path}: {error}")),
    };
    let requested_major = node.major.filter(|_| node.minor.is_some());
    let major = number(requested_major, host_node.as_ref().map(|node| node.major).map_err(Clone::clone))?;
    let minor = number(
        node.minor.filter(|_| requested_major.is_some()),
        host_node.as_ref().map(|node| node.minor).map_err(Clone::clone),
    )?;
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone().into())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(node.file_mode.or(host_node.ok().map(|host_node| host_node.mode)))
        .set_uid(node.uid.or(Some(uid).filter(|uid| *uid != 0)))
        .set_gid(node.gid.or(Some(gid).filter(|gid| *gid != 0)));
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|existing| existing.path() != device.path());
    devices.push(device);
    linux.set_devices(Some(devices));
    if matches!(kind, LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U) {
        add_rule(linux, kind, (major, minor), node.permissions.as_deref().unwrap_or("rwm"));
    }
    Ok(())
}

fn add_rule(linux: &mut Linux, kind: LinuxDeviceType, numbers: (i64, i64), access: &str) {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind))
        .set_major(Some(numbers.0))
        .set_minor(Some(numbers.1))
        .set_access(Some(access.to_owned()));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

fn kind_of(text: &str) -> Option<LinuxDeviceType> {
    Some(match text {
        "b" => LinuxDeviceType::B,
        "c" | "u" => LinuxDeviceType::C,
        "p" => LinuxDeviceType::P,
        _ => return None,
    })
}

/// A device node of the host.
struct HostNode {
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
}

impl HostNode {
    fn at(path: &str) -> Result<Self, String> {
        let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => LinuxDeviceType::C,
            kind if kind.is_block_device() => LinuxDeviceType::B,
            kind if kind.is_fifo() => LinuxDeviceType::P,
            _ => return Err("is not a device".to_owned()),
        };
        let device = metadata.rdev();
        Ok(Self {
            kind,
            major: i64::from(rustix::fs::major(device)),
            minor: i64::from(rustix::fs::minor(device)),
            mode: metadata.mode() & 0o7777,
        })
    }
}

fn add_mount(spec: &mut Spec, mount: &Mount) {
    let mut added = OciMount::default();
    let destination = normal(&mount.container_path);
    added
        .set_destination(destination.clone().into())
        .set_source(Some(mount.host_path.clone().into()))
        .set_typ(mount.kind.clone().filter(|kind| !kind.is_empty()))
        .set_options(Some(mount.options.clone()));
    if added.typ().is_none()
        && !mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
    {
        added.set_typ(Some("bind".to_owned()));
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|existing| existing.destination() != added.destination());
    mounts.push(added);
    spec.set_mounts(Some(mounts));
}

/// Sorts the mounts, so that a parent comes before the mounts inside it.
pub(super) fn sort_mounts(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}
