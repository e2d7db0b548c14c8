//! Races: a container repeatedly exchanges a folder with a symbolic link to the host, in a volume that it shares with
//! containers that are being created. Nothing of the host may be read, created or changed.

use std::fs;
use std::os::unix::fs::symlink;

use berth_proto::v1::*;
use serde_json::json;

use crate::attacks::lab::{Lab, Layer, PROGRAMS, SECRET, STOP, of_image, times, volume, with};
use crate::support::{container, shell, with_security};

/// A race in a volume at `/shared`, which every victim container mounts.
struct Race {
    lab: Lab,
    pod: String,
    racers: Vec<String>,
    volume: Mount,
}

impl Race {
    /// Creates the paths to exchange: `a` is a folder or a link to the host; `b` the same through the root of another
    /// process; `file` a file or a link to one.
    async fn start() -> Self {
        let (mut lab, pod) = Lab::with_pod().await;
        let shared = lab.folder("shared");
        let canary = lab.canary_text();
        for folder in ["a", "b"] {
            fs::create_dir_all(shared.join(folder).join("sub")).unwrap();
            fs::write(shared.join(folder).join("file"), "sound").unwrap();
        }
        fs::write(shared.join("file"), "sound").unwrap();
        symlink(&canary, shared.join("link-a")).unwrap();
        symlink(format!("/proc/1/root{canary}"), shared.join("link-b")).unwrap();
        symlink(format!("../../../../../../../..{canary}/secret"), shared.join("link-file")).unwrap();
        let volume = volume(&shared, "/shared");
        let mut racers = Vec::new();
        for name in ["a", "b", "file"] {
            let (from, to) = (format!("/shared/{name}"), format!("/shared/link-{name}"));
            let program = format!("{PROGRAMS}/exchange");
            let config = container(&format!("racer-{name}"), &[&program, STOP, &from, &to]);
            racers.push(lab.attacker(&pod, with(config, volume.clone())).await);
        }
        Self { lab, pod, racers, volume }
    }

    /// Runs a container, if it can be created. Returns whether it was started.
    async fn victim(&mut self, config: ContainerConfig) -> bool {
        let config = with(config, self.volume.clone());
        let Ok(id) = self.lab.try_create(&self.pod, config).await else { return false };
        let started = self.lab.try_start_container(&id).await.is_ok();
        if started {
            self.lab.wait_exited(&id).await;
            let log = self.lab.log(&id).await;
            assert!(!log.contains(SECRET), "a container has read the host: {log}");
            assert!(!log.contains("outside"), "a container is outside its root: {log}");
        }
        self.lab.remove_container(&id).await;
        started
    }

    /// Runs victims until enough of them were created. A container is refused if the link is in place at the wrong
    /// moment.
    async fn run(&mut self, kind: &str, config: impl Fn(ContainerConfig) -> ContainerConfig) {
        let (target_count, mut created) = (times(100, 6), 0);
        for number in 0..target_count * 20 {
            let canary = self.lab.canary_text();
            let script = format!(
                "cat /shared/*/secret /shared/file {canary}/secret /shared/*/*/secret 2>/dev/null; \
                 case $(pwd) in /*) ;; *) echo outside;; esac; \
                 for folder in . /shared/a/inner /shared/b/inner /data; do cat $folder/../../../../../../..{canary}/secret; done 2>/dev/null"
            );
            created += usize::from(self.victim(config(shell(&format!("{kind}{number}"), &script))).await);
            if created == target_count {
                break;
            }
        }
        assert!(created > 0, "no container could be created: {kind}");
        self.lab.assert_untouched();
    }

    async fn finish(mut self) {
        for racer in &self.racers {
            let log = self.lab.stop_attacker(racer).await;
            let count = log.lines().find_map(|line| line.strip_prefix("exchanged "));
            assert!(count.is_some_and(|count| count.parse::<u64>().unwrap() > 1000), "{log}");
        }
        self.lab.finish().await;
    }
}

/// The target of a mount is resolved once and then used by its descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_30465_exchanged_mount_targets_do_not_reach_the_host() {
    let mut race = Race::start().await;
    let other = race.lab.folder("other");
    fs::write(other.join("file"), "other").unwrap();
    let volumes: Vec<Mount> = ["/shared/a/inner", "/shared/b/inner", "/shared/a", "/shared/b/sub"]
        .map(|inside| volume(&other, inside))
        .into_iter()
        .chain([volume(&other.join("file"), "/shared/file"), volume(&other.join("file"), "/shared/a/made")])
        .collect();
    for (number, volume) in volumes.iter().enumerate() {
        race.run(&format!("volume{number}-"), |config| with(config, volume.clone())).await;
    }
    race.finish().await;
}

/// Missing parts of a path are created below a descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_45310_exchanged_parent_folders_create_nothing_on_the_host() {
    let mut race = Race::start().await;
    let other = race.lab.folder("other");
    race.run("deep", |config| with(config, volume(&other, "/shared/a/x/y/z"))).await;
    race.run("work", |mut config| {
        config.working_dir = "/shared/b/work/deep".to_owned();
        config
    })
    .await;
    let volumes = json!({ "Env": ["PATH=/bin"], "Volumes": { "/shared/a/v/w": {}, "/shared/b/v": {} } });
    let image = race.lab.load("volumes", Layer::default(), volumes).await;
    race.run("image", |config| of_image(config, &image)).await;
    race.finish().await;
}

/// Masks, read-only paths and devices are also mounted by descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_31133_exchanged_mask_and_device_targets_do_not_reach_the_host() {
    let mut race = Race::start().await;
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
    race.run("mask", |config| {
        with_security(config, |security| {
            security.masked_paths = paths(&["/shared/a/sub", "/shared/b", "/shared/file"]);
            security.readonly_paths = paths(&["/shared/a", "/shared/b/sub", "/shared/file"]);
        })
    })
    .await;
    race.run("device", |mut config| {
        config.devices = ["/shared/a/device", "/shared/b/sub/device"]
            .map(|inside| Device {
                host_path: "/dev/full".to_owned(),
                container_path: inside.to_owned(),
                permissions: "r".to_owned(),
            })
            .to_vec();
        config
    })
    .await;
    race.finish().await;
}

/// Users are looked up in the image before any volume is mounted and before any process runs that could exchange the
/// file.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2018_15664_an_exchanged_passwd_file_is_not_read() {
    let mut race = Race::start().await;
    let shared = race.lab.path("shared");
    for number in 0..times(50, 6) {
        let script = "id -u; cat /etc/passwd /etc/file 2>/dev/null";
        let config = with_security(shell(&format!("c{number}"), script), |security| {
            security.run_as_username = "web".to_owned();
        });
        // The container's /etc is the volume with the races.
        let config = with(config, volume(&shared, "/etc"));
        let id = race.lab.run(&race.pod, config).await;
        race.lab.wait_exited(&id).await;
        let log = race.lab.log(&id).await;
        assert!(log.starts_with("1000\n") && !log.contains(SECRET), "{log}");
        race.lab.remove_container(&id).await;
    }
    race.finish().await;
}

/// Logs are written below the folder that the kubelet names. A container that shares this folder cannot redirect
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_53489_exchanged_logs_do_not_reach_the_host() {
    let (mut lab, pod) = Lab::with_pod().await;
    let (logs, canary) = (lab.folder("logs/pod"), lab.canary_text());
    fs::create_dir(logs.join("folder")).unwrap();
    symlink(&canary, logs.join("link")).unwrap();
    fs::write(logs.join("file.log"), "").unwrap();
    symlink(format!("{canary}/secret"), logs.join("link.log")).unwrap();
    symlink(format!("{canary}/made.log"), logs.join("dangling.log")).unwrap();
    let mut racers = Vec::new();
    for (number, (from, to)) in [("folder", "link"), ("file.log", "link.log")].into_iter().enumerate() {
        let program = format!("{PROGRAMS}/exchange");
        let (from, to) = (format!("/logs/{from}"), format!("/logs/{to}"));
        let config = container(&format!("racer{number}"), &[&program, STOP, &from, &to]);
        racers.push(lab.attacker(&pod, with(config, volume(&logs, "/logs"))).await);
    }
    let mut written = 0;
    for number in 0..times(100, 12) {
        for log_path in ["folder/c.log", "file.log", "dangling.log", "folder/deep/c.log"] {
            let mut config =
                shell(&format!("c{number}-{}", log_path.len()), "echo written; sleep 0.05; echo more");
            config.log_path = log_path.to_owned();
            let Ok(id) = lab.try_create(&pod, config).await else { continue };
            if lab.try_start_container(&id).await.is_ok() {
                written += 1;
                for _ in 0..5 {
                    let request = ReopenContainerLogRequest { container_id: id.clone() };
                    drop(lab.runtime.reopen_container_log(request).await);
                }
                lab.wait_exited(&id).await;
            }
            lab.remove_container(&id).await;
        }
    }
    assert!(written > 0, "no container could be created");
    for racer in racers {
        let log = lab.stop_attacker(&racer).await;
        assert!(log.contains("exchanged "), "{log}");
    }
    lab.finish().await;
}
