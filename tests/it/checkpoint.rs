//! CheckpointContainer: archives of running containers, made with CRIU and read by checkpointctl. Runs as root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use serde_json::Value;
use tonic::{Code, Status};

use super::support::{Berth, IMAGE, PATIENCE, Setup, shell};

/// Builds or downloads a stand-in, unless `tests/run` has done it.
fn stand_in(variable: &str, script: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins").join(script);
    let output = Command::new(&script).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

pub(super) fn criu() -> PathBuf {
    stand_in("BERTH_CRIU", "criu.sh")
}

pub(super) async fn start() -> Berth {
    let more = format!("criu_path = \"{}\"\n", criu().display());
    Berth::start_as(Setup { more: &more, ..Setup::default() }).await
}

/// A pod and a container as the kubelet requests them: each container has its own PID namespace.
pub(super) fn private_pids(mut config: ContainerConfig) -> ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = NamespaceMode::Container.into();
    config
}

pub(super) async fn checkpoint(berth: &mut Berth, id: &str, name: &str) -> Result<PathBuf, Status> {
    checkpoint_within(berth, id, name, 0).await
}

async fn checkpoint_within(berth: &mut Berth, id: &str, name: &str, timeout: i64) -> Result<PathBuf, Status> {
    let path = berth.path(name);
    let location = path.display().to_string();
    let request = CheckpointContainerRequest { container_id: id.to_owned(), location, timeout };
    berth.runtime.checkpoint_container(request).await.map(|_| path)
}

/// Returns the files of an archive.
fn entries(archive: impl std::io::Read) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    files
}

pub(super) fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    entries(fs::File::open(path).unwrap())
}

/// Waits until a counter of a container goes on, which shows that it runs.
pub(super) async fn assert_goes_on(berth: &mut Berth, id: &str) {
    let read = "cat /tmp/counter";
    let before = berth.sh(id, read).await;
    let until = Instant::now() + PATIENCE;
    while berth.sh(id, read).await == before {
        assert!(Instant::now() < until, "the container does not go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing of a checkpoint is left: no work folder, and no process of it.
fn assert_nothing_left(berth: &Berth) {
    for container in fs::read_dir(berth.disk_path("root/containers")).unwrap().flatten() {
        let work = container.path().join("checkpoint");
        assert!(!work.exists(), "{}", work.display());
    }
}

pub(super) const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n > /tmp/counter.new; mv /tmp/counter.new /tmp/counter; sleep 0.1; done";

pub(super) fn counter(name: &str) -> ContainerConfig {
    private_pids(shell(name, COUNTER))
}

pub(super) async fn wait_for(berth: &mut Berth, id: &str, script: &str) {
    let until = Instant::now() + PATIENCE;
    while berth.sh(id, &format!("{script} && echo yes")).await != "yes" {
        assert!(Instant::now() < until, "{script}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A counter in memory, a file that is being written, a pipe between two processes, and a listening socket.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_has_memory_files_and_descriptions_and_the_container_goes_on() {
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let script = format!(
        "secret=in-memory-only; rm /srv/owned; mkdir /srv/new; echo kept > /srv/new/file; \
         yes pipe | while read line; do sleep 0.2; done & nc -ll -p 7777 -e true & {COUNTER}"
    );
    let id = berth.run(&pod, private_pids(shell("c", &script))).await;
    wait_for(&mut berth, &id, "test -e /tmp/counter && grep -q ':1E61 ' /proc/net/tcp*").await;
    let path = checkpoint(&mut berth, &id, "checkpoint.tar").await.unwrap();
    assert_goes_on(&mut berth, &id).await;

    let found = files(&path);
    for name in
        ["config.dump", "spec.dump", "status.dump", "status", "dump.log", "stats-dump", "rootfs-diff.tar"]
    {
        assert!(found.contains_key(name), "{name}: {:?}", found.keys());
    }
    let config: Value = serde_json::from_slice(&found["config.dump"]).unwrap();
    assert_eq!((&config["id"], &config["name"]), (&id.as_str().into(), &"c".into()));
    assert_eq!(config["rootfsImageName"], IMAGE);
    let spec: Value = serde_json::from_slice(&found["spec.dump"]).unwrap();
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-name"], "web");
    let deleted: Vec<String> = serde_json::from_slice(&found["deleted.files"]).unwrap();
    assert_eq!(deleted, ["srv/owned"]);
    let diff = entries(&found["rootfs-diff.tar"][..]);
    assert_eq!(diff["srv/new/file"], b"kept\n");
    let memory = found.iter().filter(|(name, _)| name.starts_with("checkpoint/pages-"));
    let holds = |pages: &[u8]| pages.windows(14).any(|window| window == b"in-memory-only");
    assert!(memory.into_iter().any(|(_, pages)| holds(pages)), "{:?}", found.keys());
    let streams: Vec<String> = serde_json::from_slice(&found["checkpoint/descriptors.json"]).unwrap();
    assert!(streams.len() == 3 && streams[1].starts_with("pipe:["), "{streams:?}");

    assert_nothing_left(&berth);
    let again = checkpoint(&mut berth, &id, "checkpoint.tar").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again}");
    assert_goes_on(&mut berth, &id).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpointctl_shows_and_inspects_an_archive() {
    let tool = stand_in("BERTH_CHECKPOINTCTL", "checkpointctl.sh");
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let id = berth.run(&pod, counter("counter")).await;
    let path = checkpoint(&mut berth, &id, "checkpoint.tar").await.unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(&tool).args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = run(&["show"]);
    for part in ["counter", IMAGE, &id[..12], "berth"] {
        assert!(shown.to_lowercase().contains(&part.to_lowercase()), "{part} in {shown}");
    }
    let inspected = run(&["inspect", "--all"]);
    for part in ["CRIU dump statistics", "Process tree", "sh", "Overview of mounts", "/proc"] {
        assert!(inspected.contains(part), "{part} in {inspected}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A terminal, an image volume, a folder of the host, a user namespace, seccomp, limits, and a command in flight.
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_every_kind_can_be_checkpointed() {
    let mut berth = start().await;
    let volume = berth.path("volume");
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(200_000), Some(200_000)).unwrap();
    let host_path = volume.display().to_string();
    let ids = IdMapping { host_id: 200_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![ids], gids: vec![ids] };
    for userns in [None, Some(users)] {
        let name = if userns.is_some() { "user" } else { "root" };
        let mut config = berth.pod_config(name);
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        let options = security.namespace_options.get_or_insert_default();
        (options.pid, options.userns_options) = (NamespaceMode::Container.into(), userns.clone());
        let pod = berth.run_pod(config).await;
        let mut config = counter("c");
        config.tty = true;
        config.mounts = vec![
            Mount { container_path: "/data".into(), host_path: host_path.clone(), ..Mount::default() },
            Mount {
                container_path: "/image".into(),
                readonly: true,
                image: Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }),
                ..Mount::default()
            },
        ];
        let linux = config.linux.get_or_insert_default();
        linux.resources =
            Some(LinuxContainerResources { memory_limit_in_bytes: 200 << 20, ..Default::default() });
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = userns;
        security.seccomp = Some(SecurityProfile::default());
        let id = berth.run(&pod, config).await;
        wait_for(&mut berth, &id, "test -e /tmp/counter").await;
        let mut other = berth.runtime.clone();
        let cmd = ["sh", "-c", "echo first; sleep 3; echo second"].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 60 };
        let command = tokio::spawn(async move { other.exec_sync(request).await });
        wait_for(&mut berth, &id, "ps | grep -q '[s]leep 3'").await;
        let path = checkpoint(&mut berth, &id, &format!("{name}.tar")).await.unwrap();
        assert_goes_on(&mut berth, &id).await;
        let output = command.await.unwrap().unwrap().into_inner();
        assert_eq!((output.exit_code, &output.stdout[..]), (0, &b"first\nsecond\n"[..]));
        let diff = entries(&files(&path)["rootfs-diff.tar"][..]);
        assert!(diff.contains_key("tmp/counter"), "{:?}", diff.keys());
        let raw = files(&path);
        let owners: Vec<u64> = tar::Archive::new(&raw["rootfs-diff.tar"][..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().header().uid().unwrap())
            .collect();
        assert!(owners.iter().all(|uid| *uid == 0), "ids of the container, not of the host: {owners:?}");
    }
    assert_nothing_left(&berth);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// In a pod with a shared PID namespace, the first process of a container has another number than 1.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_a_pod_with_shared_pids_can_be_checkpointed() {
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("shared")).await;
    let id = berth.run(&pod, shell("c", COUNTER)).await;
    wait_for(&mut berth, &id, "test -e /tmp/counter").await;
    checkpoint(&mut berth, &id, "checkpoint.tar").await.unwrap();
    assert_goes_on(&mut berth, &id).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_leaves_the_container_running_and_nothing_else() {
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let id = berth.run(&pod, counter("c")).await;
    wait_for(&mut berth, &id, "test -e /tmp/counter").await;
    let before: Vec<_> =
        fs::read_dir(berth.folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    for (location, code) in [
        ("relative.tar".to_owned(), Code::InvalidArgument),
        (String::new(), Code::InvalidArgument),
        (berth.path("missing/x.tar").display().to_string(), Code::FailedPrecondition),
        (berth.path("").display().to_string(), Code::InvalidArgument),
    ] {
        let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 0 };
        let error = berth.runtime.checkpoint_container(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_goes_on(&mut berth, &id).await;
    }
    let error = checkpoint_within(&mut berth, &id, "x.tar", -1).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let error = checkpoint(&mut berth, &"0".repeat(64), "x.tar").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let after: Vec<_> = fs::read_dir(berth.folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(before.len(), after.len(), "{after:?}");
    assert_nothing_left(&berth);
    berth.stop_container(&id, 0).await;
    let error = checkpoint(&mut berth, &id, "x.tar").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("it has ended"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// CRIU is a program that fails, that takes long, or that does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_or_takes_long() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("criu");
    let more = format!("criu_path = \"{}\"\n", program.display());
    let mut berth = Berth::start_as(Setup { more: &more, ..Setup::default() }).await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let id = berth.run(&pod, counter("c")).await;
    wait_for(&mut berth, &id, "test -e /tmp/counter").await;

    let error = checkpoint(&mut berth, &id, "x.tar").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("install the package criu"), "{error}");
    let status = berth.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let shown: Value = serde_json::from_str(&status.info["checkpoints"]).unwrap();
    assert_eq!(shown["usable"], false, "{shown}");

    let fake = |version: &str, rest: &str| {
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Version: {version}'; exit; fi\n{rest}\n"
        );
        fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
    };
    fake("3.17.1", "");
    let error = checkpoint(&mut berth, &id, "x.tar").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("3.17") && error.message().contains("too old"), "{error}");

    fake("9.0", "echo broken >&2; exit 1");
    let error = checkpoint(&mut berth, &id, "x.tar").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_goes_on(&mut berth, &id).await;
    assert_nothing_left(&berth);

    // The caller gives up; the checkpoint ends later, without an archive.
    fake("9.0", "sleep 3");
    let error = checkpoint_within(&mut berth, &id, "x.tar", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_goes_on(&mut berth, &id).await;
    let until = Instant::now() + PATIENCE;
    while fs::read_dir(berth.disk_path(&format!("root/containers/{id}/checkpoint"))).is_ok() {
        assert!(Instant::now() < until, "the work folder is not removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!berth.path("x.tar").exists());

    // The container is killed in the middle.
    fake("9.0", "sleep 2; exit 1");
    let mut other = berth.runtime.clone();
    let location = berth.path("x.tar").display().to_string();
    let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 0 };
    let call = tokio::spawn(async move { other.checkpoint_container(request).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    berth.stop_container(&id, 0).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("it ended during the checkpoint"), "{error}");
    assert_nothing_left(&berth);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The daemon is killed at different moments of a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_the_container_running() {
    let mut berth = start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let id = berth.run(&pod, counter("c")).await;
    wait_for(&mut berth, &id, "test -e /tmp/counter").await;
    for milliseconds in [10, 60, 150, 300, 600] {
        let mut other = berth.runtime.clone();
        let location = berth.path(&format!("{milliseconds}.tar")).display().to_string();
        let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 0 };
        let call = tokio::spawn(async move { other.checkpoint_container(request).await });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        berth.restart().await;
        let _broken_or_done = call.await.unwrap();
        assert_goes_on(&mut berth, &id).await;
        let until = Instant::now() + PATIENCE;
        while berth.disk_path(&format!("root/containers/{id}/checkpoint")).exists() {
            assert!(Instant::now() < until, "the work folder is not removed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // An archive that exists is complete.
        let path = berth.path(&format!("{milliseconds}.tar"));
        assert!(!path.exists() || files(&path).contains_key("checkpoint/inventory.img"));
    }
    let path = checkpoint(&mut berth, &id, "last.tar").await.unwrap();
    assert!(files(&path).contains_key("checkpoint/inventory.img"));
    let left = fs::read_dir(berth.folder.path()).unwrap().flatten();
    let hidden: Vec<_> =
        left.map(|e| e.file_name()).filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[test]
fn check_shows_criu() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |criu: &Path| -> Vec<Value> {
        let config = format!(
            "root = \"{0}/root\"\nstate = \"{0}/run\"\ncriu_path = \"{1}\"\n",
            folder.path().display(),
            criu.display()
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["check", "--json", "--config"])
            .arg(folder.path().join("config.toml"))
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["what"] == "checkpoints")
            .cloned()
            .collect()
    };
    let found = rows(&criu());
    assert_eq!(found[0]["found"], "yes", "{found:?}");
    assert!(found[0]["detail"].as_str().unwrap().contains("CRIU "), "{found:?}");
    let missing = rows(Path::new("/nonexistent/criu"));
    assert_eq!(missing[0]["found"], "no", "{missing:?}");
    assert!(missing[0]["detail"].as_str().unwrap().contains("install the package criu"), "{missing:?}");
}
