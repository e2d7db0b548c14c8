//! Capability sets: a default, plus the capabilities that the client adds, minus those that it drops.

use berth_proto::v1::{Capability as Request, LinuxContainerSecurityContext};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::{Host, Result, error};

/// The default capabilities, as in containerd and Docker.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The capabilities in the order of their numbers (linux/capability.h).
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Returns the capability sets of a container's process.
pub(super) fn sets(
    security: &LinuxContainerSecurityContext,
    uid: u32,
    host: &Host,
) -> Result<LinuxCapabilities> {
    let request = security.capabilities.clone().unwrap_or_default();
    let all = |mask: &Mask| -> Capabilities {
        ALL.iter().enumerate().filter(|(n, _)| mask.held >> n & 1 == 1).map(|(_, c)| *c).collect()
    };
    let host_mask = Mask::of_host(host);
    let bounding =
        if security.privileged { all(&host_mask) } else { requested_set(&request, &all(&host_mask))? };
    let ambient: Capabilities = request
        .add_ambient_capabilities
        .iter()
        .map(|name| named(name, "capabilities.add_ambient_capabilities"))
        .collect::<Result<Capabilities>>()?
        .intersection(&bounding)
        .copied()
        .collect();
    // A process of another user than root loses its permitted and effective capabilities at exec (capabilities(7)),
    // except the ambient ones. It can still gain capabilities of the bounding set from files.
    let held = if uid == 0 { bounding.clone() } else { ambient.clone() };
    LinuxCapabilitiesBuilder::default()
        .effective(held.clone())
        .permitted(held)
        .bounding(bounding)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(|oci| error("capabilities", oci.to_string()))
}

/// Converts a set to a mask of capability numbers.
pub(super) fn mask(set: &Capabilities) -> u64 {
    let bits = ALL.iter().enumerate().filter(|(_, capability)| set.contains(capability));
    bits.fold(0, |mask, (number, _)| mask | 1 << number)
}

/// The capabilities that can be given to containers, as a mask of their numbers.
struct Mask {
    held: u64,
}

impl Mask {
    /// Limits the kernel's capabilities to those of the daemon, which cannot give away others.
    fn of_host(host: &Host) -> Self {
        let count = u32::from(host.last_cap).saturating_add(1).min(63);
        Self { held: ((1_u64 << count) - 1) & host.own_capabilities() }
    }
}

impl Host {
    /// Returns the capabilities that the daemon can give to containers.
    fn own_capabilities(&self) -> u64 {
        if self.bounding == 0 { u64::MAX } else { self.bounding }
    }
}

fn requested_set(request: &Request, all: &Capabilities) -> Result<Capabilities> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set: Capabilities =
        match (request.drop_capabilities.iter().any(is_all), request.add_capabilities.iter().any(is_all)) {
            (_, true) => all.clone(),
            (true, false) => Capabilities::new(),
            (false, false) => DEFAULT.into_iter().collect(),
        };
    for name in request.add_capabilities.iter().filter(|name| !is_all(name)) {
        set.insert(named(name, "capabilities.add_capabilities")?);
    }
    for name in request.drop_capabilities.iter().filter(|name| !is_all(name)) {
        set.remove(&named(name, "capabilities.drop_capabilities")?);
    }
    set.retain(|capability| all.contains(capability));
    Ok(set)
}

fn named(name: &str, field: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .find(|capability| capability.to_string() == bare)
        .copied()
        .ok_or_else(|| error(field, format!("{name:?} is not a capability")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { last_cap: 40, ..Host::default() }
    }

    fn bounding(add: &[&str], drop: &[&str]) -> Result<Capabilities> {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let request =
            Request { add_capabilities: list(add), drop_capabilities: list(drop), ..Request::default() };
        let security = LinuxContainerSecurityContext { capabilities: Some(request), ..Default::default() };
        Ok(sets(&security, 0, &host())?.bounding().clone().unwrap())
    }

    #[test]
    fn sets_are_a_default_with_what_is_added_and_dropped() {
        assert_eq!(bounding(&[], &[]).unwrap(), DEFAULT.into_iter().collect());
        assert_eq!(bounding(&["cap_sys_admin"], &["ALL"]).unwrap(), [Capability::SysAdmin].into());
        let all_but = bounding(&["ALL"], &["CHOWN"]).unwrap();
        assert_eq!(all_but.len(), 40);
        assert!(!all_but.contains(&Capability::Chown));
        assert!(bounding(&["NONSENSE"], &[]).unwrap_err().why.contains("NONSENSE"));
    }

    #[test]
    fn another_user_holds_what_is_ambient() {
        let request = Request {
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            add_ambient_capabilities: vec!["NET_ADMIN".to_owned()],
            ..Request::default()
        };
        let security = LinuxContainerSecurityContext { capabilities: Some(request), ..Default::default() };
        let sets = sets(&security, 1000, &host()).unwrap();
        assert_eq!(sets.effective().clone().unwrap(), [Capability::NetAdmin].into());
        assert!(sets.bounding().clone().unwrap().contains(&Capability::Chown));
    }

    #[test]
    fn a_privileged_container_has_all_that_the_daemon_has() {
        let security = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let host = Host { bounding: !(1 << 24), ..host() };
        let set = sets(&security, 0, &host).unwrap().bounding().clone().unwrap();
        assert_eq!(set.len(), 40);
        assert!(!set.contains(&Capability::SysResource));
    }
}
