//! Calls that fail, are refused, or are interrupted by the end of the daemon: the pod goes on, or there is none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use tonic::Code;

use super::super::checkpoint::{assert_goes_on, counter, criu, start, wait_for};
use super::super::support::{Berth, PATIENCE, Setup};
use super::{assert_nothing_left, checkpoint_pod, restore_pod, restore_request, shared_pids, take};

async fn wait_until_nothing_is_left(berth: &Berth) {
    let until = Instant::now() + PATIENCE;
    let exists = || {
        ["root/containers", "root/pods"].iter().any(|kind| {
            let entries = fs::read_dir(berth.disk_path(kind)).unwrap().flatten();
            entries.into_iter().any(|entry| entry.path().join("checkpoint").exists())
        })
    };
    while exists() {
        assert!(Instant::now() < until, "a work folder is not removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two containers with counters in a pod.
async fn two_counters(berth: &mut Berth) -> (String, Vec<String>) {
    let pod = berth.run_pod(berth.pod_config("two")).await;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = berth.run(&pod, counter(name)).await;
        wait_for(berth, &id, "test -e /tmp/counter").await;
        ids.push(id);
    }
    (pod, ids)
}

/// A program in the place of CRIU, which may fail before it runs the real one.
fn stand_in(folder: &Path, before: &str) -> PathBuf {
    let program = folder.join("criu");
    let text = format!("#!/bin/sh\n{before}\nexec {} \"$@\"\n", criu().display());
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_the_middle_leaves_the_pod_running_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let second = format!(
        "if [ \"$1\" = dump ]; then echo >> {0}/n; [ $(wc -l < {0}/n) != 2 ] || {{ sleep 0.3; exit 1; }}; fi",
        folder.path().display()
    );
    let more = format!("criu_path = \"{}\"\n", stand_in(folder.path(), &second).display());
    let mut berth = Berth::start_as(Setup { more: &more, ..Setup::default() }).await;
    let (pod, ids) = two_counters(&mut berth).await;
    let error = checkpoint_pod(&mut berth, &pod, &ids, "failed").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("container ") && error.message().contains("CRIU failed"), "{error}");
    assert_eq!(fs::read_dir(berth.path("failed")).unwrap().count(), 0);
    assert_nothing_left(&berth);
    for id in &ids {
        assert_goes_on(&mut berth, id).await;
    }
    // The third dump works, and so does the pod.
    let path = checkpoint_pod(&mut berth, &pod, &ids, "good").await.unwrap();
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["container-0.tar", "container-1.tar", "pod.json", "shm.tar"]);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_fulfilled_are_refused_before_anything_is_changed() {
    let mut berth = start().await;
    let (pod, ids) = two_counters(&mut berth).await;
    let out = berth.path("out");
    fs::create_dir(&out).unwrap();
    let good = CheckpointPodRequest {
        pod_sandbox_id: pod.clone(),
        output_path: out.display().to_string(),
        container_ids: ids.clone(),
        ..CheckpointPodRequest::default()
    };
    let with = |change: &dyn Fn(&mut CheckpointPodRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let option = ("tcp-established".to_owned(), "true".to_owned());
    for (request, code) in [
        (with(&|r| r.container_ids.clear()), Code::InvalidArgument),
        (with(&|r| r.container_ids.push(ids[0].clone())), Code::InvalidArgument),
        (with(&|r| r.container_ids.push("0".repeat(64))), Code::NotFound),
        (with(&|r| r.pod_sandbox_id = "0".repeat(64)), Code::NotFound),
        (with(&|r| r.output_path = "relative".to_owned()), Code::InvalidArgument),
        (with(&|r| r.output_path = berth.path("missing").display().to_string()), Code::FailedPrecondition),
        (with(&|r| r.output_path = berth.path("").display().to_string()), Code::FailedPrecondition),
        (with(&|r| r.options.extend([option.clone()])), Code::InvalidArgument),
    ] {
        let error = berth.runtime.checkpoint_pod(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    berth.sh(&ids[0], "touch /dev/mqueue/jobs").await;
    let error = berth.runtime.checkpoint_pod(good.clone()).await.unwrap_err();
    assert!(error.message().contains("POSIX message queue /jobs"), "{error}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    berth.stop_container(&ids[1], 0).await;
    let error = berth.runtime.checkpoint_pod(good).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_goes_on(&mut berth, &ids[0]).await;
    assert_nothing_left(&berth);

    let mut terminal = counter("t");
    terminal.tty = true;
    let id = berth.run(&pod, terminal).await;
    let error = checkpoint_pod(&mut berth, &pod, &[id], "terminal").await.unwrap_err();
    assert!(error.message().contains("terminal"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_leaves_no_pod() {
    let mut berth = start().await;
    let (pod, ids) = two_counters(&mut berth).await;
    let path = take(&mut berth, &pod, &ids, "checkpoint").await;
    let configs = vec![counter("a"), counter("b")];
    let good = restore_request(&path, berth.pod_config("second"), configs);
    let with = |change: &dyn Fn(&mut RestorePodRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let second = |change: &dyn Fn(&mut ContainerConfig)| with(&|r| change(&mut r.container_configs[1]));
    let users = |r: &mut RestorePodRequest| {
        let ids = IdMapping { host_id: 200_000, container_id: 0, length: 65_536 };
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![ids], gids: vec![ids] };
        let linux = r.config.as_mut().unwrap().linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = Some(users);
    };
    for (what, request, code) in [
        ("no container", with(&|r| r.container_configs.clear()), Code::InvalidArgument),
        ("one is missing", with(&|r| drop(r.container_configs.pop())), Code::InvalidArgument),
        ("another name", second(&|c| c.metadata.as_mut().unwrap().name = "c".into()), Code::InvalidArgument),
        ("an option", with(&|r| drop(r.options.insert("x".into(), "y".into()))), Code::InvalidArgument),
        ("a handler", with(&|r| r.runtime_handler = "kata".into()), Code::InvalidArgument),
        ("no checkpoint", with(&|r| r.checkpoint_path = "/nonexistent".into()), Code::NotFound),
        ("another command", second(&|c| c.command = vec!["true".into()]), Code::FailedPrecondition),
        ("a terminal", second(&|c| c.tty = true), Code::FailedPrecondition),
        ("shared pids", second(&|c| *c = shared_pids(c.clone())), Code::FailedPrecondition),
        ("a user namespace", with(&users), Code::FailedPrecondition),
        (
            "no image",
            second(&|c| c.image.as_mut().unwrap().image = "localhost/none:1".into()),
            Code::NotFound,
        ),
    ] {
        let error = berth.runtime.restore_pod(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
        assert_eq!(fs::read_dir(berth.disk_path("root/pods")).unwrap().count(), 0, "{what}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_folders_are_refused_and_leave_no_pod() {
    let mut berth = start().await;
    let (pod, ids) = two_counters(&mut berth).await;
    let path = take(&mut berth, &pod, &ids, "checkpoint").await;
    let configs = vec![counter("a"), counter("b")];
    let config = berth.pod_config("second");
    let damage = |name: &str, change: &dyn Fn(&Path)| {
        let bad = berth.path(&format!("bad-{name}"));
        assert!(Command::new("cp").arg("-r").args([&path, &bad]).status().unwrap().success());
        change(&bad);
        restore_request(&bad, config.clone(), configs.clone())
    };
    let link = |name: &'static str| {
        move |folder: &Path| {
            fs::remove_file(folder.join(name)).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", folder.join(name)).unwrap();
        }
    };
    let escaping = |folder: &Path| {
        let mut builder = tar::Builder::new(fs::File::create(folder.join("shm.tar")).unwrap());
        let mut header = tar::Header::new_gnu();
        let name = b"../../escaped";
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        builder.into_inner().unwrap();
    };
    for (what, request) in [
        ("a link", damage("link", &link("shm.tar"))),
        ("an archive that is a link", damage("archive", &link("container-1.tar"))),
        ("memory outside", damage("memory", &escaping)),
        ("no archive", damage("none", &|folder| fs::remove_file(folder.join("container-1.tar")).unwrap())),
        ("broken", damage("broken", &|folder| fs::write(folder.join("pod.json"), "{").unwrap())),
        (
            "a segment",
            damage("segment", &|folder| {
                let text = fs::read_to_string(folder.join("pod.json")).unwrap();
                let more = text.replace("\"segments\":[]", "\"segments\":[{\"id\":3,\"size\":4096}]");
                assert_ne!(text, more);
                fs::write(folder.join("pod.json"), more).unwrap();
            }),
        ),
    ] {
        let error = berth.runtime.restore_pod(request).await.unwrap_err();
        assert_ne!(error.code(), Code::Internal, "{what}: {error}");
        assert_eq!(fs::read_dir(berth.disk_path("root/pods")).unwrap().count(), 0, "{what}");
        assert_eq!(fs::read_dir(berth.disk_path("root/containers")).unwrap().count(), 0, "{what}");
    }
    restore_pod(&mut berth, &path, config, configs).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The daemon is killed at different moments of a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_during_a_checkpoint_leaves_the_pod_running() {
    let mut berth = start().await;
    let (pod, ids) = two_counters(&mut berth).await;
    for milliseconds in [20, 150, 300, 500, 800] {
        let mut other = berth.runtime.clone();
        let path = berth.path(&format!("at-{milliseconds}"));
        fs::create_dir(&path).unwrap();
        let request = CheckpointPodRequest {
            pod_sandbox_id: pod.clone(),
            output_path: path.display().to_string(),
            container_ids: ids.clone(),
            ..CheckpointPodRequest::default()
        };
        let call = tokio::spawn(async move { other.checkpoint_pod(request).await });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        berth.restart().await;
        let _broken_or_done = call.await.unwrap();
        for id in &ids {
            assert_goes_on(&mut berth, id).await;
        }
        wait_until_nothing_is_left(&berth).await;
        let files = fs::read_dir(&path).unwrap().count();
        assert!(files == 0 || path.join("pod.json").exists(), "{files} files");
    }
    let path = take(&mut berth, &pod, &ids, "last").await;
    let second = berth.pod_config("second");
    restore_pod(&mut berth, &path, second, vec![counter("a"), counter("b")]).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The daemon is killed at different moments of a restore: the pod is complete or gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_during_a_restore_leaves_no_half_pod() {
    let mut berth = start().await;
    let (pod, ids) = two_counters(&mut berth).await;
    let path = take(&mut berth, &pod, &ids, "checkpoint").await;
    let configs = vec![counter("a"), counter("b")];
    for milliseconds in [5, 20, 40, 70, 120, 250] {
        let mut other = berth.runtime.clone();
        let config = berth.pod_config(&format!("at-{milliseconds}"));
        let request = restore_request(&path, config, configs.clone());
        let call = tokio::spawn(async move { other.restore_pod(request).await });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        berth.restart().await;
        let _broken_or_done = call.await.unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let pods = berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
            let pods = pods.into_inner().items;
            let containers = berth.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
            let containers = containers.into_inner().containers;
            let whole = containers.len() == 2
                && containers.iter().all(|c| c.state() == ContainerState::ContainerCreated);
            match pods.as_slice() {
                [] if containers.is_empty() => break,
                [pod] if whole && pod.state() == PodSandboxState::SandboxReady => {
                    let record = berth.disk_path(&format!("root/pods/{}/pod.json", pod.id));
                    if fs::read_to_string(record).is_ok_and(|text| text.contains("\"restores\": false")) {
                        for container in &containers {
                            berth.try_start_container(&container.id).await.unwrap();
                            assert_goes_on(&mut berth, &container.id).await;
                        }
                        berth.stop_pod(&pod.id).await;
                        berth.remove_pod(&pod.id).await;
                        break;
                    }
                }
                _ => {}
            }
            assert!(Instant::now() < until, "{milliseconds} ms: {pods:?} {containers:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
