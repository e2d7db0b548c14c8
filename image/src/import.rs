//! The import folder: archives and layouts in it are loaded as they appear, and their images stay. It is for
//! nodes without a registry.
//!
//! The imported files are recorded beside the images, so that a start does not read the archives again. If an
//! image of the folder was removed, it is loaded again. The images are pinned as long as their file exists.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use inotify::{EventMask, Inotify, WatchMask};

use crate::error::{Error, blocking};
use crate::printable::Printable;
use crate::store::{ImageStore, Import, Stamp};

/// The interval of scans without events while there are files. The files of a layout are below the watched folder, so
/// their changes cause no events, and neither does the removal of an image. An empty folder is not scanned.
const SCAN_INTERVAL: Duration = Duration::from_secs(30);
/// Events within this time are handled together.
const SETTLE: Duration = Duration::from_millis(200);
/// A file that changed more recently than this is still being written.
const QUIET: Duration = Duration::from_secs(2);
/// The longest time between two attempts to load a file.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// When the folder is scanned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextScan {
    /// A file is still being written.
    Soon,
    /// There are files, or the folder cannot be read.
    Periodic,
    /// The folder is empty.
    AtEvent,
}

/// A file that could not be loaded.
struct Failed {
    stamp: Stamp,
    backoff: Duration,
    retry_at: Instant,
}

impl ImageStore {
    /// Loads the files in `folder` and those that appear in it, until the future is dropped. The folder is
    /// created if it is missing.
    pub async fn import_from(&self, folder: PathBuf) {
        let mut failed = BTreeMap::new();
        let mut events = watch(&folder).await;
        loop {
            let scanned = self.import(&folder, &mut failed).await.unwrap_or_else(|error| {
                tracing::warn!(folder = %folder.display(), %error, "failed to scan the import folder");
                NextScan::Periodic
            });
            let next = failed.values().map(|failed: &Failed| failed.retry_at).min();
            let longest = match scanned {
                NextScan::Soon => QUIET,
                NextScan::Periodic => SCAN_INTERVAL,
                NextScan::AtEvent => Duration::MAX,
            };
            let pause =
                next.map_or(longest, |next| next.saturating_duration_since(Instant::now()).min(longest));
            // A lower bound prevents a busy loop.
            let pause = pause.max(Duration::from_millis(500));
            let Some(watched) = &mut events else {
                tokio::time::sleep(pause.min(SCAN_INTERVAL)).await;
                events = watch(&folder).await;
                continue;
            };
            let mut event = match pause {
                // A timer would wake an idle daemon when its longest time is over.
                Duration::MAX => watched.next().await,
                pause => tokio::time::timeout(pause, watched.next()).await.ok().flatten(),
            };
            // Events within a short time are handled by one scan.
            let mut is_watched = true;
            while let Some(Ok(seen)) = event {
                // The folder was removed or moved: the watch has ended.
                is_watched &= !seen.mask.intersects(EventMask::IGNORED | EventMask::MOVE_SELF);
                event = tokio::time::timeout(SETTLE, watched.next()).await.ok().flatten();
            }
            if !is_watched {
                events = watch(&folder).await;
            }
        }
    }

    /// Scans the folder once.
    async fn import(&self, folder: &Path, failed: &mut BTreeMap<String, Failed>) -> Result<NextScan, Error> {
        let path = folder.to_owned();
        let files = blocking("read the import folder", move || stamps(&path)).await?;
        failed.retain(|name, failure| files.get(name) == Some(&failure.stamp));
        let inner = self.inner();
        let mut imports = inner.imports();
        imports.retain(|name, _| files.contains_key(name));
        let mut next = if files.is_empty() { NextScan::AtEvent } else { NextScan::Periodic };
        for (name, stamp) in files {
            let recorded = imports.get(&name).filter(|import| import.stamp == stamp);
            if recorded.is_some_and(|import| import.images.iter().all(|id| inner.has(id))) {
                continue;
            }
            let path = folder.join(&name);
            let shown = Printable::new(&path.to_string_lossy());
            let waits = failed.get(&name).is_some_and(|failure| failure.retry_at > Instant::now());
            if waits || is_fresh(&path) {
                if !waits {
                    next = NextScan::Soon;
                }
                continue;
            }
            match self.load(&path).await {
                Ok(images) => {
                    failed.remove(&name);
                    tracing::info!(file = %shown, images = images.len(), "imported images from file");
                    let images = images.iter().map(|image| image.id.clone()).collect();
                    imports.insert(name, Import { stamp, images });
                }
                Err(error) => {
                    tracing::warn!(file = %shown, %error, "failed to import file");
                    let backoff =
                        failed.get(&name).map_or(QUIET, |failure| (failure.backoff * 2).min(MAX_BACKOFF));
                    failed.insert(name, Failed { stamp, backoff, retry_at: Instant::now() + backoff });
                }
            }
        }
        let inner = inner.clone();
        blocking("record the imports", move || inner.set_imports(imports)).await.map(|()| next)
    }
}

async fn watch(folder: &Path) -> Option<inotify::EventStream<Vec<u8>>> {
    let path = folder.to_owned();
    let watching = blocking("watch the import folder", move || {
        fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        let failed = |error: io::Error| Error::io("watch", &path, error);
        let inotify = Inotify::init().map_err(failed)?;
        let events = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::MOVE_SELF
            | WatchMask::CREATE;
        inotify.watches().add(&path, events).map_err(failed)?;
        inotify.into_event_stream(vec![0; 4096]).map_err(failed)
    })
    .await;
    watching
        .map_err(|error| tracing::warn!(%error, interval = ?SCAN_INTERVAL, "failed to watch the import folder, it is only scanned periodically"))
        .ok()
}

/// Returns the files in the folder. Names that start with a dot are skipped.
fn stamps(folder: &Path) -> Result<BTreeMap<String, Stamp>, Error> {
    let failed = |error| Error::io("read", folder, error);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        // A layout is identified by the stamp of its index.
        let path = entry.path();
        let index = path.join("index.json");
        if let Ok(stat) = fs::metadata(if index.exists() { &index } else { &path }) {
            files.insert(name, Stamp::of(&stat));
        }
    }
    Ok(files)
}

fn is_fresh(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|stat| stat.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < QUIET))
}
