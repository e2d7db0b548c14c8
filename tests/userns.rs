//! Pods with a user namespace (CRI `userns_options`): root inside is nobody outside, layers and volumes are mapped and
//! nothing is given to anybody. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use berth_proto::v1::*;
use support::{Berth, code, shell, sleeper};
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
async fn root_inside_is_nobody_outside() {
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
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = berth.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let pid = info["pid"].as_i64().unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), FIRST, "outside it is somebody else");
    let seen = berth.sh(&id, "stat -c %u /bin /volume/mine /dev/shm /proc/1; echo x > /volume/made; echo y > /made; cat /volume/mine").await;
    assert_eq!(seen, "0\n0\n0\n0\ntext");
    let made = fs::metadata(volume.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "on the disk a mapped volume has the ids of the container");
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

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_volume_with_the_ids_that_it_has() {
    let mut berth = Berth::start().await;
    let config = pod(&berth, "images");
    let pod = berth.run_pod(config).await;
    let image = ImageSpec { image: support::IMAGE.to_owned(), ..ImageSpec::default() };
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
async fn ids_that_cannot_be_mapped_are_refused_by_name() {
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
async fn devices_and_profiles_are_as_in_any_other_pod() {
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
