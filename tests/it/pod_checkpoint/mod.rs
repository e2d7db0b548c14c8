//! CheckpointPod and RestorePod: whole pods, with what their containers share. Runs as root.
//!
//! * [`failures`]: what fails or is interrupted leaves nothing

mod failures;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use berth_proto::v1::*;
use tonic::Status;

use super::checkpoint::{COUNTER, assert_goes_on, start, wait_for};
use super::support::{Berth, PATIENCE, container, pod_with, shell, with_security};

/// Containers that share memory: one counts in a file of `/dev/shm`, the other one reads it. `leave` writes to System V objects,
/// `seen` prints them, `stay` stays attached to one.
const SHARED: &str = r#"package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

func call(trap, a, b, c uintptr) uintptr {
	result, _, errno := syscall.Syscall(trap, a, b, c)
	if errno != 0 {
		panic(fmt.Sprint(trap, " ", errno))
	}
	return result
}

func main() {
	file, _ := os.OpenFile("/dev/shm/counter", os.O_RDWR|os.O_CREATE, 0o666)
	file.Truncate(4096)
	mapped, _ := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	first := (*uint64)(unsafe.Pointer(&mapped[0]))
	set := call(syscall.SYS_SEMGET, 0x4244, 2, 0o1600)
	queue := call(syscall.SYS_MSGGET, 0x4243, 0o1600, 0)
	message := append([]byte{7, 0, 0, 0, 0, 0, 0, 0}, "hello"...)
	address := call(syscall.SYS_SHMAT, call(syscall.SYS_SHMGET, 0x4242, 1<<20, 0o1666), 0, 0)
	value := (*uint64)(*(*unsafe.Pointer)(unsafe.Pointer(&address)))
	switch os.Args[1] {
	case "leave":
		*value = 4711
		call(syscall.SYS_MSGSND, queue, uintptr(unsafe.Pointer(&message[0])), 5)
		syscall.Syscall6(syscall.SYS_SEMCTL, set, 1, 16, 5, 0, 0)
		return
	case "seen":
		number, _, _ := syscall.Syscall(syscall.SYS_SEMCTL, set, 1, 12)
		length, _, _ := syscall.Syscall6(syscall.SYS_MSGRCV, queue, uintptr(unsafe.Pointer(&message[0])), 5, 0, 0, 0)
		fmt.Print(*value, " ", number, " ", message[0], " ", string(message[8:8+length]))
		return
	case "stay":
		time.Sleep(time.Hour)
	}
	call(syscall.SYS_SHMDT, address, 0, 0)
	for n := 0; ; n++ {
		if os.Args[1] == "write" {
			*first++
		}
		os.WriteFile("/tmp/counter.new", []byte(fmt.Sprintf("%d %d", n, *first)), 0o644)
		os.Rename("/tmp/counter.new", "/tmp/counter")
		time.Sleep(20 * time.Millisecond)
	}
}
"#;

/// Prints the System V objects.
const OBJECTS: &str =
    "for kind in shm msg sem; do awk '$1 + 0 > 16960 { print $1, $2, $3, $4 }' /proc/sysvipc/$kind; done";

fn shared_pids(config: ContainerConfig) -> ContainerConfig {
    with_security(config, |security| {
        security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    })
}

/// Runs a pod with a shared PID namespace.
fn pod_of(berth: &Berth, name: &str) -> PodSandboxConfig {
    pod_with(berth, name, |security| {
        security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    })
}

async fn checkpoint_pod(
    berth: &mut Berth,
    pod: &str,
    containers: &[String],
    name: &str,
) -> Result<PathBuf, Status> {
    let path = berth.path(name);
    fs::create_dir(&path).unwrap();
    let request = CheckpointPodRequest {
        pod_sandbox_id: pod.to_owned(),
        output_path: path.display().to_string(),
        container_ids: containers.to_vec(),
        ..CheckpointPodRequest::default()
    };
    berth.runtime.checkpoint_pod(request).await.map(|_| path)
}

fn restore_request(
    path: &Path,
    pod: PodSandboxConfig,
    containers: Vec<ContainerConfig>,
) -> RestorePodRequest {
    RestorePodRequest {
        checkpoint_path: path.display().to_string(),
        config: Some(pod),
        container_configs: containers,
        ..RestorePodRequest::default()
    }
}

/// Restores a pod and starts its containers in the order of the request. Returns the ids.
async fn restore_pod(
    berth: &mut Berth,
    path: &Path,
    pod: PodSandboxConfig,
    containers: Vec<ContainerConfig>,
) -> Result<(String, Vec<String>), Status> {
    let names: Vec<String> = containers.iter().map(|c| c.metadata.clone().unwrap().name).collect();
    let restored = berth.runtime.restore_pod(restore_request(path, pod, containers)).await?.into_inner();
    let found: Vec<String> = restored.restored_containers.iter().map(|c| c.name.clone()).collect();
    assert_eq!(found, names);
    let ids: Vec<String> = restored.restored_containers.into_iter().map(|c| c.container_id).collect();
    for id in &ids {
        assert_eq!(berth.status(id).await.state(), ContainerState::ContainerCreated);
    }
    for id in &ids {
        berth.try_start_container(id).await?;
    }
    Ok((restored.pod_sandbox_id, ids))
}

/// No work folder, no frozen process and no file of a checkpoint is left.
fn assert_nothing_left(berth: &Berth) {
    for kind in ["root/containers", "root/pods"] {
        for entry in fs::read_dir(berth.disk_path(kind)).unwrap().flatten() {
            let work = entry.path().join("checkpoint");
            assert!(!work.exists(), "{}", work.display());
        }
    }
}

async fn take(berth: &mut Berth, pod: &str, ids: &[String], name: &str) -> PathBuf {
    let path = checkpoint_pod(berth, pod, ids, name).await.unwrap();
    assert_nothing_left(berth);
    berth.stop_pod(pod).await;
    berth.remove_pod(pod).await;
    path
}

/// Signals by pid, a listening socket on the loopback address, a pipe and an open file, in a pod with a shared PID namespace.
#[tokio::test(flavor = "multi_thread")]
async fn containers_find_each_other_after_the_restore() {
    let mut berth = start().await;
    let pod = berth.run_pod(pod_of(&berth, "first")).await;
    let answering = "echo $$ > /dev/shm/pid; hits=0; trap 'hits=$((hits+1)); echo $hits > /tmp/hits.new; mv /tmp/hits.new /tmp/hits' USR1; \
         exec 7>/srv/log; nc -ll -p 7777 -e echo served & \
         (i=0; while :; do i=$((i+1)); echo piped $i; sleep 0.1; done) | while read line; do echo $line > /tmp/piped; done & \
         n=0; while :; do n=$((n+1)); echo $n >&7; echo $n > /tmp/counter; sleep 0.1; done";
    let asking = "until test -s /dev/shm/pid; do sleep 0.1; done; pid=$(cat /dev/shm/pid); n=0; \
         while :; do kill -USR1 $pid; nc 127.0.0.1 7777 < /dev/null > /tmp/answer.new 2>&1; mv /tmp/answer.new /tmp/answer; \
         n=$((n+1)); echo $n > /tmp/counter; sleep 0.1; done";
    let configs = [shared_pids(shell("answers", answering)), shared_pids(shell("asks", asking))];
    let mut ids = Vec::new();
    for config in &configs {
        ids.push(berth.run(&pod, config.clone()).await);
    }
    wait_for(&mut berth, &ids[0], "test -e /tmp/hits && test -e /tmp/piped").await;
    wait_for(&mut berth, &ids[1], "test \"$(cat /tmp/answer)\" = served").await;
    let pid = berth.sh(&ids[0], "cat /dev/shm/pid").await;
    let path = checkpoint_pod(&mut berth, &pod, &ids, "checkpoint").await.unwrap();
    assert_nothing_left(&berth);
    for id in &ids {
        assert_goes_on(&mut berth, id).await;
    }
    let before: u32 = berth.sh(&ids[0], "cat /tmp/hits").await.parse().unwrap();
    let address = berth.pod_status(&pod).await.network.unwrap().ip;
    berth.stop_pod(&pod).await;
    berth.remove_pod(&pod).await;

    // Another daemon with another root; the one that asks is started first and finds the other one later.
    let mut other = start().await;
    let config = pod_of(&other, "second");
    let (pod, ids) = restore_pod(&mut other, &path, config, configs.to_vec()).await.unwrap();
    for id in &ids {
        assert_goes_on(&mut other, id).await;
    }
    let hits = other.sh(&ids[0], "cat /tmp/hits").await;
    assert!(hits.parse::<u32>().unwrap() < before + 100, "{hits} {before}");
    wait_for(&mut other, &ids[0], &format!("test $(cat /tmp/hits) != {hits}")).await;
    assert_eq!(other.sh(&ids[0], "cat /dev/shm/pid").await, pid);
    assert!(other.sh(&ids[1], &format!("tr '\\0' ' ' < /proc/{pid}/cmdline")).await.contains("/tmp/hits"));
    other.sh(&ids[1], "rm /tmp/answer").await;
    wait_for(&mut other, &ids[1], "test \"$(cat /tmp/answer)\" = served").await;
    let piped = other.sh(&ids[0], "cat /tmp/piped").await;
    wait_for(&mut other, &ids[0], &format!("test \"$(cat /tmp/piped)\" != '{piped}'")).await;
    let log = other.sh(&ids[0], "head -n 2 /srv/log").await;
    assert_eq!(log, "1\n2");
    let status = other.pod_status(&pod).await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(other.sh(&ids[1], "hostname").await, "second");
    println!("{address} was {}", status.network.unwrap().ip);
    // The pod is like any other one.
    other.restart().await;
    for id in &ids {
        assert_goes_on(&mut other, id).await;
    }
    other.stop_container(&ids[1], 0).await;
    assert_eq!(other.clean().await, Vec::<String>::new());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Memory that containers share: files of `/dev/shm` and System V objects.
#[tokio::test(flavor = "multi_thread")]
async fn shared_memory_and_queues_go_on() {
    let mut berth = start().await;
    let folder = berth.path("go");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("main.go"), SHARED).unwrap();
    let mut go = Command::new("go");
    let go = go.args(["build", "-o", "shared", "main.go"]).current_dir(&folder).env("CGO_ENABLED", "0");
    assert!(go.env("GO111MODULE", "off").status().unwrap().success());
    let host_path = folder.display().to_string();
    let program = |name: &str, role: &str| {
        let mut config = container(name, &["/go/shared", role]);
        let mount = Mount { container_path: "/go".into(), host_path: host_path.clone(), ..Mount::default() };
        config.mounts = vec![mount];
        config
    };
    let configs = vec![program("writer", "write"), program("reader", "read")];
    let pod = berth.run_pod(berth.pod_config("first")).await;
    let mut ids = Vec::new();
    for config in &configs {
        ids.push(berth.run(&pod, config.clone()).await);
        wait_for(&mut berth, ids.last().unwrap(), "test -e /tmp/counter").await;
    }
    berth
        .sh(
            &ids[0],
            "mkdir /dev/shm/folder; echo kept > /dev/shm/folder/file; chown 7:8 /dev/shm/folder/file",
        )
        .await;
    berth.sh(&ids[0], "/go/shared leave").await;
    let objects = berth.sh(&ids[0], OBJECTS).await;
    assert_eq!(objects.lines().count(), 3, "{objects}");
    let attached = berth.run(&pod, program("attached", "stay")).await;
    wait_for(&mut berth, &attached, "grep -q SYSV /proc/1/maps").await;
    let all = [&ids[..], std::slice::from_ref(&attached)].concat();
    let error = checkpoint_pod(&mut berth, &pod, &all, "attached").await.unwrap_err();
    assert!(
        error.message().contains("container attached") && error.message().contains("System V"),
        "{error}"
    );
    berth.stop_container(&attached, 0).await;
    let path = take(&mut berth, &pod, &ids, "checkpoint").await;

    let second = berth.pod_config("second");
    let (_, ids) = restore_pod(&mut berth, &path, second, configs).await.unwrap();
    for id in &ids {
        assert_goes_on(&mut berth, id).await;
    }
    let seen = |text: String| -> Vec<u64> { text.split(' ').map(|n| n.parse().unwrap()).collect() };
    let before = seen(berth.sh(&ids[1], "cat /tmp/counter").await);
    let until = Instant::now() + PATIENCE;
    // The reader sees what the writer counts.
    while seen(berth.sh(&ids[1], "cat /tmp/counter").await)[1] <= before[1] {
        assert!(Instant::now() < until, "{before:?}");
    }
    assert_eq!(berth.sh(&ids[1], OBJECTS).await, objects);
    assert_eq!(berth.sh(&ids[1], "/go/shared seen").await, "4711 5 7 hello");
    let file = berth
        .sh(&ids[0], "cat /dev/shm/folder/file; stat -c '%u %g' /dev/shm/folder/file; stat -c %a /dev/shm")
        .await;
    assert_eq!(file, "kept\n7 8\n1777");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Each round restores what the round before has checkpointed, while another pod works. `BERTH_CHECKPOINT_ROUNDS` sets the
/// number.
#[tokio::test(flavor = "multi_thread")]
async fn many_rounds_under_load_leak_nothing() {
    let rounds =
        std::env::var("BERTH_CHECKPOINT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut berth = start().await;
    let load = berth.run_pod(berth.pod_config("load")).await;
    let busy =
        shell("busy", "while :; do dd if=/dev/zero of=/tmp/x bs=64k count=20 2>/dev/null; echo line; done");
    berth.run(&load, busy).await;
    let configs = vec![shared_pids(shell("a", COUNTER)), shared_pids(shell("b", COUNTER))];
    let mut pod = berth.run_pod(pod_of(&berth, "first")).await;
    let mut ids = Vec::new();
    for config in &configs {
        ids.push(berth.run(&pod, config.clone()).await);
    }
    let mut last = vec![0; ids.len()];
    for round in 0..rounds {
        for (id, last) in ids.iter().zip(&mut last) {
            assert_goes_on(&mut berth, id).await;
            let now: u32 = berth.sh(id, "cat /tmp/counter").await.parse().unwrap();
            assert!(now > *last, "{now} {last}");
            *last = now;
        }
        let path = take(&mut berth, &pod, &ids, &format!("round-{round}")).await;
        let config = pod_of(&berth, &format!("p{round}"));
        (pod, ids) = restore_pod(&mut berth, &path, config, configs.clone()).await.unwrap();
        fs::remove_dir_all(path).unwrap();
    }
    berth.stop_pod(&pod).await;
    berth.remove_pod(&pod).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
