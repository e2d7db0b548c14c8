//! The device nodes of a container, and the rules for their use.

use berth_proto::v1::{ContainerConfig, Int64Value, LinuxContainerSecurityContext};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::{Host, Result, error};

/// The devices that every container may use, by number: null, zero, full, random, urandom, tty, console, ptmx and the
/// terminals (OCI runtime spec, "Default Devices").
const DEFAULT: [(i64, i64); 9] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)];

/// Returns the device nodes in addition to the default ones.
pub(super) fn nodes(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<Vec<LinuxDevice>> {
    let mut nodes = if security.privileged { host.privileged_devices.clone() } else { Vec::new() };
    for (request, devices) in config.devices.iter().zip(&host.devices) {
        if devices.is_empty() {
            return Err(error("devices.host_path", format!("{:?} has no device", request.host_path)));
        }
        let devices: Vec<LinuxDevice> =
            devices.iter().map(|device| owned(device.clone(), security, host)).collect();
        nodes.retain(|node| devices.iter().all(|device| device.path() != node.path()));
        nodes.extend(devices);
    }
    Ok(nodes)
}

/// Gives a device to the requested user and group, if they are numbers and the configuration enables it.
fn owned(mut device: LinuxDevice, security: &LinuxContainerSecurityContext, host: &Host) -> LinuxDevice {
    let id = |id: Option<&Int64Value>| id.and_then(|id| u32::try_from(id.value).ok()).filter(|id| *id != 0);
    if host.device_ownership {
        if let Some(uid) = id(security.run_as_user.as_ref()) {
            device.set_uid(Some(uid));
        }
        if let Some(gid) = id(security.run_as_group.as_ref()) {
            device.set_gid(Some(gid));
        }
    }
    device
}

/// Returns the rules of the device cgroup; the last rule that matches applies.
pub(super) fn rules(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<Vec<LinuxDeviceCgroup>> {
    if security.privileged {
        return Ok(vec![rule(true, LinuxDeviceType::A, (-1, -1), "rwm")?]);
    }
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, (-1, -1), "rwm")?,
        // Creating a device node does not use the device.
        rule(true, LinuxDeviceType::C, (-1, -1), "m")?,
        rule(true, LinuxDeviceType::B, (-1, -1), "m")?,
    ];
    for numbers in DEFAULT {
        rules.push(rule(true, LinuxDeviceType::C, numbers, "rwm")?);
    }
    for (request, devices) in config.devices.iter().zip(&host.devices) {
        let permissions = permissions(&request.permissions)?;
        for device in devices {
            rules.push(rule(true, device.typ(), (device.major(), device.minor()), permissions)?);
        }
    }
    Ok(rules)
}

/// Checks a combination of r, w and m; empty means all (CRI `Device.permissions`).
fn permissions(text: &str) -> Result<&str> {
    if text.is_empty() {
        return Ok("rwm");
    }
    if text.chars().all(|c| "rwm".contains(c)) {
        return Ok(text);
    }
    Err(error("devices.permissions", format!("{text:?} is not a combination of r, w and m")))
}

fn rule(allow: bool, typ: LinuxDeviceType, numbers: (i64, i64), access: &str) -> Result<LinuxDeviceCgroup> {
    LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(typ)
        .major(numbers.0)
        .minor(numbers.1)
        .access(access)
        .build()
        .map_err(|oci| error("devices", oci.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_letters() {
        assert_eq!(permissions("").unwrap(), "rwm");
        assert_eq!(permissions("rw").unwrap(), "rw");
        assert!(permissions("rx").is_err());
    }

    #[test]
    fn a_container_may_use_the_default_devices_only() {
        let rules = rules(&ContainerConfig::default(), &Default::default(), &Host::default()).unwrap();
        assert!(!rules[0].allow() && rules[0].typ() == Some(LinuxDeviceType::A));
        assert!(rules[1..].iter().all(LinuxDeviceCgroup::allow));
        assert!(
            rules
                .iter()
                .filter(|rule| rule.typ() == Some(LinuxDeviceType::B))
                .all(|rule| { rule.access().as_deref() == Some("m") })
        );
    }
}
