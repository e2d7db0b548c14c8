//! The files of a pod that its containers see as /etc/hostname, /etc/hosts and /etc/resolv.conf.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use berth_proto::v1::PodSandboxConfig;
use berth_runtime::logs;
use berth_runtime::plan::PodFile;

use crate::daemon::blocking;
use crate::error::CriError;
use crate::spec::{POD_FILES, has_own_uts, resolv_conf};

/// How long a folder that the kubelet names may take to make.
const FOREIGN_DISK: Duration = Duration::from_secs(20);

/// A file of the pod could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct PodFileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl PodFileError {
    /// The cause.
    #[must_use]
    pub fn cause(&self) -> &io::Error {
        &self.source
    }
}

/// The most that a file of the host may have to be in every pod.
const MAX_HOST_FILE: u64 = 4 << 20;

/// The pod's files, as they are at first.
///
/// # Errors
/// A file of the host cannot be read, or is too long.
pub fn of_pod(config: &PodSandboxConfig) -> Result<Vec<PodFile>, CriError> {
    let hostname = match has_own_uts(config) {
        false => host_file("/etc/hostname")?.trim().to_owned(),
        true if config.hostname.is_empty() => node_name(),
        true => config.hostname.clone(),
    };
    let resolv = resolv_conf(config.dns_config.as_ref(), &host_file("/etc/resolv.conf")?);
    let contents = [format!("{hostname}\n"), host_file("/etc/hosts")?, resolv];
    Ok(POD_FILES
        .iter()
        .zip(contents)
        .map(|(name, content)| PodFile { name: (*name).to_owned(), content })
        .collect())
}

/// The name of the node, which a new UTS namespace begins with (uts_namespaces(7)).
#[must_use]
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A file of the host; one that is not there is empty.
fn host_file(path: &str) -> Result<String, PodFileError> {
    let fail = |source| PodFileError { action: "read", path: path.into(), source };
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_HOST_FILE + 1).read_to_end(&mut bytes).map_err(fail)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(fail(source)),
    };
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_HOST_FILE {
        return Err(fail(io::Error::other(format!("it has more than {MAX_HOST_FILE} bytes"))));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes the pod's log folder; its path without symbolic links, by which logs are opened from now on. None where the pod
/// has no log folder.
///
/// # Errors
/// It cannot be made, or not in time.
pub async fn make_log_folder(folder: &str) -> Result<Option<String>, CriError> {
    if folder.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(folder);
    let made = move || {
        fs::create_dir_all(&path).map_err(|source| PodFileError {
            action: "make log folder",
            path: path.clone(),
            source,
        })?;
        Ok(logs::without_links(&path.to_string_lossy())?)
    };
    on_foreign_disk(folder, made).await.map(Some)
}

/// Makes a container's log with its folder, where they are absent, and opens it for appending. Its path has no symbolic link
/// in it.
///
/// # Errors
/// The file cannot be created in time, its path has a symbolic link, or it is not a regular file with one name.
pub async fn make_log(path: &str) -> Result<OwnedFd, CriError> {
    let wanted = path.to_owned();
    let make = move || {
        if let Some((folder, _)) = wanted.rsplit_once('/') {
            logs::make_folder(folder)?;
        }
        Ok(logs::open_file(&wanted)?)
    };
    on_foreign_disk(path, make).await
}

/// As [`make_log`], but does not create the folder.
///
/// # Errors
/// As of [`make_log`].
pub async fn open_log(path: String) -> Result<OwnedFd, CriError> {
    let wanted = path.clone();
    on_foreign_disk(&path, move || Ok(logs::open_file(&wanted)?)).await
}

/// Log folders are on a disk that the kubelet names: a thread waits for it, and only so long.
async fn on_foreign_disk<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> Result<T, CriError> + Send + 'static,
) -> Result<T, CriError> {
    tokio::time::timeout(FOREIGN_DISK, blocking(work))
        .await
        .unwrap_or_else(|_| Err(CriError::deadline(format!("make {path} for a log"))))
}
