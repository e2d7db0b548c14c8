//! Pulls through the real daemon from registries that send wrong content, close connections or send garbage: each
//! fails with the right code and a message that names the image, and leaves nothing behind. Runs as root.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::registry::{Answer, MANIFEST, Registry};
use crate::support::{Berth, PATIENCE};
use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use tonic::{Code, Status};

async fn pull(berth: &mut Berth, name: &str) -> Result<String, Status> {
    let image = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    Ok(berth.images.pull_image(request).await?.into_inner().image_ref)
}

/// Returns the files of the image store. Waits a while for `expected` files, because deletion continues in the
/// background.
async fn stored(berth: &Berth, expected: usize) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut found = Vec::new();
        for folder in ["images", "layers", "tmp", "trash"] {
            let entries = fs::read_dir(berth.path("root/image").join(folder)).unwrap().flatten();
            found.extend(entries.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())));
        }
        if found.len() == expected || Instant::now() > until {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(100_000);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", [7_u8; 100_000].as_slice()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_errors_have_the_right_code_and_leave_nothing() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    let diff_id = Digest::of(Algorithm::Sha256, &layer);
    let wrong = Digest::of(Algorithm::Sha256, b"something else");
    let json = |text: &str| Answer::Whole(200, MANIFEST, text.as_bytes().to_vec());

    registry.answer("/v2/garbage/manifests/1", json("<html>welcome to the hotel's network</html>"));
    registry.answer("/v2/old/manifests/1", json(r#"{ "schemaVersion": 1, "fsLayers": [] }"#));
    registry.answer("/v2/both/manifests/1", json(r#"{ "schemaVersion": 2, "manifests": [], "layers": [] }"#));
    registry.answer("/v2/noise/manifests/1", Answer::Raw(vec![0xff; 3000]));
    registry.answer("/v2/silent/manifests/1", Answer::Raw(Vec::new()));
    registry.answer("/v2/refused/manifests/1", Answer::Whole(401, "text/plain", b"who are you".to_vec()));
    registry.answer("/v2/forbidden/manifests/1", Answer::Whole(403, "text/plain", b"not you".to_vec()));
    registry.image("content", &layer, &wrong);
    registry.image("no-archive", &[b'x'; 5000], &Digest::of(Algorithm::Sha256, &[b'x'; 5000]));
    let corrupted = registry.image("corrupted", &layer, &diff_id);
    let mut other = layer.clone();
    other[90_000] ^= 1;
    registry.answer(corrupted, Answer::Whole(200, "application/octet-stream", other));
    let short = registry.image("short", &layer, &diff_id);
    registry.answer(short, Answer::Whole(200, "application/octet-stream", layer[..5000].to_vec()));
    let broken = registry.image("broken", &layer, &diff_id);
    registry.answer(broken, Answer::BrokenOff(layer.clone(), 0));

    for (name, code) in [
        ("none", Code::NotFound),
        ("garbage", Code::DataLoss),
        ("old", Code::InvalidArgument),
        ("both", Code::DataLoss),
        ("noise", Code::Unknown),
        ("silent", Code::Unknown),
        ("refused", Code::Unauthenticated),
        ("forbidden", Code::Unauthenticated),
        ("content", Code::DataLoss),
        ("no-archive", Code::DataLoss),
        ("corrupted", Code::DataLoss),
        ("short", Code::DataLoss),
        ("broken", Code::Unknown),
    ] {
        let reference = format!("{}/{name}:1", registry.address);
        let status = pull(&mut berth, &reference).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status}");
        // This prefix shows the kubelet that a retry can help (k8s.io/cri-api/pkg/errors).
        let unavailable = status.message().starts_with("RegistryUnavailable: ");
        assert_eq!(unavailable, code == Code::Unknown, "{name}: {status}");
        assert!(status.message().contains(&format!("{}/{name}", registry.address)), "{name}: {status}");
        assert_eq!(stored(&berth, 0).await, Vec::<String>::new(), "{name}");
    }
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(listed.is_empty(), "{listed:?}");

    // The same registry serves a valid image.
    registry.image("valid", &layer, &diff_id);
    let reference = format!("{}/valid:1", registry.address);
    let id = pull(&mut berth, &reference).await.unwrap();
    assert_eq!(pull(&mut berth, &reference).await.unwrap(), id, "a second pull must return the same id");
    assert_eq!(stored(&berth, 2).await.len(), 2);
    let image = ImageSpec { image: reference, ..ImageSpec::default() };
    berth.images.remove_image(RemoveImageRequest { image: Some(image) }).await.unwrap();
    assert_eq!(stored(&berth, 0).await, Vec::<String>::new());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_transfer_is_resumed() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    let path = registry.image("late", &layer, &Digest::of(Algorithm::Sha256, &layer));
    registry.answer(path.as_str(), Answer::BrokenOff(layer.clone(), 40_000));
    let reference = format!("{}/late:1", registry.address);
    let repaired = async {
        // From the second request on the layer is complete. The server does not support ranges, as many registries do
        // not.
        tokio::time::sleep(Duration::from_millis(300)).await;
        registry.answer(path, Answer::Whole(200, "application/octet-stream", layer.clone()));
    };
    let (pulled, ()) = tokio::join!(pull(&mut berth, &reference), repaired);
    assert!(pulled.unwrap().starts_with("sha256:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_or_killed_daemon_leaves_no_partial_image() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    let path = registry.image("slow", &layer, &Digest::of(Algorithm::Sha256, &layer));
    // Each attempt breaks off, so the pull does not finish.
    registry.answer(path.as_str(), Answer::BrokenOff(layer.clone(), 1000));
    let reference = format!("{}/slow:1", registry.address);
    let given_up = tokio::time::timeout(Duration::from_millis(200), pull(&mut berth, &reference)).await;
    assert!(given_up.is_err());
    assert_eq!(stored(&berth, 0).await, Vec::<String>::new());

    let given_up = tokio::time::timeout(Duration::from_millis(200), pull(&mut berth, &reference)).await;
    assert!(given_up.is_err());
    berth.kill();
    berth.restart().await;
    assert_eq!(stored(&berth, 0).await, Vec::<String>::new());
    registry.answer(path, Answer::Whole(200, "application/octet-stream", layer));
    let until = Instant::now() + PATIENCE;
    while let Err(status) = pull(&mut berth, &reference).await {
        assert!(Instant::now() < until, "{status}");
    }
    assert_eq!(stored(&berth, 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_credentials_and_pins_apply_to_requests_without_any() {
    let name = "127.0.0.1:5001/team/app:1";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.json");
    let more = format!("auth_file = {file:?}\npinned_images = [{name:?}]");
    let mut berth = Berth::start_with(&more).await;
    let registry = Registry::start_at(berth.host_process(), "127.0.0.1:5001");
    let layer = layer();
    let path = registry.image("team/app", &layer, &Digest::of(Algorithm::Sha256, &layer));
    let challenge = "WWW-Authenticate: Basic realm=\"here\"\r\n".to_owned();
    let whole = Answer::Whole(200, "application/octet-stream", layer);
    // "user:secret" in base64.
    let guarded = |answer| {
        let refusal = Answer::Headers(401, challenge.clone(), Vec::new());
        Answer::Authorized("Basic dXNlcjpzZWNyZXQ=", Box::new(answer), Box::new(refusal))
    };
    registry.answer(path, guarded(whole));
    assert_eq!(pull(&mut berth, name).await.unwrap_err().code(), Code::Unauthenticated);
    fs::write(&file, "{ \"auths\": { \"127.0.0.1:5001\": ").unwrap();
    let broken = pull(&mut berth, name).await.unwrap_err();
    assert!(broken.message().contains("auth.json"), "{broken}");
    fs::write(&file, r#"{ "auths": { "127.0.0.1:5001/team": { "auth": "dXNlcjpzZWNyZXQ=" } } }"#).unwrap();
    pull(&mut berth, name).await.unwrap();
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(listed[0].pinned && listed[0].repo_tags == [name], "{listed:?}");

    // Credentials in the request take precedence.
    let image = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
    berth.images.remove_image(RemoveImageRequest { image: Some(image.clone()) }).await.unwrap();
    let auth =
        AuthConfig { username: "user".to_owned(), password: "wrong".to_owned(), ..AuthConfig::default() };
    let request = PullImageRequest { image: Some(image), auth: Some(auth), ..PullImageRequest::default() };
    let refused = berth.images.pull_image(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_refusal_has_the_error_that_the_kubelet_expects() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    registry.image("app", &layer, &Digest::of(Algorithm::Sha256, &layer));
    let name = format!("{}/app:1", registry.address);
    fs::write(berth.path("policy.json"), r#"{ "default": [{ "type": "reject" }] }"#).unwrap();
    let refused = pull(&mut berth, &name).await.unwrap_err();
    // k8s.io/cri-api/pkg/errors: the kubelet sees the original text only if the code is Unknown.
    assert_eq!(refused.code(), Code::Unknown);
    assert!(refused.message().starts_with("SignatureValidationFailed: "), "{refused}");
    assert_eq!(stored(&berth, 0).await, Vec::<String>::new());
    fs::write(berth.path("policy.json"), r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#).unwrap();
    pull(&mut berth, &name).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_missing_layers_the_daemon_starts_reports_and_repairs_images() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    registry.image("image", &layer, &Digest::of(Algorithm::Sha256, &layer));
    let reference = format!("{}/image:1", registry.address);
    let id = pull(&mut berth, &reference).await.unwrap();
    let config = berth.path("config.toml");
    let verify = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["image", "verify"]).args(more).arg("--config").arg(&config);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let root = berth.path("root/image");
    berth.kill();
    fs::remove_dir_all(root.join("layers")).unwrap();
    berth.restart().await;
    let log = fs::read_to_string(berth.path("daemon.log")).unwrap();
    assert!(log.contains("image is damaged") && log.contains(&reference), "{log}");
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(listed.is_empty(), "{listed:?}");
    let (valid, text) = verify(&[]);
    assert!(!valid && text.contains("broken: image") && text.contains(&reference), "{text}");
    let (valid, text) = verify(&["--repair"]);
    assert!(valid && text.contains("pulled again: image") && text.contains(&reference), "{text}");
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_for_another_server_are_not_sent() {
    let mut berth = Berth::start_with("").await;
    let registry = Registry::start(berth.host_process());
    let layer = layer();
    registry.image("image", &layer, &Digest::of(Algorithm::Sha256, &layer));
    let manifest = registry.answer_of("/v2/image/manifests/1").unwrap();
    let refuse =
        Answer::Headers(401, "WWW-Authenticate: Basic realm=\"r\u{fc}ck\"\r\n".to_owned(), Vec::new());
    // "user:secret" in base64.
    let guarded = Answer::Authorized(
        "Basic dXNlcjpzZWNyZXQ=",
        Box::new(Answer::Whole(200, MANIFEST, manifest)),
        Box::new(refuse),
    );
    registry.answer("/v2/image/manifests/1", guarded);
    let mut pull = async |server: &str| {
        let auth = AuthConfig {
            username: "user".to_owned(),
            password: "secret".to_owned(),
            server_address: server.to_owned(),
            ..AuthConfig::default()
        };
        let image = ImageSpec { image: format!("{}/image:1", registry.address), ..ImageSpec::default() };
        let request =
            PullImageRequest { image: Some(image), auth: Some(auth), ..PullImageRequest::default() };
        berth.images.pull_image(request).await.map(drop)
    };
    for other in ["https://index.docker.io/v1/", "other.example", "127.0.0.1:1"] {
        assert_eq!(pull(other).await.unwrap_err().code(), Code::Unauthenticated, "{other}");
    }
    assert!(registry.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", registry.asked());
    assert_eq!(pull("https://a b").await.unwrap_err().code(), Code::InvalidArgument);
    pull(&format!("http://{}/v2/", registry.address)).await.unwrap();
    pull(&registry.address.clone()).await.unwrap();
}
