//! `berth fsck`: it finds leftovers of every kind and records whose object is gone, changes nothing without `--repair`,
//! removes exactly those with it, and never takes a pod that is being created or removed for a leftover.

mod planted;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::{PodSandboxState, PortMapping, RemoveImageRequest};
use rustix::fs::XattrFlags;

use crate::support::leftovers::{cgroup_folders, kill_keeper_of};
use planted::{folder, pin, plant_files, plant_in_kernel, remove_folder, stranger, unpin};

use crate::support::{self, Berth, image, sleeper};

/// Runs `berth fsck` in the network namespace of the daemon's host. Returns the exit code and the findings.
pub(super) fn fsck(berth: &Berth, more: &[&str]) -> (i32, Vec<serde_json::Value>) {
    let config = berth.path("config.toml").display().to_string();
    let mut command = vec![env!("CARGO_BIN_EXE_berth"), "fsck", "--output", "json", "--config", &config];
    command.extend(more);
    let output = berth.on_host(&command);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    let findings = json["findings"].as_array().unwrap().clone();
    assert_eq!(json["clean"], findings.is_empty());
    (output.status.code().unwrap(), findings)
}

fn kinds(findings: &[serde_json::Value]) -> BTreeSet<String> {
    findings.iter().map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect()
}

fn of_kind<'a>(findings: &'a [serde_json::Value], kind: &str) -> Vec<&'a serde_json::Value> {
    findings.iter().filter(|finding| finding["kind"] == kind).collect()
}

/// Everything in a folder: paths, sizes and times.
fn state_of(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(stat) = fs::symlink_metadata(&path) else { continue };
        // The daemon's log grows.
        if !path.ends_with("daemon.log") {
            found.insert(format!("{} {} {}", path.display(), stat.len(), stat.mtime_nsec()));
        }
        if stat.is_dir() {
            found.extend(state_of(&path));
        }
    }
    found
}

/// Loads an image with one more file, and returns the folder of its layer.
async fn load_another_image(berth: &Berth) -> PathBuf {
    let layers =
        || fs::read_dir(berth.path("root/image/layers")).unwrap().flatten().map(|entry| entry.path());
    let before: BTreeSet<PathBuf> = layers().collect();
    let archive = berth.path("another.tar");
    image::write_archive_with(&archive, "localhost/another:test", &[("another", b"file")]);
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let path = archive.display().to_string();
    AdminClient::new(channel).load_image(LoadImageRequest { path }).await.unwrap();
    layers().find(|layer| !before.contains(layer)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_every_kind_are_found_beside_a_running_pod_and_removed() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("lives");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let pod = berth.run_pod(config).await;
    let container = berth.run(&pod, sleeper("lives")).await;
    berth.sh(&container, "echo kept > /srv/kept").await;
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()), "a daemon with a pod is clean");

    let mut expected: BTreeSet<String> = plant_files(&berth).into_iter().map(str::to_owned).collect();
    expected.extend(plant_in_kernel(&berth, &pod).into_iter().map(str::to_owned));
    // Records whose object is gone.
    let hollow = berth.try_create(&pod, sleeper("hollow")).await.unwrap();
    fs::remove_dir_all(berth.path(&format!("root/image/containers/{hollow}"))).unwrap();
    remove_folder(&load_another_image(&berth).await);
    expected.extend(["container-record", "image-record"].map(str::to_owned));
    // An object of another daemon.
    let foreign = "ef".repeat(32);
    pin(&foreign, "berth /elsewhere/network\n");

    let before = state_of(berth.folder.path());
    let (code, found) = fsck(&berth, &[]);
    assert_eq!((code, kinds(&found)), (1, expected.clone()), "{found:#?}");
    assert_eq!(found.len(), expected.len(), "one of each kind: {found:#?}");
    assert_eq!(state_of(berth.folder.path()), before, "a dry run changes nothing");
    for finding in &found {
        assert_eq!(finding["outcome"], "found", "{finding}");
        let name = finding["name"].as_str().unwrap();
        assert!(!name.contains(&foreign) && !name.contains(&"cd".repeat(32)), "{finding}");
    }
    for kind in ["layer", "staging-folder", "writable-layer", "container-folder"] {
        let finding = of_kind(&found, kind)[0];
        assert!(finding["bytes"].as_u64().unwrap() >= 10_000, "{finding}");
    }
    let record = of_kind(&found, "container-record")[0];
    assert_eq!(record["owner"], hollow.as_str());
    assert_eq!(record["reason"], "its writable layer is gone");

    let (code, repaired) = fsck(&berth, &["--repair"]);
    assert_eq!((code, kinds(&repaired)), (1, expected), "{repaired:#?}");
    assert!(repaired.iter().all(|finding| finding["outcome"] == "removed"), "{repaired:#?}");
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()), "a second run is clean");

    // The running pod is as before, and so is what others have made.
    assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxReady);
    assert_eq!(berth.sh(&container, "cat /srv/kept").await, "kept");
    let rules = berth.on_host(&["nft", "list", "table", "inet", "berth"]);
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(rules.contains("8080") && !rules.contains("9090"), "{rules}");
    let links = String::from_utf8(berth.on_host(&["ip", "link"]).stdout).unwrap();
    assert!(links.contains("others") && !links.contains("bvleft"), "{links}");
    assert!(links.contains(&format!("bv{}", &pod[..13])), "{links}");
    unpin(&foreign);
    for folder in cgroup_folders(&berth.cgroup_parent) {
        if folder.ends_with("cd".repeat(32)) {
            fs::remove_dir(folder.join(stranger())).unwrap();
            fs::remove_dir(folder).unwrap();
        }
    }
    assert!(berth.on_host(&["ip", "link", "del", "others"]).status.success());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_the_host_is_checked_and_repaired_too() {
    let mut berth = Berth::start().await;
    let lives = berth.run_pod(berth.pod_config("lives")).await;
    let container = berth.run(&lives, sleeper("lives")).await;
    berth.sh(&container, "echo kept > /srv/kept").await;
    let lost = berth.run_pod(berth.pod_config("lost")).await;
    let orphan = berth.run_pod(berth.pod_config("orphan")).await;
    let hollow = berth.run(&lives, sleeper("hollow")).await;
    berth.stop_container(&hollow, 0).await;
    let layer = load_another_image(&berth).await;
    berth.kill();
    kill_keeper_of(&lost);
    fs::remove_dir_all(berth.path(&format!("root/pods/{orphan}"))).unwrap();
    fs::remove_dir_all(berth.path(&format!("root/image/containers/{hollow}"))).unwrap();
    remove_folder(&layer);
    let mut planted: BTreeSet<String> = plant_files(&berth).into_iter().map(str::to_owned).collect();
    let of_orphan =
        ["keeper", "cgroup", "link", "nft-elements", "address", "attachment", "state-folder", "log-folder"];
    planted.extend(of_orphan.map(str::to_owned));
    planted.extend(["pod-record", "container-record", "image-record", "socket"].map(str::to_owned));

    let before = state_of(berth.folder.path());
    let (code, found) = fsck(&berth, &[]);
    assert_eq!((code, kinds(&found)), (1, planted), "{found:#?}");
    assert_eq!(state_of(berth.folder.path()), before, "a dry run changes nothing");
    let owners = |kind: &str| -> Vec<String> {
        of_kind(&found, kind).iter().map(|finding| finding["owner"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(owners("keeper"), [orphan.as_str()]);
    assert_eq!(owners("cgroup"), [orphan.as_str()]);
    assert_eq!(owners("pod-record"), [lost.as_str()]);
    assert_eq!(owners("container-record"), [hollow.as_str()]);
    assert!(owners("state-folder").contains(&orphan));

    let (code, repaired) = fsck(&berth, &["--repair"]);
    assert_eq!((code, kinds(&repaired)), (1, kinds(&found)), "{repaired:#?}");
    for finding in &repaired {
        let expected = if finding["kind"] == "pod-record" { "stopped" } else { "removed" };
        assert_eq!(finding["outcome"], expected, "{finding}");
    }
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()), "a second run is clean");

    berth.restart().await;
    assert_eq!(berth.pod_status(&lives).await.state(), PodSandboxState::SandboxReady);
    assert_eq!(berth.sh(&container, "cat /srv/kept").await, "kept");
    assert_eq!(berth.pod_status(&lost).await.state(), PodSandboxState::SandboxNotready);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_start_and_stop_are_never_found() {
    let mut berth = Berth::start().await;
    let mut pods = tokio::task::JoinSet::new();
    for number in 0..3 {
        let mut runtime = berth.runtime.clone();
        let mut config = berth.pod_config(&format!("busy{number}"));
        pods.spawn(async move {
            for attempt in 0..40 {
                config.metadata.as_mut().unwrap().attempt = attempt;
                let request = berth_proto::v1::RunPodSandboxRequest {
                    config: Some(config.clone()),
                    runtime_handler: String::new(),
                };
                let id = runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
                let request = berth_proto::v1::CreateContainerRequest {
                    pod_sandbox_id: id.clone(),
                    config: Some(sleeper("c")),
                    sandbox_config: None,
                };
                runtime.create_container(request).await.unwrap();
                let request = berth_proto::v1::RemovePodSandboxRequest { pod_sandbox_id: id };
                runtime.remove_pod_sandbox(request).await.unwrap();
            }
        });
    }
    let mut checks = 0;
    while !pods.is_empty() {
        let mode: &[&str] = if checks % 2 == 0 { &[] } else { &["--repair"] };
        assert_eq!(fsck(&berth, mode), (0, Vec::new()), "check {checks}");
        checks += 1;
        while let Some(done) = pods.try_join_next() {
            done.unwrap();
        }
    }
    assert!(checks > 1, "{checks}");
    let image = support::container("c", &[]).image;
    berth.images.remove_image(RemoveImageRequest { image }).await.unwrap();
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_has_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    fs::write(&config, "no_such_key = 1\n").unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["fsck", "--config"]).arg(&config).output().unwrap()
    };
    let failed = run();
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("no_such_key"), "{failed:?}");
    // A host on which berth has never run is clean, and nothing is created.
    let path = folder.path().display();
    let text = format!(
        "socket = \"{path}/s/berth.sock\"\nroot = \"{path}/r\"\nstate = \"{path}/s\"\ncni_conf_dir = \"{path}/net.d\"\n\
         cni_data_dir = \"{path}/a\"\n[network]\nbridge = \"fscktest0\"\nsubnets = [\"10.79.0.0/24\"]\n"
    );
    fs::write(&config, text).unwrap();
    let clean = run();
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    assert!(String::from_utf8_lossy(&clean.stdout).starts_with("clean"), "{clean:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_folder_is_removed_only_if_berth_has_made_it_for_a_pod_that_is_lost() {
    let mut berth = Berth::start().await;
    berth.load_image().await;
    let folder_of = |berth: &Berth, name: &str| berth.path(&format!("logs-of-{name}"));
    let mut ids = std::collections::BTreeMap::new();
    fs::create_dir(folder_of(&berth, "client")).unwrap();
    for name in ["lost", "removed", "client"] {
        let mut config = berth.pod_config(name);
        config.log_directory = folder_of(&berth, name).display().to_string();
        let pod = berth.run_pod(config).await;
        let mut main = support::shell("main", "head -c 20000 /dev/zero | tr '\\0' x; echo; exec sleep 1000");
        main.log_path = "main/0.log".to_owned();
        let id = berth.run(&pod, main).await;
        let log = berth.status(&id).await.log_path;
        let until = Instant::now() + support::PATIENCE;
        while fs::metadata(&log).map_or(0, |file| file.len()) < 20_000 {
            assert!(Instant::now() < until, "{log} has no lines");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ids.insert(name, pod);
    }
    // A pod that cannot be created leaves no folder.
    let mut config = berth.pod_config("failed");
    config.log_directory = folder_of(&berth, "failed").display().to_string();
    config.linux.as_mut().unwrap().sysctls.insert("net.ipv4.no_such_sysctl".to_owned(), "1".to_owned());
    berth.try_run_pod(config).await.unwrap_err();
    assert!(!folder_of(&berth, "failed").exists());
    // The client decides when it removes the logs of a removed pod.
    berth.remove_pod(&ids["removed"]).await;
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()));

    berth.kill();
    for name in ["lost", "client"] {
        kill_keeper_of(&ids[name]);
        fs::remove_dir_all(berth.path(&format!("root/pods/{}", ids[name]))).unwrap();
    }
    berth.restart().await;
    let (code, found) = fsck(&berth, &["--repair"]);
    let folders = of_kind(&found, "log-folder");
    assert_eq!((code, folders.len()), (1, 1), "{found:#?}");
    assert_eq!(
        (&folders[0]["owner"], &folders[0]["outcome"]),
        (&ids["lost"].as_str().into(), &"removed".into())
    );
    assert_eq!(folders[0]["name"], folder_of(&berth, "lost").display().to_string());
    assert!(folders[0]["bytes"].as_u64().unwrap() >= 20_000, "{found:#?}");
    assert!(!folder_of(&berth, "lost").exists());
    for name in ["removed", "client"] {
        assert!(folder_of(&berth, name).join("main/0.log").exists(), "the logs of {name}");
    }
    // A record that names another folder, such as one that was moved there later.
    let precious = berth.path("precious");
    folder(precious.clone());
    fs::create_dir_all(berth.path("root/log-folders")).unwrap();
    let record = serde_json::json!({ "path": precious }).to_string();
    fs::write(berth.path(&format!("root/log-folders/{}.json", stranger())), record).unwrap();
    let (_, found) = fsck(&berth, &["--repair"]);
    assert_eq!(of_kind(&found, "log-folder")[0]["outcome"], "kept", "{found:#?}");
    assert!(precious.join("file").exists());
    assert_eq!(fsck(&berth, &[]), (0, Vec::new()));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
