//! What a container can do to the mounts that it is given, with and without the right to mount (CAP_SYS_ADMIN), in a user
//! namespace and not. docs/security.md has the answers as a table. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::fs;

use berth_proto::v1::*;
use support::{Berth, secured, shell};

/// Each attempt is a name and a command; printed are the names of those that succeed.
const ATTEMPTS: &str = r#"
attempt() { name=$1; shift; "$@" >/dev/null 2>&1 && echo $name; }
cgroup=/sys/fs/cgroup; [ ! -d $cgroup/memory ] || cgroup=$cgroup/memory
for path in / /sys /proc/sys $cgroup /etc/hosts /volume; do
    attempt remount:$path mount -o remount,bind,rw $path
done
attempt write:volume touch /volume/new
attempt write:hosts sh -c 'echo line >>/etc/hosts'
attempt write:root touch /new
attempt write:sys sh -c 'cat /sys/kernel/mm/transparent_hugepage/khugepaged/defrag >/sys/kernel/mm/transparent_hugepage/khugepaged/defrag'
attempt write:sysctl sh -c 'cat /proc/sys/kernel/panic >/proc/sys/kernel/panic'
attempt write:cgroup mkdir $cgroup/made
attempt size:hosts mount -o remount,size=100m /etc/hosts
attempt size:shm mount -o remount,size=1g /dev/shm
attempt size:dev mount -o remount,size=1g /dev
attempt unmask:file umount /proc/keys
attempt unmask:folder umount /sys/firmware
attempt device:make mknod /dev/made b 254 0
attempt device:open head -c 1 /dev/made
echo end
"#;

fn users() -> Option<UserNamespace> {
    let ids = ids();
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids })
}

fn ids() -> Vec<IdMapping> {
    vec![IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }]
}

/// The attempts that succeed in a container with a volume that is read-only.
async fn successes(berth: &mut Berth, users: Option<UserNamespace>, capabilities: &[&str]) -> Vec<String> {
    let host = berth.path("volume");
    fs::create_dir_all(&host).unwrap();
    let mut config = berth.pod_config(&format!("{}-{}", users.is_some(), capabilities.len()));
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = users.clone();
    let pod = berth.run_pod(config).await;
    let mapped = if users.is_some() { ids() } else { Vec::new() };
    let mut config = secured(shell("c", ATTEMPTS), |security| {
        let add_capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        // On a host that has AppArmor its profile forbids mounts.
        let profile_type = security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(SecurityProfile { profile_type, ..SecurityProfile::default() });
        security.readonly_rootfs = true;
        security.masked_paths = vec!["/proc/keys".to_owned(), "/sys/firmware".to_owned()];
        security.readonly_paths = vec!["/proc/sys".to_owned()];
        security.namespace_options.get_or_insert_default().userns_options = users;
    });
    config.mounts = vec![Mount {
        host_path: host.display().to_string(),
        container_path: "/volume".to_owned(),
        readonly: true,
        uid_mappings: mapped.clone(),
        gid_mappings: mapped,
        ..Mount::default()
    }];
    let (_, log) = berth.run_to_end(&pod, config).await;
    let names = log.trim().strip_suffix("end").unwrap_or_else(|| panic!("{log}"));
    names.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_mount_nothing_is_lifted() {
    let mut berth = Berth::start().await;
    // A node that the devices' cgroup does not allow to open, as with every other runtime (CAP_MKNOD is a default).
    assert_eq!(successes(&mut berth, None, &[]).await, ["device:make"]);
    assert_eq!(successes(&mut berth, users(), &[]).await, Vec::<String>::new());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_mount_in_a_user_namespace_reaches_nothing_of_the_kernels_or_of_berth() {
    let mut berth = Berth::start().await;
    let found = successes(&mut berth, users(), &["SYS_ADMIN"]).await;
    for kept in ["write:sys", "write:sysctl", "write:cgroup", "device:make", "device:open"] {
        assert!(!found.iter().any(|name| name == kept), "{kept}: {found:?}");
    }
    // What it may change is its own: its root, its pod's files, and a volume, whose read-only flag it can clear.
    for own in ["remount:/", "write:root", "write:hosts"] {
        assert!(found.iter().any(|name| name == own), "{own}: {found:?}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
