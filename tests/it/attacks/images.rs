//! Hostile images and registries: layers that leave their folder, manifests with two meanings, digests that are
//! paths, and servers that request credentials of others.

use std::fs;
use std::io::Write as _;

use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use serde_json::{Value, json};
use tar::EntryType;
use tonic::{Code, Status};

use crate::attacks::lab::{Lab, Layer, SECRET, eventually, of_image};
use crate::support::registry::{Answer, MANIFEST, Registry};
use crate::support::{code, shell};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn pull(lab: &mut Lab, reference: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
    let image = ImageSpec { image: reference.to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), auth, ..PullImageRequest::default() };
    Ok(lab.images.pull_image(request).await?.into_inner().image_ref)
}

/// Serves an image with one layer and returns its manifest.
fn manifest_of(registry: &Registry, name: &str) -> Value {
    let bytes = Layer::default().file("file", "text").bytes();
    registry.image(name, &bytes, &Digest::of(Algorithm::Sha256, &bytes));
    let path = format!("/v2/{name}/manifests/1");
    serde_json::from_slice(&registry.answer_of(&path).unwrap()).unwrap()
}

/// GHSA-mc8v-mgrf-8f4m, -77vh-xpmg-72qh and -5j5w-g665-5m35: one client reads a document as an image and another
/// reads it as an index.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_41190_ambiguous_manifests_are_refused() {
    let mut lab = Lab::start_with("").await;
    let registry = Registry::start(lab.host_process());
    let valid = manifest_of(&registry, "valid");
    let with = |changes: &[(&str, Value)]| {
        let mut manifest = valid.clone();
        for (name, value) in changes {
            manifest[*name] = value.clone();
        }
        manifest
    };
    let entry =
        json!([{ "mediaType": MANIFEST, "size": 3, "digest": Digest::of(Algorithm::Sha256, b"{ }") }]);
    let type_of_other = json!(INDEX);
    let cases = [
        ("both", MANIFEST, with(&[("manifests", entry.clone())])),
        ("both-as-index", INDEX, with(&[("manifests", entry.clone())])),
        ("says-index", MANIFEST, with(&[("mediaType", type_of_other.clone())])),
        ("sent-as-index", INDEX, valid.clone()),
        ("schema1", MANIFEST, with(&[("fsLayers", json!([])), ("schemaVersion", json!(1))])),
        (
            "index-with-layers",
            INDEX,
            json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entry, "layers": [] }),
        ),
        (
            "index-with-config",
            INDEX,
            json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entry, "config": valid["config"] }),
        ),
    ];
    for (name, kind, manifest) in cases {
        registry.answer(
            format!("/v2/{name}/manifests/1"),
            Answer::Whole(200, kind, manifest.to_string().into_bytes()),
        );
        let refused = pull(&mut lab, &format!("{}/{name}:1", registry.address), None).await;
        assert!(matches!(code(refused), Code::DataLoss | Code::InvalidArgument), "{name}");
    }
    let listed = lab.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(listed.is_empty(), "{listed:?}");
    lab.finish().await;
}

/// Returns layers that try to leave their folder, as in published attacks. `canary` is a folder of the host.
fn evil_layers(canary: &str) -> Vec<(&'static str, Vec<Layer>)> {
    let up = format!("../../../../../../../..{canary}");
    let plain = Layer::default;
    let link = || Layer::default().symlink("link", canary).symlink("up", &up);
    let folder = |layer: Layer, name: &str| layer.entry(EntryType::Directory, name, "", 0o777, b"");
    let node = |layer: Layer, kind, name: &str| layer.entry(kind, name, "", 0o666, b"");
    let odd_whiteouts = |layer: Layer| layer.file(".wh...", "").file(".wh..", "").file(".wh.", "");
    let whiteouts = || link().file("link/.wh.secret", "").file("up/.wh..wh..opq", "");
    let chain = || plain().symlink("a", "b").symlink("b", "c").symlink("c", canary);
    vec![
        ("dots", vec![plain().file(&format!("{up}/made"), "x")]),
        ("dots-inside", vec![plain().file(&format!("a/b/../../{up}/made"), "x")]),
        ("absolute", vec![plain().file(&format!("{canary}/made"), "x")]),
        ("link-file", vec![link().file("link/made", "x").file("up/made2", "x").file("link/secret", "x")]),
        ("link-mode", vec![folder(folder(link(), "link"), "up/")]),
        ("link-deep", vec![link().folder("link/folder/deep").file("up/folder/file", "x")]),
        ("hard", vec![plain().hard_link("hard", &format!("{up}/secret")).file("hard", "x")]),
        ("hard-absolute", vec![plain().hard_link("hard", &format!("{canary}/secret"))]),
        ("hard-link", vec![link().hard_link("hard", "link/secret").hard_link("hard2", "up/secret")]),
        ("hard-to-link", vec![link().hard_link("hard", "link").file("hard/made", "x")]),
        ("whiteout", vec![odd_whiteouts(whiteouts())]),
        ("two-layers", vec![link(), plain().file("link/made", "x").file("up/secret", "x")]),
        ("two-whiteouts", vec![link(), plain().file("link/.wh.secret", "").file("link/.wh..wh..opq", "")]),
        ("two-hard", vec![link(), plain().hard_link("hard", "link/secret")]),
        ("node", vec![node(node(link(), EntryType::Char, "link/null"), EntryType::Fifo, "up/pipe")]),
        ("chain", vec![chain().file("a/made", "x")]),
        ("dot-link", vec![plain().symlink("a", ".").symlink("a/b", "..").file("a/b/../../x", "x")]),
    ]
}

/// Each layer is refused or stays inside its folder. Also CVE-2021-32760 (containerd), CVE-2014-6407, -9356 and -9358
/// (docker).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_47290_layers_cannot_leave_their_folder() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let inside = canary.trim_start_matches('/').to_owned();
    let mut loaded = 0;
    for (name, layers) in evil_layers(&canary) {
        let image = lab.try_load(name, &layers, json!({ "Env": ["PATH=/bin"], "WorkingDir": "/" })).await;
        lab.assert_untouched();
        let Ok(image) = image else { continue };
        loaded += 1;
        let script = format!(
            "for file in /hard /hard2 /link/secret /up/secret {canary}/secret /a/secret; do cat $file 2>/dev/null; done; \
             echo y >/hard; echo y >/link/secret; chmod 777 /hard /link; cat {inside}/secret 2>/dev/null; echo over"
        );
        let config = of_image(shell(name, &script), &image);
        if let Ok(id) = lab.try_create(&pod, config).await {
            drop(lab.try_start_container(&id).await);
            lab.wait_exited(&id).await;
            let log = lab.log(&id).await;
            assert!(!log.contains(SECRET), "{name}: {log}");
        }
        lab.assert_untouched();
        // Listing and deletion also stay inside the folder.
        let request = RemoveImageRequest { image: Some(ImageSpec { image, ..ImageSpec::default() }) };
        lab.images.remove_image(request).await.unwrap();
        lab.assert_untouched();
    }
    assert!(loaded > 0, "some of the layers stay inside and must load");
    lab.finish().await;
}

/// Credentials are sent only to the registry that they are for: not to a server that a layer names, and not after a
/// redirect.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_15157_credentials_are_not_sent_to_other_servers() {
    let mut lab = Lab::start_with("").await;
    let (registry, other_server) = (Registry::start(lab.host_process()), Registry::start(lab.host_process()));
    let challenge = "WWW-Authenticate: Basic realm=\"give them to me\"\r\n".to_owned();
    let asks = || Answer::Headers(401, challenge.clone(), Vec::new());
    let auth =
        || AuthConfig { username: "user".to_owned(), password: "secret".to_owned(), ..AuthConfig::default() };
    let guarded =
        |answer: Answer| Answer::Authorized("Basic dXNlcjpzZWNyZXQ=", Box::new(answer), Box::new(asks()));

    let mut manifest = manifest_of(&registry, "foreign");
    let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar".into();
    manifest["layers"][0]["urls"] = json!([format!("http://{}/layer", other_server.address)]);
    let bytes = manifest.to_string().into_bytes();
    registry.answer("/v2/foreign/manifests/1", guarded(Answer::Whole(200, MANIFEST, bytes)));
    registry.answer(format!("/v2/foreign/blobs/{digest}"), Answer::Whole(404, "text/plain", Vec::new()));
    other_server.answer("/layer", asks());

    let valid = manifest_of(&registry, "led");
    let leads = |what: &str| {
        Answer::Headers(307, format!("Location: http://{}/{what}\r\n", other_server.address), Vec::new())
    };
    let digest = valid["layers"][0]["digest"].as_str().unwrap();
    registry
        .answer("/v2/led/manifests/1", guarded(Answer::Whole(200, MANIFEST, valid.to_string().into_bytes())));
    registry.answer(format!("/v2/led/blobs/{digest}"), guarded(leads("blob")));
    other_server.answer("/blob", asks());
    registry.answer("/v2/led2/manifests/1", guarded(leads("manifest")));
    other_server.answer("/manifest", asks());

    for name in ["foreign", "led", "led2"] {
        drop(pull(&mut lab, &format!("{}/{name}:1", registry.address), Some(auth())).await.unwrap_err());
    }
    let to_registry = registry.asked().into_iter().filter_map(|asked| asked.authorization);
    assert!(to_registry.count() > 0, "the registry itself must receive the credentials");
    let asked = other_server.asked();
    assert!(!asked.is_empty(), "the other server must receive a request");
    for asked in asked {
        assert!(asked.authorization.is_none() && !asked.path.contains("secret"), "{asked:?}");
    }
    lab.finish().await;
}

/// An invalid digest is refused, because a digest becomes a file name.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_3727_a_digest_that_is_a_path_is_refused() {
    let mut lab = Lab::start_with("").await;
    let registry = Registry::start(lab.host_process());
    let canary = lab.canary_text();
    let valid = manifest_of(&registry, "valid");
    let up = format!("sha256:../../../../../../../..{canary}/made");
    let digests = [
        up.as_str(),
        "sha256:",
        "",
        "../../x",
        "sha256:XYZ",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &canary,
    ];
    for (number, digest) in digests.into_iter().enumerate() {
        for field in ["layers", "config"] {
            let mut manifest = valid.clone();
            match field {
                "layers" => manifest["layers"][0]["digest"] = digest.into(),
                _ => manifest["config"]["digest"] = digest.into(),
            }
            let name = format!("d{number}{field}");
            registry.manifest(&name, "1", &manifest);
            let refused = pull(&mut lab, &format!("{}/{name}:1", registry.address), None).await;
            assert_ne!(code(refused), Code::Ok, "{field} {digest}");
            lab.assert_untouched();
        }
        let by_digest = format!("{}/valid@{digest}", registry.address);
        assert_ne!(code(pull(&mut lab, &by_digest, None).await), Code::Ok, "{digest}");
    }
    // Content with another digest than the requested one is refused.
    let wrong = Digest::of(Algorithm::Sha256, b"something else");
    registry.answer(
        format!("/v2/valid/manifests/{wrong}"),
        Answer::Whole(200, MANIFEST, valid.to_string().into_bytes()),
    );
    let by_digest = format!("{}/valid@{wrong}", registry.address);
    assert_eq!(code(pull(&mut lab, &by_digest, None).await), Code::DataLoss);
    let images = fs::read_dir(lab.path("root/image/images")).unwrap().count();
    assert_eq!(images, 0);
    lab.finish().await;
}

/// Small layers that expand: many bytes, many files, deeply nested folders.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_exceed_the_limits_are_refused() {
    let limits = "max_image_size = \"8MiB\"\nmax_image_files = 5000\nmax_image_depth = 40";
    let mut lab = Lab::start_with(limits).await;
    let registry = Registry::start(lab.host_process());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = Layer::default().entry(EntryType::Regular, "zeros", "", 0o644, &vec![0; 12 << 20]).bytes();
    let diff_id = Digest::of(Algorithm::Sha256, &zeros);
    gzip.write_all(&zeros).unwrap();
    let small = gzip.finish().unwrap();
    assert!(small.len() < 200_000, "{}", small.len());
    registry.image("bytes", &small, &diff_id);
    let files = (0..6000).fold(Layer::default(), |layer, number| layer.file(&format!("f{number}"), ""));
    let deep = (1..49).fold(Layer::default(), |layer, depth| layer.folder(&"d/".repeat(depth)));
    for (name, layer) in [("files", files), ("deep", deep)] {
        let bytes = layer.bytes();
        registry.image(name, &bytes, &Digest::of(Algorithm::Sha256, &bytes));
    }
    for (name, words) in
        [("bytes", "larger than 8388608 bytes"), ("files", "more than 5000 files"), ("deep", "40")]
    {
        let refused = pull(&mut lab, &format!("{}/{name}:1", registry.address), None).await.unwrap_err();
        assert!(refused.message().contains(words), "{name}: {refused}");
    }
    let folders = ["layers", "tmp", "trash"].map(|name| lab.path("root/image").join(name));
    let left = || folders.iter().map(|folder| fs::read_dir(folder).unwrap().count()).sum::<usize>();
    eventually("unpacked files are left", || left() == 0).await;
    lab.finish().await;
}
