//! A store with a private registry, and layers for it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "each test uses only some of the items"
)]

#[path = "../../../tests/it/support/registry.rs"]
pub mod registry;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Digest, Image, ImageStore, Options, Reference};
use registry::Registry;

/// The time limit for background work on a slow machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);

pub struct Test {
    pub folder: tempfile::TempDir,
    pub registry: Registry,
    pub store: ImageStore,
}

pub async fn open(folder: &Path) -> ImageStore {
    let options = Options { certs_dirs: vec![folder.join("certs.d")], ..Options::new(folder.join("image")) };
    ImageStore::open(options).await.unwrap()
}

pub async fn test() -> Test {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    Test { registry: Registry::start(std::process::id()), store, folder }
}

impl Test {
    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.registry.address).parse().unwrap()
    }

    pub async fn pull(&self, name: &str) -> Result<Arc<Image>, berth_image::Error> {
        self.store.pull(&self.reference(name), None).await
    }

    pub fn stored(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("image").join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits until a folder has this many entries.
    pub fn settled(&self, folder: &str, count: usize) -> bool {
        let until = Instant::now() + TIMEOUT;
        while self.stored(folder).len() != count && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stored(folder).len() == count
    }
}

/// Builds a layer.
#[derive(Default)]
pub struct Layer(Vec<(tar::Header, String, Vec<u8>)>);

impl Layer {
    pub fn entry(mut self, kind: tar::EntryType, name: &str, mode: u32, link: &str, data: &[u8]) -> Self {
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

    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, name, mode, "", b"")
    }

    pub fn file(self, name: &str, text: &str) -> Self {
        self.entry(tar::EntryType::Regular, name, 0o644, "", text.as_bytes())
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, 0o644, target, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, 0o777, target, b"")
    }

    /// Returns the archive and its digest.
    pub fn plain(self) -> (Vec<u8>, Digest) {
        let mut tar = tar::Builder::new(Vec::new());
        for (mut header, name, data) in self.0 {
            tar.append_data(&mut header, name, data.as_slice()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        (bytes, digest)
    }

    pub fn gzip(self) -> (Vec<u8>, Digest) {
        let (bytes, digest) = self.plain();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        (encoder.finish().unwrap(), digest)
    }

    /// Compresses like `zstd --ultra -22` and `zstd --long` do with a stream.
    pub fn zstd_with_window(self, log: u32) -> (Vec<u8>, Digest) {
        let (bytes, digest) = self.plain();
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(log).unwrap();
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        (encoder.finish().unwrap(), digest)
    }

    pub fn zstd(self) -> (Vec<u8>, Digest) {
        let (bytes, digest) = self.plain();
        (zstd::encode_all(bytes.as_slice(), 3).unwrap(), digest)
    }
}

pub fn simple(name: &str) -> (Vec<u8>, Digest) {
    Layer::default().file(name, "content").gzip()
}

/// Returns the uppermost file of a name in a stack of folders, or None for a whiteout, as a container sees
/// it.
pub fn seen(lower: &[PathBuf], name: &str) -> Option<PathBuf> {
    for layer in lower {
        let path = layer.join(name);
        if let Ok(stat) = fs::symlink_metadata(&path) {
            return (!(stat.file_type().is_char_device() && stat.rdev() == 0)).then_some(path);
        }
    }
    None
}

/// Waits until the background thread has recorded the digests of the layers.
pub fn until_digested(root: &Path) {
    let until = Instant::now() + TIMEOUT;
    let done = |layer: fs::DirEntry| {
        fs::read_to_string(layer.path().join("synced")).is_ok_and(|text| text.contains("content"))
    };
    while !fs::read_dir(root.join("layers")).unwrap().flatten().all(done) {
        assert!(Instant::now() < until, "the digests of the layers are not recorded");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stack of layers as the kernel merges it, mounted in a separate mount namespace.
pub struct Overlay {
    pub path: PathBuf,
    holder: Child,
}

impl Overlay {
    pub fn mount(folder: &Path, lower: &[PathBuf]) -> Self {
        let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
        let mount = folder.join("merged");
        fs::create_dir(&mount).unwrap();
        let script = format!(
            "mount -t overlay overlay -o lowerdir={} {} && echo mounted && exec sleep 3600",
            lower.join(":"),
            mount.display()
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = [0; 7];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut output).unwrap();
        let path = PathBuf::from(format!("/proc/{}/root{}", holder.id(), mount.display()));
        Self { path, holder }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
