//! A docker-archive of an image with this host's busybox and the libraries that it needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/srv:/bin/sh\n";
const GROUP: &str = "root:x:0:\nweb:x:1000:\nlogs:x:50:web\n";

/// Writes the archive of the test image.
pub fn write_archive(path: &Path, tag: &str) {
    write_archive_with(path, tag, &[]);
}

/// Writes the archive of the test image with additional or replaced files.
pub fn write_archive_with(path: &Path, tag: &str, files: &[(&str, &[u8])]) {
    let config = serde_json::json!({
        "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"],
        "Cmd": ["sh", "-c", "echo from the image"],
        "WorkingDir": "/srv",
        "Volumes": { "/data": {} },
    });
    write_archive_of(path, tag, &[layer_with(files)], &config);
}

/// Writes an archive with these layers. `config` is the `config` field of the image configuration.
pub fn write_archive_of(path: &Path, tag: &str, layers: &[Vec<u8>], config: &serde_json::Value) {
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let names: Vec<_> = (0..layers.len()).map(|number| format!("layer{number}.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]);
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, layer) in names.iter().zip(layers) {
        add(&mut archive, name, layer, 0o644, 0);
    }
    add(&mut archive, "config.json", config.to_string().as_bytes(), 0o644, 0);
    add(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644, 0);
    archive.finish().unwrap();
}

/// Returns the layer with busybox.
pub fn layer() -> Vec<u8> {
    layer_with(&[])
}

fn layer_with(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin", "etc", "srv", "tmp", "proc", "sys", "dev", "usr", "usr/bin", "root"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, format!("{folder}/"), std::io::empty()).unwrap();
    }
    let busybox = fs::read("/bin/busybox").expect("busybox is installed by tests/run");
    add(&mut layer, "bin/busybox", &busybox, 0o755, 0);
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        header.set_mode(0o755);
        layer.append_link(&mut header, format!("bin/{applet}"), "bin/busybox").unwrap();
    }
    for library in libraries() {
        let content = fs::read(&library).unwrap();
        let mode = fs::metadata(&library).unwrap().mode() & 0o777;
        add(&mut layer, library.to_str().unwrap().trim_start_matches('/'), &content, mode, 0);
    }
    add(&mut layer, "etc/passwd", PASSWD.as_bytes(), 0o644, 0);
    add(&mut layer, "etc/group", GROUP.as_bytes(), 0o644, 0);
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    layer.append_link(&mut link, "link-to-srv", "../../srv").unwrap();
    add(&mut layer, "srv/owned", b"web's\n", 0o640, 1000);
    for (name, content) in files {
        add(&mut layer, name, content, 0o644, 0);
    }
    layer.into_inner().unwrap()
}

/// Returns the libraries that busybox needs according to ldd(1).
fn libraries() -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg("/bin/busybox").output().unwrap().stdout;
    let text = String::from_utf8(output).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn add<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32, uid: u64) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid);
    archive.append_data(&mut header, name, content).unwrap();
}

fn sha256(content: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
