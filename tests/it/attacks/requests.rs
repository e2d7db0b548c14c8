//! Requests with hidden content: sysctls, annotations, names, checkpoints.

use std::fs;
use std::path::Path;

use berth_proto::v1::*;
use serde_json::json;
use tonic::Code;

use crate::attacks::lab::{Lab, Layer, of_image, sharing_pids, volume, with};
use crate::support::{code, shell, sleeper};

fn with_sysctl(
    mut config: PodSandboxConfig,
    key: &str,
    value: &str,
    mode: NamespaceMode,
) -> PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [(key.to_owned(), value.to_owned())].into();
    let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    (options.network, options.ipc, options.pid) = (mode.into(), mode.into(), mode.into());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_0811_a_sysctl_cannot_set_another_one() {
    let mut lab = Lab::start().await;
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let (own, host) = ("kernel.shm_rmid_forced", "kernel.core_pattern");
    for (key, value) in [
        (own, "1+kernel.core_pattern=|/evil #"),
        (own, "1\nkernel.core_pattern=|/evil"),
        (own, "1 -s kernel.core_pattern=|/evil"),
        (host, "|/evil"),
        ("kernel/core_pattern", "|/evil"),
        ("net.ipv4.../kernel/core_pattern", "|/evil"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net.ipv4.ip_forward=1+kernel.core_pattern", "|/evil"),
        ("net//../../kernel/core_pattern", "|/evil"),
        ("kernel.shm/../core_pattern", "|/evil"),
        ("kernel.shm_rmid_forced\0", "1"),
    ] {
        let config = with_sysctl(lab.pod_config("pod"), key, value, NamespaceMode::Pod);
        assert_ne!(code(lab.try_run_pod(config).await), Code::Ok, "{key}={value}");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern, "{key}={value}");
    }
    lab.finish().await;
}

/// Also GHSA-w2j5-3rcx-vx7x: sysctls of a pod that shares the host's namespaces.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_0532_sysctls_of_the_host_are_refused() {
    let mut lab = Lab::start().await;
    let of_host = |lab: &Lab, key: &str| {
        let output = lab.on_host(&["cat", &format!("/proc/sys/{}", key.replace('.', "/"))]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for key in
        ["net.ipv4.ip_local_port_range", "kernel.shm_rmid_forced", "kernel.msgmax", "kernel.domainname"]
    {
        let before = of_host(&lab, key);
        let config = with_sysctl(lab.pod_config("pod"), key, "1", NamespaceMode::Node);
        assert_eq!(code(lab.try_run_pod(config).await), Code::InvalidArgument, "{key}");
        assert_eq!(of_host(&lab, key), before, "{key}");
    }
    lab.finish().await;
}

/// Annotations that control other runtimes: systemd properties (CVE-2024-3154), limits of a cgroup (CVE-2023-6476),
/// hooks, devices, users, loggers.
const ANNOTATIONS: [(&str, &str); 14] = [
    ("org.systemd.property.ExecStartPre", "['/bin/touch', 'CANARY/made']"),
    ("org.systemd.property.SuccessAction", "'poweroff-force'"),
    ("io.kubernetes.cri-o.UnifiedCgroup.c", "memory.max=max;pids.max=max"),
    ("io.kubernetes.cri-o.Devices", "/dev/kmsg:/dev/kmsg:rwm"),
    ("io.kubernetes.cri-o.userns-mode", "private"),
    ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
    ("io.kubernetes.cri-o.seccompNotifierAction", "stop"),
    ("io.kubernetes.cri-o.ShmSize", "100Gi"),
    ("io.kubernetes.cri.container-type", "sandbox"),
    ("cdi.k8s.io/evil", "vendor.example/gpu=all"),
    ("run.oci.hooks.stderr", "CANARY/made"),
    ("run.oci.keep_original_groups", "1"),
    ("run.oci.handler", "krun"),
    ("containerd.io/restart.loguri", "binary:///bin/touch?CANARY/made"),
];

fn annotations(canary: &str) -> std::collections::HashMap<String, String> {
    ANNOTATIONS.iter().map(|(key, value)| ((*key).to_owned(), value.replace("CANARY", canary))).collect()
}

/// Checks that the annotations had no effect on a container and that none of them is in its spec, which other
/// programs read.
async fn assert_annotations_had_no_effect(lab: &mut Lab, id: &str) {
    let spec = lab.info(id).await["runtimeSpec"].clone();
    let text = spec.to_string();
    for (key, value) in ANNOTATIONS {
        assert!(key == "io.kubernetes.cri.container-type" || !text.contains(key), "{key}: {text}");
        assert!(
            key.ends_with("container-type") || value.len() < 8 || !text.contains(value),
            "{value}: {text}"
        );
    }
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "container");
    assert!(spec["hooks"].is_null(), "{spec}");
    let output = lab
        .sh(id, "ls /dev/kmsg 2>/dev/null; id -G; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2")
        .await;
    assert_eq!(output, "0\n65536");
    let limits = lab.info(id).await["runtimeSpec"]["linux"]["resources"]["memory"]["limit"].clone();
    assert_eq!(limits, json!(64 << 20));
}

fn limited(mut config: ContainerConfig) -> ContainerConfig {
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_3154_annotations_do_not_control_the_runtime() {
    let mut lab = Lab::start().await;
    let canary = lab.canary_text();
    let config = PodSandboxConfig { annotations: annotations(&canary), ..lab.pod_config("pod") };
    let pod = lab.run_pod(config).await;
    // A container's annotation requests a CDI device like the request's own field. A device that no spec file
    // describes is refused. The annotations of a pod request no devices.
    let mut own = annotations(&canary);
    let with_device = ContainerConfig { annotations: own.clone(), ..limited(sleeper("device")) };
    assert_eq!(code(lab.try_create(&pod, with_device).await), Code::InvalidArgument);
    own.remove("cdi.k8s.io/evil");
    let config = ContainerConfig { annotations: own, ..limited(sleeper("c")) };
    let id = lab.run(&pod, config).await;
    assert_annotations_had_no_effect(&mut lab, &id).await;
    lab.finish().await;
}

/// Labels of an image do not reach the container (containerd started the logger that a label named).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_53488_image_labels_do_not_control_the_runtime() {
    let (mut lab, pod) = Lab::with_pod().await;
    let labels = annotations(&lab.canary_text());
    let config = json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "Labels": labels, "OnBuild": ["RUN touch /made"],
        "Healthcheck": { "Test": ["CMD", "touch", "/made"], "Interval": 1_000_000 }, "Shell": ["/evil"], "ArgsEscaped": true });
    let image = lab.load("labels", Layer::default(), config).await;
    let id = lab.run(&pod, limited(of_image(sleeper("c"), &image))).await;
    assert_annotations_had_no_effect(&mut lab, &id).await;
    assert_eq!(lab.sh(&id, "ls /made 2>/dev/null | wc -l").await, "0");
    let status = lab.status(&id).await;
    assert!(status.labels.is_empty() && status.annotations.is_empty(), "{status:?}");
    lab.finish().await;
}

/// Also CVE-2026-53492, -50195 and -53489 (containerd): neither the specs in an archive nor labels of an image control a
/// container. A location that is not a plain absolute path is refused.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_8676_a_checkpoint_does_not_control_its_container() {
    let (mut lab, pod) = Lab::with_pod().await;
    let id = lab.run(&pod, sleeper("c")).await;
    for location in [format!("/tmp/..{}/checkpoint.tar", lab.canary_text()), "checkpoint.tar".to_owned()] {
        let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 1 };
        assert_eq!(code(lab.runtime.checkpoint_container(request).await), Code::InvalidArgument);
    }
    // CRI-O and containerd recognize such an image by its annotations, or by the path of an archive.
    let layer = Layer::default()
        .file("config.dump", r#"{ "rootfsImageName": "localhost/evil:1", "id": "x" }"#)
        .file("spec.dump", r#"{ "mounts": [{ "source": "/", "destination": "/host", "type": "bind" }] }"#)
        .folder("checkpoint")
        .symlink("container.log", "/etc/shadow");
    let archive = lab.path("checkpoint.tar");
    fs::write(&archive, layer.clone().bytes()).unwrap();
    let labels = json!({ "io.kubernetes.cri-o.annotations.checkpoint.name": "c",
        "org.criu.checkpoint.container.name": "c", "io.kubernetes.cri-o.annotations.checkpoint.rootfsImageName": "evil" });
    let image = lab
        .load("checkpoint", layer, json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "Labels": labels }))
        .await;
    let (_, output) =
        lab.run_to_end(&pod, of_image(shell("restored", "ls -d /host /config.dump 2>&1"), &image)).await;
    assert!(output.contains("/config.dump\n") && output.contains("/host: No such file"), "{output}");
    let by_path = of_image(shell("path", "true"), archive.to_str().unwrap());
    assert_eq!(code(lab.try_create(&pod, by_path).await), Code::FailedPrecondition);
    lab.finish().await;
}

/// Names and ids are not used as paths, and nothing is unmounted by a path.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_0750_names_do_not_lead_out_of_their_folders() {
    let mut lab = Lab::start().await;
    let canary = lab.canary_text();
    let up = format!("../../../../../../../..{canary}");
    for (number, name) in [up.as_str(), "..", ".", "a/../../b", &canary].into_iter().enumerate() {
        let mut config = lab.pod_config(&format!("p{number}"));
        let metadata = config.metadata.as_mut().unwrap();
        (metadata.name, metadata.namespace, metadata.uid) =
            (name.to_owned(), name.to_owned(), name.to_owned());
        if let Ok(pod) = lab.try_run_pod(config).await {
            let mut config = sharing_pids(shell(name, "true"));
            config.log_path = "c.log".to_owned();
            if let Ok(id) = lab.try_create(&pod, config).await {
                drop(lab.try_start_container(&id).await);
                lab.stop_container(&id, 0).await;
                lab.remove_container(&id).await;
            }
            lab.stop_pod(&pod).await;
            lab.remove_pod(&pod).await;
        }
        lab.assert_untouched();
    }
    let pod = lab.pod("pod").await;
    for log_path in [
        format!("{up}/made.log"),
        "../x.log".to_owned(),
        format!("{canary}/made.log"),
        "a/../../x".to_owned(),
    ] {
        let config = ContainerConfig { log_path: log_path.clone(), ..shell("c", "true") };
        assert_eq!(code(lab.try_create(&pod, config).await), Code::InvalidArgument, "{log_path}");
    }
    for id in [up.as_str(), "../../..", &canary, "/"] {
        lab.stop_container(id, 0).await;
        lab.remove_container(id).await;
        lab.stop_pod(id).await;
        lab.remove_pod(id).await;
        let request =
            RemoveImageRequest { image: Some(ImageSpec { image: id.to_owned(), ..Default::default() }) };
        drop(lab.images.remove_image(request).await);
        lab.assert_untouched();
    }
    lab.finish().await;
}

/// A volume over a file of the pod is the client's own file and keeps its labels. Only volumes that request it are
/// relabelled.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_43816_a_volume_over_a_pod_file_is_not_relabelled() {
    let (mut lab, pod) = Lab::with_pod().await;
    let secret = lab.canary().join("secret");
    for (number, place) in
        ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"].into_iter().enumerate()
    {
        let mount = Mount { readonly: true, ..volume(&secret, place) };
        let config = with(
            shell(
                &format!("c{number}"),
                &format!("( cat {place}; echo x >{place}; chmod 777 {place} ) 2>/dev/null"),
            ),
            mount,
        );
        let (_, output) = lab.run_to_end(&pod, config).await;
        assert!(
            output.starts_with(crate::attacks::lab::SECRET),
            "the container must see the requested volume: {output}"
        );
        lab.assert_untouched();
    }
    assert!(Path::new("/etc/hosts").exists());
    lab.finish().await;
}
