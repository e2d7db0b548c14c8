//! Images and volumes that redirect the root filesystem of a container: by links in the place of folders, and by fake
//! filesystems in the place of the kernel's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use berth_proto::v1::*;
use serde_json::json;

use crate::attacks::lab::{Lab, Layer, SECRET, eventually, masked, of_image, volume, with};
use crate::support::{shell, sleeper, with_security};

fn config() -> serde_json::Value {
    json!({ "Env": ["PATH=/bin"], "WorkingDir": "/" })
}

/// Checks that an image with a link in the place of a kernel filesystem is refused by name.
async fn assert_refused(lab: &mut Lab, pod: &str, image: &str, words: &str) {
    let error = lab.try_create(pod, of_image(shell("c", "true"), image)).await.unwrap_err();
    assert!(error.message().contains(words), "{error}");
}

/// Also its successors CVE-2023-27561, CVE-2023-28642 and, in youki, CVE-2025-54867.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_19921_an_image_with_proc_as_a_link_is_refused() {
    let (mut lab, pod) = Lab::with_pod().await;
    for name in ["proc", "sys"] {
        let fake = Layer::default()
            .folder("fake")
            .folder("fake/self")
            .folder("fake/self/attr")
            .file("fake/self/attr/exec", "")
            .symlink(name, "/fake");
        let image = lab.load(&format!("fake-{name}"), fake, config()).await;
        assert_refused(&mut lab, &pod, &image, &format!("/{name}")).await;
    }
    lab.finish().await;
}

/// A volume over /proc contains files like those that the runtime writes. berth writes to its own procfs. Seen from
/// outside, the container is confined as requested.
async fn assert_confined_with_a_volume_as_proc(lab: &mut Lab, pod: &str, fake: &Path) {
    for file in ["self/attr/exec", "self/attr/apparmor/exec", "self/oom_score_adj", "thread-self/attr/exec"] {
        let path = fake.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let before = crate::attacks::lab::tree(fake);
    let mut config = with_security(masked(sleeper("c")), |security| {
        security.no_new_privs = true;
        security.seccomp = Some(SecurityProfile::default());
        security.apparmor = None;
    });
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 321, ..Default::default() });
    let id = lab.run(pod, with(config, volume(fake, "/proc"))).await;
    let pid = lab.info(&id).await["pid"].to_string();
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    eventually("the container is not confined", || of("status").contains("Seccomp:\t2")).await;
    assert_eq!(of("oom_score_adj").trim(), "321");
    assert!(of("status").contains("NoNewPrivs:\t1"), "{}", of("status"));
    if Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        assert_eq!(of("attr/apparmor/current").trim(), "berth-default (enforce)");
    }
    assert_eq!(crate::attacks::lab::tree(fake), before, "berth must not write to the volume");
    lab.stop_container(&id, 0).await;
    lab.remove_container(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_16884_a_volume_over_proc_does_not_lift_confinement() {
    let (mut lab, pod) = Lab::with_pod().await;
    let fake = lab.folder("fake");
    assert_confined_with_a_volume_as_proc(&mut lab, &pod, &fake).await;
    // A VOLUME of an image is a folder. The kernel filesystem is mounted over it.
    let volumes =
        json!({ "Env": ["PATH=/bin"], "Volumes": { "/proc": {}, "/sys": {}, "/dev": {}, "/proc/self": {} } });
    let image = lab.load("volumes", Layer::default(), volumes).await;
    let script = "for place in /proc /sys /dev; do stat -f -c %T $place; done; cat /proc/self/comm";
    if let Ok(id) = lab.try_create(&pod, of_image(shell("volumes", script), &image)).await {
        lab.try_start_container(&id).await.unwrap();
        lab.wait_exited(&id).await;
        assert_eq!(lab.log(&id).await, "proc\nsysfs\ntmpfs\ncat\n");
    }
    lab.finish().await;
}

/// Links in a volume try to redirect the write to another file of the real procfs.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52881_writes_to_procfs_cannot_be_redirected() {
    let (mut lab, pod) = Lab::with_pod().await;
    let fake = lab.folder("fake");
    let canary = lab.canary_text();
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    for file in ["self/attr/exec", "self/oom_score_adj", "self/attr/current"] {
        symlink(format!("{canary}/secret"), fake.join(file)).unwrap();
    }
    symlink("/proc/sys/kernel/core_pattern", fake.join("self/attr/keycreate")).unwrap();
    symlink(&canary, fake.join("sys")).unwrap();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut config =
        with_security(masked(shell("c", "cat /proc/self/attr/exec /proc/sys/secret")), |security| {
            security.seccomp = Some(SecurityProfile::default());
        });
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 321, ..Default::default() });
    let (_, log) = lab.run_to_end(&pod, with(config, volume(&fake, "/proc"))).await;
    assert!(!log.contains(SECRET), "{log}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// Files are not masked with the container's null device.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_31133_a_replaced_null_device_is_not_used_for_masks() {
    let (mut lab, pod) = Lab::with_pod().await;
    let devices = lab.folder("devices");
    for name in ["null", "zero", "full", "random"] {
        symlink("/proc/sys/kernel/core_pattern", devices.join(name)).unwrap();
    }
    let image = Layer::default().symlink("dev/null", "/proc/sysrq-trigger");
    let image = lab.load("null", image, config()).await;
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let script = "for file in /proc/kcore /proc/keys /proc/timer_list; do \
                  [ ! -e $file ] || { stat -c %F:%t:%T $file; echo '|/evil' >$file; cat $file; }; done; \
                  echo '|/evil' >/proc/sys/kernel/core_pattern; cat /proc/sys/kernel/core_pattern";
    for (name, with_volume) in [("volume", true), ("image", false)] {
        let config = masked(of_image(shell(name, script), &image));
        let config = if with_volume { with(config, volume(&devices, "/dev")) } else { config };
        let Ok(id) = lab.try_create(&pod, config).await else { continue };
        if lab.try_start_container(&id).await.is_ok() {
            lab.wait_exited(&id).await;
            let log = lab.log(&id).await;
            assert!(!log.contains("|/evil"), "{name}: {log}");
            assert!(log.contains("character special file:1:3"), "{name}: {log}");
        }
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// The console is the terminal that berth has created, mounted by its descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52565_a_replaced_console_is_not_used() {
    let (mut lab, pod) = Lab::with_pod().await;
    let (devices, terminals) = (lab.folder("devices"), lab.folder("terminals"));
    let secret = format!("{}/secret", lab.canary_text());
    symlink(&secret, devices.join("console")).unwrap();
    for name in ["0", "1", "ptmx"] {
        symlink("/proc/sys/kernel/core_pattern", terminals.join(name)).unwrap();
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let script = "cat /dev/console </dev/null >/tmp/read & sleep 0.1; kill $!; cat /tmp/read; echo '|/evil' >/dev/console";
    for (name, host, inside) in [("console", &devices, "/dev"), ("terminals", &terminals, "/dev/pts")] {
        let mut config = with(shell(name, script), volume(host, inside));
        config.tty = true;
        let Ok(id) = lab.try_create(&pod, config).await else { continue };
        if lab.try_start_container(&id).await.is_ok() {
            lab.wait_exited(&id).await;
            let log = lab.log(&id).await;
            assert!(!log.contains(SECRET), "{log}");
        }
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// Devices are created in a separate filesystem, which is filled before it is attached (crun: CVE-2026-47766).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_41579_an_image_with_dev_as_a_link_is_refused() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    for (name, target) in
        [("absolute", canary.clone()), ("relative", format!("../../../../../../..{canary}"))]
    {
        let image = lab.load(name, Layer::default().symlink("dev", &target), config()).await;
        assert_refused(&mut lab, &pod, &image, "/dev").await;
    }
    let image = Layer::default().symlink("dev/pts", &canary).symlink("dev/shm", &canary);
    let image = lab.load("below", image, config()).await;
    let (_, log) =
        lab.run_to_end(&pod, of_image(shell("c", "ls -d /dev/pts /dev/shm/; ls /dev/pts"), &image)).await;
    assert_eq!(log, "/dev/pts\n/dev/shm/\nptmx\n", "the files of the image must be hidden");
    lab.finish().await;
}

/// The targets of volumes and everything that berth creates stay inside the image, whatever its links are (crun;
/// podman's working folders: CVE-2026-55686).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_18837_mount_targets_stay_inside_the_image() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let up = format!("../../../../../../../../..{canary}");
    let image = Layer::default()
        .symlink("absolute", &canary)
        .symlink("relative", &up)
        .symlink("dangling", &format!("{canary}/none/deep"))
        .symlink("file", &format!("{canary}/secret"))
        .symlink("root", "/proc/1/root")
        .symlink("circle", "/circle");
    let image = lab.load("links", image, config()).await;
    let other = lab.folder("other");
    fs::write(other.join("file"), "other").unwrap();
    let places = [
        "/absolute/made",
        "/relative/made",
        "/dangling",
        "/dangling/made",
        "/file",
        "/absolute/secret",
        "/../../../../../../absolute/x",
        "/circle/x",
        "/root/tmp/x",
    ];
    let mut created = 0;
    for (number, place) in places.into_iter().enumerate() {
        let script = format!(
            "for file in /absolute/secret /relative/secret /file {place}/secret; do head -c 100 $file; done 2>/dev/null; pwd"
        );
        let plain = of_image(shell(&format!("c{number}"), &script), &image);
        let mut working = plain.clone();
        working.metadata.as_mut().unwrap().name.push('w');
        working.working_dir = place.to_owned();
        let mut device = plain.clone();
        device.metadata.as_mut().unwrap().name.push('d');
        device.devices = vec![Device {
            host_path: "/dev/full".to_owned(),
            container_path: place.to_owned(),
            permissions: "r".to_owned(),
        }];
        let mut file = with(plain.clone(), volume(&other.join("file"), place));
        file.metadata.as_mut().unwrap().name.push('f');
        for config in [with(plain, volume(&other, place)), working, device, file] {
            let Ok(id) = lab.try_create(&pod, config).await else { continue };
            if lab.try_start_container(&id).await.is_ok() {
                created += 1;
                lab.wait_exited(&id).await;
                let log = lab.log(&id).await;
                assert!(!log.contains(SECRET), "{place}: {log}");
            }
            lab.remove_container(&id).await;
        }
        lab.assert_untouched();
    }
    assert!(created > places.len(), "only {created} containers could be created");
    lab.finish().await;
}

/// VOLUME paths of an image are folders of the container. Nothing is copied into them.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23648_image_volumes_do_not_copy_host_files() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let image =
        Layer::default().symlink("link", &canary).symlink("up", &format!("../../../../../../..{canary}"));
    let volumes = json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "Volumes": {
        "/link": {}, "/up/": {}, "/link/folder": {}, "/link/made": {}, "/up/made/too": {}, (format!("/../../../../../../..{canary}")): {},
        (format!("/etc/../../../../../..{canary}/folder")): {} } });
    let image = lab.load("volumes", image, volumes).await;
    let script = "find / -xdev -name secret -o -xdev -name file 2>/dev/null | grep -v ^/proc | xargs cat 2>/dev/null; \
                  cat /link/secret /up/secret 2>/dev/null; echo over";
    let (_, log) = lab.run_to_end(&pod, of_image(shell("c", script), &image)).await;
    assert!(log.ends_with("over\n") && !log.contains(SECRET), "{log}");
    lab.finish().await;
}

/// The files of a pod and every other file that berth puts into `/etc`.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_5154_an_image_with_etc_as_a_link_does_not_reach_the_host() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let links = [
        Layer::default().symlink("etc", &format!("../../../../../../..{canary}")),
        Layer::default().symlink("etc", &canary),
        Layer::default()
            .symlink("etc/mtab", &format!("{canary}/mtab"))
            .symlink("etc/hosts", &format!("{canary}/secret")),
        Layer::default()
            .symlink("etc/hostname", "/proc/sys/kernel/hostname")
            .symlink("etc/resolv.conf", &format!("{canary}/made")),
    ];
    for (number, layer) in links.into_iter().enumerate() {
        let image = lab.load(&format!("etc{number}"), layer, config()).await;
        let script = "cat /etc/mtab /etc/hosts /etc/secret 2>/dev/null; echo over";
        let config = of_image(shell(&format!("c{number}"), script), &image);
        if let Ok(id) = lab.try_create(&pod, config).await {
            drop(lab.try_start_container(&id).await);
            lab.wait_exited(&id).await;
            let log = lab.log(&id).await;
            assert!(!log.contains(SECRET), "{log}");
        }
        lab.assert_untouched();
    }
    lab.finish().await;
}

/// A mounted sub path of an image stays inside that image.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2017_1002101_an_image_sub_path_stays_inside_the_image() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let layer = Layer::default()
        .folder("data")
        .symlink("data/absolute", &canary)
        .symlink("data/up", &format!("../../../../../../..{canary}"))
        .symlink("data/root", "/proc/self/root");
    let image = lab.load("volume", layer, config()).await;
    let places =
        ["data/absolute", "data/up", "data/up/secret", "data/root/etc", "../../..", "data/../../../..", "/"];
    for (number, sub_path) in places.into_iter().enumerate() {
        let mount = Mount {
            container_path: "/v".to_owned(),
            readonly: true,
            image: Some(ImageSpec { image: image.clone(), ..ImageSpec::default() }),
            image_sub_path: sub_path.to_owned(),
            ..Mount::default()
        };
        let script = format!("cat /v /v/secret /v/../../..{canary}/secret 2>/dev/null; ls /v/etc/passwd");
        let Ok(id) = lab.try_create(&pod, with(shell(&format!("c{number}"), &script), mount)).await else {
            continue;
        };
        lab.try_start_container(&id).await.unwrap();
        lab.wait_exited(&id).await;
        let log = lab.log(&id).await;
        assert!(!log.contains(SECRET), "{sub_path}: {log}");
        assert!(log.contains("/v/etc/passwd"), "{sub_path} must be the root of the image: {log}");
    }
    lab.finish().await;
}
