//! The image of the demo as an OCI archive: one static program in one layer.

use std::io;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::programs::DEMO_APP;

/// The name of the image. `localhost` is not a registry, so the image cannot be pulled.
pub const REFERENCE: &str = "localhost/berth-demo:built-in";

/// The path of the program in the image.
pub const PROGRAM: &str = "/berth-demo-app";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A part of the archive; its name is its digest.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: hex::encode(Sha256::digest(&bytes)), bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }
}

/// Builds the archive (OCI image layout, "oci-layout file", "index.json file", "blobs").
///
/// # Errors
/// Writing to memory failed, which does not happen in practice.
pub fn archive() -> io::Result<Vec<u8>> {
    let layer = Blob::new(tar(&[(PROGRAM.trim_start_matches('/').to_owned(), DEMO_APP, 0o755)])?);
    let config = Blob::json(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": [PROGRAM],
            "Env": ["PATH=/", "GREETING=hello from the image"],
        },
        // The layer is not compressed, so its digest is that of its content.
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
    }));
    let mut named = manifest.descriptor(MANIFEST);
    // The specification's annotation contains the tag or the name, depending on the tool; containerd's contains the
    // name.
    named["annotations"] = json!({
        "org.opencontainers.image.ref.name": REFERENCE,
        "io.containerd.image.name": REFERENCE,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named] }).to_string();
    let layout = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
    let mut files = vec![
        ("oci-layout".to_owned(), layout.as_bytes(), 0o644),
        ("index.json".to_owned(), index.as_bytes(), 0o644),
    ];
    let blobs = [&layer, &config, &manifest];
    files.extend(blobs.map(|blob| (format!("blobs/sha256/{}", blob.digest), blob.bytes.as_slice(), 0o644)));
    tar(&files)
}

/// Returns the name of the architecture as in Go (OCI image configuration, "architecture").
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(files: &[(String, &[u8], u32)]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(*mode);
        header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, name, *bytes)?;
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;

    use super::*;

    fn read(archive: &[u8]) -> HashMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn every_descriptor_leads_to_a_blob_with_that_digest_and_size() {
        let files = read(&archive().unwrap());
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex::encode(Sha256::digest(bytes)), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(read(layer)[PROGRAM.trim_start_matches('/')], DEMO_APP);
        assert_eq!(config["config"]["Entrypoint"][0], PROGRAM);
    }
}
