//! The view of a container at its root: no part of the host behind it, read-only kernel filesystems, and masks and
//! image volumes that it does not share with others.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use berth_proto::v1::*;
use serde_json::json;

use crate::attacks::lab::{Lab, Layer, capable, masked, volume, with};
use crate::support::{image, shell, sleeper, with_security};

/// The cgroups of a container are separate, and read-only without more privileges. No program of the host is started
/// from there (CVE-2022-0492).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_25809_cgroups_cannot_be_written() {
    let (mut lab, pod) = Lab::with_pod().await;
    let script = "cat /proc/self/cgroup; find /sys/fs/cgroup -type f -name release_agent | head -1; \
                  for file in $(find /sys/fs/cgroup -type f \\( -name release_agent -o -name cgroup.procs -o -name notify_on_release \\)); do \
                  ( echo 1 >$file ) 2>/dev/null && echo written $file; done; \
                  for place in /sys/fs/cgroup /sys/fs/cgroup/memory; do mkdir $place/x 2>/dev/null && echo made $place; done; \
                  mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo mounted; echo over";
    let (_, output) = lab.run_to_end(&pod, masked(shell("c", script))).await;
    assert!(output.ends_with("over\n"), "{output}");
    for words in ["written", "made", "mounted", &lab.cgroup_parent.clone()] {
        assert!(!output.contains(words), "{words}: {output}");
    }
    // Additional capabilities below those of the host's root do not help.
    let (_, output) =
        lab.run_to_end(&pod, capable(masked(shell("more", script)), &["NET_ADMIN", "SYS_PTRACE"])).await;
    assert!(!output.contains("written") && !output.contains("made"), "{output}");
    lab.finish().await;
}

/// The power meter reveals the computations of other processes.
#[tokio::test(flavor = "multi_thread")]
async fn ghsa_7ww5_4wqc_m92c_the_power_meter_cannot_be_read() {
    let (mut lab, pod) = Lab::with_pod().await;
    let config =
        with_security(sleeper("c"), |security| security.masked_paths = vec!["/proc/kcore".to_owned()]);
    let id = lab.run(&pod, config).await;
    let spec = lab.info(&id).await["runtimeSpec"].clone();
    let masked = spec["linux"]["maskedPaths"].as_array().unwrap();
    assert!(masked.contains(&json!("/sys/devices/virtual/powercap")), "{masked:?}");
    assert_eq!(lab.sh(&id, "find /sys/devices/virtual/powercap -type f 2>/dev/null | wc -l").await, "0");
    lab.finish().await;
}

/// The null device of the host is in no container: not as a mask, not as a standard stream and not as a device.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_cannot_change_the_hosts_null_device() {
    let (mut lab, pod) = Lab::with_pod().await;
    let inspect = || {
        let stat = fs::metadata("/dev/null").unwrap();
        (stat.mode(), stat.uid(), stat.gid())
    };
    let before = inspect();
    // If the attack worked, it would be harmless: all processes could still read and write the device.
    let script = "for file in /proc/kcore /proc/keys /proc/timer_list /dev/null /proc/self/fd/0 /proc/1/fd/0; do \
                  chmod 0677 $file; chown 0:4711 $file; done 2>/dev/null; \
                  for file in /proc/kcore /proc/keys /proc/timer_list; do \
                  [ ! -e $file ] || stat -c %t:%T:$(head -c 1 $file 2>/dev/null | wc -c) $file; done";
    let (_, output) = lab.run_to_end(&pod, masked(shell("masks", script))).await;
    let id = lab.run(&pod, masked(sleeper("running"))).await;
    lab.sh(&id, script).await;
    let after = inspect();
    drop(fs::set_permissions("/dev/null", std::os::unix::fs::PermissionsExt::from_mode(before.0)));
    drop(std::os::unix::fs::chown("/dev/null", Some(before.1), Some(before.2)));
    assert_eq!(after, before, "a container has changed the null device of the host");
    assert!(
        output.lines().count() > 0 && output.lines().all(|line| line == "1:3:0"),
        "masked files must be empty: {output}"
    );
    lab.finish().await;
}

/// A container tries to remount an image volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_remounted_image_volume_stays_read_only() {
    let (mut lab, pod) = Lab::with_pod().await;
    let archive = lab.path("one.tar");
    let layer = Layer::default().folder("data").file("data/file", "of the image").bytes();
    let reference = "localhost/one:1";
    image::write_archive_of(&archive, reference, &[layer], &serde_json::json!({}));
    lab.load_archive(&archive).await.unwrap();
    let image = |sub_path: &str, inside: &str| Mount {
        container_path: inside.to_owned(),
        readonly: true,
        image: Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    };
    let script = "for place in /whole /part; do mount -o remount,bind,rw $place; mount -o remount,rw $place; \
                  mkdir -p /again && mount --bind $place /again && mount -o remount,bind,rw /again; \
                  echo changed >$place/file; echo changed >$place/data/file; echo changed >/again/file; umount /again; \
                  done 2>/dev/null; cat /part/file /whole/data/file";
    let config = capable(shell("c", script), &["SYS_ADMIN"]);
    let config = with(with(config, image("", "/whole")), image("data", "/part"));
    let (_, output) = lab.run_to_end(&pod, config).await;
    assert_eq!(output.trim(), "of the imageof the image");
    let next = shell("next", "ls /part; cat /part/file");
    let (_, output) = lab.run_to_end(&pod, with(next, image("data", "/part"))).await;
    assert_eq!(output.trim(), "file\nof the image", "another container must see the unchanged image");
    lab.finish().await;
}

/// A container sees only its own root, whatever was mounted below it on the way, and an exec does, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_root_cannot_be_reached() {
    let (mut lab, pod) = Lab::with_pod().await;
    let secret = format!("{}/secret", lab.canary_text());
    let inspect = format!(
        "stat -c %d:%i / /..; grep -c ' / / ' /proc/self/mountinfo; \
         cat /..{secret} /../..{secret} /proc/1/root/..{secret} 2>/dev/null; echo over"
    );
    let mut terminal = masked(sleeper("terminal"));
    terminal.tty = true;
    let read_only = with_security(masked(sleeper("read-only")), |security| security.readonly_rootfs = true);
    let volumes = with(masked(sleeper("volumes")), volume(&lab.folder("volume"), "/v"));
    for config in [sleeper("plain"), masked(sleeper("masked")), terminal, read_only, volumes] {
        let name = config.metadata.clone().unwrap().name;
        let mut first = config.clone();
        first.metadata.as_mut().unwrap().name.push_str("-first");
        first.command = ["sh", "-c", &inspect].map(str::to_owned).to_vec();
        let (_, of_first) = lab.run_to_end(&pod, first).await;
        let id = lab.run(&pod, config).await;
        let of_exec = lab.sh(&id, &inspect).await;
        for (output, who) in [(of_first.replace('\r', ""), "first process"), (of_exec, "exec")] {
            let lines: Vec<&str> = output.lines().collect();
            assert!(lines.len() == 4 && lines[0] == lines[1], "{name}, {who}: {output}");
            assert!(lines[2] == "1" && lines[3] == "over", "{name}, {who}: {output}");
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", lab.info(&id).await["pid"])).unwrap();
        let at_root = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count();
        assert_eq!(at_root, 1, "{name}: {mounts}");
    }
    lab.finish().await;
}
