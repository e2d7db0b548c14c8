//! Devices of CDI files: their mounts and hooks.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_cdi_device_has_the_edits_of_its_spec_file() {
    let folder = tempfile::tempdir().unwrap();
    let dirs = format!(
        "cdi_spec_dirs = [{:?}]\ndefault_ulimits = [\"nofile=100:200\"]\nshm_size = \"3MiB\"",
        folder.path()
    );
    let mut berth = Berth::start_with(&dirs).await;
    berth.load_image().await;
    let library = berth.path("library");
    fs::write(&library, "vendor's").unwrap();
    let file = format!(
        "cdiVersion: 0.6.0\nkind: vendor.example/accelerator\ndevices:\n- name: one\n  containerEdits:\n    \
         env: [ACCELERATOR=one]\n    deviceNodes: [{{path: /dev/accelerator, hostPath: /dev/full}}]\n    \
         mounts: [{{hostPath: {:?}, containerPath: /usr/lib/vendor.so, options: [ro, nosuid, bind]}}]\n",
        library
    );
    fs::write(folder.path().join("vendor.yaml"), file).unwrap();
    let pod = berth.run_pod(berth.pod_config("cdi")).await;
    let named = |name: &str| {
        let mut config = shell(
            "c",
            "echo $ACCELERATOR; cat /usr/lib/vendor.so; head -c2 /dev/accelerator | wc -c; ulimit -n; ulimit -Hn; \
             df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
        );
        config.metadata.as_mut().unwrap().name = name.replace(['/', '='], "-");
        config.cdi_devices = vec![CdiDevice { name: name.to_owned() }];
        config
    };
    let (_, log) = berth.run_to_end(&pod, named("vendor.example/accelerator=one")).await;
    assert_eq!(
        log.split_whitespace().collect::<Vec<_>>(),
        ["one", "vendor's2", "100", "200", "3072"],
        "{log}"
    );
    let error = berth.try_create(&pod, named("vendor.example/accelerator=two")).await.unwrap_err();
    assert!(error.message().contains(folder.path().to_str().unwrap()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cdi_mounts_support_every_propagation_option() {
    let folder = tempfile::tempdir().unwrap();
    let mut berth = Berth::start_with(&format!("cdi_spec_dirs = [{:?}]", folder.path())).await;
    berth.load_image().await;
    let outer = HostMount::new(berth.path("outer"), "--make-shared");
    let inner = HostMount::new(outer.below("inner"), "--make-shared");
    let options = ["private", "slave", "shared", "unbindable"];
    let mount = |name: &str, bind: &str| {
        format!("{{hostPath: {:?}, containerPath: /{name}, options: [{bind}, {name}]}}", outer.path)
    };
    let mounts: Vec<String> = options
        .iter()
        .flat_map(|&name| [mount(name, "rbind"), mount(&format!("r{name}"), "rbind")])
        .chain([
            "{hostPath: tmpfs, containerPath: /small, type: tmpfs, options: [size=64k, nosuid]}".to_owned()
        ])
        .collect();
    let file = format!(
        "cdiVersion: 0.6.0\nkind: vendor.example/tree\ndevices:\n- name: all\n  containerEdits:\n    mounts: [{}]\n",
        mounts.join(", ")
    );
    fs::write(folder.path().join("vendor.yaml"), file).unwrap();
    let pod = berth.run_pod(berth.pod_config("tree")).await;
    let script = "cat /proc/self/mountinfo; head -c 100000 /dev/zero >/small/x || echo full";
    let mut config = shell("c", script);
    config.cdi_devices = vec![CdiDevice { name: "vendor.example/tree=all".to_owned() }];
    let (_, log) = berth.run_to_end(&pod, config).await;
    assert!(log.ends_with("full\n"), "the tmpfs must have the requested size: {log}");
    // The optional fields of a mount contain its propagation (proc_pid_mountinfo(5)).
    let tags = |point: &str| {
        let line = log
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(point))
            .unwrap_or_else(|| panic!("{point}: {log}"));
        let fields: Vec<&str> = line.split(' ').skip(6).take_while(|field| *field != "-").collect();
        let kinds = fields.iter().map(|field| field.split(':').next().unwrap()).collect::<Vec<_>>();
        kinds.join(" ")
    };
    for (name, outermost, inside) in [
        ("rprivate", "", ""),
        ("private", "", "shared"),
        ("rslave", "master", "master"),
        ("slave", "master", "shared"),
        ("rshared", "shared", "shared"),
        ("shared", "shared", "shared"),
        ("runbindable", "unbindable", "unbindable"),
        ("unbindable", "unbindable", "shared"),
    ] {
        assert_eq!(tags(&format!("/{name}")), outermost, "{name}");
        assert_eq!(tags(&format!("/{name}/inner")), inside, "below {name}");
    }
    drop((inner, outer));
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cdi_hook_can_change_the_root_filesystem() {
    let folder = tempfile::tempdir().unwrap();
    let mut berth = Berth::start_with(&format!("cdi_spec_dirs = [{:?}]", folder.path())).await;
    berth.load_image().await;
    let script = berth.path("hook");
    let text = r#"#!/bin/sh
state=$(cat)
bundle=$(expr "$state" : '.*"bundle":"\([^"]*\)"')
case $1 in
link) ln -s "$VENDOR" "$bundle/rootfs/etc/linked" && mkdir "$bundle/rootfs/mnt" && mount -t tmpfs vendor "$bundle/rootfs/mnt" ;;
fail) echo "no such accelerator" >&2; exit 3 ;;
stay) exec sleep 60 ;;
esac
"#;
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let hook = |name: &str, argument: &str| {
        format!(
            "- name: {argument}\n  containerEdits:\n    hooks: [{{hookName: {name}, path: {script:?}, args: [hook, \
             {argument}], env: [VENDOR=lib, PATH=/usr/bin:/bin:/usr/sbin:/sbin], timeout: 1}}]\n"
        )
    };
    let (link, fail) = (hook("createContainer", "link"), hook("createContainer", "fail"));
    let (stay, late) = (hook("createContainer", "stay"), hook("later", "late"));
    let file = format!("cdiVersion: 0.6.0\nkind: vendor.example/gpu\ndevices:\n{link}{fail}{stay}{late}");
    fs::write(folder.path().join("vendor.yaml"), file).unwrap();
    let pod = berth.run_pod(berth.pod_config("hooks")).await;
    let named = |name: &str| {
        let mut config = shell("c", "readlink /etc/linked; grep -c 'vendor /mnt tmpfs' /proc/mounts");
        config.metadata.as_mut().unwrap().name = name.to_owned();
        config.cdi_devices = vec![CdiDevice { name: format!("vendor.example/gpu={name}") }];
        config
    };
    let (_, log) = berth.run_to_end(&pod, named("link")).await;
    assert_eq!(log.split_whitespace().collect::<Vec<_>>(), ["lib", "1"], "{log}");
    for (name, expected) in [
        ("fail", "exit status: 3: no such accelerator"),
        ("stay", "ended after 1 s"),
        ("late", "invalid hook name \"later\""),
    ] {
        let error = berth.try_create(&pod, named(name)).await.unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    assert!(berth.clean().await.is_empty());
}
