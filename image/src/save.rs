//! Saves images to an archive that berth, docker and podman load: an OCI layout in a tar file, with docker's
//! manifest beside it. The layers are rebuilt from their recipes, so image ids and diff ids do not change.
//! The layers of a registry are compressed, those in the archive are not, so the manifest differs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;

use serde_json::{Value, json};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{Manifest, config_of};
use crate::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::store::{ImageStore, Inner, LayerKey, MemoryUser, StoredLayer};
use crate::unpack::{Budget, TreePath};
use crate::{artifact, unpack};

/// The config of an artifact without a config (OCI image spec, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";

impl ImageStore {
    /// Writes images with their names to an archive.
    ///
    /// # Errors
    /// An image does not exist, a layer cannot be rebuilt, or writing to `out` fails.
    pub async fn save(&self, names: &[String], out: impl Write + Send + 'static) -> Result<(), Error> {
        let _memory_user = MemoryUser::new(self.inner());
        let mut holds = Vec::new();
        let mut images = Vec::new();
        for name in names {
            let image = self.resolve(name);
            let image = image.ok_or_else(|| Error::not_found(format!("image {name}"), "not in the store"))?;
            holds.push(self.hold(&image, "save")?);
            images.push(image);
        }
        let inner = self.inner().clone();
        let saved = blocking("save images", move || {
            let mut archive = Archive { out: tar::Builder::new(out), written: BTreeSet::new() };
            let mut entries = Entries::default();
            for image in &images {
                inner.save(image, &mut archive, &mut entries)?;
            }
            archive.finish(&entries)
        })
        .await;
        drop(holds);
        saved
    }
}

/// The entries of the indexes, which are written at the end of the archive.
#[derive(Default)]
struct Entries {
    oci: Vec<Value>,
    docker: Vec<Value>,
}

struct Archive<W: Write> {
    out: tar::Builder<W>,
    written: BTreeSet<Digest>,
}

impl Inner {
    fn save<W: Write>(
        &self,
        image: &Image,
        archive: &mut Archive<W>,
        entries: &mut Entries,
    ) -> Result<(), Error> {
        let config = self.config_bytes(&image.id)?;
        let manifest = if image.artifact {
            self.save_artifact(image, &config, archive)?;
            config
        } else {
            self.save_image(image, &config, archive, entries)?
        };
        let digest =
            Digest::of(if image.artifact { image.id.algorithm() } else { Algorithm::Sha256 }, &manifest);
        archive.blob(&digest, &manifest)?;
        let descriptor = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len() });
        let names =
            if image.repo_tags.is_empty() { vec![None] } else { image.repo_tags.iter().map(Some).collect() };
        for name in names {
            let mut descriptor = descriptor.clone();
            if let (Some(name), Some(fields)) = (name, descriptor.as_object_mut()) {
                // containerd and docker read the first, podman and skopeo the second, which the spec defines.
                let annotations =
                    json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
                fields.insert("annotations".to_owned(), annotations);
            }
            entries.oci.push(descriptor);
        }
        Ok(())
    }

    fn save_image<W: Write>(
        &self,
        image: &Image,
        config: &[u8],
        archive: &mut Archive<W>,
        entries: &mut Entries,
    ) -> Result<Vec<u8>, Error> {
        archive.blob(&image.id, config)?;
        let (mut layers, mut paths) = (Vec::new(), Vec::new());
        for diff_id in &image.layers {
            let layer = self.stored_layer(&LayerKey::Diff(diff_id.clone()));
            let what = format!("layer {diff_id}");
            let missing = || Error::unsupported(&what, "cannot be saved: it was unpacked without a recipe");
            let StoredLayer { fs, recipe, length } = layer.ok_or_else(missing)?;
            let length = length.ok_or_else(missing)?;
            archive.stream(diff_id, length, |out| {
                let recipe = File::open(&recipe)?;
                let root = File::open(&fs)?;
                unpack::rebuild(recipe, root.as_fd(), out)
            })?;
            layers.push(json!({ "mediaType": OCI_LAYER, "digest": diff_id, "size": length }));
            paths.push(path(diff_id));
        }
        entries
            .docker
            .push(json!({ "Config": path(&image.id), "RepoTags": image.repo_tags, "Layers": paths }));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": image.id, "size": config.len() },
            "layers": layers,
        });
        serde_json::to_vec(&manifest).map_err(|error| Error::internal("encode a manifest", error))
    }

    /// Writes the blobs of an artifact. They are the files of its folder.
    fn save_artifact<W: Write>(
        &self,
        image: &Image,
        manifest: &[u8],
        archive: &mut Archive<W>,
    ) -> Result<(), Error> {
        let what = format!("artifact {}", image.id);
        let Manifest::Artifact(parsed) = Manifest::parse(&what, None, manifest)? else {
            return Err(Error::corrupt(what, "not an artifact"));
        };
        let config = config_of(&what, manifest)?;
        if Digest::of(config.digest.algorithm(), EMPTY) != config.digest {
            let why = "cannot be saved: it has a config, which the store does not keep";
            return Err(Error::unsupported(what, why));
        }
        archive.blob(&config.digest, EMPTY)?;
        let names = artifact::file_names(&what, &parsed, &Budget::new(self.options.limits))?;
        let layer = self.stored_layer(&LayerKey::Artifact(image.id.clone()));
        let layer = layer.ok_or_else(|| Error::not_found(&what, "its files are missing"))?;
        for (blob, name) in parsed.blobs.iter().zip(&names) {
            archive.stream(&blob.digest, blob.size, |out| copy_file(&layer, name, blob.size, out))?;
        }
        Ok(())
    }
}

fn copy_file(layer: &StoredLayer, name: &TreePath, size: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut file = File::open(layer.fs.join(name.as_path()))?.take(size);
    io::copy(&mut file, out).map(drop)
}

impl<W: Write> Archive<W> {
    /// Writes a blob from memory.
    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.written.insert(digest.clone()) { self.file(&path(digest), bytes) } else { Ok(()) }
    }

    /// Writes a blob that `write` produces, and checks its digest.
    fn stream(
        &mut self,
        digest: &Digest,
        size: u64,
        write: impl FnOnce(&mut Hashing<'_, W>) -> io::Result<()>,
    ) -> Result<(), Error> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let what = format!("blob {digest}");
        let failed = |error: io::Error| Error::io("save", &what, error);
        let header = header(&path(digest), size).map_err(failed)?;
        let out = self.out.get_mut();
        out.write_all(header.as_bytes()).map_err(failed)?;
        let mut hashing = Hashing { out, hasher: Hasher::new(digest.algorithm()), left: size };
        write(&mut hashing).map_err(failed)?;
        let Hashing { hasher, left, out } = hashing;
        if left > 0 || hasher.finish() != *digest {
            return Err(Error::corrupt(
                what,
                "cannot be saved: its files have changed, or its entries replace one another",
            ));
        }
        let padding = usize::try_from((512 - size % 512) % 512).unwrap_or(0);
        out.write_all(&[0; 512][..padding]).map_err(failed)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let failed = |error: io::Error| Error::io("save", name, error);
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let header = header(name, size).map_err(failed)?;
        self.out.append(&header, bytes).map_err(failed)
    }

    fn finish(mut self, entries: &Entries) -> Result<(), Error> {
        let encode = |value: &Value| {
            serde_json::to_vec(value).map_err(|error| Error::internal("encode an index", error))
        };
        self.file("oci-layout", &encode(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries.oci });
        self.file("index.json", &encode(&index)?)?;
        if !entries.docker.is_empty() {
            self.file("manifest.json", &encode(&Value::Array(entries.docker.clone()))?)?;
        }
        let mut out = self.out.into_inner().map_err(|error| Error::io("save", "archive", error))?;
        out.flush().map_err(|error| Error::io("save", "archive", error))
    }
}

/// Returns the path of a blob in a layout.
fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Returns a tar header without times and owners, so that the same images give the same archive.
fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(header)
}

/// Hashes the written bytes, and returns an error if there are more than declared.
struct Hashing<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    left: u64,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.left = self
            .left
            .checked_sub(u64::try_from(written).unwrap_or(u64::MAX))
            .ok_or_else(|| io::Error::other("more bytes than declared"))?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
