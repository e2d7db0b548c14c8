//! Checks that read procfs and sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Availability, HostFeature};

/// The oldest supported kernel: 5.15 is the oldest with upstream support (mount_setattr(2) needs 5.12).
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn kernel() -> HostFeature {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let found = match version(&release) {
        Some(version) => Availability::from(version >= OLDEST),
        None => Availability::Unknown,
    };
    let detail = format!("Linux {release} {}", uname.machine().to_string_lossy());
    HostFeature::new("kernel", found, detail).required()
}

/// Returns the version of the running kernel, for features that depend on it.
#[must_use]
pub fn kernel_version() -> Option<(u32, u32)> {
    version(&rustix::system::uname().release().to_string_lossy())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The cgroup hierarchies of a mount table (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    /// The mount point of version 2.
    v2: Option<String>,
    /// The mounted controllers of version 1.
    v1: BTreeSet<String>,
}

fn hierarchies(mountinfo: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        match (after.next(), before.split(' ').nth(4)) {
            (Some("cgroup2"), Some(place)) => found.v2 = Some(place.to_owned()),
            (Some("cgroup"), Some(_)) => {
                let options = after.nth(1).unwrap_or_default().split(',').map(str::to_owned);
                found.v1.extend(options.filter(|option| option != "rw" && option != "ro"));
            }
            _ => {}
        }
    }
    found
}

pub(super) fn cgroups() -> Vec<HostFeature> {
    let found = hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let v2: BTreeSet<String> = found
        .v2
        .as_ref()
        .and_then(|place| fs::read_to_string(Path::new(place).join("cgroup.controllers")).ok())
        .map(|names| names.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    let version = match (&found.v2, found.v1.is_empty()) {
        (Some(_), true) => "version 2",
        (Some(_), false) => "version 1, with version 2 beside it",
        (None, false) => "version 1",
        (None, true) => "not mounted",
    };
    let mut rows = vec![
        HostFeature::new("cgroup", version != "not mounted", version)
            .required()
            .fix("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    ];
    let on_v2 = found.v1.is_empty() && found.v2.is_some();
    for (name, v2_name, without) in [
        ("memory", "memory", "memory limits are refused, memory use is not known"),
        ("cpu", "cpu", "CPU shares and quotas are refused"),
        ("cpuset", "cpuset", "containers are not bound to CPUs"),
        ("pids", "pids", "the number of processes is not limited"),
        ("blkio", "io", "disk use is not known"),
        ("hugetlb", "hugetlb", "limits of huge pages are refused"),
    ] {
        let (there, name) =
            if on_v2 { (v2.contains(v2_name), v2_name) } else { (found.v1.contains(name), name) };
        let detail = if there { "available" } else { "not among the controllers" };
        rows.push(HostFeature::new(format!("cgroup controller {name}"), there, detail).without(without));
    }
    rows.push(device_control(on_v2, &found));
    rows
}

fn device_control(on_v2: bool, found: &Hierarchies) -> HostFeature {
    let (there, detail) = match on_v2 {
        // The program is loaded with CAP_BPF or CAP_SYS_ADMIN (bpf(2)).
        true => (Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists(), "by a BPF program"),
        false => (found.v1.contains("devices"), "by the devices controller"),
    };
    HostFeature::new("device control", there, detail)
        .without("containers with restricted devices are refused")
}

pub(super) fn seccomp() -> HostFeature {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => {
            HostFeature::new("seccomp", actions.contains("errno"), actions.trim().replace(' ', ", "))
        }
        Err(error) => HostFeature::new("seccomp", Availability::No, error.to_string()),
    }
    .without("containers that request a profile are refused")
}

pub(super) fn security_modules() -> Vec<HostFeature> {
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let apparmor = apparmor.trim() == "Y";
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let detail = |there: bool| match (there, list.trim()) {
        (true, _) => "enabled".to_owned(),
        (false, "") => "not enabled".to_owned(),
        (false, others) => format!("not among {others}"),
    };
    vec![
        HostFeature::new("AppArmor", apparmor, detail(apparmor))
            .without("containers that request a profile are refused"),
        HostFeature::new("SELinux", selinux, detail(selinux)).without("labels are ignored"),
    ]
}

/// Number, name (capabilities(7)), whether berth requires it, and what does not work without it.
const CAPABILITIES: [(u32, &str, bool, &str); 14] = [
    (0, "CAP_CHOWN", true, ""),
    (1, "CAP_DAC_OVERRIDE", true, ""),
    (3, "CAP_FOWNER", true, ""),
    (5, "CAP_KILL", true, ""),
    (6, "CAP_SETGID", true, ""),
    (7, "CAP_SETUID", true, ""),
    (8, "CAP_SETPCAP", true, ""),
    (12, "CAP_NET_ADMIN", true, ""),
    (18, "CAP_SYS_CHROOT", true, ""),
    (19, "CAP_SYS_PTRACE", false, "some reasons of a container's exit are not known"),
    (21, "CAP_SYS_ADMIN", true, ""),
    (24, "CAP_SYS_RESOURCE", false, "oom_score_adj is never lower than the daemon's"),
    (27, "CAP_MKNOD", false, "images with device nodes are refused; containers get no extra devices"),
    (31, "CAP_SETFCAP", false, "images with file capabilities are refused"),
];

pub(super) fn capabilities() -> Vec<HostFeature> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let held = effective(&status);
    CAPABILITIES
        .iter()
        .map(|(number, name, required, without)| {
            let (found, detail) = match held {
                Some(held) if held >> number & 1 == 1 => (Availability::Yes, "held"),
                Some(_) => (Availability::No, "not held"),
                None => (Availability::Unknown, "/proc/thread-self/status has no CapEff"),
            };
            let row = HostFeature::new(*name, found, detail);
            if *required { row.required() } else { row.without(without) }
        })
        .collect()
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_of_releases() {
        for (release, expected) in [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.15.0-101-generic", Some((5, 15))),
            ("6.1-rc1", Some((6, 1))),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let mountinfo = "\
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate
34 30 0:30 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory
36 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
broken";
        let found = hierarchies(mountinfo);
        assert_eq!(found.v2.as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(found.v1, ["cpu", "cpuacct", "memory"].map(str::to_owned).into());
    }

    #[test]
    fn effective_capabilities() {
        assert_eq!(effective("Name:\tx\nCapEff:\t00000000a80425fb\n"), Some(0xa804_25fb));
        assert_eq!(effective("CapEff:\tno"), None);
    }

    proptest! {
        #[test]
        fn hierarchies_come_only_from_cgroup_mounts(text in "([0-9a-z /:,-]{0,40}( - )?cgroup2? ?\n?){0,5}") {
            let found = hierarchies(&text);
            prop_assert!(found == Hierarchies::default() || text.contains(" - cgroup"));
            prop_assert!(found.v1.iter().all(|name| text.contains(name) && name != "rw" && name != "ro"));
            prop_assert!(found.v2.is_none_or(|place| text.contains(&place)));
        }
    }
}
