//! Files of persistent state: atomic replacement, and work that waits for a disk.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Context, Result};

/// The extension of files that are being written.
const TEMPORARY: &str = "tmp";

/// Replaces a file atomically. On failure, for example on a full disk, the temporary file is removed.
pub(crate) fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = file.with_extension(TEMPORARY);
    let replaced = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, file));
    replaced.inspect_err(|_| {
        // The error of the write is reported, not that of the removal.
        let _removed = fs::remove_file(&temporary);
    })
}

/// Removes the temporary files of a process that was killed during [`replace`].
pub(crate) fn remove_temporary_files(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for temporary in entries.filter(|path| path.extension().is_some_and(|extension| extension == TEMPORARY)) {
        if let Err(error) = fs::remove_file(&temporary) {
            tracing::warn!(%error, path = %temporary.display(), "failed to remove temporary file");
        }
    }
}

/// Runs work that waits for a disk on a blocking thread, not on one that serves requests.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(io::Error::other).doing("run blocking work")?
}
