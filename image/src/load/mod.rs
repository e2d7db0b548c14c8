//! Images from files: OCI layouts (folders), OCI archives and docker-archives (tar files, which may be
//! compressed). Their content is as untrusted as that of a registry.
//!
//! * [`docker`]: the format of `docker save` before version 25, which many tools still write
//! * [`layout`]: the OCI image layout
//! * [`source`]: access to the members of an archive in each of its forms

mod docker;
mod layout;
mod source;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::artifact::{self, ArtifactFolder};
use crate::config::{ParsedConfig, parse_config};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::downloads::Slots;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::ArtifactManifest;
use crate::policy::{self, Transport};
use crate::printable::Printable;
use crate::reference::Reference;
use crate::store::{ImageStore, Inner, LayerKey, Lease, MemoryUser, Names, NewImage};
use crate::transfer::unpack_layer;
use crate::unpack::Budget;

use source::{Source, VerifyingReader};

/// The most images of one archive.
const MAX_IMAGES: usize = 10_000;
/// The most names of one image in an archive.
const MAX_TAGS: usize = 1000;

impl ImageStore {
    /// Loads the images of an OCI layout or a tar archive that run on this platform, with their names in the
    /// archive.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown format, is corrupt, or has no image for this platform.
    pub async fn load(&self, path: &Path) -> Result<Vec<Arc<Image>>, Error> {
        let inner = self.inner().clone();
        let _memory_user = MemoryUser::new(&inner);
        let opener = inner.clone();
        let owned = path.to_owned();
        let policy = inner.options.policy.clone();
        let (source, offers) = blocking("read an archive", move || {
            let source = Source::open(&opener, &owned)?;
            let offers = read_offers(&source, &opener)?;
            Ok((Arc::new(source), offers))
        })
        .await?;
        let transport = transport(&source, path)?;
        if let Some(policy) = policy {
            policy::check_archive(&policy, &transport, &path.display().to_string()).await?;
        }
        let slots = inner.downloads.slots();
        let origin = transport.origin();
        let loading = Loading { inner, source, slots, origin };
        let mut images = Vec::new();
        for offer in offers {
            let image = loading.load(offer).await?;
            tracing::info!(image = %image.id, path = %Printable::new(&path.to_string_lossy()), "loaded image from file");
            images.push(image);
        }
        Ok(images)
    }
}

/// One image in the index of an archive. Its config is read when the image is loaded: the configs of an
/// archive with thousands of images may be larger than the memory.
#[derive(Debug)]
struct Offer {
    tags: Vec<Reference>,
    place: ImageLocation,
}

/// The description of an image in an archive.
#[derive(Debug)]
enum ImageLocation {
    /// A manifest, or an index with a manifest for this platform.
    Layout(Descriptor),
    /// The names of its members.
    Docker { config: String, layers: Vec<String> },
}

/// An image in an archive, with its config.
#[derive(Debug)]
struct ArchivedImage {
    config_bytes: Vec<u8>,
    id: Digest,
    content: ArchiveContent,
    /// The manifests that lead to it. None in a docker-archive.
    manifests: Vec<Digest>,
    size: u64,
    /// An index specifies that the image is for this platform.
    platform_checked: bool,
    /// Its manifest marks it as the checkpoint of a container.
    checkpoint: bool,
}

#[derive(Debug)]
enum ArchiveContent {
    Image(Vec<Stored>),
    /// For an artifact, `config_bytes` is its manifest.
    Artifact(ArtifactManifest),
}

/// The location of a layer in an archive.
#[derive(Clone, Debug)]
struct Stored {
    member: String,
    /// The expected blob. A docker-archive has none: it only has digests of the unpacked layers.
    blob: Option<Descriptor>,
}

/// Returns the transport of the archive at `path`, as policies call it.
fn transport<'a>(source: &Source, path: &'a Path) -> Result<Transport<'a>, Error> {
    Ok(if source.is_folder() {
        Transport::Layout(path)
    } else if source.has(layout::INDEX)? {
        Transport::OciArchive(path)
    } else {
        Transport::DockerArchive(path)
    })
}

fn read_offers(source: &Source, inner: &Inner) -> Result<Vec<Offer>, Error> {
    // Since version 25 `docker save` writes both. The layout is preferred: it has the digests of a registry.
    if source.has(layout::INDEX)? {
        return layout::offers(source, &inner.options.platform);
    }
    if source.has(docker::MANIFEST)? {
        return docker::offers(source);
    }
    let why =
        format!("neither an OCI layout ({}) nor a docker-archive ({})", layout::INDEX, docker::MANIFEST);
    Err(Error::invalid(source.name(), why))
}

fn read_image(source: &Source, inner: &Inner, place: &ImageLocation) -> Result<ArchivedImage, Error> {
    match place {
        ImageLocation::Layout(entry) => layout::resolve(source, &inner.options.platform, entry),
        ImageLocation::Docker { config, layers } => docker::resolve(source, config, layers),
    }
}

struct Loading {
    inner: Arc<Inner>,
    source: Arc<Source>,
    slots: Slots,
    /// The origin in the images' records.
    origin: Option<String>,
}

impl Loading {
    async fn load(&self, offer: Offer) -> Result<Arc<Image>, Error> {
        let Offer { tags, place } = offer;
        let (source, inner) = (self.source.clone(), self.inner.clone());
        let image = blocking("read an archive", move || read_image(&source, &inner, &place)).await?;
        let names =
            Names { origins: self.origin.iter().cloned().collect(), ..names(&tags, &image.manifests) };
        let names = Names { checkpoint: image.checkpoint, ..names };
        if let Some(image) = self.inner.name_image(&image.id, names.clone(), image.size).await? {
            return Ok(image);
        }
        let budget = Arc::new(self.inner.budget());
        let (leases, parsed) = match &image.content {
            ArchiveContent::Image(layers) => self.image(&image, layers, &budget).await?,
            ArchiveContent::Artifact(manifest) => {
                (vec![self.artifact(&image.id, manifest, &budget).await?], ParsedConfig::default())
            }
        };
        let new = NewImage {
            id: image.id,
            config_bytes: image.config_bytes,
            config: parsed.config,
            diff_ids: parsed.diff_ids,
            layers: leases.iter().map(|lease| lease.key().clone()).collect(),
            names,
            size: image.size,
        };
        self.inner.record_image(new).await
    }

    async fn image(
        &self,
        image: &ArchivedImage,
        layers: &[Stored],
        budget: &Arc<Budget>,
    ) -> Result<(Vec<Lease>, ParsedConfig), Error> {
        let what = format!("config {} of {}", image.id, self.source.name());
        let parsed = parse_config(&what, &image.config_bytes)?;
        if !image.platform_checked {
            parsed.check_platform(&what, &self.inner.options.platform)?;
        }
        if parsed.diff_ids.len() != layers.len() {
            let why = format!("{} layers, but the manifest has {}", parsed.diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, why));
        }
        let leases = layers.iter().zip(&parsed.diff_ids);
        let leases = leases.map(|(stored, diff_id)| self.layer(stored, diff_id, budget));
        Ok((self.inner.stack(try_join_all(leases).await?).await?, parsed))
    }

    async fn artifact(
        &self,
        id: &Digest,
        manifest: &ArtifactManifest,
        budget: &Arc<Budget>,
    ) -> Result<Lease, Error> {
        let make = async |_creation, _slot| {
            let (inner, source, budget) = (self.inner.clone(), self.source.clone(), budget.clone());
            let what = format!("artifact {id} of {}", source.name());
            let names = artifact::file_names(&what, manifest, &budget)?;
            let blobs = manifest.blobs.clone();
            blocking("write the files of an artifact", move || {
                let folder = ArtifactFolder::new(&inner)?;
                for (blob, name) in blobs.into_iter().zip(&names) {
                    let content = source.open_member(&layout::member(&blob.digest))?;
                    let mut content = VerifyingReader::new(content, Some(blob));
                    folder.write(&what, name, &mut content, &budget)?;
                    content.check(&what)?;
                }
                Ok(folder.finish())
            })
            .await
        };
        self.inner.lease_or_create(&LayerKey::Artifact(id.clone()), Some(&self.slots), make).await
    }

    async fn layer(&self, stored: &Stored, diff_id: &Digest, budget: &Arc<Budget>) -> Result<Lease, Error> {
        let key = LayerKey::Diff(diff_id.clone());
        let make = async |_creation, _slot| {
            let (inner, source, budget) = (self.inner.clone(), self.source.clone(), budget.clone());
            let (stored, diff_id) = (stored.clone(), diff_id.clone());
            blocking("unpack a layer", move || {
                let what = format!("layer {} of {}", stored.member, source.name());
                let mut content = VerifyingReader::new(source.open_member(&stored.member)?, stored.blob);
                let unpacked = unpack_layer(&inner, &what, &mut content, &diff_id, &budget)?;
                content.check(&what)?;
                Ok(unpacked)
            })
            .await
        };
        self.inner.lease_or_create(&key, Some(&self.slots), make).await
    }
}

fn names(tags: &[Reference], manifests: &[Digest]) -> Names {
    let digests = match manifests.first() {
        Some(digest) => tags.iter().map(|tag| tag.with_digest(digest)).collect(),
        None => Vec::new(),
    };
    Names {
        tags: tags.iter().filter_map(Reference::tagged).collect(),
        digests,
        manifests: manifests.to_vec(),
        ..Names::default()
    }
}

/// Reads a small member completely.
fn read_small(source: &Source, member: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let what = format!("{member} of {}", source.name());
    let mut bytes = Vec::new();
    source
        .open_member(member)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", &what, error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(Error::limit(what, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}
