//! What a device changes of a container's OCI spec (CDI specification, "Container edits").

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use oci_spec::runtime::{
    Hook as OciHook, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount as OciMount, Process, Spec,
};

use super::file::{Edits, Hook, Mount, Node};
use crate::spec::normal;

/// Makes the changes. `sources` grows by the host's paths of the nodes.
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

/// What would have no effect is refused, never passed over.
fn refuse_unsupported(edits: &Edits) -> Result<(), String> {
    if let Some(device) = edits.net_devices.first() {
        return Err(format!("the network device {} is not supported", device.host_interface_name));
    }
    match edits.intel_rdt {
        Some(_) => Err("classes of Intel RDT are not supported".to_owned()),
        None => Ok(()),
    }
}

/// Which hooks are run is for the compiler of the spec to say: it names those that are not.
fn add_hook(spec: &mut Spec, hook: &Hook) -> Result<(), String> {
    let mut added = OciHook::default();
    added
        .set_path(hook.path.clone().into())
        .set_args(Some(hook.args.clone()))
        .set_env(Some(hook.env.clone()))
        .set_timeout(hook.timeout);
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let with = |known: &Option<Vec<OciHook>>| {
        Some(known.iter().flatten().cloned().chain([added.clone()]).collect::<Vec<_>>())
    };
    match hook.hook_name.as_str() {
        "createRuntime" | "prestart" => hooks.set_create_runtime(with(hooks.create_runtime())),
        "createContainer" => hooks.set_create_container(with(hooks.create_container())),
        "startContainer" => hooks.set_start_container(with(hooks.start_container())),
        "poststart" => hooks.set_poststart(with(hooks.poststart())),
        "poststop" => hooks.set_poststop(with(hooks.poststop())),
        name => return Err(format!("{name:?} is no hook")),
    };
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn set_env(process: &mut Process, variables: &[String]) {
    let mut env = process.env().clone().unwrap_or_default();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in variables {
        env.retain(|known| name(known) != name(variable));
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

/// A node with its rule: what the file does not say is as on the host; a user other than root owns the node.
fn add_node(linux: &mut Linux, node: &Node, (uid, gid): (u32, u32)) -> Result<(), String> {
    let host_path = node.host_path.as_deref().unwrap_or(&node.path);
    let found = Found::at(host_path);
    let kind = match (&node.kind, &found) {
        (Some(kind), _) => kind_of(kind).ok_or_else(|| format!("{kind:?} is no type of a device"))?,
        (None, Ok(found)) => found.kind,
        (None, Err(error)) => return Err(format!("device {host_path}: {error}")),
    };
    let number = |said: Option<i64>, found: Result<i64, String>| match (said, kind) {
        (Some(number), _) => Ok(number),
        (None, LinuxDeviceType::P) => Ok(0),
        (None, _) => found.map_err(|error| format!("device {host_path}: {error}")),
    };
    let said = node.major.filter(|_| node.minor.is_some());
    let major = number(said, found.as_ref().map(|found| found.major).map_err(Clone::clone))?;
    let minor = number(
        node.minor.filter(|_| said.is_some()),
        found.as_ref().map(|found| found.minor).map_err(Clone::clone),
    )?;
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone().into())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(node.file_mode.or(found.ok().map(|found| found.mode)))
        .set_uid(node.uid.or(Some(uid).filter(|uid| *uid != 0)))
        .set_gid(node.gid.or(Some(gid).filter(|gid| *gid != 0)));
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| known.path() != device.path());
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

/// A node of the host.
struct Found {
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
}

impl Found {
    fn at(path: &str) -> Result<Self, String> {
        let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => LinuxDeviceType::C,
            kind if kind.is_block_device() => LinuxDeviceType::B,
            kind if kind.is_fifo() => LinuxDeviceType::P,
            _ => return Err("is no device".to_owned()),
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
    mounts.retain(|known| known.destination() != added.destination());
    mounts.push(added);
    spec.set_mounts(Some(mounts));
}

/// Parents come before what is in them.
pub(super) fn sort_mounts(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}
