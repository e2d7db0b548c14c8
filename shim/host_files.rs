//! Files of the host that berth reads or creates for pods: the host's own /etc files, and log folders and logs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_runtime::logs;

use crate::blocking::blocking;
use crate::error::{CriError, code_of_file, subsystem};

/// The time limit for operations in a log folder.
const FOREIGN_DISK: Duration = Duration::from_secs(20);

/// A file of the host could not be read or created.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}: {source}", path.display())]
pub struct HostFileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl HostFileError {
    /// Returns the cause.
    #[must_use]
    pub fn cause(&self) -> &io::Error {
        &self.source
    }
}

impl From<HostFileError> for CriError {
    fn from(error: HostFileError) -> Self {
        subsystem(code_of_file(error.cause()), error)
    }
}

/// The largest file of the host in bytes that is copied into pods.
const MAX_HOST_FILE: u64 = 4 << 20;

/// Reads a file of the host. A missing file is empty.
///
/// # Errors
/// The file cannot be read, or is too long.
pub fn read(path: &str) -> Result<String, HostFileError> {
    let fail = |source| HostFileError { action: "read", path: path.into(), source };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_HOST_FILE + 1).read_to_end(&mut bytes).map_err(fail)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(fail(source)),
    };
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_HOST_FILE {
        return Err(fail(io::Error::other(format!("larger than {MAX_HOST_FILE} bytes"))));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Creates the pod's log folder. Returns its path without symbolic links, by which logs are opened later. Returns
/// none if the pod has no log folder.
///
/// # Errors
/// It cannot be created in time.
pub async fn create_log_folder(folder: &str) -> Result<Option<String>, CriError> {
    create_log_folder_by(folder, |path| fs::create_dir_all(path)).await
}

/// As [`create_log_folder`], with a function that creates the folder.
///
/// # Errors
/// As [`create_log_folder`].
pub async fn create_log_folder_by(
    folder: &str,
    create: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<Option<String>, CriError> {
    if folder.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(folder);
    let create = move || {
        create(&path).map_err(|source| HostFileError {
            action: "create log folder",
            path: path.clone(),
            source,
        })?;
        Ok(logs::without_links(&path.to_string_lossy())?)
    };
    on_foreign_disk(folder, create).await.map(Some)
}

/// Creates the log file of a container and its folder if they do not exist, and opens the file for appending. The
/// path has no symbolic links.
///
/// # Errors
/// The file cannot be created in time, its path has a symbolic link, or it is not a regular file with one name.
pub async fn create_log(path: &str) -> Result<OwnedFd, CriError> {
    let file = path.to_owned();
    let create = move || {
        if let Some((folder, _)) = file.rsplit_once('/') {
            logs::make_folder(folder)?;
        }
        Ok(logs::open_file(&file)?)
    };
    on_foreign_disk(path, create).await
}

/// As [`create_log`], but does not create the folder.
///
/// # Errors
/// As [`create_log`].
pub async fn open_log(path: String) -> Result<OwnedFd, CriError> {
    let file = path.clone();
    on_foreign_disk(&path, move || Ok(logs::open_file(&file)?)).await
}

/// Runs `work` on a log folder with a time limit, on a separate thread: the kubelet names the folder, and its disk
/// may hang.
async fn on_foreign_disk<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> Result<T, CriError> + Send + 'static,
) -> Result<T, CriError> {
    tokio::time::timeout(FOREIGN_DISK, blocking(work))
        .await
        .unwrap_or_else(|_| Err(CriError::deadline(format!("timed out while opening the log {path}"))))
}
