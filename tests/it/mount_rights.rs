//! The actions that a container can take on its mounts, with and without CAP_SYS_ADMIN, and with and without a user
//! namespace. docs/security.md has the results as a table. Runs as root.

use std::fs;

use crate::support::{Berth, shell, with_security};
use berth_proto::v1::*;

/// Each attempt has a name and a command. The script prints the names of the attempts that succeed.
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

/// Returns the attempts that succeed in a container with a read-only volume.
async fn successes(berth: &mut Berth, users: Option<UserNamespace>, capabilities: &[&str]) -> Vec<String> {
    let host = berth.path("volume");
    fs::create_dir_all(&host).unwrap();
    let mut config = berth.pod_config(&format!("{}-{}", users.is_some(), capabilities.len()));
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = users.clone();
    let pod = berth.run_pod(config).await;
    let mapped = if users.is_some() { ids() } else { Vec::new() };
    let mut config = with_security(shell("c", ATTEMPTS), |security| {
        let add_capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        // On a host with AppArmor the default profile forbids mounts.
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
async fn without_sys_admin_no_mount_protection_can_be_removed() {
    let mut berth = Berth::start().await;
    // The created device node cannot be opened because of the device cgroup, as with other runtimes (CAP_MKNOD is a
    // default capability).
    assert_eq!(successes(&mut berth, None, &[]).await, ["device:make"]);
    assert_eq!(successes(&mut berth, users(), &[]).await, Vec::<String>::new());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sys_admin_in_a_user_namespace_does_not_reach_the_kernel_or_berth() {
    let mut berth = Berth::start().await;
    let found = successes(&mut berth, users(), &["SYS_ADMIN"]).await;
    for forbidden in ["write:sys", "write:sysctl", "write:cgroup", "device:make", "device:open"] {
        assert!(!found.iter().any(|name| name == forbidden), "{forbidden}: {found:?}");
    }
    // The container can change only its own root, its pod's files, and a volume: it can clear the read-only flag.
    for own in ["remount:/", "write:root", "write:hosts"] {
        assert!(found.iter().any(|name| name == own), "{own}: {found:?}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
