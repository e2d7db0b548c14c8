//! A pull: the reference leads through indexes and the manifest to the config. Then all layers are fetched
//! concurrently; each is streamed from the socket through digest check and decompression into its folder.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::artifact::{self, ArtifactFolder};
use crate::config::{MAX_CONFIG, ParsedConfig, parse_config};
use crate::credentials::Credentials;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::manifest::{ArtifactManifest, ImageManifest, MAX_MANIFEST, Manifest, choose};
use crate::policy;
use crate::progress::{LayerProgress, Progress, Transferred};
use crate::reference::Reference;
use crate::registry::Repository;
use crate::step::PullStep;
use crate::store::{Creation, ImageStore, Inner, LayerKey, Lease, MemoryUser, Names, NewImage};
use crate::transfer::{BlobFile, Download, Finished};

/// The most indexes on the way to a manifest. It is more than any builder creates.
const MAX_NESTING: usize = 4;

impl ImageStore {
    /// Returns the references that a name may resolve to, in the order in which they are tried. A name
    /// without a registry is searched in the registries of registries.conf, or on Docker Hub if there are
    /// none.
    ///
    /// # Errors
    /// The name is invalid, or the registries.conf is invalid.
    pub async fn names(&self, name: &str) -> Result<Vec<Reference>, Error> {
        let own: Reference = name.parse()?;
        let (registry, name) = (self.inner().registry.clone(), name.to_owned());
        let candidates = blocking("read registries.conf", move || registry.sources.candidates(&name)).await?;
        Ok(if candidates.is_empty() { vec![own] } else { candidates })
    }

    /// Pulls the first reference of a name that exists.
    ///
    /// # Errors
    /// As [`Self::names`], or the last error of [`Self::pull`].
    pub async fn pull_name(&self, name: &str, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let mut failure = None;
        for reference in self.names(name).await? {
            match self.pull(&reference, auth.clone()).await {
                Ok(image) => return Ok(image),
                // A rejection by the node's policy is final: the next registry's image is another one.
                Err(error @ Error::Untrusted { .. }) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::not_found(name, "no registry to search")))
    }

    /// Pulls an image, or joins the pull of the same name with the same credentials. Content that is in the
    /// store is not fetched again, but the registry is always contacted, so that it checks the credentials.
    /// Dropping the future leaves the pull. The pull is cancelled when its last caller leaves.
    ///
    /// # Errors
    /// The registry rejects the request or fails, or the content is corrupt, unsupported or too large.
    pub async fn pull(&self, reference: &Reference, auth: Option<Credentials>) -> Result<Arc<Image>, Error> {
        let key = (reference.to_string(), auth.as_ref().map(Credentials::fingerprint));
        let (inner, reference) = (self.inner().clone(), reference.clone());
        let start = || {
            let progress = self.inner().pulls.start(&key);
            let memory_user = MemoryUser::new(&inner);
            Pull { inner, reference, auth, progress, _memory_user: memory_user }.run()
        };
        self.inner().share_pull(key.clone(), start).await
    }

    /// Returns the references of the running pulls, with the progress of their layers.
    #[must_use]
    pub fn running_pulls(&self) -> Vec<(String, Vec<LayerProgress>)> {
        self.inner().pulls.running()
    }

    /// Returns what pulls have transferred since the store was opened.
    #[must_use]
    pub fn transferred(&self) -> Transferred {
        self.inner().pulls.transferred()
    }

    /// Returns the progress of the pull of a name with these credentials. It is empty before the manifest is
    /// received and after the pull.
    #[must_use]
    pub fn progress(&self, reference: &Reference, auth: Option<&Credentials>) -> Vec<LayerProgress> {
        let key = (reference.to_string(), auth.map(Credentials::fingerprint));
        self.inner().pulls.layers(&key)
    }
}

/// The fetched parts of an image: its layers, and its config as bytes and parsed.
type FetchedParts = (Vec<Lease>, Vec<u8>, ParsedConfig);

struct Pull {
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<Credentials>,
    progress: Arc<Progress>,
    /// Dropped last.
    _memory_user: MemoryUser,
}

/// The manifest for this platform, with the documents that lead to it.
struct ResolvedManifest {
    content: Content,
    /// The digests from the requested manifest down to the one that lists the content.
    digests: Vec<Digest>,
    size: u64,
    /// An index specifies that the image is for this platform.
    platform_checked: bool,
}

enum Content {
    Image(ImageManifest),
    Artifact { manifest: ArtifactManifest, bytes: Bytes },
}

impl Pull {
    async fn run(self) -> Result<Arc<Image>, Error> {
        PullStep::Resolve.reach();
        let repository = self.inner.registry.repository(&self.reference, self.auth.clone()).await?;
        let resolved = self.resolve(&repository).await?;
        PullStep::Check.reach();
        let id = match (&resolved.content, resolved.digests.last()) {
            (Content::Image(manifest), _) => manifest.config.digest.clone(),
            (Content::Artifact { .. }, Some(digest)) => digest.clone(),
            (Content::Artifact { .. }, None) => {
                return Err(Error::internal("pull an artifact", "no manifest"));
            }
        };
        // Images in the store are checked, too: the policy may have changed, or another name may have been
        // pulled.
        let verified = match &self.inner.options.policy {
            Some(file) => policy::check_pull(file, &repository, &self.reference, &resolved.digests).await?,
            None => Vec::new(),
        };
        let checkpoint = matches!(&resolved.content, Content::Image(manifest) if manifest.checkpoint);
        let names = Names { verified, checkpoint, ..Names::pulled(&self.reference, resolved.digests) };
        if let Some(image) = self.inner.name_image(&id, names.clone(), resolved.size).await? {
            tracing::info!(image = %image.id, reference = %self.reference, "image is already in the store");
            return Ok(image);
        }
        let limit = self.inner.options.limits.bytes;
        if resolved.size > limit {
            let why = format!("{} bytes to download, the limit is {limit} bytes unpacked", resolved.size);
            return Err(Error::limit(self.reference.to_string(), why));
        }
        let new = match resolved.content {
            Content::Image(manifest) => self.image(&repository, manifest, resolved.platform_checked).await?,
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
            size: resolved.size,
        };
        PullStep::Record.reach();
        let image = self.inner.record_image(new).await?;
        PullStep::Recorded.reach();
        tracing::info!(image = %image.id, reference = %self.reference, bytes = resolved.size, "pulled image");
        Ok(image)
    }

    /// Fetches the files of an artifact into a folder, which is stored as its only layer.
    async fn artifact(
        &self,
        repository: &Repository,
        id: &Digest,
        manifest: ArtifactManifest,
        bytes: Bytes,
    ) -> Result<FetchedParts, Error> {
        let key = LayerKey::Artifact(id.clone());
        let make = async |creation: Arc<Creation>, _slot| {
            let slots = self.inner.downloads.slots();
            let what = format!("artifact {}@{id}", self.reference.name());
            let budget = Arc::new(self.inner.budget());
            let names = artifact::file_names(&what, &manifest, &budget)?;
            let inner = self.inner.clone();
            let folder =
                blocking("create the folder of an artifact", move || ArtifactFolder::new(&inner)).await?;
            let folder = Arc::new(folder);
            let tracked = self.progress.track(&manifest.blobs);
            let files = manifest.blobs.iter().zip(names).zip(tracked).map(|((blob, name), tracked)| {
                let (folder, budget) = (folder.clone(), budget.clone());
                let (slots, creation) = (&slots, &creation);
                let pulls = &self.inner.pulls;
                BlobFile { repository, blob, name, folder, budget, tracked, slots, creation, pulls }.fetch()
            });
            try_join_all(files).await?;
            let folder = Arc::into_inner(folder);
            Ok(folder
                .ok_or_else(|| Error::internal("pull an artifact", "a file is still being written"))?
                .finish())
        };
        let lease = self.inner.lease_or_create(&key, None, make).await?;
        let parsed = ParsedConfig::default();
        Ok((vec![lease], bytes.to_vec(), parsed))
    }

    /// Fetches the config of an image, and its layers.
    async fn image(
        &self,
        repository: &Repository,
        manifest: ImageManifest,
        platform_checked: bool,
    ) -> Result<FetchedParts, Error> {
        let id = &manifest.config.digest;
        let what = format!("config {}@{id}", self.reference.name());
        PullStep::Config.reach();
        let config_bytes = repository.blob(&manifest.config, MAX_CONFIG).await?;
        let parsed = parse_config(&what, &config_bytes)?;
        if !platform_checked {
            parsed.check_platform(&what, &self.inner.options.platform)?;
        }
        let layers = &manifest.layers;
        if parsed.diff_ids.len() != layers.len() {
            let why = format!("{} layers, but the manifest has {}", parsed.diff_ids.len(), layers.len());
            return Err(Error::corrupt(what, why));
        }
        let budget = Arc::new(self.inner.budget());
        let tracked = self.progress.track(layers);
        let slots = self.inner.downloads.slots();
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
                    slots: &slots,
                    finished: &finished,
                };
                download.lease()
            });
        let leases = self.inner.stack(try_join_all(downloads).await?).await?;
        finished.release();
        Ok((leases, config_bytes.to_vec(), parsed))
    }

    async fn resolve(&self, repository: &Repository) -> Result<ResolvedManifest, Error> {
        let reference = &self.reference;
        let mut fetched = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => repository.manifest_by_digest(digest).await?,
            (None, tag) => repository.manifest_by_tag(tag.unwrap_or_default()).await?,
        };
        let mut digests = Vec::new();
        let mut platform_checked = false;
        for _ in 0..MAX_NESTING {
            let what = format!("manifest {}@{}", reference.name(), fetched.digest);
            digests.push(fetched.digest.clone());
            match Manifest::parse(&what, fetched.media_type.as_deref(), &fetched.bytes)? {
                Manifest::Image(manifest) => {
                    let size = manifest.content_size().saturating_add(length(&fetched.bytes));
                    return Ok(ResolvedManifest {
                        content: Content::Image(manifest),
                        digests,
                        size,
                        platform_checked,
                    });
                }
                Manifest::Artifact(manifest) => {
                    let size = artifact::content_size(&manifest.blobs);
                    let size = size.saturating_add(length(&fetched.bytes));
                    let content = Content::Artifact { manifest, bytes: fetched.bytes };
                    return Ok(ResolvedManifest { content, digests, size, platform_checked });
                }
                Manifest::Index(entries) => {
                    let entry = choose(&what, &entries, &self.inner.options.platform)?;
                    if entry.size > MAX_MANIFEST {
                        let why =
                            format!("lists a manifest of {} bytes, the limit is {MAX_MANIFEST}", entry.size);
                        return Err(Error::limit(what, why));
                    }
                    platform_checked = entry.specified_platform().is_some();
                    fetched = repository.manifest_by_digest(&entry.digest).await?;
                    check_entry(&what, &entry, &fetched.bytes)?;
                }
            }
        }
        let why = format!("more than {MAX_NESTING} nested indexes");
        Err(Error::unsupported(reference.to_string(), why))
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Checks the size and the media type that an index specifies for a manifest.
fn check_entry(what: &str, entry: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
    if u64::try_from(bytes.len()) != Ok(entry.size) {
        let why = format!("size of {} is {}, but it has {} bytes", entry.digest, entry.size, bytes.len());
        return Err(Error::corrupt(what, why));
    }
    if entry.media_type.is_empty() {
        return Ok(());
    }
    Manifest::parse(what, Some(&entry.media_type), bytes).map(drop)
}
