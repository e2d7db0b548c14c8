//! Images and volumes that lead the root filesystem of a container elsewhere: by links in the place of folders, by fake
//! filesystems in the place of the kernel's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use berth_proto::v1::*;
use serde_json::json;

use crate::lab::{Lab, Layer, SECRET, eventually, masked, of_image, volume, with};
use crate::support::{secured, shell, sleeper};

fn config() -> serde_json::Value {
    json!({ "Env": ["PATH=/bin"], "WorkingDir": "/" })
}

/// A link of an image in the place of a kernel filesystem: refused by name.
async fn is_refused(lab: &mut Lab, pod: &str, image: &str, words: &str) {
    let error = lab.try_create(pod, of_image(shell("c", "true"), image)).await.unwrap_err();
    assert!(error.message().contains(words), "{error}");
}

/// With its successors CVE-2023-27561, CVE-2023-28642 and, in youki, CVE-2025-54867.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_19921_proc_is_a_link() {
    let (mut lab, pod) = Lab::with_pod().await;
    for name in ["proc", "sys"] {
        let fake = Layer::default()
            .folder("fake")
            .folder("fake/self")
            .folder("fake/self/attr")
            .file("fake/self/attr/exec", "")
            .symlink(name, "/fake");
        let image = lab.load(&format!("fake-{name}"), fake, config()).await;
        is_refused(&mut lab, &pod, &image, &format!("/{name}")).await;
    }
    lab.finish().await;
}

/// A volume in the place of /proc holds what looks like the files that the runtime writes: it writes to its own procfs, and
/// the container is confined as it should be, seen from outside.
async fn has_a_volume_as_proc(lab: &mut Lab, pod: &str, fake: &Path) {
    for file in ["self/attr/exec", "self/attr/apparmor/exec", "self/oom_score_adj", "thread-self/attr/exec"] {
        let path = fake.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let before = crate::lab::tree(fake);
    let mut config = secured(masked(sleeper("c")), |security| {
        security.no_new_privs = true;
        security.seccomp = Some(SecurityProfile::default());
        security.apparmor = None;
    });
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 321, ..Default::default() });
    let id = lab.run(pod, with(config, volume(fake, "/proc"))).await;
    let pid = lab.info(&id).await["pid"].to_string();
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    eventually("the container is confined", || of("status").contains("Seccomp:\t2")).await;
    assert_eq!(of("oom_score_adj").trim(), "321");
    assert!(of("status").contains("NoNewPrivs:\t1"), "{}", of("status"));
    if Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        assert_eq!(of("attr/apparmor/current").trim(), "berth-default (enforce)");
    }
    assert_eq!(crate::lab::tree(fake), before, "the runtime has written to the volume");
    lab.stop_container(&id, 0).await;
    lab.remove_container(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_16884_a_volume_over_proc() {
    let (mut lab, pod) = Lab::with_pod().await;
    let fake = lab.folder("fake");
    has_a_volume_as_proc(&mut lab, &pod, &fake).await;
    // An image's own VOLUME is a folder, over which the kernel's filesystem is mounted.
    let volumes =
        json!({ "Env": ["PATH=/bin"], "Volumes": { "/proc": {}, "/sys": {}, "/dev": {}, "/proc/self": {} } });
    let image = lab.load("volumes", Layer::default(), volumes).await;
    let script = "for place in /proc /sys /dev; do stat -f -c %T $place; done; cat /proc/self/comm";
    if let Ok(id) = lab.try_create(&pod, of_image(shell("volumes", script), &image)).await {
        lab.try_start_container(&id).await.unwrap();
        lab.ended(&id).await;
        assert_eq!(lab.log(&id).await, "proc\nsysfs\ntmpfs\ncat\n");
    }
    lab.finish().await;
}

/// The write is led to another file of the real procfs, by links in a volume.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52881_writes_to_procfs_are_led_elsewhere() {
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
    let mut config = secured(masked(shell("c", "cat /proc/self/attr/exec /proc/sys/secret")), |security| {
        security.seccomp = Some(SecurityProfile::default());
    });
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 321, ..Default::default() });
    let (_, said) = lab.run_to_end(&pod, with(config, volume(&fake, "/proc"))).await;
    assert!(!said.contains(SECRET), "{said}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// A container's null device is not what its files are masked with.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_31133_the_null_device_is_replaced() {
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
            lab.ended(&id).await;
            let said = lab.log(&id).await;
            assert!(!said.contains("|/evil"), "{name}: {said}");
            assert!(said.contains("character special file:1:3"), "{name}: {said}");
        }
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// The console is the terminal that the runtime has made, by its descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52565_the_console_is_replaced() {
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
            lab.ended(&id).await;
            let said = lab.log(&id).await;
            assert!(!said.contains(SECRET), "{said}");
        }
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    lab.finish().await;
}

/// Devices go to a filesystem of their own, which is filled before it is attached (crun: CVE-2026-47766).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_41579_dev_is_a_link() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    for (name, target) in
        [("absolute", canary.clone()), ("relative", format!("../../../../../../..{canary}"))]
    {
        let image = lab.load(name, Layer::default().symlink("dev", &target), config()).await;
        is_refused(&mut lab, &pod, &image, "/dev").await;
    }
    let image = Layer::default().symlink("dev/pts", &canary).symlink("dev/shm", &canary);
    let image = lab.load("below", image, config()).await;
    let (_, said) =
        lab.run_to_end(&pod, of_image(shell("c", "ls -d /dev/pts /dev/shm/; ls /dev/pts"), &image)).await;
    assert_eq!(said, "/dev/pts\n/dev/shm/\nptmx\n", "what the image has there is hidden");
    lab.finish().await;
}

/// The places of volumes, and all that the runtime makes, are inside the image, however its links lead (crun; podman's
/// working folders: CVE-2026-55686).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_18837_targets_lead_out_of_the_image() {
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
    let mut made = 0;
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
                made += 1;
                lab.ended(&id).await;
                let said = lab.log(&id).await;
                assert!(!said.contains(SECRET), "{place}: {said}");
            }
            lab.remove_container(&id).await;
        }
        lab.untouched();
    }
    assert!(made > places.len(), "{made} containers could be made only");
    lab.finish().await;
}

/// VOLUME paths of an image are folders of the container; nothing is copied into them from anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23648_volumes_of_an_image_copy_the_host() {
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
    let (_, said) = lab.run_to_end(&pod, of_image(shell("c", script), &image)).await;
    assert!(said.ends_with("over\n") && !said.contains(SECRET), "{said}");
    lab.finish().await;
}

/// The files of a pod, and whatever else the runtime puts into `/etc`.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_5154_etc_is_a_link() {
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
            lab.ended(&id).await;
            let said = lab.log(&id).await;
            assert!(!said.contains(SECRET), "{said}");
        }
        lab.untouched();
    }
    lab.finish().await;
}

/// A part of an image that is mounted is inside that image.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2017_1002101_a_sub_path_leads_out_of_its_volume() {
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
        lab.ended(&id).await;
        let said = lab.log(&id).await;
        assert!(!said.contains(SECRET), "{sub_path}: {said}");
        assert!(said.contains("/v/etc/passwd"), "{sub_path} is the root of the image: {said}");
    }
    lab.finish().await;
}
