//! Images from files: OCI layouts (folders), OCI archives and docker-archives (tar, also compressed). What they say of
//! their content is believed as little as what a registry says.

mod docker;
mod layout;
mod source;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::artifact::{self, ArtifactFolder};
use crate::config::{ParsedConfig, parse_config};
use crate::digest::Digest;
use crate::downloads::Turns;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{ArtifactManifest, Descriptor};
use crate::policy;
use crate::printable::Printable;
use crate::reference::Reference;
use crate::store::{ImageStore, Inner, LayerKey, Lease, Names, NewImage, Spender};
use crate::transfer::unpack_layer;
use crate::unpack::Budget;

use source::{Source, Verified};

/// The most images of one archive.
const MAX_IMAGES: usize = 10_000;
/// The most names of one image in an archive.
const MAX_TAGS: usize = 1000;

impl ImageStore {
    /// Loads the images of an OCI layout or a tar archive, those that run on this platform, with the names that they
    /// have there.
    ///
    /// # Errors
    /// The file cannot be read, is of no known form, is broken, or has nothing for this platform.
    pub async fn load(&self, path: &Path) -> Result<Vec<Arc<Image>>, Error> {
        let inner = self.inner().clone();
        let _spender = Spender::new(&inner);
        let opener = inner.clone();
        let owned = path.to_owned();
        let policy = inner.options.policy.clone();
        let (source, offers) = blocking("read an archive", move || {
            let source = Source::open(&opener, &owned)?;
            let offers = read_offers(&source, &opener)?;
            Ok((Arc::new(source), offers))
        })
        .await?;
        let transport = source.transport(path)?;
        if let Some(policy) = policy {
            policy::check_archive(&policy, &transport, &path.display().to_string()).await?;
        }
        let turns = inner.downloads.turns();
        let origin = transport.origin();
        let loading = Loading { inner, source, turns, origin };
        let mut images = Vec::new();
        for offer in offers {
            let image = loading.load(offer).await?;
            tracing::info!(image = %image.id, path = %Printable::new(&path.to_string_lossy()), "loaded");
            images.push(image);
        }
        Ok(images)
    }
}

/// One image of an archive, as the archive's lists name it. What it is made of is read when its turn comes: of an archive
/// with thousands of images the configs have more bytes than there is memory.
#[derive(Debug)]
struct Offer {
    tags: Vec<Reference>,
    place: Place,
}

/// Where an image is described.
#[derive(Debug)]
enum Place {
    /// By a manifest, or by an index with a manifest for this platform.
    Layout(Descriptor),
    /// By the names of its members.
    Docker { config: String, layers: Vec<String> },
}

/// What an image is made of.
#[derive(Debug)]
struct Found {
    config_bytes: Vec<u8>,
    id: Digest,
    content: Content,
    /// The manifests that lead to it; none in a docker-archive.
    manifests: Vec<Digest>,
    size: u64,
    /// An index has told that it is for this platform.
    fits: bool,
}

#[derive(Debug)]
enum Content {
    Image(Vec<Stored>),
    /// What is its config then is its manifest.
    Artifact(ArtifactManifest),
}

/// Where a layer lies in an archive.
#[derive(Clone, Debug)]
struct Stored {
    member: String,
    /// What it must be; a docker-archive says so only of the content.
    blob: Option<Descriptor>,
}

fn read_offers(source: &Source, inner: &Inner) -> Result<Vec<Offer>, Error> {
    // `docker save` writes both since version 25; the layout has the digests of what a registry would have.
    if source.has(layout::INDEX)? {
        return layout::offers(source, &inner.options.platform);
    }
    if source.has(docker::MANIFEST)? {
        return docker::offers(source);
    }
    let why =
        format!("is neither an OCI layout ({}) nor a docker-archive ({})", layout::INDEX, docker::MANIFEST);
    Err(Error::invalid(source.name(), why))
}

fn read_image(source: &Source, inner: &Inner, place: &Place) -> Result<Found, Error> {
    match place {
        Place::Layout(entry) => layout::find(source, &inner.options.platform, entry),
        Place::Docker { config, layers } => docker::find(source, config, layers),
    }
}

struct Loading {
    inner: Arc<Inner>,
    source: Arc<Source>,
    turns: Turns,
    /// For the images' records.
    origin: Option<String>,
}

impl Loading {
    async fn load(&self, offer: Offer) -> Result<Arc<Image>, Error> {
        let Offer { tags, place } = offer;
        let (source, inner) = (self.source.clone(), self.inner.clone());
        let found = blocking("read an archive", move || read_image(&source, &inner, &place)).await?;
        let names =
            Names { origins: self.origin.iter().cloned().collect(), ..names(&tags, &found.manifests) };
        if let Some(image) = self.inner.name_image(&found.id, names.clone(), found.size).await? {
            return Ok(image);
        }
        let budget = Arc::new(self.inner.budget());
        let (leases, parsed) = match &found.content {
            Content::Image(layers) => self.image(&found, layers, &budget).await?,
            Content::Artifact(manifest) => {
                (vec![self.artifact(&found.id, manifest, &budget).await?], ParsedConfig::default())
            }
        };
        let new = NewImage {
            id: found.id,
            config_bytes: found.config_bytes,
            config: parsed.config,
            diff_ids: parsed.diff_ids,
            layers: leases.iter().map(|lease| lease.key().clone()).collect(),
            names,
            size: found.size,
        };
        self.inner.record_image(new).await
    }

    async fn image(
        &self,
        found: &Found,
        layers: &[Stored],
        budget: &Arc<Budget>,
    ) -> Result<(Vec<Lease>, ParsedConfig), Error> {
        let what = format!("config {} of {}", found.id, self.source.name());
        let parsed = parse_config(&what, &found.config_bytes)?;
        if !found.fits {
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
        let make = async |_making, _turn| {
            let (inner, source, budget) = (self.inner.clone(), self.source.clone(), budget.clone());
            let what = format!("artifact {id} of {}", source.name());
            let names = artifact::file_names(&what, manifest, &budget)?;
            let blobs = manifest.blobs.clone();
            blocking("write an artifact's files", move || {
                let folder = ArtifactFolder::new(&inner)?;
                for (blob, name) in blobs.into_iter().zip(&names) {
                    let content = source.open_member(&layout::member(&blob.digest))?;
                    let mut content = Verified::new(content, Some(blob));
                    folder.write(&what, name, &mut content, &budget)?;
                    content.check(&what)?;
                }
                Ok(folder.finish())
            })
            .await
        };
        self.inner.lease_or_make(&LayerKey::Artifact(id.clone()), Some(&self.turns), make).await
    }

    async fn layer(&self, stored: &Stored, diff_id: &Digest, budget: &Arc<Budget>) -> Result<Lease, Error> {
        let key = LayerKey::Diff(diff_id.clone());
        let make = async |_making, _turn| {
            let (inner, source, budget) = (self.inner.clone(), self.source.clone(), budget.clone());
            let (stored, diff_id) = (stored.clone(), diff_id.clone());
            blocking("unpack a layer", move || {
                let what = format!("layer {} of {}", stored.member, source.name());
                let mut content = Verified::new(source.open_member(&stored.member)?, stored.blob);
                let made = unpack_layer(&inner, &what, &mut content, &diff_id, &budget)?;
                content.check(&what)?;
                Ok(made)
            })
            .await
        };
        self.inner.lease_or_make(&key, Some(&self.turns), make).await
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

/// Reads a small member whole.
fn read_small(source: &Source, member: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let what = format!("{member} of {}", source.name());
    let mut bytes = Vec::new();
    source
        .open_member(member)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", &what, error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(Error::limit(what, format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}
