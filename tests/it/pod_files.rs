//! /etc/hostname, /etc/hosts and /etc/resolv.conf: the containers of a pod share these files and can write to them
//! within limits. Writes do not reach the host. Runs as root.

use std::fs;
use std::path::Path;

use crate::support::{Berth, shell, sleeper, with_security};
use berth_proto::v1::*;

/// Returns the size of all files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        sum += if metadata.is_dir() { bytes_in(&entry.path()) } else { metadata.len() };
    }
    sum
}

fn limited(mut config: ContainerConfig, bytes: i64) -> ContainerConfig {
    let resources = LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_and_can_change_the_etc_files_of_their_pod() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let one = berth.run(&pod, sleeper("one")).await;
    let two = berth.run(&pod, sleeper("two")).await;
    assert_eq!(berth.sh(&one, "cat /etc/hostname").await, "pod");
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(berth.sh(&one, "cat /etc/hosts").await, hosts.trim());
    let seen = "stat -c '%U:%G %a' /etc/hosts /etc/hostname /etc/resolv.conf";
    assert_eq!(berth.sh(&one, seen).await, ["root:root 644"; 3].join("\n"));
    for file in ["hosts", "hostname", "resolv.conf"] {
        let line = format!("192.0.2.1 {file}.example");
        let change = format!("echo '{line}' >>/etc/{file} && tail -n 1 /etc/{file}");
        assert_eq!(berth.sh(&one, &change).await, line);
        assert_eq!(
            berth.sh(&two, &format!("tail -n 1 /etc/{file}")).await,
            line,
            "the other container must see the change"
        );
    }
    // As with other runtimes, a container cannot replace the mounted file.
    assert_eq!(berth.sh(&one, "rm /etc/hosts 2>/dev/null || echo no").await, "no");
    // The next daemon uses the files with their changes.
    berth.kill();
    berth.restart().await;
    let late = berth.run(&pod, sleeper("late")).await;
    assert_eq!(berth.sh(&late, "tail -n 1 /etc/hosts").await, "192.0.2.1 hosts.example");
    let config =
        with_security(shell("read-only", "echo x >>/etc/hosts"), |security| security.readonly_rootfs = true);
    let (code, log) = berth.run_to_end(&pod, config).await;
    assert!(code != 0 && log.contains("Read-only file system"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn etc_files_are_limited_in_size_and_count_as_container_memory() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let other = berth.run_pod(berth.pod_config("other")).await;
    let before = bytes_in(&berth.path("run"));
    let script = "for file in hosts hostname resolv.conf; do
            head -c 2000000 /dev/zero >>/etc/$file 2>/dev/null || echo full
        done
        cat /etc/hosts /etc/hostname /etc/resolv.conf | wc -c
        sleep 1000";
    let id = berth.run(&pod, limited(shell("writer", script), 64 << 20)).await;
    let log = berth.path("logs/pod/writer.log");
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let text = loop {
        let text = crate::support::text_of(&fs::read_to_string(&log).unwrap());
        if text.lines().count() == 4 {
            break text;
        }
        assert!(std::time::Instant::now() < until, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(text.starts_with("full\nfull\nfull\n"), "{text}");
    let written: u64 = text.lines().last().unwrap().parse().unwrap();
    assert!((1_000_000..2_000_000).contains(&written), "{written}");
    // None of the written data is in a file of the host.
    assert!(bytes_in(&berth.path("run")) < before + 100_000);
    let shared = "cat /sys/fs/cgroup/memory.stat /sys/fs/cgroup/memory/memory.stat 2>/dev/null | \
                  sed -n 's/^shmem //p' | head -n 1";
    let counted: u64 = berth.sh(&id, shared).await.parse().unwrap();
    assert!(counted > written - 100_000, "{counted} of {written}");
    // Another pod has separate files with their own limit.
    let (code, log) = berth.script(&other, "c", "echo more >>/etc/hosts && wc -c </etc/hosts").await;
    assert!(code == 0 && log.trim().parse::<u64>().unwrap() < 1_000_000, "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_pod_has_etc_files() {
    let mut berth = Berth::start().await;
    let ids = vec![IdMapping { host_id: 500_000, container_id: 0, length: 65_536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let pod = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let node = i32::from(NamespaceMode::Node);
    for (name, options) in [
        ("users", NamespaceOption { userns_options: Some(users), ..pod.clone() }),
        ("shared", NamespaceOption { pid: NamespaceMode::Pod.into(), ..pod.clone() }),
        ("host", NamespaceOption { network: node, pid: node, ipc: node, ..pod.clone() }),
    ] {
        let mut config = berth.pod_config(name);
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(options.clone());
        let pod = berth.run_pod(config).await;
        let script =
            "stat -c %u /etc/hosts && echo line >>/etc/hosts && tail -n 1 /etc/hosts && cat /etc/hostname";
        let config =
            with_security(shell("c", script), |security| security.namespace_options = Some(options.clone()));
        // In the host's network, too, the pod has the requested name.
        assert_eq!(berth.run_to_end(&pod, config).await, (0, format!("0\nline\n{name}\n")), "{name}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_an_older_daemon_keep_their_etc_files() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("old")).await;
    berth.kill();
    // An older daemon left the files in the pod's folder, and did not mention them in the record.
    let record = berth.path(&format!("root/pods/{pod}/pod.json"));
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert!(text.as_object_mut().unwrap().remove("files").is_some());
    fs::write(&record, text.to_string()).unwrap();
    for file in ["hosts", "hostname", "resolv.conf"] {
        fs::write(berth.path(&format!("run/pods/{pod}/{file}")), format!("old {file}\n")).unwrap();
    }
    berth.restart().await;
    let (code, log) = berth.script(&pod, "c", "cat /etc/hosts /etc/hostname /etc/resolv.conf").await;
    assert_eq!((code, log.as_str()), (0, "old hosts\nold hostname\nold resolv.conf\n"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
