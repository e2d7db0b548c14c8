//! The images and layers on this node.
//!
//! ```text
//! <root>/images/<digest>/    image.json, config.json
//! <root>/layers/<key>/       fs/, layer.json; synced, once the digest of its files is known
//! <root>/containers/<id>/    upper/, work/, layer.json
//! <root>/empty/              the lower folder of an image without layers
//! <root>/tmp, <root>/trash   half made and half removed: both are emptied at open
//! ```
//!
//! All indexes are in memory and are rebuilt from the folders. A folder gets its name by a rename when it is whole. An image
//! is recorded when its layers are on the disk: its record says that they are trusted in another boot, too. A tag that
//! moves is the new image's for good before it is taken from the old one.

mod containers;
mod durable;
mod flights;
mod folders;
mod graft;
mod index;
mod make;
mod marker;
mod merged;
mod open;
mod patch;
mod quota;
mod reaper;
mod record;
mod remove;
mod repair;
mod trash;
mod tree_digest;
mod usage;
mod verify;
mod walk;
mod worker;

pub(crate) use durable::durable_replace;
pub(crate) use flights::{Making, PullKey};
pub(crate) use folders::read_json;
pub use index::Hold;
pub(crate) use index::{LayerKey, Lease};
pub(crate) use make::{HalfMade, Names, NewImage};
pub(crate) use marker::Spender;
pub use quota::ProjectQuotas;
pub(crate) use record::LayerRecord;
pub use verify::{Verdict, Verified};

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::downloads::Downloads;
use crate::error::{Error, blocking};
use crate::image::{Image, Usage};
use crate::import::Notes;
use crate::platform::Platform;
use crate::printable::printable_json;
use crate::progress::Pulls;
use crate::reference::Reference;
use crate::registry::{Proxies, Registry, Timeouts};
use crate::unpack::{Budget, Limits, Windows};

use durable::Syncs;
use flights::Flights;
use folders::Folders;
use index::Index;
use quota::Quotas;
use trash::Trash;
use usage::Counters;
use worker::Worker;

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of all state.
    pub root: PathBuf,
    /// Where `<registry>/hosts.toml` is looked for; the first that has it wins.
    pub certs_dirs: Vec<PathBuf>,
    /// containers-registries.conf(5), for registries without a `hosts.toml`; it may be missing.
    pub registries_conf: Option<PathBuf>,
    /// Credentials for pulls that bring none, in the form of docker's config.json; the first that has any wins.
    pub auth_files: Vec<PathBuf>,
    /// Which of an index's images is taken.
    pub platform: Platform,
    /// How many layers are downloaded at once. One of each pull is not counted, so that no pull waits for another, and
    /// neither are those that are slow.
    pub parallel_downloads: usize,
    /// What one image may cost.
    pub limits: Limits,
    /// How long the steps of a transfer may take.
    pub timeouts: Timeouts,
    /// By which proxies registries are reached.
    pub proxies: Proxies,
    /// The policy that decides which images may come in (containers-policy.json(5)); where the file is missing, all may.
    pub policy: Option<PathBuf>,
    /// References whose images the kubelet is told not to collect.
    pub pinned: Vec<Reference>,
    /// Is called after work that has taken memory, to give back to the system what is free of it again.
    pub give_back: fn(),
    /// How the store's filesystem counts by project. `None`: writable layers are always walked.
    pub project_quotas: Option<Arc<dyn ProjectQuotas>>,
}

impl Options {
    /// The defaults, for a folder.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/berth/image"),
            certs_dirs: Vec::new(),
            registries_conf: None,
            auth_files: Vec::new(),
            platform: Platform::default(),
            parallel_downloads: 6,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            proxies: Proxies::of_process(),
            policy: None,
            pinned: Vec::new(),
            give_back: || (),
            project_quotas: None,
        }
    }
}

/// The images and layers on this node. A clone is another handle on the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

/// What all handles share.
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) folders: Folders,
    pub(crate) registry: Arc<Registry>,
    pub(crate) downloads: Arc<Downloads>,
    windows: Arc<Windows>,
    index: Mutex<Index>,
    flights: Flights,
    counters: Counters,
    quotas: Option<Quotas>,
    trash: Trash,
    syncs: Syncs,
    /// Deletes.
    reaper: Worker<reaper::Job>,
    /// Reads whole layers.
    marker: Worker<marker::Job>,
    pub(crate) pulls: Pulls,
    /// What came from the import folder.
    imported: Mutex<Notes>,
    /// Changes of image records, one after the other: a record is read, changed and written again.
    records: tokio::sync::Mutex<()>,
    /// The number of the last change of one.
    changes: AtomicU64,
    boot_id: String,
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.inner.options.root).finish_non_exhaustive()
    }
}

/// A layer as it lies in the store.
#[derive(Debug)]
pub(crate) struct KeptLayer {
    /// Its files.
    pub(crate) fs: PathBuf,
    /// How its archive is made again.
    pub(crate) recipe: PathBuf,
    /// The length of that.
    pub(crate) length: Option<u64>,
}

impl Inner {
    pub(crate) fn kept_layer(&self, key: &LayerKey) -> Option<KeptLayer> {
        let length = self.index().layer(key)?.length;
        let folder = self.folders.layer(key);
        Some(KeptLayer { fs: self.folders.layer_fs(key), recipe: folder.join(folders::RECIPE), length })
    }

    /// What one image may cost.
    pub(crate) fn budget(&self) -> Budget {
        Budget::of_image(self.options.limits, &self.windows)
    }

    /// What is kept as an image's configuration: of an artifact its manifest.
    pub(crate) fn config_bytes(&self, id: &Digest) -> Result<Vec<u8>, Error> {
        make::read_config(&self.folders, id)
    }

    /// See [`ImageStore::resolve`].
    fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        // Where the registries.conf says what short names are, it counts; one that is broken fails pulls, not this.
        let candidates = self.registry.sources.candidates(name).unwrap_or_default();
        let index = self.index();
        candidates.iter().find_map(|name| index.resolve(&name.to_string())).or_else(|| index.resolve(name))
    }

    /// Joins the pull with this key, or starts it.
    pub(crate) async fn share_pull<F>(
        &self,
        key: PullKey,
        work: impl FnOnce() -> F,
    ) -> Result<Arc<Image>, Error>
    where
        F: Future<Output = Result<Arc<Image>, Error>> + Send + 'static,
    {
        self.flights.pull(key, work).await
    }

    /// Marks of the signatures of an image that were verified.
    pub(crate) fn verified(&self, id: &Digest) -> BTreeSet<String> {
        self.index().entry(id).map(|entry| entry.record.verified.clone()).unwrap_or_default()
    }

    /// The archives that an image came from.
    pub(crate) fn origins(&self, id: &Digest) -> BTreeSet<String> {
        self.index().entry(id).map(|entry| entry.record.origins.clone()).unwrap_or_default()
    }

    /// Whether the store has an image that is not removed.
    pub(crate) fn has(&self, id: &Digest) -> bool {
        self.index().listed(id).is_some()
    }

    pub(crate) fn notes(&self) -> Notes {
        self.imported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn replace_notes(&self, notes: Notes) {
        *self.imported.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic leaves the index as it was before or after a change, never between.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// All images.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index().list()
    }

    /// The image that a name stands for: an id or the unique beginning of one, a reference with tag, or with digest.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.resolve(name)
    }

    /// The config of an image as its builder has written it, in characters that can be printed. `None` if it is longer than
    /// `longest` bytes.
    ///
    /// # Errors
    /// The file cannot be read, or is not what its digest says.
    pub async fn config_json(&self, id: &Digest, longest: usize) -> Result<Option<String>, Error> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking("read a config", move || {
            let bytes = inner.config_bytes(&id)?;
            if bytes.len() > longest {
                return Ok(None);
            }
            let what = format!("config {id}");
            let json = String::from_utf8(bytes).map_err(|error| Error::corrupt(what, error))?;
            Ok(Some(printable_json(&json)))
        })
        .await
    }

    /// What the store takes of the disk: images as `du` counts them; what containers have written as it was last measured.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.inner.usage()
    }

    /// Keeps an image's layers, also if the image is removed, until the hold is dropped.
    ///
    /// # Errors
    /// The image is not in the store.
    pub fn hold(&self, image: &Image, owner: &str) -> Result<Hold, Error> {
        self.hold_id(&image.id, owner)
    }

    fn hold_id(&self, id: &Digest, owner: &str) -> Result<Hold, Error> {
        index::hold(&self.inner, id, owner)
    }
}
