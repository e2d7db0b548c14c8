//! The identity of a container: users, groups, capabilities, devices, environments.

use std::fs;

use berth_proto::v1::*;
use serde_json::json;
use tonic::Code;

use crate::attacks::lab::{Lab, Layer, SECRET, capable, of_image};
use crate::support::{code, container, shell, sleeper, with_security};

fn as_user(config: ContainerConfig, uid: i64) -> ContainerConfig {
    with_security(config, |security| security.run_as_user = Some(Int64Value { value: uid }))
}

/// Loads an image with this user in its config.
async fn image_of(lab: &mut Lab, tag: &str, layer: Layer, user: &str) -> String {
    lab.load(tag, layer, json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "User": user })).await
}

const CAPABILITIES: &str = "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr '\\t\\n' '  '";

/// Also CVE-2022-24769 (moby), -27649 (podman), -27650 (crun), -27651 (buildah), -27652 (CRI-O), GHSA-c9cp-9c75-9v8c
/// (containerd), CVE-2025-27612 (youki), CVE-2018-10856 (podman, users other than root).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_29162_there_are_no_inheritable_capabilities() {
    let (mut lab, pod) = Lab::with_pod().await;
    let roots = ["plain", "more"].map(|name| match name {
        "plain" => sleeper(name),
        name => capable(sleeper(name), &["NET_ADMIN", "SYS_PTRACE"]),
    });
    for config in roots {
        let id = lab.run(&pod, config).await;
        let of_init = fs::read_to_string(format!("/proc/{}/status", lab.info(&id).await["pid"])).unwrap();
        assert!(of_init.contains("CapInh:\t0000000000000000"), "{of_init}");
        let of_exec = lab.sh(&id, CAPABILITIES).await;
        assert!(of_exec.contains("CapInh: 0000000000000000"), "{of_exec}");
        assert!(!of_exec.contains("CapEff: 0000000000000000"), "{of_exec}");
    }
    let id = lab.run(&pod, as_user(capable(sleeper("user"), &["NET_ADMIN"]), 1000)).await;
    let pid = lab.info(&id).await["pid"].to_string();
    let of_init = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for output in [of_init.replace('\t', " "), lab.sh(&id, CAPABILITIES).await] {
        for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(output.contains(&format!("{name}: 0000000000000000")), "{name}: {output}");
        }
    }
    lab.finish().await;
}

/// Also CVE-2022-2995 (CRI-O), -36109 (moby), -2989 (podman), -2990 (buildah): a file that is closed to its group.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_25173_supplementary_groups_include_the_primary_group() {
    let (mut lab, pod) = Lab::with_pod().await;
    let folder = lab.folder("groups");
    let file = folder.join("not-for-50");
    fs::write(&file, "read").unwrap();
    std::os::unix::fs::chown(&file, Some(0), Some(50)).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
    let groups = "etc/group";
    let layer = || Layer::default().file(groups, "root:x:0:\nweb:x:1000:\nlogs:x:50:web\nmail:x:51:web\n");
    for (user, expected) in
        [("web", "1000 50 51"), ("web:logs", "50 51"), ("1000", "1000 50 51"), ("4711:50", "50")]
    {
        let image = image_of(&mut lab, &format!("u{}", user.replace(':', "-")), layer(), user).await;
        let script = "id -G; cat /v/not-for-50 2>/dev/null || echo refused";
        let config = crate::attacks::lab::volume(&folder, "/v");
        let id = lab
            .run(&pod, crate::attacks::lab::with(of_image(sleeper(&user.replace(':', "-")), &image), config))
            .await;
        // Both an exec and the first process have the groups.
        let output = lab.sh(&id, script).await;
        let mut ids: Vec<u32> =
            output.lines().next().unwrap().split(' ').map(|gid| gid.parse().unwrap()).collect();
        ids.sort_unstable();
        let mut expected_ids: Vec<u32> = expected.split(' ').map(|gid| gid.parse().unwrap()).collect();
        expected_ids.sort_unstable();
        assert_eq!(ids, expected_ids, "{user}: {output}");
        assert!(output.ends_with("refused"), "{user}: {output}");
        let status = fs::read_to_string(format!("/proc/{}/status", lab.info(&id).await["pid"])).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut of_init: Vec<u32> = line.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        of_init.sort_unstable();
        assert_eq!(of_init, expected_ids, "{user}: the groups must include the primary group");
        lab.stop_container(&id, 0).await;
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_40635_overflowing_user_ids_are_refused() {
    let (mut lab, pod) = Lab::with_pod().await;
    let cases =
        ["4294967295", "4294967296", "-1", "18446744073709551616", "1000:4294967296", "0x0", "4294967296:0"];
    for (number, user) in cases.into_iter().enumerate() {
        let image = image_of(&mut lab, &format!("u{number}"), Layer::default(), user).await;
        let refused = lab.try_create(&pod, of_image(shell("c", "id -u"), &image)).await;
        assert_eq!(code(refused), Code::InvalidArgument, "{user}");
    }
    for (number, user) in ["2147483648:2147483649", "4294967294"].into_iter().enumerate() {
        let image = image_of(&mut lab, &format!("large{number}"), Layer::default(), user).await;
        let (_, output) =
            lab.run_to_end(&pod, of_image(shell(&format!("c{number}"), "id -u; id -g"), &image)).await;
        let expected = if number == 0 { "2147483648\n2147483649\n" } else { "4294967294\n0\n" };
        assert_eq!(output, expected, "{user} must be used unchanged");
    }
    for uid in [-1, i64::from(u32::MAX), 1 << 32, i64::MIN] {
        assert_eq!(
            code(lab.try_create(&pod, as_user(shell("c", "true"), uid)).await),
            Code::InvalidArgument,
            "{uid}"
        );
    }
    lab.finish().await;
}

/// A number is never looked up as a name, whatever the files of the image contain (runc: CVE-2016-3697).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_46680_a_numeric_user_is_never_a_name() {
    let (mut lab, pod) = Lab::with_pod().await;
    let passwd = "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n";
    let layer =
        || Layer::default().file("etc/passwd", passwd).file("etc/group", "1000:x:0:\n4294967296:x:0:\n");
    let image = image_of(&mut lab, "too-large", layer(), "4294967296").await;
    let refused = lab.try_create(&pod, of_image(shell("c", "id -u"), &image)).await;
    assert_eq!(code(refused), Code::InvalidArgument);
    let image = image_of(&mut lab, "number", layer(), "1000:1000").await;
    let (_, output) = lab.run_to_end(&pod, of_image(shell("c", "id -u; id -g"), &image)).await;
    assert_eq!(output, "1000\n1000\n");
    let named = with_security(of_image(shell("named", "id -u"), &image), |security| {
        security.run_as_username = "1000".to_owned();
    });
    assert_eq!(lab.run_to_end(&pod, named).await.1, "1000\n");
    lab.finish().await;
}

/// An exec has exactly the user of its container.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_30892_an_exec_has_the_user_of_its_container() {
    let (mut lab, pod) = Lab::with_pod().await;
    let image = image_of(&mut lab, "user", Layer::default(), "web:logs").await;
    let id = lab.run(&pod, of_image(sleeper("c"), &image)).await;
    assert_eq!(lab.sh(&id, "id -u; id -g; grep NoNewPrivs /proc/self/status | cut -f2").await, "1000\n50\n0");
    // Later changes to /etc/passwd in the running container have no effect.
    let pid = lab.info(&id).await["pid"].to_string();
    fs::write(format!("/proc/{pid}/root/etc/passwd"), "web:x:0:0::/:/bin/sh\n").unwrap();
    assert_eq!(lab.sh(&id, "id -u; id -g").await, "1000\n50");
    lab.finish().await;
}

/// Also CVE-2026-15809: a variable contains lines for /etc/passwd. berth does not write that file.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_4318_variables_add_no_lines_to_etc_passwd() {
    let (mut lab, pod) = Lab::with_pod().await;
    let (before, evil) = (
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/srv:/bin/sh\n",
        "/root\nevil::0:0::/:/bin/sh\r\nevil2::0:0::/:/bin/sh\\nevil3::0:0",
    );
    let layer = Layer::default().file("etc/passwd", before);
    let config = json!({ "Env": ["PATH=/bin", format!("HOME={evil}")], "WorkingDir": "/", "User": "4711" });
    let image = lab.load("home", layer, config).await;
    for (number, uid) in [4711, 1000, 0].into_iter().enumerate() {
        let mut config =
            as_user(of_image(shell(&format!("c{number}"), "cat /etc/passwd; id evil"), &image), uid);
        config.envs = vec![KeyValue { key: "HOME".to_owned(), value: evil.as_bytes().to_vec() }];
        if let Ok(id) = lab.try_create(&pod, config).await {
            lab.try_start_container(&id).await.unwrap();
            lab.wait_exited(&id).await;
            let output = lab.log(&id).await;
            assert!(output.starts_with(before) && !output.contains("evil:"), "{output}");
        }
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_21334_environments_are_not_shared() {
    let (mut lab, pod) = Lab::with_pod().await;
    let starts = (0..6).map(|number| {
        let mut client = lab.runtime.clone();
        let (pod, mut config) = (pod.clone(), shell(&format!("c{number}"), "env | grep OWN; sleep 1000"));
        config.envs = vec![KeyValue { key: format!("OWN{number}"), value: SECRET.as_bytes().to_vec() }];
        async move {
            let request =
                CreateContainerRequest { pod_sandbox_id: pod, config: Some(config), sandbox_config: None };
            client.create_container(request).await.unwrap().into_inner().container_id
        }
    });
    let ids = futures_util::future::join_all(starts).await;
    for (number, id) in ids.iter().enumerate() {
        lab.try_start_container(id).await.unwrap();
        let own = format!("OWN{number}={SECRET}");
        assert_eq!(lab.sh(id, "env | grep OWN").await, own);
    }
    lab.finish().await;
}

/// Every device that no rule allows is denied.
#[tokio::test(flavor = "multi_thread")]
async fn ghsa_g54h_m393_cpwq_devices_are_denied_by_default() {
    let (mut lab, pod) = Lab::with_pod().await;
    // A disk, the memory, the kernel's log and raw input, all by number: the attack needs no device file of the host.
    let script = "number=0; for device in 'b 8 0' 'b 7 0' 'b 254 0' 'b 259 0' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 10 1' 'c 10 237' 'c 13 64'; do \
                  number=$((number+1)); mknod /node$number $device || continue; head -c 1 /node$number >/dev/null && echo read $device; \
                  ( : >>/node$number ) && echo opened $device; done 2>/tmp/errors; grep -c 'not permitted' /tmp/errors; \
                  for node in null zero full random urandom tty; do [ -c /dev/$node ] || echo no $node; done";
    let (_, output) = lab.run_to_end(&pod, shell("c", script)).await;
    assert!(!output.contains("read") && !output.contains("opened") && !output.contains("no "), "{output}");
    assert!(output.trim().parse::<u32>().unwrap() >= 11, "every device must be refused: {output}");
    lab.finish().await;
}

/// A profile without a name is an error (the kubelet ran such containers without a filter).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_2431_a_seccomp_profile_without_a_name_is_refused() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let with = |reference: &str| {
        let profile = SecurityProfile {
            profile_type: security_profile::ProfileType::Localhost.into(),
            localhost_ref: reference.to_owned(),
        };
        with_security(container("c", &["true"]), |security| security.seccomp = Some(profile))
    };
    for reference in ["", "relative/profile.json", "/none", &format!("{canary}/secret"), "localhost/../../x"]
    {
        assert_ne!(code(lab.try_create(&pod, with(reference)).await), Code::Ok, "{reference:?}");
    }
    lab.finish().await;
}
