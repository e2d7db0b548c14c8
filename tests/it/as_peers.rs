//! Compatibility with containerd and CRI-O: images of many builders, devices by annotation, host names, logs, working
//! folders. Runs as root.

use std::fs;

use crate::support::{Berth, code, container, pod_with, shell, sleeper, with_security};
use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::*;
use serde_json::json;
use tonic::Code;

/// Loads an image with busybox and this config.
async fn load(berth: &Berth, tag: &str, config: &serde_json::Value) {
    let archive = berth.path("own.tar");
    crate::support::image::write_archive_of(&archive, tag, &[crate::support::image::layer()], config);
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let path = archive.display().to_string();
    AdminClient::new(channel).load_image(LoadImageRequest { path }).await.unwrap();
}

fn of_image(tag: &str, name: &str) -> ContainerConfig {
    let image = Some(ImageSpec { image: tag.to_owned(), ..ImageSpec::default() });
    ContainerConfig { image, ..container(name, &[]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unterminated_last_line_is_logged_as_partial() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, shell("c", "printf 'one\\ntwo'; printf 'three' >&2")).await;
    let log = berth.wait_exited(&id).await.log_path;
    let log = fs::read_to_string(log).unwrap();
    let mut lines: Vec<String> = log.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
    lines.sort();
    assert_eq!(lines, ["stderr P three", "stdout F one", "stdout P two"], "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn writable_layer_usage_has_the_time_of_its_measurement() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    berth.sh(&id, "dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null").await;
    let before =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos())
            .unwrap();
    // The first response contains the value that is known. A very busy daemon measures for the next response.
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let layer = loop {
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = berth.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        match stats.writable_layer {
            Some(layer) => break layer,
            None => assert!(std::time::Instant::now() < until, "the writable layer is never measured"),
        }
    };
    assert!(layer.used_bytes.unwrap().value >= 8 << 20, "{layer:?}");
    assert!(layer.timestamp >= before, "{layer:?}");
    let info = berth.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(info.container_filesystems[0].used_bytes.unwrap().value >= 8 << 20, "{info:?}");
    assert!(info.container_filesystems[0].timestamp >= before, "{info:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The bytes of a container's writable layer, once `least` are reported.
async fn written(berth: &mut Berth, id: &str, least: u64) -> u64 {
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let request = ContainerStatsRequest { container_id: id.to_owned() };
        let stats = berth.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        let bytes = stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value);
        if bytes >= least {
            return bytes;
        }
        assert!(std::time::Instant::now() < until, "{bytes} bytes are reported, {least} are expected");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// Runs where the filesystem counts by project (`prjquota`): the virtual machine's does.
#[tokio::test(flavor = "multi_thread")]
async fn a_writable_layer_is_measured_by_its_quota_project() {
    use berth_runtime::sys::quota;
    let mut berth = Berth::start().await;
    let root = fs::File::open(berth.path("")).unwrap();
    if let Err(error) = quota::project_usage(&root, 0) {
        eprintln!("skipped: this filesystem does not count by project: {error}");
        return;
    }
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let layer = berth.path("root/image/containers").join(&id);
    let project = quota::project(fs::File::open(&layer).unwrap()).unwrap();
    assert!(project > 1 << 30, "project {project}");
    // A file that is copied up from the image belongs to the project as well.
    berth.sh(&id, "dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null; echo >> /etc/passwd; sync").await;
    for file in ["upper/written", "upper/etc/passwd"] {
        assert_eq!(quota::project(fs::File::open(layer.join(file)).unwrap()).unwrap(), project, "{file}");
    }
    assert!(written(&mut berth, &id, 8 << 20).await < 12 << 20);
    // The first answer came from a walk. From now on the kernel counts.
    berth.sh(&id, "dd if=/dev/zero of=/more bs=1M count=8 2>/dev/null; sync").await;
    assert!(written(&mut berth, &id, 16 << 20).await < 20 << 20);
    // After a restart the layer still has its project, and another one gets its own.
    berth.kill();
    berth.restart().await;
    let other = berth.run(&pod, sleeper("other")).await;
    let of_other = fs::File::open(berth.path("root/image/containers").join(&other)).unwrap();
    assert_ne!(quota::project(of_other).unwrap(), project);
    assert!(written(&mut berth, &id, 16 << 20).await < 20 << 20);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn cdi_annotations_add_devices_and_unknown_devices_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = json!({ "cdiVersion": "0.5.0", "kind": "vendor.test/dev", "containerEdits": null, "devices": [
        { "name": "a", "containerEdits": { "env": ["DEV=a"], "mounts": null, "hooks": null } } ] });
    fs::write(folder.path().join("vendor.json"), spec.to_string()).unwrap();
    let mut berth = Berth::start_with(&format!("cdi_spec_dirs = [\"{}\"]\n", folder.path().display())).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let asks = |name: &str, device: &str| ContainerConfig {
        annotations: [("cdi.k8s.io/plugin_x".to_owned(), device.to_owned())].into(),
        ..shell(name, "echo $DEV")
    };
    assert_eq!(berth.run_to_end(&pod, asks("known", "vendor.test/dev=a")).await, (0, "a\n".to_owned()));
    for device in ["vendor.test/dev=b", "vendor.test/dev", ""] {
        let error = berth.try_create(&pod, asks("unknown", device)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{device}: {error}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_network_pods_have_the_nodes_hostname_or_the_requested_one() {
    let mut berth = Berth::start().await;
    let node = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let host = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    };
    let script = "hostname; echo $HOSTNAME; cat /etc/hostname; readlink /proc/self/ns/pid";
    let pids = fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let of_file = fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned();
    for (asked, name, file) in
        [("", &node, &of_file), ("own-name", &"own-name".to_owned(), &"own-name".to_owned())]
    {
        let mut config = pod_with(&berth, &format!("pod{asked}"), |security| {
            security.namespace_options = Some(host.clone())
        });
        config.hostname = asked.to_owned();
        let pod = berth.run_pod(config).await;
        // A container without namespace options uses the namespaces of its pod.
        let silent = with_security(shell("c", script), |security| security.namespace_options = None);
        let (code, log) = berth.run_to_end(&pod, silent).await;
        assert_eq!((code, log), (0, format!("{name}\n{name}\n{file}\n{pids}\n")), "{asked:?}");
    }
    assert_eq!(rustix::system::uname().nodename().to_str().unwrap(), node, "the node keeps its name");
    let mut config = berth.pod_config("nameless");
    config.hostname = String::new();
    let pod = berth.run_pod(config).await;
    let (_, log) = berth.script(&pod, "c", "hostname; echo $HOSTNAME; cat /etc/hostname").await;
    assert_eq!(log, format!("{node}\n{node}\n{node}\n"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_image_configs_run_as_in_containerd_and_cri_o() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let path = json!(["PATH=/bin"]);
    load(
        &berth,
        "localhost/empty:1",
        &json!({ "Env": path, "Entrypoint": [""], "Cmd": ["echo", "x"], "Volumes": null, "Labels": null }),
    )
    .await;
    assert_eq!(berth.run_to_end(&pod, of_image("localhost/empty:1", "empty")).await, (0, "x\n".to_owned()));

    load(
        &berth,
        "localhost/signal:1",
        &json!({ "Env": path, "Cmd": ["echo", "y"], "StopSignal": "SIGNONSENSE" }),
    )
    .await;
    let id = berth.run(&pod, of_image("localhost/signal:1", "signal")).await;
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.stop_signal()), (0, Signal::Sigterm));

    let script =
        "cat /srv/owned; echo new >/srv/new; cat /srv/new; touch /x 2>&1; grep -c ' /srv ' /proc/mounts";
    let config =
        json!({ "Env": path, "Cmd": ["sh", "-c", script], "Volumes": { "/srv/../srv/": {}, "/made": {} } });
    load(&berth, "localhost/volume:1", &config).await;
    let read_only =
        with_security(of_image("localhost/volume:1", "volume"), |security| security.readonly_rootfs = true);
    let (_, log) = berth.run_to_end(&pod, read_only).await;
    let of_users = IdMapping { host_id: 500_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![of_users], gids: vec![of_users] };
    let options = NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(users),
        ..NamespaceOption::default()
    };
    let config = pod_with(&berth, "users", |security| security.namespace_options = Some(options.clone()));
    let in_users = berth.run_pod(config).await;
    let config = with_security(of_image("localhost/volume:1", "users"), |security| {
        security.readonly_rootfs = true;
        security.namespace_options = Some(options);
    });
    let (_, same) = berth.run_to_end(&in_users, config).await;
    assert_eq!(same, log, "in a user namespace as well");
    assert!(
        log.starts_with("web's\nnew\n") && log.contains("Read-only file system") && log.ends_with("1\n"),
        "{log}"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn working_folder_may_be_inaccessible_to_the_container_user() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let folder = berth.path("private");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(0), Some(0)).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mount = Mount {
        host_path: folder.display().to_string(),
        container_path: "/x/../private/.".to_owned(),
        ..Mount::default()
    };
    let mut config = with_security(shell("c", "id -u; pwd; sleep 1000"), |security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
    });
    config.mounts = vec![mount];
    config.working_dir = "/../srv/.././private".to_owned();
    let id = berth.run(&pod, config.clone()).await;
    assert_eq!(berth.sh(&id, "id -u; pwd").await, "1000\n/private", "an exec has the same working folder");
    let log = berth.status(&id).await.log_path;
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while crate::support::text_of(&fs::read_to_string(&log).unwrap()) != "1000\n/private\n" {
        assert!(std::time::Instant::now() < until, "{}", fs::read_to_string(&log).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut root = config.clone();
    root.metadata.as_mut().unwrap().name = "root".to_owned();
    root.mounts[0].container_path = "/a/..".to_owned();
    assert_eq!(
        code(berth.try_create(&pod, root).await),
        Code::InvalidArgument,
        "a mount over the root is refused"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_of_the_pods_interface_are_set() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("pod");
    config.linux.as_mut().unwrap().sysctls = [
        ("net.ipv4.conf.eth0.rp_filter", "2"),
        ("net/ipv4/neigh/eth0/gc_stale_time", "77"),
        ("net.ipv4.conf.all.log_martians", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let pod = berth.run_pod(config).await;
    let read =
        "cd /proc/sys/net/ipv4 && cat conf/eth0/rp_filter neigh/eth0/gc_stale_time conf/all/log_martians";
    assert_eq!(berth.script(&pod, "c", read).await, (0, "2\n77\n1\n".to_owned()));
    let mut wrong = berth.pod_config("wrong");
    wrong.linux.as_mut().unwrap().sysctls =
        [("net.ipv4.conf.eth7.rp_filter".to_owned(), "1".to_owned())].into();
    let error = berth.try_run_pod(wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("net.ipv4.conf.eth7.rp_filter"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
