//! Pods with a user namespace (CRI `userns_options`): root in the pod is an unprivileged user on the host, layers and
//! volumes are ID-mapped, and no file changes its owner. Runs as root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use crate::support::{Berth, code, shell, sleeper};
use berth_proto::v1::*;
use tonic::Code;

const FIRST: u32 = 300_000;

fn mapping() -> IdMapping {
    IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }
}

fn users() -> Option<UserNamespace> {
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![mapping()], gids: vec![mapping()] })
}

fn pod(berth: &Berth, name: &str) -> PodSandboxConfig {
    let mut config = berth.pod_config(name);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = users();
    config
}

fn with_users(mut config: ContainerConfig) -> ContainerConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = users();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_the_pod_is_unprivileged_on_the_host() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "users");
    let pod = berth.run_pod(config).await;
    let volume = berth.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("mine"), "text").unwrap();
    let mount = Mount {
        container_path: "/volume".to_owned(),
        host_path: volume.display().to_string(),
        uid_mappings: vec![mapping()],
        gid_mappings: vec![mapping()],
        ..Mount::default()
    };
    let mut config = with_users(sleeper("c"));
    config.mounts = vec![mount];
    let id = berth.run(&pod, config).await;
    assert_eq!(
        berth.sh(&id, "id -u; cat /proc/self/uid_map | tr -s ' ' | sed 's/^ //'").await,
        format!("0\n0 {FIRST} 65536")
    );
    let pid = berth.info(&id).await["pid"].as_i64().unwrap();
    assert_eq!(
        fs::metadata(format!("/proc/{pid}")).unwrap().uid(),
        FIRST,
        "on the host the process must have a mapped user id"
    );
    let seen = berth.sh(&id, "stat -c %u /bin /volume/mine /dev/shm /proc/1; echo x > /volume/made; echo y > /made; cat /volume/mine").await;
    assert_eq!(seen, "0\n0\n0\n0\ntext");
    let made = fs::metadata(volume.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "on disk a mapped volume must have the container's ids");
    let devices =
        berth.sh(&id, "echo z > /dev/null && head -c 4 /dev/zero | wc -c; mknod /x c 1 3 || echo none").await;
    assert_eq!(devices, "4\nnone");
    assert_eq!(
        berth
            .sh(
                &id,
                "hostname x 2>/dev/null; cat /proc/1/comm; mount -t tmpfs none /tmp 2>/dev/null || echo no"
            )
            .await,
        "sh\nno"
    );
    berth.stop_container(&id, 0).await;

    berth.restart().await;
    let again = berth.run(&pod, with_users(shell("again", "id -u; sleep 1000"))).await;
    assert_eq!(berth.sh(&again, "id -u").await, "0");
    let differs = berth.try_create(&pod, sleeper("differs")).await.unwrap_err();
    assert!(differs.message().contains("userns_options"), "{differs}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn with_capability(mut config: ContainerConfig, name: &str) -> ContainerConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let add_capabilities = vec![name.to_owned()];
    security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_namespace_of_a_pod_owns_its_other_namespaces() {
    let mut berth = Berth::start().await;
    let status = berth.runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    // Since Linux 6.3 all filesystems on which the kubelet creates volumes support ID-mapped mounts, also tmpfs.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let whole = (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 3);
    let features_match = |handler: &RuntimeHandler| {
        let features = handler.features.unwrap();
        features.user_namespaces == whole && features.recursive_read_only_mounts
    };
    assert!(status.runtime_handlers.iter().all(features_match), "{status:?}");
    let config = pod(&berth, "owner");
    let pod = berth.run_pod(config).await;
    let id = berth.run(&pod, with_capability(with_users(sleeper("c")), "NET_ADMIN")).await;
    let pid = berth.info(&id).await["pid"].to_string();
    let listed =
        Command::new("lsns").args(["--noheadings", "-o", "TYPE,NS,ONS", "-p", &pid]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    let users = rows.iter().find(|row| row[0] == "user").unwrap()[1];
    for kind in ["mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let row = rows.iter().find(|row| row[0] == kind).unwrap();
        assert_eq!(row.get(2), Some(&users), "the owner of {kind}: {listed}");
    }
    // Root of the pod can therefore use its capabilities on these namespaces.
    assert_eq!(berth.sh(&id, "ip link set dev lo mtu 1400 && cat /sys/class/net/lo/mtu").await, "1400");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_id_mappings_are_applied_as_requested() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "ids");
    let users = berth.run_pod(config).await;
    let plain = berth.run_pod(berth.pod_config("plain")).await;
    let volume = berth.path("volume");
    fs::create_dir(&volume).unwrap();
    let mapped = |outside: u32| {
        let ids = vec![IdMapping { host_id: outside, container_id: 0, length: 10 }];
        Mount {
            container_path: "/v".to_owned(),
            host_path: volume.display().to_string(),
            uid_mappings: ids.clone(),
            gid_mappings: ids,
            ..Mount::default()
        }
    };
    let with = |mut config: ContainerConfig, mount: Mount| {
        config.mounts = vec![mount];
        config
    };
    let inspect = "stat -c %u:%g /v; touch /v/x; echo $?; stat -c %u:%g /v/x";
    let hosts = Mount { uid_mappings: Vec::new(), gid_mappings: Vec::new(), ..mapped(0) };
    let (_, log) = berth.run_to_end(&users, with(with_users(shell("hosts", inspect)), hosts)).await;
    assert!(
        log.starts_with("65534:65534\n") && log.contains("Permission denied"),
        "an unmapped volume must have the overflow ids: {log}"
    );
    // The volume's root is mapped to the sixth user of the pod. The pod's root has rights over that user, too.
    let own = with(with_users(shell("own", inspect)), mapped(FIRST + 5));
    let (_, log) = berth.run_to_end(&users, own).await;
    assert!(log.starts_with("5:5\n"), "{log}");
    let own = with(shell("own", inspect), mapped(4711));
    let (_, log) = berth.run_to_end(&plain, own).await;
    assert!(log.starts_with("4711:4711\n"), "{log}");
    let half = Mount { gid_mappings: Vec::new(), ..mapped(4711) };
    let refused = berth.try_create(&plain, with(shell("half", "true"), half)).await;
    assert!(refused.as_ref().unwrap_err().message().contains("gidMappings"), "{refused:?}");
    assert_eq!(code(refused), Code::InvalidArgument);
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_can_be_mounted_again_only_without_masks() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "unmasked");
    let pod = berth.run_pod(config).await;
    // A container engine in the container does the same. Mounts over parts of the old procfs are locked
    // (mount_namespaces(7), "Restrictions on mount namespaces").
    let script = "mkdir /new; unshare -Urmpf sh -c 'mount -t proc proc /new && ls /new/1/comm'";
    let config = |name: &str| {
        crate::support::with_security(with_users(shell(name, script)), |security| {
            // On a host with AppArmor the default profile forbids mounts.
            let profile_type = security_profile::ProfileType::Unconfined.into();
            security.apparmor = Some(SecurityProfile { profile_type, ..SecurityProfile::default() });
        })
    };
    // `procMount: Unmasked` of a pod's spec arrives as empty lists.
    assert_eq!(berth.run_to_end(&pod, config("unmasked")).await, (0, "/new/1/comm\n".to_owned()));
    let masked = crate::support::with_security(config("masked"), |security| {
        security.masked_paths = vec!["/proc/kcore".to_owned()];
        security.readonly_paths = vec!["/proc/sys".to_owned()];
    });
    let (code, log) = berth.run_to_end(&pod, masked).await;
    assert!(code != 0 && !log.contains("/comm\n"), "a second procfs must not get around the masks: {log}");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_volume_has_the_ids_of_the_image() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "images");
    let pod = berth.run_pod(config).await;
    let image = ImageSpec { image: crate::support::IMAGE.to_owned(), ..ImageSpec::default() };
    let mount =
        Mount { container_path: "/image".to_owned(), readonly: true, image: Some(image), ..Mount::default() };
    let mut config = with_users(shell("c", "stat -c %u /image/bin /bin; id -u"));
    config.mounts = vec![mount];
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_user =
        Some(Int64Value { value: 1000 });
    assert_eq!(berth.run_to_end(&pod, config).await, (0, "0\n0\n1000\n".to_owned()));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_id_mappings_are_refused_by_name() {
    let mut berth = Berth::start().await;
    let mut config = pod(&berth, "two");
    let options = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let userns = options.namespace_options.as_mut().unwrap().userns_options.as_mut().unwrap();
    userns.uids.push(IdMapping { host_id: 500_000, container_id: 65_536, length: 1 });
    let refused = berth.try_run_pod(config).await;
    assert!(refused.as_ref().unwrap_err().message().contains("exactly one"), "{refused:?}");
    assert_eq!(code(refused), Code::InvalidArgument);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_and_seccomp_work_in_a_user_namespace() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "whole");
    let pod = berth.run_pod(config).await;
    let mut config = with_users(sleeper("c"));
    let device = |host: &str, inside: &str| Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: "rw".to_owned(),
    };
    config.devices = vec![device("/dev/zero", "/dev/nothing/at-all"), device("/dev/full", "/full")];
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.seccomp = Some(SecurityProfile::default());
    let id = berth.run(&pod, config).await;
    let script = "head -c 3 /dev/nothing/at-all | wc -c; echo x >/full; echo $?; \
                  grep -E '^(Seccomp|CapEff):' /proc/self/status; mount -t tmpfs x /mnt; echo $?";
    let text = berth.sh(&id, script).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, ["3", "1", "CapEff:\t00000000a80425fb", "Seccomp:\t2", "1"], "{text}");
    assert!(berth.clean().await.is_empty());
}
