//! Changes to the Linux section of a spec.

use berth_proto::nri::{
    LinuxContainerAdjustment, LinuxDevice, LinuxMemoryPolicy, LinuxNamespace, LinuxSeccomp, LinuxSyscall,
    MpolFlag,
};
use oci_spec::runtime::{
    Linux, LinuxDevice as OciDevice, LinuxDeviceCgroup, LinuxNamespace as OciNamespace, Spec,
};
use serde_json::{Value, json};

use super::parse;
use crate::nri::owners::removal;

/// Applies the changes, except the limits and the path of the cgroup.
///
/// # Errors
/// The change that is invalid or not supported, and the reason.
pub fn apply(spec: &mut Spec, changes: &LinuxContainerAdjustment) -> Result<(), String> {
    if changes.rdt.as_ref().is_some_and(|rdt| !rdt.remove) {
        return Err("RDT classes are not supported".to_owned());
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    for device in &changes.devices {
        apply_device(linux, device)?;
    }
    for namespace in &changes.namespaces {
        apply_namespace(linux, namespace)?;
    }
    apply_sysctls(linux, changes);
    if let Some(policy) = &changes.seccomp_policy {
        linux.set_seccomp(Some(seccomp(policy)?));
    }
    if let Some(policy) = &changes.memory_policy {
        linux.set_memory_policy(Some(memory_policy(policy)?));
    }
    apply_net_devices(linux, changes);
    Ok(())
}

fn apply_device(linux: &mut Linux, change: &LinuxDevice) -> Result<(), String> {
    let (path, removes) = removal(&change.path);
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|device| device.path().to_string_lossy() != path);
    if !removes {
        if !path.starts_with('/') {
            return Err(format!("invalid device: path {path:?} is not absolute"));
        }
        let value = json!({
            "path": path,
            "type": change.r#type,
            "major": change.major,
            "minor": change.minor,
            "fileMode": change.file_mode.map(|mode| mode.value),
            "uid": change.uid.map(|uid| uid.value),
            "gid": change.gid.map(|gid| gid.value),
        });
        let device: OciDevice = parse(&format!("device {path}"), value)?;
        allow(linux, &device);
        devices.push(device);
    }
    linux.set_devices(Some(devices));
    Ok(())
}

/// Permits access to a device.
fn allow(linux: &mut Linux, device: &OciDevice) {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(device.typ()))
        .set_major(Some(device.major()))
        .set_minor(Some(device.minor()))
        .set_access(Some("rwm".to_owned()));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
}

fn apply_namespace(linux: &mut Linux, change: &LinuxNamespace) -> Result<(), String> {
    let (kind, removes) = removal(&change.r#type);
    let path = Some(&change.path).filter(|path| !path.is_empty());
    let namespace: OciNamespace =
        parse(&format!("namespace {kind:?}"), json!({ "type": kind, "path": path }))?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|other| other.typ() != namespace.typ());
    if !removes {
        namespaces.push(namespace);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

fn apply_sysctls(linux: &mut Linux, changes: &LinuxContainerAdjustment) {
    if changes.sysctl.is_empty() {
        return;
    }
    let mut sysctls = linux.sysctl().clone().unwrap_or_default();
    for (name, _) in changes.sysctl.keys().map(|name| removal(name)).filter(|(_, removes)| *removes) {
        sysctls.remove(name);
    }
    let set = changes.sysctl.iter().filter(|(name, _)| !removal(name).1);
    sysctls.extend(set.map(|(name, value)| (name.clone(), value.clone())));
    linux.set_sysctl(Some(sysctls));
}

fn seccomp(policy: &LinuxSeccomp) -> Result<oci_spec::runtime::LinuxSeccomp, String> {
    let optional = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let mut value = json!({
        "defaultAction": policy.default_action,
        "architectures": policy.architectures,
        "flags": policy.flags,
        "syscalls": policy.syscalls.iter().map(syscall).collect::<Vec<Value>>(),
    });
    let more = [
        ("defaultErrnoRet", policy.default_errno.map(|errno| json!(errno.value))),
        ("listenerPath", optional(&policy.listener_path).map(Value::String)),
        ("listenerMetadata", optional(&policy.listener_metadata).map(Value::String)),
    ];
    if let Value::Object(fields) = &mut value {
        fields.extend(more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    }
    parse("seccomp_policy", value)
}

fn syscall(rule: &LinuxSyscall) -> Value {
    let args = rule.args.iter().map(
        |arg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op }),
    );
    let args: Vec<Value> = args.collect();
    match rule.errno_ret {
        Some(errno) => {
            json!({ "names": rule.names, "action": rule.action, "errnoRet": errno.value, "args": args })
        }
        None => json!({ "names": rule.names, "action": rule.action, "args": args }),
    }
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<oci_spec::runtime::LinuxMemoryPolicy, String> {
    let flags: Vec<&str> = policy.flags().map(|flag: MpolFlag| flag.as_str_name()).collect();
    let value = json!({ "mode": policy.mode().as_str_name(), "nodes": policy.nodes, "flags": flags });
    parse("memory_policy", value)
}

fn apply_net_devices(linux: &mut Linux, changes: &LinuxContainerAdjustment) {
    if changes.net_devices.is_empty() {
        return;
    }
    let mut devices = linux.net_devices().clone().unwrap_or_default();
    for (host, change) in &changes.net_devices {
        let (host, removes) = removal(host);
        devices.remove(host);
        if !removes {
            let mut device = oci_spec::runtime::LinuxNetDevice::default();
            device.set_name(Some(change.name.clone()).filter(|name| !name.is_empty()));
            devices.insert(host.to_owned(), device);
        }
    }
    linux.set_net_devices(Some(devices));
}
