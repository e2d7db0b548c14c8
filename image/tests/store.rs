//! The store with a registry of its own: what is pulled is what a container gets, work is shared, and what is removed or
//! cut off is gone. Runs as root: layers have whiteouts, which are devices.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test that fails says so by panicking"
)]

#[path = "../../tests/support/registry.rs"]
mod registry;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{
    Algorithm, Credentials, Digest, ErrorKind, Image, ImageStore, Limits, Options, Proxies, Reference,
    Verdict,
};
use registry::{Answer, MANIFEST, Registry};

/// How long what happens in the background may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Test {
    folder: tempfile::TempDir,
    registry: Registry,
    store: ImageStore,
}

async fn open(folder: &Path) -> ImageStore {
    let options = Options { certs_dirs: vec![folder.join("certs.d")], ..Options::new(folder.join("image")) };
    ImageStore::open(options).await.unwrap()
}

async fn test() -> Test {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    Test { registry: Registry::start(std::process::id()), store, folder }
}

impl Test {
    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.registry.address).parse().unwrap()
    }

    async fn pull(&self, name: &str) -> Result<Arc<Image>, berth_image::Error> {
        self.store.pull(&self.reference(name), None).await
    }

    fn stored(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("image").join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits for the background thread.
    fn settled(&self, folder: &str, count: usize) -> bool {
        let until = Instant::now() + PATIENCE;
        while self.stored(folder).len() != count && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stored(folder).len() == count
    }
}

/// Builds a layer.
#[derive(Default)]
struct Layer(Vec<(tar::Header, String, Vec<u8>)>);

impl Layer {
    fn entry(mut self, kind: tar::EntryType, name: &str, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        self.0.push((header, name.to_owned(), data.to_vec()));
        self
    }

    fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, name, mode, "", b"")
    }

    fn file(self, name: &str, text: &str) -> Self {
        self.entry(tar::EntryType::Regular, name, 0o644, "", text.as_bytes())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, 0o644, target, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, 0o777, target, b"")
    }

    /// The archive and its digest.
    fn plain(self) -> (Vec<u8>, Digest) {
        let mut tar = tar::Builder::new(Vec::new());
        for (mut header, name, data) in self.0 {
            tar.append_data(&mut header, name, data.as_slice()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        (bytes, digest)
    }

    fn gzip(self) -> (Vec<u8>, Digest) {
        let (bytes, digest) = self.plain();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        (encoder.finish().unwrap(), digest)
    }

    fn zstd(self) -> (Vec<u8>, Digest) {
        let (bytes, digest) = self.plain();
        (zstd::encode_all(bytes.as_slice(), 3).unwrap(), digest)
    }
}

fn simple(name: &str) -> (Vec<u8>, Digest) {
    Layer::default().file(name, "content").gzip()
}

/// What a container would see: the uppermost thing of a name in a stack of folders, without whiteouts' names.
fn seen(lower: &[PathBuf], name: &str) -> Option<PathBuf> {
    for layer in lower {
        let path = layer.join(name);
        if let Ok(stat) = fs::symlink_metadata(&path) {
            return (!(stat.file_type().is_char_device() && stat.rdev() == 0)).then_some(path);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_compression_make_one_tree() {
    let test = test().await;
    let bottom = Layer::default()
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .folder("srv", 0o1777)
        .file("usr/lib/first", "one")
        .file("gone", "x")
        .file("tool", "tool");
    let middle = Layer::default().file("lib/second", "two").file("srv/file", "three").file(".wh.gone", "");
    let top = Layer::default().link("other-tool", "tool").file("top", "four");
    test.registry.layers("image", &[bottom.gzip(), middle.zstd(), top.plain()]);
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.repo_tags, [format!("{}/image:1", test.registry.address)]);
    assert!(image.repo_digests[0].starts_with(&format!("{}/image@sha256:", test.registry.address)));

    let layer = test.store.create_layer("c1", &image.id, &[]).await.unwrap();
    let text = |name: &str| seen(&layer.lower, name).map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(text("usr/lib/first").as_deref(), Some("one"));
    // What a layer puts below a link of another layer is where the link leads.
    assert_eq!(text("usr/lib/second").as_deref(), Some("two"));
    assert!(fs::symlink_metadata(seen(&layer.lower, "lib").unwrap()).unwrap().is_symlink());
    assert_eq!(text("gone"), None);
    assert_eq!(text("top").as_deref(), Some("four"));
    let inode = |name: &str| fs::metadata(seen(&layer.lower, name).unwrap()).unwrap().ino();
    assert_eq!(inode("other-tool"), inode("tool"), "a hard link into a lower layer");
    let srv = fs::metadata(seen(&layer.lower, "srv").unwrap()).unwrap();
    assert_eq!(srv.mode() & 0o7777, 0o1777, "a folder that a layer does not list keeps its mode");
    test.store.remove_layer("c1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_fetched_again_and_work_is_shared() {
    let test = test().await;
    let shared = simple("shared");
    let paths = test.registry.layers("one", &[shared.clone(), simple("one")]);
    let others = test.registry.layers("two", &[shared, simple("two")]);
    let pulls = (0..8).map(|_| test.pull("one:1"));
    let images = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(images.iter().all(|image| image.id == images[0].id));
    assert!(paths.iter().all(|path| test.registry.times(path) == 1), "eight pulls, one transfer");
    test.pull("two:1").await.unwrap();
    assert_eq!(test.registry.times(&others[0]), 0, "the layer is here, from the other image");
    assert_eq!(test.registry.times(&others[1]), 1);
    assert_eq!(test.stored("layers").len(), 3);
    // The registry is asked all the same, so that credentials count.
    test.pull("two:1").await.unwrap();
    assert_eq!(test.registry.times("/v2/two/manifests/1"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_platform() {
    let test = test().await;
    test.registry.image("image", &simple("x").0, &simple("x").1);
    let asked = |path: &str| test.registry.times(path);
    let image = test.pull("image:1").await.unwrap();
    let digest = image.repo_digests[0].rsplit('@').next().unwrap().to_owned();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let wrong = Digest::of(Algorithm::Sha256, b"nobody has this");
    let size = length(&test, &format!("/v2/image/manifests/{digest}"));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": MANIFEST, "digest": wrong, "size": 10, "platform": { "os": "linux", "architecture": "s390x" } },
        { "mediaType": MANIFEST, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": architecture } },
    ] });
    let kind = "application/vnd.oci.image.index.v1+json";
    test.registry.answer("/v2/image/manifests/all", Answer::Whole(200, kind, index.to_string().into_bytes()));
    let from_index = test.pull("image:all").await.unwrap();
    assert_eq!(from_index.id, image.id);
    assert_eq!(from_index.repo_tags.len(), 2, "two names of one image");
    assert_eq!(asked(&format!("/v2/image/manifests/{wrong}")), 0);
    let only_other = index.to_string().replace(architecture, "riscv64");
    test.registry.answer("/v2/image/manifests/other", Answer::Whole(200, kind, only_other.into_bytes()));
    let error = test.pull("image:other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let by_digest = test.pull(&format!("image@{digest}")).await.unwrap();
    assert_eq!(by_digest.id, image.id);
}

/// The length of what the registry answers to a path.
fn length(test: &Test, path: &str) -> usize {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(&test.registry.address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_where_they_are_asked_for_and_nowhere_else() {
    let test = test().await;
    let elsewhere = Registry::start(std::process::id());
    let (bytes, digest) = simple("x");
    let layer = test.registry.image("image", &bytes, &digest);
    elsewhere.answer("/blob", Answer::Whole(200, "application/octet-stream", bytes));
    let whole = Answer::Headers(307, format!("Location: http://{}/blob\r\n", elsewhere.address), Vec::new());
    let challenge = format!(
        "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"here\",scope=\"repository:image:pull\"\r\n",
        test.registry.address
    );
    let refuse = || Box::new(Answer::Headers(401, challenge.clone(), Vec::new()));
    let guard = |path: &str, answer: Answer| {
        test.registry.answer(path, Answer::Authorized("Bearer let-me-in", Box::new(answer), refuse()));
    };
    guard(&layer, whole);
    let token = Answer::Whole(200, "application/json", br#"{ "token": "let-me-in" }"#.to_vec());
    // "user:secret" in base64.
    let basic = "Basic dXNlcjpzZWNyZXQ=";
    let ask = "/token?service=here&scope=repository%3Aimage%3Apull";
    let unknown = Box::new(Answer::Headers(401, String::new(), Vec::new()));
    test.registry.answer(ask, Answer::Authorized(basic, Box::new(token), unknown));

    let reference = test.reference("image:1");
    let stranger = test.store.pull(&reference, None).await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Unauthorized, "{stranger}");
    let wrong = Credentials::Basic { username: "user".into(), password: "guess".into() };
    let error = test.store.pull(&reference, Some(wrong)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error:?} {error}").contains("guess"));
    let right = Credentials::Basic { username: "user".into(), password: "secret".into() };
    test.store.pull(&reference, Some(right)).await.unwrap();
    let redirected = elsewhere.asked();
    assert_eq!(redirected.len(), 1, "{redirected:?}");
    assert_eq!(redirected[0].authorization, None, "credentials do not follow to another host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_is_asked_again() {
    let test = test().await;
    let (bytes, digest) = simple("x");
    let layer = test.registry.image("image", &bytes, &digest);
    let busy = |code| Box::new(Answer::Headers(code, "Retry-After: 0\r\n".to_owned(), Vec::new()));
    let whole = Box::new(Answer::Whole(200, "application/octet-stream", bytes));
    test.registry.answer(layer.as_str(), Answer::Times(2, busy(429), whole));
    test.pull("image:1").await.unwrap();
    assert_eq!(test.registry.times(&layer), 3);
    let dead = "/v2/dead/manifests/1";
    test.registry.answer(dead, Answer::Headers(503, "Retry-After: 0\r\n".to_owned(), Vec::new()));
    let error = test.pull("dead:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(test.registry.times(dead) > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first_and_the_server_last() {
    let test = test().await;
    let mirror = Registry::start(std::process::id());
    let (bytes, digest) = simple("x");
    let path = mirror.image("library/image", &bytes, &digest);
    let config = test.folder.path().join("certs.d/docker.io");
    fs::create_dir_all(&config).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        test.registry.address, mirror.address
    );
    fs::write(config.join("hosts.toml"), hosts).unwrap();
    let image = test.store.pull(&"image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/image:1"]);
    assert!(test.registry.asked().is_empty(), "the mirror has it");
    // A mirror whose content is wrong is passed over.
    assert!(test.store.remove("image:1").await.unwrap());
    assert!(test.settled("layers", 0));
    mirror.answer(path.as_str(), Answer::Whole(200, "application/octet-stream", vec![b'x'; bytes.len()]));
    test.registry.image("library/image", &bytes, &digest);
    test.store.pull(&"image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(test.registry.times(&path), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(std::process::id());
    let limits = Limits { bytes: 50_000, entries: 5, ..Limits::default() };
    let options = Options { limits, ..Options::new(folder.path().join("image")) };
    let store = ImageStore::open(options).await.unwrap();
    let many = (0..10).fold(Layer::default(), |layer, n| layer.file(&format!("f{n}"), "x")).gzip();
    let large = Layer::default().file("large", &"x".repeat(100_000)).gzip();
    for (name, (bytes, digest), figure) in [("many", many, "5 files"), ("large", large, "50000 bytes")] {
        registry.image(name, &bytes, &digest);
        let reference = format!("{}/{name}:1", registry.address).parse().unwrap();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        assert!(error.to_string().contains(figure), "{error}");
    }
    assert!(store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_survive_a_restart_and_half_made_things_do_not() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), simple("b")]);
    let image = test.pull("image:1").await.unwrap();
    test.store.create_layer("kept", &image.id, &[]).await.unwrap();
    let Test { folder, registry, store } = test;
    drop(store);
    let root = folder.path().join("image");
    fs::create_dir(root.join("tmp/half")).unwrap();
    fs::create_dir(root.join("containers/torn")).unwrap();
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(test.settled("tmp", 0) && test.settled("trash", 0));
    let again = test.store.resolve(&image.repo_tags[0]).unwrap();
    assert_eq!((&again.id, &again.repo_digests, again.size), (&image.id, &image.repo_digests, image.size));
    assert_eq!(test.store.layer("kept").unwrap().lower.len(), 2);
    assert_eq!(test.store.writable_layers(), ["kept", "torn"]);
    assert!(test.store.layer("torn").is_none());
    test.store.remove_layer("torn").await.unwrap();

    // After a power cut, what was not synced is not trusted.
    let Test { folder, registry, store } = test;
    store.remove_layer("kept").await.unwrap();
    // The background thread of this store must have done with the layers.
    let until = Instant::now() + PATIENCE;
    let done = |layer: fs::DirEntry| {
        fs::read_to_string(layer.path().join("synced")).is_ok_and(|text| text.contains("files"))
    };
    while !fs::read_dir(root.join("layers")).unwrap().flatten().all(done) {
        assert!(Instant::now() < until, "the layers are brought to the disk");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(store);
    for layer in fs::read_dir(root.join("layers")).unwrap() {
        let layer = layer.unwrap().path();
        drop(fs::remove_file(layer.join("synced")));
        let record = fs::read_to_string(layer.join("layer.json")).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(layer.join("layer.json"), record.replace(boot.trim(), "another-boot")).unwrap();
    }
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(test.store.list().is_empty());
    test.pull("image:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_takes_all_names_and_waits_for_containers() {
    let test = test().await;
    test.registry.image("image", &simple("x").0, &simple("x").1);
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(test.store.resolve(&image.id.to_string()).unwrap().id, image.id);
    assert_eq!(test.store.resolve(&image.id.hex()[..12]).unwrap().id, image.id);
    assert_eq!(test.store.resolve(&image.repo_digests[0]).unwrap().id, image.id);
    assert!(test.store.resolve(&image.id.hex()[..5]).is_some(), "as much as makes it unique");
    let layer = test.store.create_layer("user", &image.id, &[]).await.unwrap();
    assert!(test.store.remove(&image.repo_tags[0]).await.unwrap());
    assert!(test.store.list().is_empty() && test.store.resolve(&image.id.to_string()).is_none());
    assert!(layer.lower[0].join("x").exists(), "the container goes on");
    assert!(test.store.create_layer("late", &image.id, &[]).await.is_err());
    test.store.remove_layer("user").await.unwrap();
    test.store.remove_layer("user").await.unwrap();
    assert!(test.settled("layers", 0) && test.settled("images", 0) && test.settled("trash", 0));
    assert!(!test.store.remove(&image.repo_tags[0]).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_belongs_to_the_image_that_was_pulled_last() {
    let test = test().await;
    test.registry.image("image", &simple("old").0, &simple("old").1);
    let old = test.pull("image:1").await.unwrap();
    test.registry.image("image", &simple("new").0, &simple("new").1);
    let new = test.pull("image:1").await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(test.store.resolve(&new.repo_tags[0]).unwrap().id, new.id);
    let old = test.store.resolve(&old.id.to_string()).unwrap();
    assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1, "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_what_du_says() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), Layer::default().file("b", &"b".repeat(300_000)).gzip()]);
    test.pull("image:1").await.unwrap();
    let root = test.folder.path().join("image");
    let du = |option: &str| -> u64 {
        let output =
            Command::new("du").args(["-s", option]).args([root.join("layers"), root.join("images")]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    // The two folders themselves are no image's.
    let own = |path: &str| fs::metadata(root.join(path)).unwrap().blocks() * 512;
    let until = Instant::now() + PATIENCE;
    loop {
        let usage = test.store.usage().image;
        let expected = (du("-B1") - own("layers") - own("images"), du("--inodes") - 2);
        if (usage.bytes, usage.inodes) == expected {
            break;
        }
        assert!(Instant::now() < until, "{usage:?} {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_reached_through_a_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Registry::start(std::process::id());
    proxy.image("image", &simple("x").0, &simple("x").1);
    let hosts = folder.path().join("certs.d/plain.example");
    fs::create_dir_all(&hosts).unwrap();
    fs::write(hosts.join("hosts.toml"), "server = \"http://plain.example\"\n").unwrap();
    let options = Options {
        certs_dirs: vec![folder.path().join("certs.d")],
        proxies: Proxies::all(&format!("http://{}", proxy.address), "direct.example"),
        ..Options::new(folder.path().join("image"))
    };
    let store = ImageStore::open(options).await.unwrap();
    store.pull(&"plain.example/image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(proxy.times("http://plain.example/v2/image/manifests/1"), 1, "{:?}", proxy.asked());
    // TLS goes through a tunnel, which this proxy refuses.
    let error = store.pull(&"secure.example/image:1".parse().unwrap(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("proxy 127.0.0.1"), "{error}");
    assert!(proxy.times("secure.example:443") > 0, "{:?}", proxy.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_changed_on_the_disk_is_found() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), simple("b")]);
    test.registry.image("other", &simple("c").0, &simple("c").1);
    let image = test.pull("image:1").await.unwrap();
    test.pull("other:1").await.unwrap();
    let until = Instant::now() + PATIENCE;
    let sound = loop {
        let found = test.store.verify(None).await.unwrap();
        if found.iter().all(|part| part.verdict == Verdict::Sound) || Instant::now() > until {
            break found;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(sound.len(), 5, "two configs, three layers: {sound:?}");
    assert!(sound.iter().all(|part| part.verdict == Verdict::Sound), "{sound:?}");

    let root = test.folder.path().join("image");
    let layer = root.join("layers").join(format!("sha256-{}", image.layers[1].hex()));
    fs::write(layer.join("fs/b"), "changed").unwrap();
    let config = root.join("images").join(format!("sha256-{}", image.id.hex())).join("config.json");
    fs::write(&config, "{}").unwrap();
    let found = test.store.verify(None).await.unwrap();
    let broken: Vec<_> = found.iter().filter(|part| part.verdict != Verdict::Sound).collect();
    assert_eq!(broken.len(), 2, "{found:?}");
    assert!(broken.iter().all(|part| part.images == image.repo_tags), "{broken:?}");
    assert_eq!(test.store.verify(Some("no-such:1")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let other = test.store.verify(Some(&format!("{}/other:1", test.registry.address))).await.unwrap();
    assert!(other.len() == 2 && other.iter().all(|part| part.verdict == Verdict::Sound), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_pull_has_got_is_not_fetched_again() {
    let test = test().await;
    let (first, second) = (simple("a"), simple("b"));
    let paths = test.registry.layers("image", &[first, second.clone()]);
    // Asked for again, until the first layer is long there.
    test.registry.answer(paths[1].as_str(), Answer::Whole(503, "text/plain", Vec::new()));
    assert_eq!(test.pull("image:1").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(test.settled("layers", 1), "{:?}", test.stored("layers"));
    test.registry.answer(paths[1].as_str(), Answer::Whole(200, "application/octet-stream", second.0));
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(test.registry.times(&paths[0]), 1, "the first layer stays for the next attempt");
    test.store.remove(&image.id.to_string()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_registry_may_not_keep_is_fetched_from_where_it_says() {
    let test = test().await;
    let elsewhere = Registry::start(std::process::id());
    let (bytes, diff_id) = simple("a");
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let path = test.registry.image("image", &bytes, &diff_id);
    let text = String::from_utf8(test.registry.answer_of("/v2/image/manifests/1").unwrap()).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    manifest["layers"][0]["mediaType"] =
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
    let place = format!("http://{}/layers/a?x=y", elsewhere.address);
    manifest["layers"][0]["urls"] = serde_json::json!(["ftp://r.example/a", "http://r.example/a", place]);
    test.registry.manifest("image", "1", &manifest);
    test.registry.answer(path, Answer::Whole(404, "text/plain", Vec::new()));
    elsewhere.answer("/layers/a?x=y", Answer::Whole(200, "application/octet-stream", bytes));
    let auth = Credentials::Basic { username: "user".to_owned(), password: "secret".to_owned() };
    let image = test.store.pull(&test.reference("image:1"), Some(auth)).await.unwrap();
    assert_eq!(image.layers, [diff_id]);
    let asked = elsewhere.asked();
    assert!(asked.len() == 1 && asked[0].authorization.is_none(), "{asked:?} {digest}");
}
