//! Hostile images, pulled by the real daemon: their memory cost, the delay of other pulls, and the effect of their
//! texts on terminals. Runs as root.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::registry::{Answer, MANIFEST, Registry};
use crate::support::{Berth, PATIENCE};
use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tonic::{Code, Status};

/// The memory that the daemon can use more, some moments after any pull, than before the first pull. While it unpacks
/// a layer it can use more.
const ALLOWED_GROWTH: u64 = 24 << 20;

async fn pull(berth: &mut Berth, registry: &Registry, name: &str) -> Result<String, Status> {
    let image = ImageSpec { image: format!("{}/{name}:1", registry.address), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    Ok(berth.images.pull_image(request).await?.into_inner().image_ref)
}

/// Returns the daemon's resident memory (proc(5)).
fn resident(berth: &Berth) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until the daemon has released the memory that it does not need.
async fn settled(berth: &Berth, base: u64, what: &str) {
    let until = Instant::now() + PATIENCE;
    while resident(berth) > base + ALLOWED_GROWTH {
        assert!(Instant::now() < until, "{what}: {} MiB more", (resident(berth) - base) >> 20);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn entry(tar: &mut tar::Builder<impl std::io::Write>, kind: tar::EntryType, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(0);
    if target.is_empty() {
        tar.append_data(&mut header, name, std::io::empty()).unwrap();
    } else {
        tar.append_link(&mut header, name, target).unwrap();
    }
}

/// Returns a compressed layer and the digest of its unpacked content.
fn layer(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    let plain = tar.into_inner().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    (gzip.finish().unwrap(), Digest::of(Algorithm::Sha256, &plain))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_releases_the_memory_of_every_pull() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let long = format!("{}/", "a".repeat(250)).repeat(15) + "b";
    let links = layer(|tar| {
        for number in 0..5000 {
            entry(tar, tar::EntryType::Link, &format!("l/{number:07}"), &long);
        }
    });
    registry.image("links", &links.0, &links.1);
    // Just below the limit: the image is pulled, and none of the memory stays in use.
    let folders = layer(|tar| {
        for number in 0..1600 {
            let path = format!("{number:0240}/").repeat(8);
            entry(tar, tar::EntryType::Regular, &format!("{path}x"), "");
        }
    });
    registry.image("folders", &folders.0, &folders.1);
    let config = format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":[]}},"history":[{}]}}"#,
        vec!["{}"; 2_000_000].join(",")
    );
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
                         "digest": registry.blob("history", config.as_bytes()) });
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] });
    registry.manifest("history", "1", &manifest);

    let base = resident(&berth);
    let refused = pull(&mut berth, &registry, "links").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("16777216 bytes of memory"), "{refused}");
    settled(&berth, base, "links").await;
    for name in ["folders", "history"] {
        pull(&mut berth, &registry, name).await.unwrap();
        settled(&berth, base, name).await;
    }
    berth.restart().await;
    settled(&berth, base, "restarted").await;
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 2);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_pull_does_not_delay_other_pulls() {
    let mut berth = Berth::start_with("parallel_pulls = 2\n").await;
    let registry = Registry::start(berth.host_process());
    let slow: Vec<_> = (0..6)
        .map(|number| layer(|tar| entry(tar, tar::EntryType::Regular, &format!("s{number}"), "")))
        .collect();
    for (path, (bytes, _)) in registry.layers("slow", &slow).into_iter().zip(&slow) {
        registry.answer(path, Answer::Dripping(bytes.clone(), 1, Duration::from_secs(5)));
    }
    let fast: Vec<_> = (0..6)
        .map(|number| layer(|tar| entry(tar, tar::EntryType::Regular, &format!("f{number}"), "")))
        .collect();
    registry.layers("fast", &fast);
    let mut images = berth.images.clone();
    let image = ImageSpec { image: format!("{}/slow:1", registry.address), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    let never = tokio::spawn(async move { images.pull_image(request).await });
    while registry.asked().iter().filter(|asked| asked.path.contains("/slow/blobs/")).count() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pulled = tokio::time::timeout(PATIENCE, pull(&mut berth, &registry, "fast")).await;
    pulled.expect("the pull waits for the slow image").unwrap();
    assert!(!never.is_finished());
    never.abort();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_from_registries_and_images_contain_no_terminal_controls() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let evil = "\u{1b}]0;owned\u{7}\u{202e}\u{9b}2J";
    let body = json!({ "errors": [{ "code": evil, "message": evil }] }).to_string();
    registry.answer("/v2/refuses/manifests/1", Answer::Whole(403, "text/plain", body.into_bytes()));
    let odd = json!({ "schemaVersion": 2, "mediaType": evil, "config": null, "layers": [] }).to_string();
    registry.answer("/v2/odd/manifests/1", Answer::Whole(200, MANIFEST, odd.into_bytes()));
    let named = layer(|tar| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..8].copy_from_slice(b"../\x1b]0;x");
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    });
    registry.image("named", &named.0, &named.1);
    let challenge =
        format!("WWW-Authenticate: Bearer realm=\"http://{}/\u{202e}{evil}\"\r\n", registry.address);
    registry.answer("/v2/asks/manifests/1", Answer::Headers(401, challenge, Vec::new()));
    let away = format!("Location: ftp://{}/{}\r\n", registry.address, "x".repeat(5000));
    registry.answer("/v2/redirects/manifests/1", Answer::Headers(302, away, Vec::new()));
    for name in ["refuses", "odd", "named", "asks", "redirects"] {
        let refused = pull(&mut berth, &registry, name).await.unwrap_err();
        let message = refused.message();
        assert!(!message.contains(|letter: char| letter.is_control() || letter == '\u{202e}'), "{message:?}");
        assert!(message.len() < 2100, "{name}: {} bytes", message.len());
    }

    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "author": evil, "config": { "User": evil, "Cmd": ["x"] }, "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = config.to_string();
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
                         "digest": registry.blob("user", config.as_bytes()) });
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] });
    registry.manifest("user", "1", &manifest);
    pull(&mut berth, &registry, "user").await.unwrap();
    let image = ImageSpec { image: format!("{}/user:1", registry.address), ..ImageSpec::default() };
    let request = ImageStatusRequest { image: Some(image.clone()), verbose: true };
    let answer = berth.images.image_status(request).await.unwrap().into_inner();
    let info = &answer.info["info"];
    let value: serde_json::Value = serde_json::from_str(info).unwrap();
    assert_eq!(value["imageSpec"]["author"], evil, "the value is unchanged after decoding");
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut container = crate::support::container("c", &[]);
    container.image = Some(image);
    let refused = berth.try_create(&pod, container).await.unwrap_err();
    assert!(refused.message().contains("owned"), "{refused}");
    for text in [info.as_str(), &answer.image.unwrap().username, refused.message()] {
        assert!(!text.contains(|letter: char| letter.is_control() || letter == '\u{202e}'), "{text:?}");
    }
    let log = fs::read_to_string(berth.path("daemon.log")).unwrap();
    assert!(!log.contains(['\u{202e}', '\u{9b}', '\u{7}']), "the daemon's log contains control characters");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_etc_passwd_fails_only_containers_that_need_names() {
    let mut berth = Berth::start_with("").await;
    let archive = berth.path("long.tar");
    let passwd = "web:x:1000:1000:web:/srv:/bin/sh\n".repeat(40_000);
    crate::support::image::write_archive_with(
        &archive,
        "localhost/long:1",
        &[("etc/passwd", passwd.as_bytes())],
    );
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let path = archive.display().to_string();
    let request = berth_proto::admin::LoadImageRequest { path };
    let mut admin = berth_proto::admin::admin_client::AdminClient::new(channel);
    admin.load_image(request).await.unwrap();

    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let config = |name: &str, change: &dyn Fn(&mut LinuxContainerSecurityContext)| {
        let mut config =
            crate::support::with_security(crate::support::shell(name, "id -u; id -g"), |context| {
                change(context)
            });
        config.image = Some(ImageSpec { image: "localhost/long:1".to_owned(), ..ImageSpec::default() });
        config
    };
    let named = config("named", &|context| context.run_as_username = "web".to_owned());
    let refused = berth.try_create(&pod, named).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = format!("invalid /etc/passwd of the image: {} bytes, the limit is 1048576", passwd.len());
    assert!(refused.message().contains(&words), "{refused}");
    let number = config("number", &|context| {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 50 });
    });
    assert_eq!(berth.run_to_end(&pod, number).await, (0, "1000\n50\n".to_owned()));
    assert_eq!(berth.run_to_end(&pod, config("root", &|_| ())).await, (0, "0\n0\n".to_owned()));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Labels and annotations that made other runtimes run programs, write logs elsewhere, mount folders, or restore a
/// checkpoint.
const STEERING: [(&str, &str); 12] = [
    ("containerd.io/restart.loguri", "binary:///bin/sh?-c=touch%20/tmp/steered"),
    ("containerd.io/restart.status", "running"),
    ("io.containerd.image.log-uri", "file:///etc/cron.d/steered"),
    ("io.kubernetes.cri.container-type", "sandbox"),
    ("io.kubernetes.cri-o.LogPath", "/etc/cron.d/steered"),
    ("io.kubernetes.cri-o.Volumes", "[{\"container_path\":\"/host\",\"host_path\":\"/\"}]"),
    ("io.kubernetes.cri-o.userns-mode", "host"),
    ("io.kubernetes.cri-o.seccompProfile", "unconfined"),
    ("org.criu.config", "/tmp/steered"),
    ("run.oci.handler", "krun"),
    ("run.oci.hooks.stdout", "/tmp/steered"),
    ("cdi.k8s.io/steered", "vendor.example/device=all"),
];

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_annotations_of_an_image_have_no_effect() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let steering: serde_json::Map<_, _> =
        STEERING.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let layer = crate::support::image::layer();
    let diff_id = Digest::of(Algorithm::Sha256, &layer);
    let image = |name: &str, labels: serde_json::Value| {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": { "Cmd": ["sleep", "1000"], "Labels": labels, "StopSignal": "SIGKILL" },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = config.to_string();
        let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
                             "digest": registry.blob(name, config.as_bytes()), "annotations": labels });
        let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(),
                            "digest": registry.blob(name, &layer), "annotations": labels });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
                               "annotations": labels });
        registry.manifest(name, "1", &manifest);
    };
    image("plain", json!({}));
    image("steers", steering.into());
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut seen = Vec::new();
    for name in ["plain", "steers"] {
        pull(&mut berth, &registry, name).await.unwrap();
        let mut config = crate::support::container(name, &[]);
        config.image =
            Some(ImageSpec { image: format!("{}/{name}:1", registry.address), ..ImageSpec::default() });
        let id = berth.run(&pod, config).await;
        let mut info = berth.info(&id).await;
        // A set has no order.
        for set in info["runtimeSpec"]["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
            set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        let status = berth.status(&id).await;
        assert_eq!(status.log_path, berth.path(&format!("logs/pod/{name}.log")).display().to_string());
        let spec = info["runtimeSpec"].to_string();
        assert!(!spec.contains("steered") && !spec.contains("krun"), "{spec}");
        seen.push(spec.replace(&id, "ID").replace(name, "NAME"));
    }
    assert_eq!(seen[0], seen[1]);
    assert!(!fs::exists("/tmp/steered").unwrap() && !fs::exists("/etc/cron.d/steered").unwrap());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
