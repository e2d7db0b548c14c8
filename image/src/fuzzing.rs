//! Entry points for the fuzz targets (`fuzz/`), one function for each kind of untrusted input. The tests here
//! run them with the files in `fuzz/corpus`.

use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::auth_file;
use crate::config::parse_config;
use crate::digest::Algorithm;
use crate::manifest::{Manifest, choose, signature_blobs};
use crate::platform::Platform;
use crate::policy;
use crate::printable::{Printable, printable_json};
use crate::reference::Reference;
use crate::registry;
use crate::unpack::{Budget, Limits, extract, rebuild};

/// Unpacks a layer with small limits, in a temporary folder.
///
/// # Panics
/// Something outside the layer's folder has changed.
pub fn layer(bytes: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = |name: &str| folder.path().join(name);
    let prepared = fs::create_dir(path("fs")).and_then(|()| fs::write(path("secret"), "untouched"));
    let (Ok(()), Ok(recipe)) = (prepared, fs::File::create(path("recipe"))) else { return };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(path("fs"), flags, Mode::empty()) else { return };
    let limits =
        Limits { bytes: 8 << 20, entries: 500, depth: 32, ratio: 200, ratio_floor: 1 << 20, notes: 1 << 16 };
    let outcome = extract("layer", bytes, root, Algorithm::Sha256, &Budget::new(limits), Some(recipe));
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["fs", "recipe", "secret"], "something escaped");
    assert_eq!(
        fs::read(path("secret")).ok().as_deref(),
        Some(&b"untouched"[..]),
        "a file beside the layer was changed"
    );
    if outcome.is_ok() {
        rebuild_layer(&path("recipe"), &path("fs"));
    }
}

/// Rebuilds a layer from its recipe. A layer whose entries replace one another cannot be rebuilt: this
/// returns an error.
fn rebuild_layer(recipe: &Path, root: &Path) {
    if let (Ok(recipe), Ok(root)) = (fs::File::open(recipe), fs::File::open(root)) {
        use std::os::fd::AsFd as _;
        drop(rebuild(recipe, root.as_fd(), &mut std::io::sink()));
    }
}

/// Reads a corrupt recipe.
pub fn recipe(bytes: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let file = folder.path().join("recipe");
    if fs::write(&file, bytes).is_ok() {
        rebuild_layer(&file, folder.path());
    }
}

/// Parses manifests, indexes, configs and manifests of signatures.
pub fn manifest(bytes: &[u8]) {
    let platform = Platform::default();
    for media_type in [None, Some("application/vnd.oci.image.index.v1+json")] {
        if let Ok(Manifest::Index(entries)) = Manifest::parse("manifest", media_type, bytes) {
            drop(choose("manifest", &entries, &platform));
        }
    }
    drop(parse_config("config", bytes).map(|parsed| parsed.check_platform("config", &platform)));
    drop(signature_blobs("signatures", bytes));
}

/// Parses names of images.
///
/// # Panics
/// The printed form of a name is parsed as another name.
pub fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(reference) = text.parse::<Reference>() {
        let printed = reference.to_string();
        assert_eq!(printed.parse::<Reference>().ok(), Some(reference), "{printed}");
    }
}

/// Parses the policy, files with credentials, and the challenges of registries.
pub fn node_files(bytes: &[u8]) {
    registry::parsers::challenge(&String::from_utf8_lossy(bytes));
    policy::parse(bytes);
    auth_file::parse(bytes);
}

/// Parses a `hosts.toml`.
pub fn hosts(bytes: &[u8]) {
    registry::parsers::hosts(&String::from_utf8_lossy(bytes));
}

/// Parses a `registries.conf`.
pub fn registries_conf(bytes: &[u8]) {
    registry::parsers::registries_conf(&String::from_utf8_lossy(bytes));
}

/// Makes untrusted text printable.
///
/// # Panics
/// A character that controls a terminal remains, or JSON gets another meaning.
pub fn printable(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let shown = Printable::new(&text);
    let controls = |letter: char| letter.is_control() || ('\u{202a}'..='\u{202e}').contains(&letter);
    assert!(!shown.as_str().contains(controls), "{shown:?}");
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) {
        let again = serde_json::from_str::<serde_json::Value>(&printable_json(&text));
        assert_eq!(again.ok(), Some(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{}", folder.display());
    }

    #[test]
    fn the_corpus_runs_without_panics() {
        corpus("layer", layer);
        corpus("recipe", recipe);
        corpus("manifest", manifest);
        corpus("reference", reference);
        corpus("node_files", node_files);
        corpus("hosts", hosts);
        corpus("registries_conf", registries_conf);
        corpus("printable", printable);
    }
}
