//! The images and layers on this node.
//!
//! ```text
//! <root>/images/<digest>/    image.json, config.json
//! <root>/layers/<key>/       fs/, layer.json; synced, once the digest of its files is known
//! <root>/containers/<id>/    upper/, work/, layer.json
//! <root>/empty/              the lower folder of an image without layers
//! <root>/tmp, <root>/trash   staging folders and folders to delete: both are emptied at open
//! ```
//!
//! All indexes are in memory and are rebuilt from the folders. A complete folder is renamed into place. An
//! image is recorded after its layers are on the disk: its record states that they are trusted after a
//! reboot. When a tag moves, the new image's record is durable before the tag is removed from the old image.
//!
//! * [`containers`]: the writable layers of containers
//! * [`mod@disk_usage`]: disk usage, and the measurement of a container's
//! * [`durable`]: writes that survive a power failure
//! * [`filled`]: writable layers that are not empty at first
//! * [`folders`]: the folders of the store, and functions that create files in them
//! * [`hold`]: keeps images and layers on the disk while they are used
//! * [`imports`]: the record of the import folder
//! * [`in_progress`]: work that several callers may request concurrently and that is done once
//! * [`index`]: the content of the store and its users, in memory
//! * [`jobs`]: the jobs of the store's background threads
//! * [`layer_key`]: the names of the folders of layers
//! * [`make`]: adds layers and images to the store
//! * [`marker`]: the marker thread, which reads whole layers
//! * [`merged`]: a stack of layers, merged as overlayfs merges them
//! * [`names`]: the names by which an image is recorded
//! * [`open`]: checks the content of the disk, removes incomplete folders, and builds the index from the rest
//! * [`patch`]: the parts of a layer that depend on the layers below
//! * [`patch_input`]: builds the content of a patch
//! * [`quota`]: project quotas
//! * [`reaper`]: the reaper thread
//! * [`record`]: the records of images, layers and writable layers
//! * [`remove`]: removes images, and collects images and layers without users
//! * [`repair`]: missing or changed parts are pulled again
//! * [`staging`]: staging folders, in which layers and images are created before they are renamed into place
//! * [`trash`]: folders that were removed from the store and are not deleted yet
//! * [`tree_digest`]: the digest of a folder's content
//! * [`unowned`]: folders of the store that no record owns, and records whose layers are gone
//! * [`usage`]: the disk usage of the store
//! * [`verify`]: verifies that the content of the store has not changed
//! * [`walk`]: measures and deletes folders, by descriptors only
//! * [`worker`]: the background threads of the store

mod containers;
mod disk_usage;
mod durable;
mod filled;
mod folders;
mod hold;
mod imports;
mod in_progress;
mod index;
mod jobs;
mod layer_key;
mod make;
mod marker;
mod merged;
mod names;
mod open;
mod patch;
mod patch_input;
mod quota;
mod reaper;
mod record;
mod remove;
mod repair;
mod staging;
mod trash;
mod tree_digest;
mod unowned;
mod usage;
mod verify;
mod walk;
mod worker;

pub use hold::Hold;
pub(crate) use hold::Lease;
pub(crate) use imports::{Import, Stamp};
pub(crate) use in_progress::Creation;
pub(crate) use layer_key::LayerKey;
pub(crate) use make::NewImage;
pub(crate) use marker::MemoryUser;
pub(crate) use names::Names;
pub use quota::ProjectQuotas;
pub(crate) use record::LayerRecord;
pub(crate) use staging::StagingFolder;
pub use unowned::{Checked, Incomplete, Unowned, UnownedKind, check_closed, disk_usage};
pub use verify::{Verdict, Verified};

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::downloads::Downloads;
use crate::error::{Error, blocking};
use crate::image::{Image, Usage};
use crate::platform::Platform;
use crate::printable::printable_json;
use crate::progress::{PullKey, Pulls};
use crate::reference::Reference;
use crate::registry::{Proxies, Registry, Timeouts};
use crate::unpack::{Budget, Limits, Windows};

use durable::Syncs;
use folders::Folders;
use imports::Imports;
use in_progress::InProgress;
use index::Index;
use jobs::{DeletionJob, ReadingJob};
use quota::Quotas;
use trash::Trash;
use unowned::StagingFolders;
use usage::Counters;
use worker::Worker;

/// The options of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of all state.
    pub root: PathBuf,
    /// The folders that are searched for `<registry>/hosts.toml`. The first one that has it is used.
    pub certs_dirs: Vec<PathBuf>,
    /// The path of containers-registries.conf(5), for registries without a `hosts.toml`. The file may be
    /// missing.
    pub registries_conf: Option<PathBuf>,
    /// Files with credentials for pulls without credentials, in the format of docker's config.json. The first
    /// one that has any is used.
    pub auth_files: Vec<PathBuf>,
    /// The platform whose image is chosen from an index.
    pub platform: Platform,
    /// The number of layers that are downloaded concurrently. One layer of each pull and slow layers are not
    /// counted, so that no pull waits for another.
    pub parallel_downloads: usize,
    /// The limits on one image.
    pub limits: Limits,
    /// The time limits for the steps of a transfer.
    pub timeouts: Timeouts,
    /// The proxies through which registries are contacted.
    pub proxies: Proxies,
    /// The policy that decides which images may be used (containers-policy.json(5)). If the file is missing,
    /// all may.
    pub policy: Option<PathBuf>,
    /// References whose images the kubelet must not collect.
    pub pinned: Vec<Reference>,
    /// A function that releases free memory to the system. It is called after work that has used memory.
    pub release_memory: fn(),
    /// Access to the project quotas of the store's filesystem. `None`: writable layers are always walked.
    pub project_quotas: Option<Arc<dyn ProjectQuotas>>,
}

impl Options {
    /// Returns the defaults with this folder.
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
            release_memory: || (),
            project_quotas: None,
        }
    }
}

/// The images and layers on this node. A clone is another handle on the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

/// The state that all handles share.
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) folders: Folders,
    pub(crate) registry: Arc<Registry>,
    pub(crate) downloads: Arc<Downloads>,
    windows: Arc<Windows>,
    index: Mutex<Index>,
    in_progress: InProgress,
    counters: Counters,
    quotas: Option<Quotas>,
    trash: Trash,
    staging: StagingFolders,
    syncs: Syncs,
    /// The thread that deletes folders.
    reaper: Worker<DeletionJob>,
    /// The thread that reads whole layers.
    marker: Worker<ReadingJob>,
    pub(crate) pulls: Pulls,
    /// The record of the import folder.
    imported: Mutex<Imports>,
    /// Serializes changes of image records: a record is read, changed and written.
    records: tokio::sync::Mutex<()>,
    /// The number of the last change of a record.
    changes: AtomicU64,
    boot_id: String,
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.inner.options.root).finish_non_exhaustive()
    }
}

/// A layer in the store.
#[derive(Debug)]
pub(crate) struct StoredLayer {
    /// The folder of its files.
    pub(crate) fs: PathBuf,
    /// The recipe of its archive.
    pub(crate) recipe: PathBuf,
    /// The length of the archive.
    pub(crate) length: Option<u64>,
}

impl Inner {
    pub(crate) fn stored_layer(&self, key: &LayerKey) -> Option<StoredLayer> {
        let length = self.index().layer(key)?.length;
        let folder = self.folders.layer(key);
        Some(StoredLayer { fs: self.folders.layer_fs(key), recipe: folder.join(folders::RECIPE), length })
    }

    /// Returns the budget of a new image.
    pub(crate) fn budget(&self) -> Budget {
        Budget::of_image(self.options.limits, &self.windows)
    }

    /// Returns the stored config of an image, or the manifest of an artifact.
    pub(crate) fn config_bytes(&self, id: &Digest) -> Result<Vec<u8>, Error> {
        make::read_config(&self.folders, id)
    }

    /// See [`ImageStore::resolve`].
    fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        // Short names in registries.conf take precedence. An invalid file fails pulls, not this.
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
        self.in_progress.pull(key, work).await
    }

    /// Returns the marks of an image's verified signatures.
    pub(crate) fn verified(&self, id: &Digest) -> BTreeSet<String> {
        self.index().entry(id).map(|entry| entry.record.verified.clone()).unwrap_or_default()
    }

    /// Returns the archives that an image was loaded from.
    pub(crate) fn origins(&self, id: &Digest) -> BTreeSet<String> {
        self.index().entry(id).map(|entry| entry.record.origins.clone()).unwrap_or_default()
    }

    /// Returns whether the store has an image that is not removed.
    pub(crate) fn has(&self, id: &Digest) -> bool {
        self.index().listed(id).is_some()
    }

    pub(crate) fn imports(&self) -> Imports {
        self.imported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn replace_imports(&self, imports: Imports) {
        *self.imported.lock().unwrap_or_else(PoisonError::into_inner) = imports;
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Changes cannot panic halfway, so a poisoned index is consistent.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Returns all images.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index().list()
    }

    /// Resolves a name to an image: an id or a unique prefix of one, a reference with a tag, or with a
    /// digest.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.resolve(name)
    }

    /// Returns the config of an image as its builder has written it, with unprintable characters escaped.
    /// `None` if it is longer than `longest` bytes.
    ///
    /// # Errors
    /// The file cannot be read, or does not match its digest.
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

    /// Returns the folder of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.inner.folders.root()
    }

    /// Returns the disk usage of the store. That of images is counted as by `du`, that of containers is the
    /// last measurement.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.inner.usage()
    }

    /// Keeps an image's layers until the hold is dropped, even if the image is removed.
    ///
    /// # Errors
    /// The image is not in the store.
    pub fn hold(&self, image: &Image, owner: &str) -> Result<Hold, Error> {
        self.hold_id(&image.id, owner)
    }

    fn hold_id(&self, id: &Digest, owner: &str) -> Result<Hold, Error> {
        hold::keep(&self.inner, id, owner)
    }
}
