//! One daemon per root and state folder: a lock that the kernel gives back when the daemon dies, however it dies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::config::Config;

/// Why a folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error("another berth, process {pid}, is using {}; each daemon needs a root and a state folder of its own", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The other daemon, as it wrote into the lock.
        pid: String,
    },
    /// Others could change what berth trusts.
    #[error("{} {why}; berth trusts what is in it", folder.display())]
    Unsafe {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It cannot be made or locked.
    #[error("{what} {}: {error}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

/// The root and state folders, for as long as this value lives.
#[derive(Debug)]
pub struct Claim {
    // The locks are the descriptors; they are close-on-exec, so that no keeper holds them on.
    _locks: Vec<File>,
}

impl Claim {
    /// Makes the folders if they are missing, and claims them.
    ///
    /// # Errors
    /// Another daemon has one of them, or they cannot be used.
    pub fn take(config: &Config) -> Result<Self, ClaimError> {
        // Only root has business among images and records; the state folder is on the way to the socket, whose own
        // mode decides who may connect.
        let root = folder(&config.root, 0o700)?;
        let state = folder(&config.state, 0o711)?;
        let mut locks = vec![lock(&config.root)?];
        if root != state {
            locks.push(lock(&config.state)?);
        }
        Ok(Self { _locks: locks })
    }
}

/// Makes a folder, and tells which one it is by device and inode.
fn folder(path: &Path, mode: u32) -> Result<(u64, u64), ClaimError> {
    let io_error = |what| move |error| ClaimError::Io { what, path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io_error("make the parent folder of"))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("make folder")(error)),
    }
    let metadata = std::fs::metadata(path).map_err(io_error("look at"))?;
    let wrong = |why| Err(ClaimError::Unsafe { folder: path.to_owned(), why });
    if !metadata.is_dir() {
        return wrong("is not a folder");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return wrong("belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return wrong("can be written by others");
    }
    Ok((metadata.dev(), metadata.ino()))
}

fn lock(folder: &Path) -> Result<File, ClaimError> {
    let path = folder.join("lock");
    let io_error = |what| {
        let path = path.clone();
        move |error: io::Error| ClaimError::Io { what, path, error }
    };
    let (file, writable) = open_lock(&path).map_err(io_error("open"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Its owner may be about to write it: the message is worth less then, and still right.
            let read = file.take(32).read_to_string(&mut pid);
            let pid = match (read, pid.trim()) {
                (Ok(_), pid) if !pid.is_empty() => pid.to_owned(),
                _ => "unknown".to_owned(),
            };
            return Err(ClaimError::Held { folder: folder.to_owned(), pid });
        }
        Err(error) => return Err(io_error("lock")(error.into())),
    }
    // The lock is what counts; the pid is for the message of another daemon. A full disk does not take it, and a daemon
    // must start on one: only then can the kubelet evict what fills it.
    if writable && let Err(error) = write_pid(&file) {
        tracing::warn!(%error, path = %path.display(), "failed to write the pid into the lock");
    }
    Ok(file)
}

/// The lock, and whether it can be written to. On a disk that has become read-only, one that is there can still be taken
/// (flock(2) asks for no right to write).
fn open_lock(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    match options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok((File::open(path)?, false)),
        opened => Ok((opened?, true)),
    }
}

fn write_pid(mut file: &File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    file.rewind()?;
    // Its block is not given up first: a full disk would not give another one.
    file.write_all(pid.as_bytes())?;
    file.set_len(u64::try_from(pid.len()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(folder: &Path) -> Config {
        Config { root: folder.join("a/root"), state: folder.join("b/state"), ..Config::default() }
    }

    #[test]
    fn a_second_daemon_is_told_who_has_the_folders() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let claim = Claim::take(&config).unwrap();
        let second = Claim::take(&config).unwrap_err().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        let other_root = Config { root: folder.path().join("other"), ..config.clone() };
        assert!(
            matches!(Claim::take(&other_root), Err(ClaimError::Held { folder, .. }) if folder == config.state)
        );
        drop(claim);
        Claim::take(&config).unwrap();
    }

    #[test]
    fn folders_are_made_private() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let _claim = Claim::take(&config).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&config.root), mode(&config.state)), (0o700, 0o711));
    }

    #[test]
    fn one_folder_for_both_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("both");
        let config = Config { root: path.clone(), state: path, ..Config::default() };
        Claim::take(&config).unwrap();
    }

    #[test]
    fn a_folder_that_others_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        std::fs::create_dir_all(&config.root).unwrap();
        std::fs::set_permissions(&config.root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Claim::take(&config), Err(ClaimError::Unsafe { .. })));
    }
}
