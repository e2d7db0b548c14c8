//! Images as volumes (CRI `Mount.image`): they are read-only, paths in them resolve inside the image, and an image is
//! in use while a container mounts it. Runs as root.

use crate::support::registry::Registry;
use crate::support::{Berth, code, shell};
use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use tonic::Code;

/// Returns a layer with the given files and a symbolic link that leads out of the image.
fn layer(files: &[(&str, &str)]) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len().try_into().unwrap());
        header.set_mode(0o755);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "out", "/../../../../etc").unwrap();
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

async fn pull(berth: &mut Berth, registry: &Registry, name: &str) -> String {
    let reference = format!("{}/{name}:1", registry.address);
    let image = ImageSpec { image: reference.clone(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    berth.images.pull_image(request).await.unwrap();
    reference
}

fn volume(image: &str, path: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    }
}

fn with(mounts: Vec<Mount>, config: ContainerConfig) -> ContainerConfig {
    ContainerConfig { mounts, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_mounted_read_only_whole_or_in_part() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let bottom =
        layer(&[("model/weights", "bottom"), ("model/tool", "#!/bin/sh\necho ran\n"), ("both", "bottom")]);
    let top = layer(&[("both", "top"), ("model/more", "more")]);
    registry.layers("two", &[bottom.clone(), top]);
    registry.layers("one", &[bottom]);
    let (two, one) = (pull(&mut berth, &registry, "two").await, pull(&mut berth, &registry, "one").await);
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut strict = volume(&two, "/strict", "model");
    strict.mount_options = vec!["noexec".to_owned()];
    let mut recursive = volume(&two, "/recursive", "");
    recursive.recursive_read_only = true;
    let mounts = vec![
        volume(&two, "/whole", ""),
        volume(&two, "/again/", ""),
        volume(&two, "/part", "model/"),
        volume(&one, "/file", "model/weights"),
        volume(&one, "/single", "/"),
        strict,
        recursive,
    ];
    let script = "cat /whole/both /again/both /part/weights /part/more /file /single/both; echo; /part/tool; \
                  /strict/tool 2>&1; touch /whole/x 2>&1; touch /recursive/x 2>&1; rm /file 2>&1";
    let id = berth.try_create(&pod, with(mounts, shell("c", script))).await.unwrap();
    berth.try_start_container(&id).await.unwrap();
    let status = berth.wait_exited(&id).await;
    let log = crate::support::text_of(&std::fs::read_to_string(&status.log_path).unwrap());
    assert!(log.starts_with("toptopbottommorebottombottom\nran\n"), "{log}");
    assert!(log.contains("/strict/tool: Permission denied"), "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 2, "{log}");
    assert!(log.contains("can't remove '/file'"), "{log}");
    let reported = status.mounts.iter().find(|mount| mount.container_path == "/whole").unwrap();
    let image = reported.image.as_ref().unwrap();
    let pulled = berth.images.image_status(ImageStatusRequest {
        image: Some(ImageSpec { image: two.clone(), ..ImageSpec::default() }),
        verbose: false,
    });
    let pulled = pulled.await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.image_ref, pulled.id, "the id that PullImage has returned");

    // An image in use is no longer listed after its removal, but its layers stay until the container is removed, also
    // over a restart.
    let removed = ImageSpec { image: two.clone(), ..ImageSpec::default() };
    berth.images.remove_image(RemoveImageRequest { image: Some(removed) }).await.unwrap();
    let layers = |berth: &Berth| std::fs::read_dir(berth.path("root/image/layers")).unwrap().count();
    assert_eq!(layers(&berth), 3, "the layer of busybox and both layers of `two` must stay");
    berth.kill();
    berth.restart().await;
    assert_eq!(layers(&berth), 3);
    berth.remove_container(&id).await;
    assert_eq!(layers(&berth), 2, "the layer of `one` must stay");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_decides_by_the_name_in_the_pod() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let layer = layer(&[("file", "in both")]);
    registry.layers("signed", std::slice::from_ref(&layer));
    registry.layers("other", &[layer]);
    let names = [pull(&mut berth, &registry, "signed").await, pull(&mut berth, &registry, "other").await];
    let policy = serde_json::json!({
        "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": { format!("{}/other", registry.address): [{ "type": "reject" }] } },
    });
    std::fs::write(berth.path("policy.json"), policy.to_string()).unwrap();
    let status = ImageStatusRequest {
        image: Some(ImageSpec { image: names[0].clone(), ..ImageSpec::default() }),
        verbose: false,
    };
    let id = berth.images.image_status(status).await.unwrap().into_inner().image.unwrap().id;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    // As the kubelet: the id that PullImage answered, and the name in the pod. Both are of one image.
    let mounted = |name: &str| {
        let mut mount = volume(&id, "/volume", "");
        mount.image.as_mut().unwrap().user_specified_image = name.to_owned();
        with(vec![mount], shell("c", "cat /volume/file"))
    };
    let refused = berth.try_create(&pod, mounted(&names[1])).await.unwrap_err();
    assert!(refused.message().starts_with("SignatureValidationFailed: "), "{refused}");
    berth.try_create(&pod, mounted(&names[0])).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn users() -> Option<UserNamespace> {
    let ids = vec![IdMapping { host_id: 400_000, container_id: 0, length: 65_536 }];
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids })
}

/// Adds the capability to mount, and removes the AppArmor profile that would forbid it.
fn with_mount_capability(config: ContainerConfig, users: Option<UserNamespace>) -> ContainerConfig {
    crate::support::with_security(config, |security| {
        let add_capabilities = vec!["SYS_ADMIN".to_owned()];
        security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        let profile_type = security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(SecurityProfile { profile_type, ..SecurityProfile::default() });
        security.namespace_options.get_or_insert_default().userns_options = users;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remount_does_not_make_an_image_volume_writable() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let layer = layer(&[("part/file", "as in the image"), ("file", "as in the image")]);
    registry.layers("one", std::slice::from_ref(&layer));
    registry.layers("two", &[layer, self::layer(&[("top", "x")])]);
    let (one, two) = (pull(&mut berth, &registry, "one").await, pull(&mut berth, &registry, "two").await);
    let volumes = vec![
        volume(&one, "/whole", ""),
        volume(&one, "/part", "part"),
        volume(&one, "/file", "file"),
        volume(&two, "/both", ""),
        volume(&two, "/both-part", "part"),
    ];
    let script = "write() {
          for file in $1 $1/file; do (echo changed >$file) && echo wrote $file; done
          touch $1/new && echo made $1/new
        }
        for path in /whole /part /file /both /both-part; do
          mount -o remount,bind,rw $path || echo cannot remount $path
          mount -o remount,rw $path && echo remounted $path
          write $path
          if mount --bind $path /srv; then mount -o remount,bind,rw /srv; write /srv; umount /srv; fi
        done
        grep -E ' /(whole|part|file|both|both-part) ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1 | sort -u
        cat /file";
    for (name, users) in [("plain", None), ("users", users())] {
        let mut config = berth.pod_config(name);
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = users.clone();
        let pod = berth.run_pod(config).await;
        let config = with_mount_capability(
            with(volumes.clone(), shell("c", &format!("({script}) 2>/dev/null"))),
            users,
        );
        let (_, log) = berth.run_to_end(&pod, config).await;
        // The read-only flag of each mount is cleared, and still none of them can be written to.
        assert_eq!(log, "rw\nas in the image", "{name}");
    }
    for layer in std::fs::read_dir(berth.path("root/image/layers")).unwrap().flatten() {
        let files = layer.path().join("fs");
        assert!(!files.join("new").exists() && !files.join("part/new").exists(), "{files:?}");
        for file in [files.join("file"), files.join("part/file")].iter().filter(|file| file.exists()) {
            assert_eq!(std::fs::read_to_string(file).unwrap(), "as in the image", "{file:?}");
        }
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_image_volumes_are_refused() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    registry.layers("one", &[layer(&[("folder/file", "x")])]);
    let one = pull(&mut berth, &registry, "one").await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let valid = || volume(&one, "/volume", "");
    let changed = |change: fn(&mut Mount)| {
        let mut mount = valid();
        change(&mut mount);
        mount
    };
    for (mount, expected, words) in [
        (volume("localhost/none:1", "/volume", ""), Code::FailedPrecondition, "ImageVolumeMountFailed"),
        (volume(&one, "/volume", "nowhere"), Code::FailedPrecondition, "ImageVolumeMountFailed"),
        (volume(&one, "/volume", "out/passwd"), Code::FailedPrecondition, "ImageVolumeMountFailed"),
        (
            volume(&one, "/volume", "../../../../etc/passwd"),
            Code::FailedPrecondition,
            "ImageVolumeMountFailed",
        ),
        (changed(|mount| mount.readonly = false), Code::InvalidArgument, "readonly"),
        (changed(|mount| mount.host_path = "/etc".to_owned()), Code::InvalidArgument, "host_path"),
        (
            changed(|mount| mount.set_propagation(MountPropagation::PropagationBidirectional)),
            Code::InvalidArgument,
            "propagation",
        ),
    ] {
        let status = berth.try_create(&pod, with(vec![mount], shell("c", "true"))).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status}");
        assert!(status.message().contains(words) && status.message().contains("/volume"), "{status}");
    }
    assert_eq!(code(berth.try_create(&pod, with(vec![valid()], shell("c", "true"))).await), Code::Ok);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_can_be_mounted_but_not_run() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let blob = |title: &str, content: &str| {
        let digest = registry.blob("model", content.as_bytes());
        serde_json::json!({ "mediaType": "application/x-weights", "digest": digest, "size": content.len(),
                            "annotations": { "org.opencontainers.image.title": title } })
    };
    let empty = registry.blob("model", b"{}");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::support::registry::MANIFEST, "artifactType": "application/x-model",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 },
        "layers": [blob("weights.bin", "12345"), blob("docs/readme.md", "read me")],
    });
    let digest = registry.manifest("model", "1", &manifest);
    let model = pull(&mut berth, &registry, "model").await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mounts = vec![volume(&model, "/model", ""), volume(&model, "/docs", "docs")];
    let script = "cat /model/weights.bin /docs/readme.md; touch /model/new || echo no";
    let id = berth.run(&pod, with(mounts, shell("reader", script))).await;
    let status = berth.wait_exited(&id).await;
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(crate::support::text_of(&log).contains("12345read me"), "{log}");
    assert!(crate::support::text_of(&log).contains("no\n"), "{log}");
    let reported = status.mounts.iter().find(|mount| mount.container_path == "/model").unwrap();
    assert!(reported.image.as_ref().unwrap().image_ref.ends_with(&digest.to_string()), "{reported:?}");

    let mut config = shell("none", "true");
    config.image = Some(ImageSpec { image: model, ..ImageSpec::default() });
    let refused = berth.try_create(&pod, config).await.unwrap_err();
    assert!(refused.message().contains("an artifact can be mounted"), "{refused}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
