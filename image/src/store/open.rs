//! Opens the store: checks the content of the disk, removes incomplete folders, and builds the index from the
//! rest. The names of a damaged image are kept, so that it can be pulled again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::disk_usage::DiskUsage;
use super::durable::{Syncs, durable_replace};
use super::folders::{Folders, RECORD, names, read_json};
use super::imports::{Imports, read_imports};
use super::in_progress::InProgress;
use super::index::{ContainerEntry, Index, NewLayer, user};
use super::jobs::{DeletionJob, ReadingJob};
use super::layer_key::LayerKey;
use super::make::read_config;
use super::quota::Quotas;
use super::record::{ContainerRecord, ImageRecord, LayerSummary};
use super::trash::Trash;
use super::unowned::StagingFolders;
use super::usage::Counters;
use super::walk::measure;
use super::worker::Worker;
use super::{ImageStore, Inner, Options, marker, reaper};
use crate::auth_file::AuthFiles;
use crate::config::{ImageConfig, parse_config};
use crate::digest::Digest;
use crate::downloads::Downloads;
use crate::error::{Error, blocking};
use crate::progress::Pulls;
use crate::registry::{Registry, Sources};
use crate::unpack::Windows;

/// The file with the boot id (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl ImageStore {
    /// Opens the store in a folder, which is created if it is missing. Only one process may have it open.
    ///
    /// # Errors
    /// The folder cannot be created or read. Corrupt content is logged and removed instead.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let inner = blocking("open the image store", move || Inner::open(options)).await?;
        Ok(Self { inner })
    }
}

impl Inner {
    fn open(options: Options) -> Result<Arc<Self>, Error> {
        let folders = Folders::create(&options.root)?;
        let boot_id = fs::read_to_string(BOOT_ID).map_err(|error| Error::io("read", BOOT_ID, error))?;
        let boot_id = boot_id.trim().to_owned();
        let imported = read_imports(&options.root);
        let mut scan = Scan::new(&options, &folders, &boot_id, &imported);
        scan.run()?;
        let Scan { mut index, trash, to_delete, undigested, unsynced, change, .. } = scan;
        let (reaper, reaper_inbox) = Worker::new();
        let (marker, marker_inbox) = Worker::new();
        let (images, layers) = index.unused();
        let quotas = Quotas::of(options.project_quotas.as_ref(), &folders.containers());
        if let Some(quotas) = &quotas {
            for (id, entry) in &mut index.containers {
                entry.project = quotas.existing(&folders.container(id));
            }
        }
        let inner = Arc::new(Self {
            registry: Arc::new(Registry::new(sources(&options), options.timeouts, options.proxies.clone())),
            downloads: Arc::new(Downloads::new(options.parallel_downloads)),
            windows: Arc::new(Windows::new(options.parallel_downloads)),
            syncs: Syncs::of(&options.root)?,
            options,
            folders,
            index: Mutex::new(index),
            in_progress: InProgress::default(),
            counters: Counters::default(),
            quotas,
            trash,
            staging: StagingFolders::default(),
            reaper,
            marker,
            pulls: Pulls::default(),
            imported: Mutex::new(imported),
            records: tokio::sync::Mutex::new(()),
            changes: AtomicU64::new(change),
            boot_id,
        });
        reaper_inbox.start("image-reaper", Arc::downgrade(&inner), reaper::run)?;
        marker_inbox.start("image-marker", Arc::downgrade(&inner), marker::run)?;
        for id in images {
            unless_read_only(inner.purge(&id))?;
        }
        for key in layers {
            unless_read_only(inner.collect_layer(&key))?;
        }
        to_delete.into_iter().for_each(|path| inner.reaper.send(DeletionJob::Delete(path)));
        unsynced.into_iter().for_each(|id| inner.marker.send(ReadingJob::Sync(id)));
        undigested.into_iter().for_each(|key| inner.marker.send(ReadingJob::Digest(key)));
        Ok(inner)
    }
}

fn sources(options: &Options) -> Sources {
    Sources {
        certs_dirs: options.certs_dirs.clone(),
        registries_conf: options.registries_conf.clone(),
        auth_files: AuthFiles::new(options.auth_files.clone()),
    }
}

/// The state of a scan of the store's folders.
struct Scan<'a> {
    options: &'a Options,
    folders: &'a Folders,
    boot_id: &'a str,
    imported: &'a Imports,
    index: Index,
    trash: Trash,
    /// The paths to delete.
    to_delete: Vec<PathBuf>,
    /// Layers of an earlier boot without a marker. They are removed unless the record of an image states that
    /// they were synced.
    unverified: BTreeSet<LayerKey>,
    undigested: Vec<LayerKey>,
    unsynced: Vec<Digest>,
    /// The highest change number of the images' records.
    change: u64,
}

impl<'a> Scan<'a> {
    fn new(options: &'a Options, folders: &'a Folders, boot_id: &'a str, imported: &'a Imports) -> Self {
        Self {
            options,
            folders,
            boot_id,
            imported,
            index: Index::default(),
            trash: Trash::default(),
            to_delete: Vec::new(),
            unverified: BTreeSet::new(),
            undigested: Vec::new(),
            unsynced: Vec::new(),
            change: 0,
        }
    }

    fn run(&mut self) -> Result<(), Error> {
        for name in names(&self.folders.trash())? {
            self.add_to_trash(self.folders.trash().join(name));
        }
        for name in names(&self.folders.tmp())? {
            self.discard(&self.folders.tmp().join(name))?;
        }
        for name in names(&self.folders.layers())? {
            let folder = self.folders.layers().join(&name);
            if let Err(error) = self.layer(&name, &folder) {
                if error.is_shortage() {
                    return Err(error);
                }
                tracing::warn!(layer = name, %error, "removing an unusable layer");
                self.discard(&folder)?;
            }
        }
        let records = self.records()?;
        for record in records.iter().filter(|record| record.synced) {
            self.unverified.retain(|key| !record.layers.contains(key));
            self.index.set_durable(&record.layers);
        }
        for key in std::mem::take(&mut self.unverified) {
            tracing::warn!(layer = %key, "removing a layer that was not synced before the last shutdown");
            self.index.drop_layer(&key);
            self.undigested.retain(|other| *other != key);
            self.discard(&self.folders.layer(&key))?;
        }
        let mut previous_owners = BTreeSet::new();
        for record in records {
            previous_owners.extend(self.image(record)?);
        }
        for id in names(&self.folders.containers())? {
            self.container(id)?;
        }
        self.write_previous_owners(&previous_owners);
        Ok(())
    }

    fn add_to_trash(&mut self, path: PathBuf) {
        self.trash.add(path.clone(), DiskUsage::default());
        self.to_delete.push(path);
    }

    fn discard(&mut self, path: &Path) -> Result<(), Error> {
        unless_read_only(
            self.folders
                .discard(path)
                .map(|moved| moved.into_iter().for_each(|path| self.add_to_trash(path))),
        )
    }

    fn layer(&mut self, name: &str, folder: &Path) -> Result<(), Error> {
        let key: LayerKey = name.parse()?;
        let summary: LayerSummary = read_json(&folder.join("layer.json"))?;
        let fs = self.folders.layer_fs(&key);
        let stat = fs::symlink_metadata(&fs).map_err(|error| Error::io("read", &fs, error))?;
        if !stat.is_dir() {
            return Err(Error::corrupt(fs.display().to_string(), "not a folder"));
        }
        let inode = fs::metadata(folder).map_err(|error| Error::io("read", folder, error))?.ino();
        let marker = marker::read(folder).ok();
        if marker.is_none() && summary.boot_id != self.boot_id {
            self.unverified.insert(key.clone());
        }
        let digested = marker.as_ref().is_some_and(|synced| synced.tree.is_some());
        if !digested {
            self.undigested.push(key.clone());
        }
        let durable = marker.is_some();
        let usage = marker.map_or(summary.usage, |synced| synced.usage);
        self.index.put_layer(key, NewLayer { summary, usage, inode, durable, digested });
        Ok(())
    }

    /// Reads the images' records. The one that was changed last is at the end.
    fn records(&mut self) -> Result<Vec<ImageRecord>, Error> {
        let mut records = Vec::new();
        for name in names(&self.folders.images())? {
            let folder = self.folders.images().join(name);
            let file = folder.join(RECORD);
            let changed = fs::metadata(&file).and_then(|stat| stat.modified()).ok();
            let record = read_json::<ImageRecord>(&file).and_then(|record| {
                let own = self.folders.image(&record.id) == folder;
                let why = || {
                    Error::corrupt(
                        file.display().to_string(),
                        format!("it is the record of image {}", record.id),
                    )
                };
                if own { Ok(record) } else { Err(why()) }
            });
            match record {
                Ok(record) => records.push((record.change, changed, record)),
                Err(error) if error.is_shortage() => return Err(error),
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "removing an image without a usable record");
                    self.discard(&folder)?;
                }
            }
        }
        // Records of earlier daemons have no number.
        records.sort_by_key(|(change, changed, _)| (*change, *changed));
        self.change = records.last().map_or(0, |(change, _, _)| *change);
        Ok(records.into_iter().map(|(_, _, record)| record).collect())
    }

    /// Adds an image. Returns the images that lose a tag to it.
    fn image(&mut self, record: ImageRecord) -> Result<Vec<Digest>, Error> {
        let id = record.id.clone();
        let missing = self.index.missing_layer(&record.layers);
        let config = match missing {
            Some(key) => Err(Error::not_found(format!("layer {key}"), "not in the store")),
            None => self.config(&record),
        };
        let (config, damage) = match config {
            Ok(config) => (config, None),
            Err(error) if error.is_shortage() => return Err(error),
            Err(error) => {
                if !record.removed {
                    let names: Vec<_> = record.tags.iter().chain(&record.digests).collect();
                    tracing::warn!(image = %id, ?names, %error, "image is damaged and has to be pulled again");
                }
                (ImageConfig::default(), Some(error.to_string()))
            }
        };
        let usage = measure(&self.folders.image(&id))?;
        let pinned = record.is_pinned(&self.options.pinned, self.imported);
        let image = record.image(config, pinned);
        if !record.synced && damage.is_none() {
            self.unsynced.push(id.clone());
        }
        let tags: Vec<String> = record.tags.iter().cloned().collect();
        self.index.put(record, image, usage, damage);
        let previous_owners = self.index.others_with(&tags, &id);
        for older in &previous_owners {
            tracing::warn!(?tags, %older, newer = %id, "two images have the same tag, the newer one keeps it");
            drop(self.index.without_tags(older, &tags));
        }
        Ok(previous_owners)
    }

    fn config(&self, record: &ImageRecord) -> Result<ImageConfig, Error> {
        let bytes = read_config(self.folders, &record.id)?;
        if record.is_artifact() {
            return Ok(ImageConfig::default());
        }
        let what = format!("image {}", record.id);
        let parsed = parse_config(&what, &bytes)?;
        if parsed.diff_ids != record.diff_ids {
            return Err(Error::corrupt(what, "its layers are not those of its config"));
        }
        Ok(parsed.config)
    }

    /// Writes the records of images that lost a tag. A crash between two writes has left the tag with them.
    /// If their records kept it, they would get the tag back when its new owner is removed.
    fn write_previous_owners(&self, previous_owners: &BTreeSet<Digest>) {
        for id in previous_owners {
            let Some(record) = self.index.entry(id).map(|entry| entry.record.clone()) else { continue };
            if let Err(error) = durable_replace(&self.folders.image(id).join(RECORD), &record) {
                tracing::warn!(image = %id, %error, "failed to remove a tag from an image");
            }
        }
    }

    fn container(&mut self, id: String) -> Result<(), Error> {
        let record = match read_json::<ContainerRecord>(&self.folders.container(&id).join("layer.json")) {
            Ok(record) => Some(record),
            Err(error) if error.is_shortage() => return Err(error),
            Err(error) => {
                tracing::warn!(container = id, %error, "writable layer is incomplete");
                None
            }
        };
        for image in record.iter().flat_map(ContainerRecord::images) {
            if !self.index.add_existing_user(image, &user(&id)) {
                tracing::warn!(container = id, %image, "image of a container is missing");
            }
        }
        self.index.containers.insert(id, ContainerEntry { record, usage: None, project: None });
        Ok(())
    }
}

/// Ignores the error of a read-only disk: corrupt or unused folders stay, the rest can be read.
fn unless_read_only(done: Result<(), Error>) -> Result<(), Error> {
    let read_only = |error: &Error| {
        error.cause_in_files().is_some_and(|cause| cause.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    };
    match done {
        Err(error) if read_only(&error) => {
            tracing::warn!(%error, "the filesystem of the image store is read-only");
            Ok(())
        }
        done => done,
    }
}
