//! A pull: from a reference through index and manifest to the config, then all layers at once, each from the socket
//! through its digest and its decompression into place.

use std::io::BufRead;
use std::sync::Arc;

use futures_util::future::try_join_all;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{Descriptor, ImageManifest, MAX_CONFIG, MAX_MANIFEST, Manifest, choose, parse_config};
use crate::reference::Reference;
use crate::registry::{PieceReader, Repository};
use crate::store::{HalfMade, ImageStore, Inner, LayerKey, LayerRecord, Lease, Names, NewImage};
use crate::unpack::{self, Budget};

/// Indexes in indexes: more than any builder makes.
const MAX_NESTING: usize = 4;
/// Pieces of a layer between the socket and the thread that unpacks it.
const PIECES: usize = 8;

impl ImageStore {
    /// Pulls an image, or joins the pull of the same name with the same credentials. What is there already is not
    /// fetched again, but the registry is always asked, so that credentials count. Who drops the future leaves; the
    /// pull ends with the last who does.
    ///
    /// # Errors
    /// The registry refuses or fails, or what it sends is broken, unsupported or too large.
    pub async fn pull(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let key = (reference.to_string(), auth.as_ref().map(Credentials::fingerprint));
        let pull = Pull { inner: self.inner().clone(), reference: reference.clone(), auth };
        self.inner().share_pull(key, || pull.run()).await
    }
}

struct Pull {
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<Credentials>,
}

/// The manifest of the image for this platform, and those on the way to it.
struct Found {
    manifest: ImageManifest,
    digests: Vec<Digest>,
    size: u64,
}

impl Pull {
    async fn run(self) -> Result<Arc<Image>, Error> {
        let repository = self.inner.registry.repository(&self.reference, self.auth.clone()).await?;
        let found = self.find(&repository).await?;
        let names = Names::pulled(&self.reference, found.digests);
        let id = &found.manifest.config.digest;
        if let Some(image) = self.inner.name_image(id, names.clone(), found.size).await? {
            tracing::info!(image = %image.id, reference = %self.reference, "the image is here already");
            return Ok(image);
        }
        let limit = self.inner.options.limits.bytes;
        if found.size > limit {
            let why = format!("{} bytes to download, the limit is {limit} bytes unpacked", found.size);
            return Err(Error::limit(self.reference.to_string(), why));
        }
        let what = format!("config {}@{id}", self.reference.name());
        let config_bytes = repository.blob(&found.manifest.config, MAX_CONFIG).await?;
        let parsed = parse_config(&what, &config_bytes, &self.inner.options.platform)?;
        let layers = &found.manifest.layers;
        if parsed.diff_ids.len() != layers.len() {
            let why = format!("{} layers, but the manifest has {}", parsed.diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, why));
        }
        let budget = Arc::new(Budget::new(self.inner.options.limits));
        let downloads = layers.iter().zip(&parsed.diff_ids).map(|(layer, diff_id)| {
            let download =
                Download { inner: &self.inner, repository: &repository, layer, diff_id, budget: &budget };
            download.lease()
        });
        let leases = self.inner.stack(try_join_all(downloads).await?).await?;
        let new = NewImage {
            id: id.clone(),
            config_bytes: config_bytes.to_vec(),
            config: parsed.config,
            diff_ids: parsed.diff_ids,
            layers: leases.iter().map(|lease| lease.key().clone()).collect(),
            names,
            size: found.size,
        };
        let image = self.inner.record_image(new).await?;
        tracing::info!(image = %image.id, reference = %self.reference, bytes = found.size, "pulled");
        Ok(image)
    }

    async fn find(&self, repository: &Repository) -> Result<Found, Error> {
        let reference = &self.reference;
        let mut fetched = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => repository.manifest_by_digest(digest).await?,
            (None, tag) => repository.manifest_by_tag(tag.unwrap_or_default()).await?,
        };
        let mut digests = Vec::new();
        for _ in 0..MAX_NESTING {
            let what = format!("manifest {}@{}", reference.name(), fetched.digest);
            digests.push(fetched.digest.clone());
            match Manifest::parse(&what, fetched.media_type.as_deref(), &fetched.bytes)? {
                Manifest::Image(manifest) => {
                    let own = u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX);
                    let size = manifest.content_size().saturating_add(own);
                    return Ok(Found { manifest, digests, size });
                }
                Manifest::Index(entries) => {
                    let entry = choose(&what, &entries, &self.inner.options.platform)?;
                    if entry.size > MAX_MANIFEST {
                        let why =
                            format!("names a manifest of {} bytes, the limit is {MAX_MANIFEST}", entry.size);
                        return Err(Error::limit(what, why));
                    }
                    fetched = repository.manifest_by_digest(&entry.digest).await?;
                    check_entry(&what, &entry, &fetched.bytes)?;
                }
            }
        }
        let why = format!("more than {MAX_NESTING} indexes are nested in one another");
        Err(Error::unsupported(reference.to_string(), why))
    }
}

/// What an index says of a manifest must be so.
fn check_entry(what: &str, entry: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
    if u64::try_from(bytes.len()) != Ok(entry.size) {
        let why = format!("says that {} has {} bytes; it has {}", entry.digest, entry.size, bytes.len());
        return Err(Error::corrupt(what, why));
    }
    if entry.media_type.is_empty() {
        return Ok(());
    }
    Manifest::parse(what, Some(&entry.media_type), bytes).map(drop)
}

/// One layer on its way into the store.
#[derive(Clone, Copy)]
struct Download<'a> {
    inner: &'a Arc<Inner>,
    repository: &'a Repository,
    layer: &'a Descriptor,
    diff_id: &'a Digest,
    budget: &'a Arc<Budget>,
}

impl Download<'_> {
    async fn lease(self) -> Result<Lease, Error> {
        let key = LayerKey::Diff(self.diff_id.clone());
        self.inner.lease_or_make(&key, || self.fetch()).await
    }

    async fn fetch(self) -> Result<(Arc<HalfMade>, LayerRecord), Error> {
        let permit = self.inner.downloads.acquire().await;
        let _permit = permit.map_err(|error| Error::internal("wait for a download's turn", error))?;
        let mut first = 0;
        loop {
            let (host, result) = self.attempt(first).await;
            match result {
                // Bad content from one host is no verdict on the next.
                Err(error @ Error::Corrupt { .. }) if host + 1 < self.repository.hosts() => {
                    tracing::warn!(%error, "a mirror sends broken content, asking the next host");
                    first = host + 1;
                }
                result => return result,
            }
        }
    }

    /// Fetches and unpacks from the hosts at or after place `first`; also answers which one was the last.
    async fn attempt(self, first: usize) -> (usize, Result<(Arc<HalfMade>, LayerRecord), Error>) {
        let what = format!("layer {}@{}", self.repository.name(), self.layer.digest);
        let (sink, pieces) = mpsc::channel(PIECES);
        let inner = self.inner.clone();
        let (diff_id, budget) = (self.diff_id.clone(), self.budget.clone());
        let unpacking = tokio::spawn(blocking("unpack a layer", move || {
            unpack_layer(&inner, &what, PieceReader::new(pieces), &diff_id, &budget)
        }));
        let transfer = self.repository.transfer(self.layer, first, &sink).await;
        drop(sink);
        let unpacked = unpacking.await.unwrap_or_else(|error| Err(Error::internal("unpack a layer", error)));
        let result = match (transfer.result, unpacked) {
            // The reader's error is then only that the transfer broke off.
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(true), Ok(made)) => Ok(made),
            (Ok(false), Ok(_)) => {
                let what = format!("layer {}", self.layer.digest);
                Err(Error::corrupt(what, "something follows the compressed archive"))
            }
        };
        (transfer.endpoint, result)
    }
}

/// Unpacks a layer beside the store and checks that it is the right one. For threads that may block.
pub(crate) fn unpack_layer(
    inner: &Arc<Inner>,
    what: &str,
    source: impl BufRead,
    diff_id: &Digest,
    budget: &Budget,
) -> Result<(Arc<HalfMade>, LayerRecord), Error> {
    let made = HalfMade::new(inner)?;
    made.make_fs()?;
    let fs = made.fs();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&fs, flags, Mode::empty()).map_err(|error| Error::io("open", &fs, error))?;
    let outcome = unpack::unpack(what, source, root, diff_id.algorithm(), budget)?;
    if outcome.diff_id != *diff_id {
        let why = format!("unpacks to {} instead of {diff_id}", outcome.diff_id);
        return Err(Error::corrupt(what, why));
    }
    let record = LayerRecord { implicit: outcome.implicit, links: outcome.links, ..LayerRecord::default() };
    Ok((Arc::new(made), record))
}
