//! Taking stock: what is on the disk is checked, what is half made goes, and the index is built from the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::containers::user;
use super::flights::Flights;
use super::folders::{Folders, names, read_json};
use super::index::{ContainerEntry, Index, LayerKey};
use super::make::read_config;
use super::reaper::{Job, Reaper};
use super::record::{ContainerRecord, ImageRecord, LayerSummary, Synced};
use super::usage::Counters;
use super::walk::measure;
use super::{ImageStore, Inner, Options};
use crate::auth_file::AuthFiles;
use crate::config::{ImageConfig, parse_config};
use crate::digest::Digest;
use crate::downloads::Downloads;
use crate::error::{Error, blocking};
use crate::import::{Notes, read_notes};
use crate::progress::Pulls;
use crate::registry::{Registry, Sources};
use crate::unpack::Windows;

/// This boot's id (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl ImageStore {
    /// Opens the store in a folder, which is made if it is not there. Only one process may have it open.
    ///
    /// # Errors
    /// The folder cannot be made or read. What is broken in it is logged and cleared away instead.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let inner = blocking("open the image store", move || Inner::open(options)).await?;
        Ok(Self { inner })
    }
}

/// The store as it is being read.
struct Stock<'a> {
    options: &'a Options,
    folders: &'a Folders,
    boot_id: &'a str,
    index: Index,
    jobs: Vec<Job>,
    imported: Notes,
}

impl Inner {
    fn open(options: Options) -> Result<Arc<Self>, Error> {
        let folders = Folders::make(&options.root)?;
        let boot_id = fs::read_to_string(BOOT_ID).map_err(|error| Error::io("read", BOOT_ID, error))?;
        let boot_id = boot_id.trim().to_owned();
        let mut stock = Stock {
            options: &options,
            folders: &folders,
            boot_id: &boot_id,
            index: Index::default(),
            jobs: Vec::new(),
            imported: read_notes(&options.root),
        };
        stock.take()?;
        let Stock { index, jobs, imported, .. } = stock;
        let registry = Arc::new(Registry::new(sources(&options), options.timeouts, options.proxies.clone()));
        let downloads = Arc::new(Downloads::new(options.parallel_downloads));
        let windows = Arc::new(Windows::new(options.parallel_downloads));
        let (images, layers) = index.unused();
        // The thread needs the store, and the store the way to the thread.
        let mut failure = None;
        let inner = Arc::new_cyclic(|weak| {
            let reaper = Reaper::start(weak.clone()).unwrap_or_else(|error| {
                failure = Some(error);
                Reaper::nobody()
            });
            Self {
                options,
                folders,
                registry,
                downloads,
                windows,
                index: Mutex::new(index),
                flights: Flights::default(),
                counters: Counters::default(),
                reaper,
                pulls: Pulls::default(),
                imported: Mutex::new(imported),
                records: tokio::sync::Mutex::new(()),
                boot_id,
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        for id in images {
            unless_read_only(inner.purge(&id))?;
        }
        for key in layers {
            unless_read_only(inner.collect_layer(&key))?;
        }
        for job in jobs {
            inner.reaper.send(job);
        }
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

impl Stock<'_> {
    fn take(&mut self) -> Result<(), Error> {
        for name in names(&self.folders.trash())? {
            self.jobs.push(Job::Delete(self.folders.trash().join(name)));
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
                tracing::warn!(layer = name, %error, "a layer cannot be trusted: it is removed");
                self.discard(&folder)?;
            }
        }
        for folder in self.images_by_age()? {
            if let Err(error) = self.image(&folder) {
                if error.is_shortage() {
                    return Err(error);
                }
                tracing::warn!(folder = %folder.display(), %error, "an image cannot be used: it is removed");
                self.discard(&folder)?;
            }
        }
        for id in names(&self.folders.containers())? {
            self.container(id)?;
        }
        Ok(())
    }

    fn discard(&mut self, path: &Path) -> Result<(), Error> {
        let discarded = self.folders.discard(path).map(|moved| self.jobs.extend(moved.map(Job::Delete)));
        unless_read_only(discarded)
    }

    /// A layer is trusted if it was synced, or if this boot's page cache has it.
    fn layer(&mut self, name: &str, folder: &Path) -> Result<(), Error> {
        let key: LayerKey = name.parse()?;
        let record: LayerSummary = read_json(&folder.join("layer.json"))?;
        let usage = match read_json::<Synced>(&folder.join("synced")) {
            Ok(synced) => {
                if synced.tree.is_none() {
                    self.jobs.push(Job::Digest(key.clone()));
                }
                synced.usage
            }
            Err(error) if record.boot_id != self.boot_id => return Err(error),
            Err(_) => {
                self.jobs.push(Job::Sync(key.clone()));
                record.usage
            }
        };
        self.index.put_layer(key, &record, usage);
        Ok(())
    }

    /// The images' folders, the one that was changed last at the end: should two have the same tag, it wins.
    fn images_by_age(&self) -> Result<Vec<std::path::PathBuf>, Error> {
        let mut found = Vec::new();
        for name in names(&self.folders.images())? {
            let folder = self.folders.images().join(name);
            let changed = fs::metadata(folder.join("image.json")).and_then(|stat| stat.modified()).ok();
            found.push((changed, folder));
        }
        found.sort();
        Ok(found.into_iter().map(|(_, folder)| folder).collect())
    }

    fn image(&mut self, folder: &Path) -> Result<(), Error> {
        let record: ImageRecord = read_json(&folder.join("image.json"))?;
        if self.folders.image(&record.id) != folder {
            return Err(Error::corrupt(
                folder.display().to_string(),
                format!("holds the image {}", record.id),
            ));
        }
        let bytes = read_config(self.folders, &record.id)?;
        let config = if record.is_artifact() {
            ImageConfig::default()
        } else {
            let parsed = parse_config(&format!("image {}", record.id), &bytes)?;
            if parsed.diff_ids != record.diff_ids {
                return Err(Error::corrupt(
                    folder.display().to_string(),
                    "its layers are not those of its config",
                ));
            }
            parsed.config
        };
        self.take_tags(&record.id, &record.tags);
        let pinned = record.is_pinned(&self.options.pinned, &self.imported);
        let image = record.image(config, pinned);
        let usage = measure(folder)?;
        self.index.put(record, image, usage)
    }

    /// A crash between two writes may have left a tag with two images; the newer one has it.
    fn take_tags(&mut self, newer: &Digest, tags: &BTreeSet<String>) {
        for tag in tags {
            let Some(older) = self.index.holder(tag).filter(|holder| holder != newer) else {
                continue;
            };
            tracing::warn!(tag, %older, %newer, "two images have the same tag: the newer one keeps it");
            let taken = self.index.without_tag(&older, tag);
            if let Err(error) = taken {
                tracing::warn!(%error, "take a tag from an image");
            }
        }
    }

    fn container(&mut self, id: String) -> Result<(), Error> {
        let record = match read_json::<ContainerRecord>(&self.folders.container(&id).join("layer.json")) {
            Ok(record) => Some(record),
            Err(error) if error.is_shortage() => return Err(error),
            Err(error) => {
                tracing::warn!(container = id, %error, "a writable layer is not whole");
                None
            }
        };
        for image in record.iter().flat_map(ContainerRecord::images) {
            if !self.index.add_known_user(image, &user(&id)) {
                tracing::warn!(container = id, %image, "an image of a container is not there");
            }
        }
        self.index.containers.insert(id, ContainerEntry { record, usage: None });
        Ok(())
    }
}

/// On a disk that has become read-only, what is broken or unused stays where it is: the rest is there to be read.
fn unless_read_only(done: Result<(), Error>) -> Result<(), Error> {
    let read_only = |error: &Error| {
        error.cause_in_files().is_some_and(|cause| cause.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    };
    match done {
        Err(error) if read_only(&error) => {
            tracing::warn!(%error, "the disk of the images is read-only");
            Ok(())
        }
        done => done,
    }
}
