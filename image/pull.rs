//! A pull: from a reference through index and manifest to the config, then all layers at once, each from the socket
//! through its digest and its decompression into place.

use std::io::BufRead;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::artifact::{self, ArtifactFolder};
use crate::config::{MAX_CONFIG, ParsedConfig, parse_config};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{ArtifactManifest, Descriptor, ImageManifest, MAX_MANIFEST, Manifest, choose};
use crate::policy;
use crate::progress::{Progress, Stage, Tracked};
use crate::reference::Reference;
use crate::registry::{PieceReader, Repository};
use crate::store::{HalfMade, ImageStore, Inner, LayerKey, LayerRecord, Lease, Names, NewImage};
use crate::unpack::{self, Budget, TreePath};

/// Indexes in indexes: more than any builder makes.
const MAX_NESTING: usize = 4;
/// How long the layers of a pull that failed stay, so that the next attempt goes on from there. The kubelet's own
/// longest wait between two attempts is five minutes.
const KEPT: Duration = Duration::from_secs(600);
/// Pieces of a layer between the socket and the thread that unpacks it.
const PIECES: usize = 8;

impl ImageStore {
    /// What a name may stand for, in the order in which it is tried: one without a registry is looked for where the
    /// registries.conf says, else on Docker Hub.
    ///
    /// # Errors
    /// It is no name, or the registries.conf is broken.
    pub async fn names(&self, name: &str) -> Result<Vec<Reference>, Error> {
        let own: Reference = name.parse()?;
        let (registry, name) = (self.inner().registry.clone(), name.to_owned());
        let candidates =
            blocking("read the registries.conf", move || registry.sources.candidates(&name)).await?;
        Ok(if candidates.is_empty() { vec![own] } else { candidates })
    }

    /// Pulls the first image of what a name may stand for that is there.
    ///
    /// # Errors
    /// As [`Self::names`], or the last of the errors of [`Self::pull`].
    pub async fn pull_name(&self, name: &str, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let mut failure = None;
        for reference in self.names(name).await? {
            match self.pull(&reference, auth.clone()).await {
                Ok(image) => return Ok(image),
                // The node's own no is final: the next registry's image of this name is not what was asked for.
                Err(error @ Error::Untrusted { .. }) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::not_found(name, "it stands for nothing")))
    }

    /// Pulls an image, or joins the pull of the same name with the same credentials. What is there already is not
    /// fetched again, but the registry is always asked, so that credentials count. Who drops the future leaves; the
    /// pull ends with the last who does.
    ///
    /// # Errors
    /// The registry refuses or fails, or what it sends is broken, unsupported or too large.
    pub async fn pull(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let key = (reference.to_string(), auth.as_ref().map(Credentials::fingerprint));
        let (inner, reference) = (self.inner().clone(), reference.clone());
        let start = || {
            let progress = self.inner().pulls.start(&key);
            Pull { inner, reference, auth, progress }.run()
        };
        self.inner().share_pull(key.clone(), start).await
    }
}

/// What an image is made of: its layers, and its config as it was sent and as it is understood.
type Fetched = (Vec<Lease>, Vec<u8>, ParsedConfig);

struct Pull {
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<Credentials>,
    progress: Arc<Progress>,
}

/// The manifest of the image for this platform, and those on the way to it.
struct Found {
    content: Content,
    /// The digest of the manifest that was asked for, and so on down to the one that names the content.
    digests: Vec<Digest>,
    size: u64,
}

enum Content {
    Image(ImageManifest),
    Artifact { manifest: ArtifactManifest, bytes: Bytes },
}

impl Pull {
    async fn run(self) -> Result<Arc<Image>, Error> {
        let repository = self.inner.registry.repository(&self.reference, self.auth.clone()).await?;
        let found = self.find(&repository).await?;
        let id = match (&found.content, found.digests.last()) {
            (Content::Image(manifest), _) => manifest.config.digest.clone(),
            (Content::Artifact { .. }, Some(digest)) => digest.clone(),
            (Content::Artifact { .. }, None) => return Err(Error::internal("pull", "no manifest")),
        };
        // Also for what is here already: the policy may have changed since, or another name have brought it.
        if let Some(file) = &self.inner.options.policy {
            policy::check_pull(file, &repository, &self.reference, &found.digests).await?;
        }
        let names = Names::pulled(&self.reference, found.digests);
        if let Some(image) = self.inner.name_image(&id, names.clone(), found.size).await? {
            tracing::info!(image = %image.id, reference = %self.reference, "the image is here already");
            return Ok(image);
        }
        let limit = self.inner.options.limits.bytes;
        if found.size > limit {
            let why = format!("{} bytes to download, the limit is {limit} bytes unpacked", found.size);
            return Err(Error::limit(self.reference.to_string(), why));
        }
        let new = match found.content {
            Content::Image(manifest) => self.image(&repository, manifest).await?,
            Content::Artifact { manifest, bytes } => self.artifact(&repository, &id, manifest, bytes).await?,
        };
        // The layers are leased until the image is recorded.
        let (leases, config_bytes, parsed) = new;
        let new = NewImage {
            id,
            config_bytes,
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

    /// The files of an artifact, in a folder that stands for its only layer.
    async fn artifact(
        &self,
        repository: &Repository,
        id: &Digest,
        manifest: ArtifactManifest,
        bytes: Bytes,
    ) -> Result<Fetched, Error> {
        let key = LayerKey::Artifact(id.clone());
        let make = || async {
            let what = format!("artifact {}@{id}", self.reference.name());
            let budget = Arc::new(Budget::new(self.inner.options.limits));
            let names = artifact::file_names(&what, &manifest, &budget)?;
            let inner = self.inner.clone();
            let folder = blocking("make a folder", move || ArtifactFolder::new(&inner)).await?;
            let folder = Arc::new(folder);
            let tracked = self.progress.track(&manifest.blobs);
            let files = manifest.blobs.iter().zip(names).zip(tracked).map(|((blob, name), tracked)| {
                let (folder, budget) = (folder.clone(), budget.clone());
                BlobFile { inner: &self.inner, repository, blob, name, folder, budget, tracked }.fetch()
            });
            try_join_all(files).await?;
            let folder = Arc::into_inner(folder);
            Ok(folder.ok_or_else(|| Error::internal("pull an artifact", "it is still written"))?.finish())
        };
        let lease = self.inner.lease_or_make(&key, make).await?;
        let parsed = ParsedConfig::default();
        Ok((vec![lease], bytes.to_vec(), parsed))
    }

    /// The config of an image, and its layers.
    async fn image(&self, repository: &Repository, manifest: ImageManifest) -> Result<Fetched, Error> {
        let id = &manifest.config.digest;
        let what = format!("config {}@{id}", self.reference.name());
        let config_bytes = repository.blob(&manifest.config, MAX_CONFIG).await?;
        let parsed = parse_config(&what, &config_bytes, &self.inner.options.platform)?;
        let layers = &manifest.layers;
        if parsed.diff_ids.len() != layers.len() {
            let why = format!("{} layers, but the manifest has {}", parsed.diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, why));
        }
        let budget = Arc::new(Budget::new(self.inner.options.limits));
        let tracked = self.progress.track(layers);
        let finished = Finished::default();
        let downloads =
            layers.iter().zip(&parsed.diff_ids).zip(&tracked).map(|((layer, diff_id), tracked)| {
                let download = Download {
                    inner: &self.inner,
                    repository,
                    layer,
                    diff_id,
                    budget: &budget,
                    tracked,
                    finished: &finished,
                };
                download.lease()
            });
        let leases = self.inner.stack(try_join_all(downloads).await?).await?;
        finished.release();
        Ok((leases, config_bytes.to_vec(), parsed))
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
                    let size = manifest.content_size().saturating_add(length(&fetched.bytes));
                    return Ok(Found { content: Content::Image(manifest), digests, size });
                }
                Manifest::Artifact(manifest) => {
                    let size = artifact::content_size(&manifest.blobs);
                    let size = size.saturating_add(length(&fetched.bytes));
                    let content = Content::Artifact { manifest, bytes: fetched.bytes };
                    return Ok(Found { content, digests, size });
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

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
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
    tracked: &'a Tracked,
    finished: &'a Finished,
}

/// The layers of a pull that are there already. Unless they are released, they outlive the pull for a while: whoever
/// gave it up, or failed with another layer, tries again.
#[derive(Default)]
struct Finished(Mutex<Vec<Lease>>);

impl Finished {
    fn add(&self, lease: Option<Lease>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(lease);
    }

    fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        let leases = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let (false, Ok(runtime)) = (leases.is_empty(), Handle::try_current()) {
            runtime.spawn(async move {
                tokio::time::sleep(KEPT).await;
                drop(leases);
            });
        }
    }
}

impl Download<'_> {
    async fn lease(self) -> Result<Lease, Error> {
        let key = LayerKey::Diff(self.diff_id.clone());
        let lease = self.inner.lease_or_make(&key, || self.fetch()).await?;
        self.tracked.set(Stage::Done);
        self.finished.add(self.inner.lease_again(&key));
        Ok(lease)
    }

    async fn fetch(self) -> Result<(Arc<HalfMade>, LayerRecord), Error> {
        let permit = self.inner.downloads.acquire().await;
        let _permit = permit.map_err(|error| Error::internal("wait for a download's turn", error))?;
        self.tracked.set(Stage::Receiving);
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
        let transfer = self.repository.transfer(self.layer, first, &sink, &self.tracked.received).await;
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

/// One blob of an artifact on its way into its file.
struct BlobFile<'a> {
    inner: &'a Arc<Inner>,
    repository: &'a Repository,
    blob: &'a Descriptor,
    name: TreePath,
    folder: Arc<ArtifactFolder>,
    budget: Arc<Budget>,
    tracked: Arc<Tracked>,
}

impl BlobFile<'_> {
    async fn fetch(self) -> Result<(), Error> {
        let permit = self.inner.downloads.acquire().await;
        let _permit = permit.map_err(|error| Error::internal("wait for a download's turn", error))?;
        self.tracked.set(Stage::Receiving);
        let mut first = 0;
        loop {
            let (host, result) = self.attempt(first).await;
            match result {
                Err(error @ Error::Corrupt { .. }) if host + 1 < self.repository.hosts() => {
                    tracing::warn!(%error, "a mirror sends broken content, asking the next host");
                    first = host + 1;
                }
                result => {
                    self.tracked.set(Stage::Done);
                    return result;
                }
            }
        }
    }

    async fn attempt(&self, first: usize) -> (usize, Result<(), Error>) {
        let what = format!("blob {}@{}", self.repository.name(), self.blob.digest);
        let (sink, pieces) = mpsc::channel(PIECES);
        let (name, folder, budget) = (self.name.clone(), self.folder.clone(), self.budget.clone());
        let writing = tokio::spawn(blocking("write a file", move || {
            folder.write(&what, &name, &mut PieceReader::new(pieces), &budget)
        }));
        let transfer = self.repository.transfer(self.blob, first, &sink, &self.tracked.received).await;
        drop(sink);
        let written = writing.await.unwrap_or_else(|error| Err(Error::internal("write a file", error)));
        (transfer.endpoint, transfer.result.and(written))
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
    let recipe = made.recipe();
    let recipe = std::fs::File::create(&recipe).map_err(|error| Error::io("make", &recipe, error))?;
    let outcome = unpack::unpack(what, source, root, diff_id.algorithm(), budget, Some(recipe))?;
    if outcome.diff_id != *diff_id {
        let why = format!("unpacks to {} instead of {diff_id}", outcome.diff_id);
        return Err(Error::corrupt(what, why));
    }
    let record = LayerRecord {
        implicit: outcome.implicit,
        links: outcome.links,
        length: Some(outcome.length),
        ..LayerRecord::default()
    };
    Ok((Arc::new(made), record))
}
