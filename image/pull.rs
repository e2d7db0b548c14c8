//! A pull: from a reference through index and manifest to the config, then all layers at once, each from the socket
//! through its digest and its decompression into place.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::artifact::{self, ArtifactFolder};
use crate::config::{MAX_CONFIG, ParsedConfig, parse_config};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{ArtifactManifest, Descriptor, ImageManifest, MAX_MANIFEST, Manifest, choose};
use crate::policy;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::Repository;
use crate::store::{ImageStore, Inner, LayerKey, Lease, Making, Names, NewImage, Spender};
use crate::transfer::{BlobFile, Download, Finished};

/// Indexes in indexes: more than any builder makes.
const MAX_NESTING: usize = 4;

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
            let spender = Spender::new(&inner);
            Pull { inner, reference, auth, progress, _spender: spender }.run()
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
    /// Dropped last.
    _spender: Spender,
}

/// The manifest of the image for this platform, and those on the way to it.
struct Found {
    content: Content,
    /// The digest of the manifest that was asked for, and so on down to the one that names the content.
    digests: Vec<Digest>,
    size: u64,
    /// An index has told that it is for this platform.
    fits: bool,
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
        let verified = match &self.inner.options.policy {
            Some(file) => policy::check_pull(file, &repository, &self.reference, &found.digests).await?,
            None => Vec::new(),
        };
        let names = Names { verified, ..Names::pulled(&self.reference, found.digests) };
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
            Content::Image(manifest) => self.image(&repository, manifest, found.fits).await?,
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
        let make = async |making: Arc<Making>, _turn| {
            let turns = self.inner.downloads.turns();
            let what = format!("artifact {}@{id}", self.reference.name());
            let budget = Arc::new(self.inner.budget());
            let names = artifact::file_names(&what, &manifest, &budget)?;
            let inner = self.inner.clone();
            let folder = blocking("make a folder", move || ArtifactFolder::new(&inner)).await?;
            let folder = Arc::new(folder);
            let tracked = self.progress.track(&manifest.blobs);
            let files = manifest.blobs.iter().zip(names).zip(tracked).map(|((blob, name), tracked)| {
                let (folder, budget) = (folder.clone(), budget.clone());
                let (turns, making) = (&turns, &making);
                BlobFile { repository, blob, name, folder, budget, tracked, turns, making }.fetch()
            });
            try_join_all(files).await?;
            let folder = Arc::into_inner(folder);
            Ok(folder.ok_or_else(|| Error::internal("pull an artifact", "it is still written"))?.finish())
        };
        let lease = self.inner.lease_or_make(&key, None, make).await?;
        let parsed = ParsedConfig::default();
        Ok((vec![lease], bytes.to_vec(), parsed))
    }

    /// The config of an image, and its layers.
    async fn image(
        &self,
        repository: &Repository,
        manifest: ImageManifest,
        fits: bool,
    ) -> Result<Fetched, Error> {
        let id = &manifest.config.digest;
        let what = format!("config {}@{id}", self.reference.name());
        let config_bytes = repository.blob(&manifest.config, MAX_CONFIG).await?;
        let parsed = parse_config(&what, &config_bytes)?;
        if !fits {
            parsed.check_platform(&what, &self.inner.options.platform)?;
        }
        let layers = &manifest.layers;
        if parsed.diff_ids.len() != layers.len() {
            let why = format!("{} layers, but the manifest has {}", parsed.diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, why));
        }
        let budget = Arc::new(self.inner.budget());
        let tracked = self.progress.track(layers);
        let turns = self.inner.downloads.turns();
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
                    turns: &turns,
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
        let mut fits = false;
        for _ in 0..MAX_NESTING {
            let what = format!("manifest {}@{}", reference.name(), fetched.digest);
            digests.push(fetched.digest.clone());
            match Manifest::parse(&what, fetched.media_type.as_deref(), &fetched.bytes)? {
                Manifest::Image(manifest) => {
                    let size = manifest.content_size().saturating_add(length(&fetched.bytes));
                    return Ok(Found { content: Content::Image(manifest), digests, size, fits });
                }
                Manifest::Artifact(manifest) => {
                    let size = artifact::content_size(&manifest.blobs);
                    let size = size.saturating_add(length(&fetched.bytes));
                    let content = Content::Artifact { manifest, bytes: fetched.bytes };
                    return Ok(Found { content, digests, size, fits });
                }
                Manifest::Index(entries) => {
                    let entry = choose(&what, &entries, &self.inner.options.platform)?;
                    if entry.size > MAX_MANIFEST {
                        let why =
                            format!("names a manifest of {} bytes, the limit is {MAX_MANIFEST}", entry.size);
                        return Err(Error::limit(what, why));
                    }
                    fits = entry.told_platform().is_some();
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
