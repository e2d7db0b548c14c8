//! Volumes: mount propagation, read-only mounts, mount options, devices. Runs as root.

mod cdi;
mod devices;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Berth, shell, sleeper, with_security};
use berth_proto::v1::*;

/// A tmpfs of the host for one test. Drop unmounts it with everything mounted below it.
struct HostMount {
    path: PathBuf,
}

impl HostMount {
    fn new(path: PathBuf, propagation: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        run("mount", &["-t", "tmpfs", "berth-test", path.to_str().unwrap()]);
        let mount = Self { path };
        run("mount", &[propagation, mount.path.to_str().unwrap()]);
        mount
    }

    fn below(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let mut mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts = mounts.lines().rev().map(|line| format!("{line}\n")).collect();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.path) {
                drop(Command::new("umount").arg("-l").arg(point).status());
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn volume(host: &Path, inside: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: inside.to_owned(), ..Mount::default() }
}

fn propagating(host: &Path, propagation: MountPropagation) -> Mount {
    Mount { propagation: propagation.into(), ..volume(host, "/v") }
}

fn with(mut config: ContainerConfig, mounts: Vec<Mount>) -> ContainerConfig {
    config.mounts = mounts;
    config
}

fn privileged(config: ContainerConfig) -> ContainerConfig {
    with_security(config, |security| security.privileged = true)
}

async fn privileged_pod(berth: &mut Berth, name: &str) -> String {
    let mut config = berth.pod_config(name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    berth.run_pod(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_propagate_as_the_volume_requests() {
    let mut berth = Berth::start().await;
    let pod = privileged_pod(&mut berth, "spread").await;
    let shared = HostMount::new(berth.path("shared"), "--make-shared");
    let (from_host, from_container) = (shared.below("from-host"), shared.below("from-container"));
    let both = propagating(&shared.path, MountPropagation::PropagationBidirectional);
    let both = berth.run(&pod, with(privileged(sleeper("both")), vec![both])).await;
    let down = propagating(&shared.path, MountPropagation::PropagationHostToContainer);
    let down = berth.run(&pod, with(privileged(sleeper("down")), vec![down])).await;
    let none = berth.run(&pod, with(privileged(sleeper("none")), vec![volume(&shared.path, "/v")])).await;

    run("mount", &["-t", "tmpfs", "x", from_host.to_str().unwrap()]);
    let seen = "grep -c ' /v/from-host ' /proc/self/mountinfo";
    for (id, count) in [(&both, "1"), (&down, "1"), (&none, "0")] {
        assert_eq!(berth.sh(id, seen).await, count);
    }
    for id in [&down, &none] {
        berth.sh(id, "mount -t tmpfs x /v/from-container").await;
        assert!(!is_mounted(&from_container), "only a bidirectional volume reaches the host");
    }
    berth.sh(&both, "mount -t tmpfs x /v/from-container").await;
    assert!(is_mounted(&from_container));
    assert_eq!(berth.sh(&down, "grep -c ' /v/from-container ' /proc/self/mountinfo").await, "2");
    run("umount", &[from_container.to_str().unwrap()]);
    assert_eq!(berth.sh(&both, "grep -c ' /v/from-container ' /proc/self/mountinfo").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_of_a_private_host_mount_is_refused() {
    let mut berth = Berth::start().await;
    let pod = privileged_pod(&mut berth, "peers").await;
    let private = HostMount::new(berth.path("private"), "--make-private");
    let try_with =
        |propagation| with(privileged(shell("c", "true")), vec![propagating(&private.path, propagation)]);
    for (propagation, words) in [
        (MountPropagation::PropagationBidirectional, "it is not a shared mount"),
        (MountPropagation::PropagationHostToContainer, "it is not a shared or slave mount"),
    ] {
        let error = berth.try_create(&pod, try_with(propagation)).await.unwrap_err();
        assert!(error.message().contains(words) && error.message().contains("/v"), "{error}");
        assert!(error.message().contains(private.path.to_str().unwrap()), "{error}");
    }
    drop(private);
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_is_recursive_only_if_requested() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("readonly")).await;
    let outer = HostMount::new(berth.path("outer"), "--make-private");
    let inner = HostMount::new(outer.below("inner"), "--make-private");
    let script = "touch /v/x 2>/dev/null; echo $?; touch /v/inner/x 2>/dev/null; echo $?";
    let flat = Mount { readonly: true, ..volume(&outer.path, "/v") };
    let deep = Mount { recursive_read_only: true, ..flat.clone() };
    let (_, log) = berth.run_to_end(&pod, with(shell("flat", script), vec![flat])).await;
    assert!(log.contains("1\n") && log.ends_with("0\n"), "{log}");
    let (_, log) = berth.run_to_end(&pod, with(shell("deep", script), vec![deep])).await;
    assert!(log.ends_with("1\n") && !log.contains("0\n"), "{log}");
    drop((inner, outer));
}

#[tokio::test(flavor = "multi_thread")]
async fn noexec_nodev_and_nosuid_are_applied() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("options")).await;
    let folder = berth.path("options");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    run("chmod", &["755", folder.join("program").to_str().unwrap()]);
    let options = ["noexec", "nodev", "nosuid"].map(str::to_owned).to_vec();
    let strict = Mount { mount_options: options, ..volume(&folder, "/v") };
    let script = "grep ' /v ' /proc/self/mountinfo | cut -d' ' -f6; /v/program";
    let (_, log) = berth.run_to_end(&pod, with(shell("plain", script), vec![volume(&folder, "/v")])).await;
    assert!(log.contains("ran"), "{log}");
    let (code, log) = berth.run_to_end(&pod, with(shell("strict", script), vec![strict])).await;
    assert!(code == 126 && log.contains("nosuid,nodev,noexec"), "{log}");
    let request = StatusRequest { verbose: false };
    let features = berth.runtime.status(request).await.unwrap().into_inner().features.unwrap();
    assert!(features.mount_options && features.supplemental_groups_policy);
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_sources_and_targets_may_be_symlinks() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("links")).await;
    let folder = berth.path("real");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    std::os::unix::fs::symlink(&folder, berth.path("link")).unwrap();
    // A symbolic link of the image resolves inside the image, whatever number of `..` it has.
    let mounts =
        vec![volume(&berth.path("link"), "/link-to-srv/v"), volume(&folder.join("file"), "/etc/one")];
    let (_, log) = berth.run_to_end(&pod, with(shell("c", "cat /srv/v/file /etc/one"), mounts)).await;
    assert!(log.starts_with("contentcontent"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_filesystem_is_not_visible_in_a_container() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let masked = |security: &mut LinuxContainerSecurityContext| {
        security.masked_paths = vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned()];
        security.readonly_paths = vec!["/proc/sys".to_owned()];
    };
    let mut tty = with_security(sleeper("tty"), masked);
    tty.tty = true;
    let of_the_host = berth.folder.path().display().to_string();
    for config in [sleeper("plain"), with_security(sleeper("masked"), masked), tty] {
        let name = config.metadata.clone().unwrap().name;
        let id = berth.run(&pod, config).await;
        let pid = berth.info(&id).await["pid"].to_string();
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let roots = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
        assert_eq!(roots.count(), 1, "{name}: {mounts}");
        let top = fs::metadata(format!("/proc/{pid}/root")).unwrap();
        use std::os::unix::fs::MetadataExt;
        let seen = berth.sh(&id, "stat -c %i / /..").await;
        assert_eq!(seen, format!("{0}\n{0}", top.ino()), "{name}");
        let there = format!("ls -d {of_the_host} /..{of_the_host} 2>/dev/null; echo nothing");
        assert_eq!(berth.sh(&id, &there).await, "nothing", "{name}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_needs_a_pod_that_allows_it() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("plain")).await;
    let error = berth.try_create(&pod, privileged(shell("c", "true"))).await.unwrap_err();
    assert!(error.message().contains("no privileged container allowed in sandbox"), "{error}");
    let pod = privileged_pod(&mut berth, "allowed").await;
    let script = "ls /dev/kmsg; grep -E 'Seccomp:|CapBnd' /proc/self/status; cd /sys/fs/cgroup; \
                  [ ! -d memory ] || cd memory; mkdir x && rmdir x && echo managed; \
                  echo 1 >/proc/sys/net/ipv4/ip_forward && echo written";
    let (_, log) = berth.run_to_end(&pod, privileged(shell("c", script))).await;
    assert!(log.contains("/dev/kmsg") && log.contains("Seccomp:\t0") && log.contains("written"), "{log}");
    assert!(log.contains("managed"), "a privileged container must be able to write its cgroups: {log}");
    assert!(berth.clean().await.is_empty());
}
