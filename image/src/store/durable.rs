//! Writes that survive a power failure. Records are replaced by [`durable_replace`]. A record that marks data
//! as durable is written only after the data is on the disk ([`Syncs`]).

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, fsync, openat, renameat, syncfs};
use serde::Serialize;

use super::folders::encode;
use crate::error::{Error, blocking};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::TRUNC).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a folder of the store.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, FOLDER, Mode::empty()).map_err(|error| Error::io("open", path, error))
}

/// Replaces a record atomically and durably. The file is on the disk before it is renamed, and its name is on
/// the disk when this returns (fsync(2): "calling fsync() does not necessarily ensure that the entry in the
/// directory ... has also reached disk").
pub(crate) fn durable_replace(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let parts = path.parent().zip(path.file_name().and_then(|name| name.to_str()));
    let (folder, name) = parts.ok_or_else(|| Error::internal("replace a record", "it has no name"))?;
    durable_replace_at(&open_folder(folder)?, folder, name, value)
}

/// Replaces a record in an open folder, like [`durable_replace`]. If the folder was moved, the record is
/// written to the moved folder, not to a new one at its path. `shown` is its path in errors.
pub(crate) fn durable_replace_at(
    folder: &OwnedFd,
    shown: &Path,
    name: &str,
    value: &impl Serialize,
) -> Result<(), Error> {
    let path = shown.join(name);
    let temporary = format!("{name}.new");
    let file = openat(folder, &temporary, NEW, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io("write", &path, error))?;
    let file = encode(&path, BufWriter::new(File::from(file)), value)?;
    file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
    renameat(folder, &temporary, folder, name).map_err(|error| Error::io("rename", &path, error))?;
    fsync(folder).map_err(|error| Error::io("sync", shown, error))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    fsync(open_folder(folder)?).map_err(|error| Error::io("sync", folder, error))
}

/// Syncs the store's filesystem. A layer may have a hundred thousand files, so they are not synced one by
/// one. Callers that arrive while a sync runs share the next one.
#[derive(Debug)]
pub(super) struct Syncs {
    /// Open as long as the store: errors of earlier writes are reported on this descriptor as well
    /// (syncfs(2), "EIO").
    root: Arc<OwnedFd>,
    path: PathBuf,
    started: AtomicU64,
    /// The number of the last sync that has finished.
    ended: tokio::sync::Mutex<u64>,
}

impl Syncs {
    pub(super) fn of(root: &Path) -> Result<Self, Error> {
        let fd = Arc::new(open_folder(root)?);
        Ok(Self {
            root: fd,
            path: root.to_owned(),
            started: AtomicU64::new(0),
            ended: tokio::sync::Mutex::new(0),
        })
    }

    /// Returns when all that was written before the call is on the disk.
    pub(super) async fn all(&self) -> Result<(), Error> {
        // A running sync may have missed the last writes, so the next one is needed.
        let needed = self.started.load(Ordering::SeqCst) + 1;
        let mut ended = self.ended.lock().await;
        if *ended >= needed {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let (root, path) = (self.root.clone(), self.path.clone());
        blocking("sync the image store", move || sync(root.as_fd(), &path)).await?;
        *ended = number;
        Ok(())
    }

    /// Syncs like [`Self::all`]. It blocks.
    pub(super) fn all_blocking(&self) -> Result<(), Error> {
        sync(self.root.as_fd(), &self.path)
    }
}

fn sync(root: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    syncfs(root).map_err(|error| Error::io("sync the filesystem of", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_record_is_replaced_in_its_folder_even_if_that_was_moved() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("layer");
        fs::create_dir(&folder).unwrap();
        durable_replace(&folder.join("synced"), &"first").unwrap();
        let fd = open_folder(&folder).unwrap();
        fs::rename(&folder, root.path().join("trash")).unwrap();
        fs::create_dir(&folder).unwrap();
        durable_replace_at(&fd, &folder, "synced", &"second").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("trash/synced")).unwrap(), "\"second\"");
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            0,
            "another folder of the same name is not marked"
        );
        assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 1, "no temporary file remains");
    }

    #[tokio::test]
    async fn a_caller_during_a_sync_waits_for_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let syncs = Syncs::of(root.path()).unwrap();
        let first = syncs.ended.lock().await;
        syncs.started.store(1, Ordering::SeqCst);
        let waiting = futures_util::future::join_all((0..5).map(|_| syncs.all()));
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(first);
        waiting.await.into_iter().collect::<Result<(), _>>().unwrap();
        assert_eq!(syncs.started.load(Ordering::SeqCst), 2, "five share one");
    }
}
