//! CreateContainer from a checkpoint: the container goes on in another pod. Runs as root.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use tonic::{Code, Status};

use super::checkpoint::{COUNTER, assert_goes_on, checkpoint, counter, files, private_pids, start, wait_for};
use super::support::{Berth, PATIENCE, Setup, shell, text_of, with_security};

/// A container whose image is the path of an archive.
fn from_archive(path: &Path, mut config: ContainerConfig) -> ContainerConfig {
    config.image = Some(ImageSpec { image: path.display().to_string(), ..ImageSpec::default() });
    config
}

/// Checkpoints a container and removes its pod.
async fn take(berth: &mut Berth, pod: &str, id: &str) -> PathBuf {
    let path = checkpoint(berth, id, &format!("{id}.tar")).await.unwrap();
    berth.stop_pod(pod).await;
    berth.remove_pod(pod).await;
    path
}

/// Restores a container in a new pod.
async fn restore(
    berth: &mut Berth,
    pod: &str,
    path: &Path,
    config: ContainerConfig,
) -> Result<String, Status> {
    let id = berth.try_create(pod, from_archive(path, config)).await?;
    berth.try_start_container(&id).await.map(|()| id)
}

fn nothing_is_left_of_the_restore(berth: &Berth, id: &str) {
    let folder = berth.disk_path(&format!("root/containers/{id}/restore"));
    assert!(!folder.exists(), "{}", folder.display());
}

/// Runs a counter and checkpoints it.
async fn checkpointed_counter(berth: &mut Berth, config: ContainerConfig) -> PathBuf {
    let pod = berth.run_pod(berth.pod_config("first")).await;
    let id = berth.run(&pod, config).await;
    wait_for(berth, &id, "test -e /tmp/counter").await;
    take(berth, &pod, &id).await
}

/// A counter in memory, a file that is being written, a pipe between two processes, and a listening socket.
#[tokio::test(flavor = "multi_thread")]
async fn processes_go_on_in_another_pod() {
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("first")).await;
    let script = "exec 7>/srv/log; trap 'exit 9' TERM; \
         (i=0; while :; do i=$((i+1)); echo piped $i; sleep 0.1; done) | \
           while read line; do echo $line > /tmp/piped; done & \
         nc -ll -p 7777 -e echo served & \
         n=1000; while :; do n=$((n+1)); echo $n >&7; echo $n > /tmp/counter; echo out $n; sleep 0.1; done";
    let config = private_pids(shell("c", script));
    let id = berth.run(&pod, config.clone()).await;
    wait_for(
        &mut berth,
        &id,
        "test -e /tmp/counter && test -e /tmp/piped && grep -q ':1E61 ' /proc/net/tcp*",
    )
    .await;
    let before: u32 = berth.sh(&id, "cat /tmp/counter").await.parse().unwrap();
    let piped = berth.sh(&id, "cat /tmp/piped").await;
    let path = take(&mut berth, &pod, &id).await;

    let other = berth.run_pod(berth.pod_config("other")).await;
    let restored = restore(&mut berth, &other, &path, config).await.unwrap();
    assert_goes_on(&mut berth, &restored).await;
    nothing_is_left_of_the_restore(&berth, &restored);
    let after: u32 = berth.sh(&restored, "cat /tmp/counter").await.parse().unwrap();
    assert!(after >= before && after < before + 300, "{before} {after}");
    let file = berth.sh(&restored, "cat /srv/log").await;
    assert!(file.starts_with("1001\n") && file.contains(&format!("\n{after}")), "{file}");
    wait_for(&mut berth, &restored, &format!("test \"$(cat /tmp/piped)\" != '{piped}'")).await;

    // The host name and the address are those of the new pod; a client reaches the socket there.
    assert_eq!(berth.sh(&restored, "hostname; cat /etc/hostname").await, "other\nother");
    let address = berth.pod_status(&other).await.network.unwrap().ip;
    let seen = berth.sh(&restored, "ip -4 addr show eth0").await;
    assert!(seen.contains(&address), "{address} in {seen}");
    let client = berth.sh(&restored, &format!("nc {address} 7777 </dev/null")).await;
    assert_eq!(client, "served");

    // The log is that of the new container.
    let status = berth.status(&restored).await;
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.log_path.contains("logs/other/"), "{}", status.log_path);
    let log = text_of(&fs::read_to_string(&status.log_path).unwrap());
    assert!(log.starts_with("out ") && !log.contains("out 1001\n"), "{log}");

    // It has the cgroup of the new container, as far as it sees cgroups, and its limits.
    let stats = ContainerStatsRequest { container_id: restored.clone() };
    let stats = berth.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(berth.sh(&restored, "grep -c -v ':/$' /proc/1/cgroup").await, "0");
    assert_eq!(
        berth.sh(&restored, "readlink /proc/1/ns/net").await,
        berth.sh(&restored, "readlink /proc/self/ns/net").await
    );

    // It goes on without the daemon, which finds it again.
    let pid = berth.info(&restored).await["pid"].as_i64().unwrap();
    berth.restart().await;
    assert_goes_on(&mut berth, &restored).await;
    assert_eq!(berth.info(&restored).await["pid"].as_i64().unwrap(), pid);
    berth.stop_container(&restored, 10).await;
    let status = berth.status(&restored).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Changed and removed files, a folder of the host by its place, limits of the new container, and an exit at once.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_of_the_checkpoint_and_mounts_those_of_the_request() {
    let mut berth = start().await;
    let mount = |berth: &Berth, name: &str, readonly: bool| {
        let folder = berth.path(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), name).unwrap();
        let host_path = folder.display().to_string();
        Mount { container_path: "/data".into(), host_path, readonly, ..Mount::default() }
    };
    let script = format!(
        "rm /srv/owned; mkdir -m 700 /srv/new; echo kept > /srv/new/file; (sleep 1; exit 3); {COUNTER}"
    );
    let mut config = private_pids(shell("c", &script));
    config.mounts = vec![mount(&berth, "old", false)];
    let path = checkpointed_counter(&mut berth, config.clone()).await;
    config.mounts = vec![mount(&berth, "new", false)];
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 300 << 20, ..Default::default() });
    let pod = berth.run_pod(berth.pod_config("other")).await;
    let id = restore(&mut berth, &pod, &path, config.clone()).await.unwrap();
    assert_goes_on(&mut berth, &id).await;
    let seen = berth.sh(&id, "cat /data/name /srv/new/file; stat -c %a /srv/new; test -e /srv/owned || echo gone; echo w > /data/w").await;
    assert_eq!(seen, "newkept\n700\ngone");
    assert!(berth.path("new/w").exists() && !berth.path("old/w").exists());
    assert_eq!(berth.sh(&id, "head -c 4 /proc/kcore 2>/dev/null | wc -c").await, "0");
    berth.remove_container(&id).await;

    // The checkpoint was made with a writable mount.
    config.mounts = vec![mount(&berth, "new", true)];
    let error = restore(&mut berth, &pod, &path, config.clone()).await.unwrap_err();
    assert!(error.message().contains("/data is not ro"), "{error}");
    config.mounts = Vec::new();
    config.metadata.as_mut().unwrap().attempt = 2;
    let error = restore(&mut berth, &pod, &path, config).await.unwrap_err();
    assert!(error.message().contains("a mount from outside at /data"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A checkpoint with more rights than the request is not restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_gives_no_rights_that_the_request_does_not_have() {
    let mut berth = start().await;
    let filtered = |config| {
        with_security(config, |security| {
            security.seccomp = Some(SecurityProfile { profile_type: 0, ..SecurityProfile::default() });
        })
    };
    let path = checkpointed_counter(&mut berth, counter("c")).await;
    let pod = berth.run_pod(berth.pod_config("other")).await;
    let mut attempt = 0;
    let mut named = |mut config: ContainerConfig| {
        attempt += 1;
        config.metadata.as_mut().unwrap().attempt = attempt;
        config
    };
    let weaker = with_security(counter("c"), |security| {
        security.capabilities =
            Some(Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
    });
    let other_user = with_security(counter("c"), |security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.capabilities =
            Some(Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
    });
    let no_privileges = with_security(counter("c"), |security| security.no_new_privs = true);
    let read_only = with_security(counter("c"), |security| security.readonly_rootfs = true);
    for (config, why) in [
        (weaker, "capabilities"),
        (other_user, "capabilities"),
        (no_privileges, "no_new_privs"),
        (read_only, "writable"),
        (filtered(counter("c")), "seccomp"),
    ] {
        let id = berth.try_create(&pod, from_archive(&path, named(config))).await.unwrap();
        let error = berth.try_start_container(&id).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains(why), "{why}: {error}");
        let status = berth.wait_exited(&id).await;
        assert!(status.reason == "StartError" && status.message.contains(why), "{status:?}");
        nothing_is_left_of_the_restore(&berth, &id);
    }
    let id = restore(&mut berth, &pod, &path, named(counter("c"))).await.unwrap();
    assert_goes_on(&mut berth, &id).await;

    // With a filter in both, it is restored.
    let pod_config = berth.pod_config("third");
    berth.stop_pod(&pod).await;
    berth.remove_pod(&pod).await;
    let path = checkpointed_counter(&mut berth, filtered(counter("c"))).await;
    let pod = berth.run_pod(pod_config).await;
    let id = restore(&mut berth, &pod, &path, filtered(counter("c"))).await.unwrap();
    assert_eq!(berth.sh(&id, "grep Seccomp: /proc/1/status").await, "Seccomp:\t2");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Writes a changed copy of an archive.
fn rewrite(
    from: &Path,
    to: &Path,
    change: impl Fn(&str, Vec<u8>) -> Option<(String, Vec<u8>, tar::EntryType)>,
) {
    let mut builder = tar::Builder::new(File::create(to).unwrap());
    for (name, content) in files(from) {
        let Some((name, content, kind)) = change(&name, content) else { continue };
        let mut header = tar::Header::new_gnu();
        let bytes = name.as_bytes();
        header.as_gnu_mut().unwrap().name[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/shadow").unwrap();
        }
        header.set_cksum();
        builder.append(&header, &content[..]).unwrap();
    }
    builder.into_inner().unwrap().flush().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_damaged_archives_fail_and_leave_nothing() {
    use tar::EntryType::{Block, Regular, Symlink};
    let mut berth = start().await;
    let good = checkpointed_counter(&mut berth, counter("c")).await;
    let pod = berth.run_pod(berth.pod_config("other")).await;
    let bad = berth.path("bad.tar");
    let diff = |name: &str, kind| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        builder.into_inner().unwrap()
    };
    type Change<'a> = Box<dyn Fn(&str, Vec<u8>) -> Option<(String, Vec<u8>, tar::EntryType)> + 'a>;
    let replace = |target: &'static str, kind, content: Vec<u8>| -> Change<'_> {
        Box::new(move |name, old| match name == target {
            true => Some((name.to_owned(), content.clone(), kind)),
            false => (!old.is_empty() || !name.ends_with('/')).then(|| (name.to_owned(), old, Regular)),
        })
    };
    let changes: Vec<(&str, Change<'_>)> = vec![
        ("a link", replace("config.dump", Symlink, Vec::new())),
        ("a device", replace("checkpoint/pstree.img", Block, Vec::new())),
        (
            "no images",
            Box::new(|name, old| (!name.ends_with("inventory.img")).then(|| (name.to_owned(), old, Regular))),
        ),
        (
            "a name outside",
            Box::new(|name, old| {
                let name = if name == "status" { "../../../../../tmp/berth-escaped" } else { name };
                Some((name.to_owned(), old, Regular))
            }),
        ),
        (
            "another image",
            replace("config.dump", Regular, br#"{"rootfsImageName":"localhost/none:1"}"#.to_vec()),
        ),
        ("broken JSON", replace("config.dump", Regular, b"{".to_vec())),
        ("changes outside", replace("rootfs-diff.tar", Regular, diff("../../escaped", Regular))),
        ("damaged memory", replace("checkpoint/pstree.img", Regular, vec![1; 4000])),
        ("no inventory", replace("checkpoint/inventory.img", Regular, vec![0x16, 0x31, 0x31, 0x58])),
        (
            "damaged mounts",
            Box::new(|name, old| {
                let content = if name.starts_with("checkpoint/mountpoints-") { vec![9; 90] } else { old };
                Some((name.to_owned(), content, Regular))
            }),
        ),
        (
            "a damaged process",
            Box::new(|name, old| {
                let content = if name == "checkpoint/core-1.img" { vec![9; 90] } else { old };
                Some((name.to_owned(), content, Regular))
            }),
        ),
    ];
    for (attempt, (what, change)) in changes.into_iter().enumerate() {
        rewrite(&good, &bad, change);
        let mut config = counter("c");
        config.metadata.as_mut().unwrap().attempt = u32::try_from(attempt).unwrap();
        let error = restore(&mut berth, &pod, &bad, config).await.unwrap_err();
        assert_ne!(error.code(), Code::Internal, "{what}: {error}");
    }
    let mut cut = Vec::new();
    File::open(&good).unwrap().take(fs::metadata(&good).unwrap().len() / 2).read_to_end(&mut cut).unwrap();
    fs::write(&bad, cut).unwrap();
    assert!(restore(&mut berth, &pod, &bad, counter("cut")).await.is_err());
    assert!(!Path::new("/tmp/berth-escaped").exists());

    // The failed ones are removed as any other, and a good one still works.
    let id = restore(&mut berth, &pod, &good, counter("good")).await.unwrap();
    assert_goes_on(&mut berth, &id).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_at_creation() {
    let mut berth = start().await;
    let path = checkpointed_counter(&mut berth, counter("c")).await;
    let pod = berth.run_pod(berth.pod_config("other")).await;
    let mut terminal = counter("c");
    terminal.tty = true;
    let error = berth.try_create(&pod, from_archive(&path, terminal)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("terminal"), "{error}");
    for (image, code) in [
        ("/nonexistent.tar", Code::NotFound),
        ("/tmp", Code::FailedPrecondition),
        ("/dev/zero", Code::FailedPrecondition),
    ] {
        let error = berth.try_create(&pod, from_archive(Path::new(image), counter("c"))).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    // Without CRIU.
    let mut without =
        Berth::start_as(Setup { more: "criu_path = \"/nonexistent/criu\"\n", ..Setup::default() }).await;
    let pod = without.run_pod(without.pod_config("p")).await;
    let error = without.try_create(&pod, from_archive(&path, counter("c"))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("install the package criu"), "{error}");
    assert_eq!(without.clean().await, Vec::<String>::new());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Each round restores what the round before has checkpointed.
#[tokio::test(flavor = "multi_thread")]
async fn many_rounds_leak_nothing() {
    let mut berth = start().await;
    let mut path = checkpointed_counter(&mut berth, counter("c")).await;
    let mut last = 0;
    for round in 0..20 {
        let pod = berth.run_pod(berth.pod_config(&format!("p{round}"))).await;
        let id = restore(&mut berth, &pod, &path, counter("c")).await.unwrap();
        assert_goes_on(&mut berth, &id).await;
        let now: u32 = berth.sh(&id, "cat /tmp/counter").await.parse().unwrap();
        assert!(now > last, "{now} {last}");
        last = now;
        fs::remove_file(&path).unwrap();
        path = take(&mut berth, &pod, &id).await;
    }
    let until = Instant::now() + PATIENCE;
    while fs::read_dir(berth.disk_path("root/containers")).unwrap().count() > 0 {
        assert!(Instant::now() < until, "containers are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Writes an OCI layout with an image whose layer is an archive, as `buildah` makes it of one.
fn write_image(path: &Path, archive: &Path, annotation: &str) {
    use berth_image::{Algorithm, Digest};
    let layer = fs::read(archive).unwrap();
    let descriptor = |kind: &str, content: &[u8]| serde_json::json!({ "mediaType": kind, "digest": Digest::of(Algorithm::Sha256, content), "size": content.len() });
    let layer_descriptor = descriptor("application/vnd.oci.image.layer.v1.tar", &layer);
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [layer_descriptor["digest"]] } })
    .to_string();
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [layer_descriptor], "annotations": { annotation: "c" } })
        .to_string();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    entry["annotations"] =
        serde_json::json!({ "org.opencontainers.image.ref.name": "localhost/checkpoint:1" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let mut builder = tar::Builder::new(File::create(path).unwrap());
    let mut add = |name: String, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json".to_owned(), index.as_bytes());
    for content in [&layer[..], config.as_bytes(), manifest.as_bytes()] {
        add(format!("blobs/sha256/{}", Digest::of(Algorithm::Sha256, content).hex()), content);
    }
    builder.into_inner().unwrap().flush().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_checkpoint_is_restored() {
    let mut berth = start().await;
    let path = checkpointed_counter(&mut berth, counter("c")).await;
    for annotation in
        ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"]
    {
        let archive = berth.path("image.tar");
        write_image(&archive, &path, annotation);
        berth.load_archive(&archive).await;
        let pod = berth.run_pod(berth.pod_config("other")).await;
        let mut config = counter("c");
        config.image = Some(ImageSpec { image: "localhost/checkpoint:1".to_owned(), ..ImageSpec::default() });
        let id = berth.run(&pod, config).await;
        assert_goes_on(&mut berth, &id).await;
        nothing_is_left_of_the_restore(&berth, &id);
        berth.stop_pod(&pod).await;
        berth.remove_pod(&pod).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A program with several threads, timers and a channel between them.
const THREADS: &str = r#"package main

import (
	"fmt"
	"os"
	"runtime"
	"time"
)

func main() {
	results := make(chan int)
	for worker := 0; worker < 4; worker++ {
		go func() {
			runtime.LockOSThread()
			for n := 1; ; n++ {
				time.Sleep(20 * time.Millisecond)
				results <- n
			}
		}()
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	sum := 0
	for {
		select {
		case <-results:
			sum++
		case <-ticker.C:
			os.WriteFile("/tmp/counter.new", []byte(fmt.Sprint(sum)), 0o644)
			os.Rename("/tmp/counter.new", "/tmp/counter")
		}
	}
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_go_program_with_threads_goes_on() {
    let mut berth = start().await;
    let folder = berth.path("go");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("main.go"), THREADS).unwrap();
    let mut go = std::process::Command::new("go");
    let go = go.args(["build", "-o", "threads", "main.go"]).current_dir(&folder).env("CGO_ENABLED", "0");
    assert!(go.env("GO111MODULE", "off").status().unwrap().success());
    let mut config = private_pids(super::support::container("go", &["/go/threads"]));
    let host_path = folder.display().to_string();
    config.mounts = vec![Mount { container_path: "/go".into(), host_path, ..Mount::default() }];
    let path = checkpointed_counter(&mut berth, config.clone()).await;
    let pod = berth.run_pod(berth.pod_config("other")).await;
    let id = restore(&mut berth, &pod, &path, config).await.unwrap();
    assert_goes_on(&mut berth, &id).await;
    let threads: u32 = berth.sh(&id, "ls /proc/1/task | wc -l").await.parse().unwrap();
    assert!(threads > 4, "{threads}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
