//! What outlasts a power cut. A record that says that something is safe is replaced by [`durable_replace`], and only after
//! what it speaks of is on the disk ([`Syncs`]).

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

/// Replaces a record in one step and for good: the file is on the disk before it gets its name, and its name when this
/// returns (fsync(2): "calling fsync() does not necessarily ensure that the entry in the directory ... has also reached
/// disk").
pub(crate) fn durable_replace(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let parts = path.parent().zip(path.file_name().and_then(|name| name.to_str()));
    let (folder, name) = parts.ok_or_else(|| Error::internal("replace a record", "it has no name"))?;
    durable_replace_at(&open_folder(folder)?, folder, name, value)
}

/// The same in an open folder, which may have been moved meanwhile: what is said is said of that folder, and not of one
/// that has come in its place. `shown` is its path in messages.
pub(crate) fn durable_replace_at(
    folder: &OwnedFd,
    shown: &Path,
    name: &str,
    value: &impl Serialize,
) -> Result<(), Error> {
    let path = shown.join(name);
    let beside = format!("{name}.new");
    let file = openat(folder, &beside, NEW, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io("write", &path, error))?;
    let file = encode(&path, BufWriter::new(File::from(file)), value)?;
    file.sync_all().map_err(|error| Error::io("sync", &path, error))?;
    renameat(folder, &beside, folder, name).map_err(|error| Error::io("rename", &path, error))?;
    fsync(folder).map_err(|error| Error::io("sync", shown, error))
}

/// Makes the names in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    fsync(open_folder(folder)?).map_err(|error| Error::io("sync", folder, error))
}

/// Brings what the store has written to the disk. A layer may have a hundred thousand files: all are synced with their
/// filesystem. Callers that come while a sync is under way share the next one.
#[derive(Debug)]
pub(super) struct Syncs {
    /// Open for as long as the store: a failed write of another moment is told here, too (syncfs(2), "EIO").
    root: Arc<OwnedFd>,
    path: PathBuf,
    started: AtomicU64,
    /// The number of the last sync that has ended.
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
        // One that is under way may have passed by what was written last: only the next one will do.
        let wanted = self.started.load(Ordering::SeqCst) + 1;
        let mut ended = self.ended.lock().await;
        if *ended >= wanted {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let (root, path) = (self.root.clone(), self.path.clone());
        blocking("sync the image store", move || sync(root.as_fd(), &path)).await?;
        *ended = number;
        Ok(())
    }

    /// The same for threads that may block.
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
    fn a_record_is_replaced_in_its_folder_wherever_that_is_now() {
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
        assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 1, "nothing half made stays");
    }

    #[tokio::test]
    async fn who_comes_during_a_sync_gets_one_that_began_later() {
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
