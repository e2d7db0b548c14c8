//! Exclusive use of the root and state folders by one daemon, through a lock that the kernel releases however
//! the daemon dies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::config::Config;

/// Why a folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon holds it.
    #[error("failed to lock {}: another berth, process {pid}, is using it; each daemon needs separate folders", folder.display())]
    Held {
        /// Path of the folder.
        folder: PathBuf,
        /// The pid that the other daemon wrote into the lock file.
        pid: String,
    },
    /// Other users could change files that berth trusts.
    #[error("invalid folder {}: it {why}; berth trusts its content", folder.display())]
    Unsafe {
        /// Path of the folder.
        folder: PathBuf,
        /// Why it is unsafe.
        why: &'static str,
    },
    /// It cannot be created or locked.
    #[error("failed to {action} {}: {error}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
}

/// How long the lock of a dead daemon may still be held: a child that it was starting when it was killed has
/// its descriptors until the child's exec.
const CHILD_EXEC_TIMEOUT: Duration = Duration::from_secs(5);

/// The locks of the root and state folders, held while this value lives.
#[derive(Debug)]
pub struct Claim {
    // The descriptors hold the locks. They are close-on-exec, so no keeper keeps them.
    _locks: Vec<File>,
}

impl Claim {
    /// Creates the folders if they are missing, and locks them.
    ///
    /// # Errors
    /// Another daemon holds one of them, or they cannot be used.
    pub fn take(config: &Config) -> Result<Self, ClaimError> {
        // Only root may read images and records. The state folder contains the socket, whose mode decides who
        // may connect.
        let root = folder(&config.root, 0o700)?;
        let state = folder(&config.state, 0o711)?;
        let mut locks = vec![lock(&config.root)?];
        if root != state {
            locks.push(lock(&config.state)?);
        }
        Ok(Self { _locks: locks })
    }

    /// Checks that no daemon uses the folders. Nothing is created or changed.
    ///
    /// # Errors
    /// A daemon holds one of them, or they cannot be read.
    pub fn check_free(config: &Config) -> Result<(), ClaimError> {
        check_lock(&config.root)?;
        if config.state == config.root { Ok(()) } else { check_lock(&config.state) }
    }
}

/// Returns an error if a daemon holds the lock of a folder. A folder or lock that does not exist is free.
fn check_lock(folder: &Path) -> Result<(), ClaimError> {
    let path = folder.join("lock");
    let io_error = |action| {
        let path = path.clone();
        move |error: io::Error| ClaimError::Io { action, path, error }
    };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(io_error("open"))?,
    };
    // A daemon that starts at this moment tries again for some seconds.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let pid =
                holder(&file).map_or_else(|| "unknown".to_owned(), |pid| pid.as_raw_nonzero().to_string());
            Err(ClaimError::Held { folder: folder.to_owned(), pid })
        }
        Err(error) => Err(io_error("lock")(error.into())),
    }
}

/// Creates a folder and returns its device and inode.
fn folder(path: &Path, mode: u32) -> Result<(u64, u64), ClaimError> {
    let io_error = |action| move |error| ClaimError::Io { action, path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io_error("create the parent folder of"))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create folder")(error)),
    }
    let metadata = std::fs::metadata(path).map_err(io_error("stat"))?;
    let unsafe_folder = |why| Err(ClaimError::Unsafe { folder: path.to_owned(), why });
    if !metadata.is_dir() {
        return unsafe_folder("is not a folder");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return unsafe_folder("belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return unsafe_folder("can be written by others");
    }
    Ok((metadata.dev(), metadata.ino()))
}

fn lock(folder: &Path) -> Result<File, ClaimError> {
    let path = folder.join("lock");
    let io_error = |action| {
        let path = path.clone();
        move |error: io::Error| ClaimError::Io { action, path, error }
    };
    let (file, writable) = open_lock(&path).map_err(io_error("open"))?;
    let until = Instant::now() + CHILD_EXEC_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {
                let pid = holder(&file);
                if pid.is_some_and(is_alive) || Instant::now() > until {
                    let pid =
                        pid.map_or_else(|| "unknown".to_owned(), |pid| pid.as_raw_nonzero().to_string());
                    return Err(ClaimError::Held { folder: folder.to_owned(), pid });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(io_error("lock")(error.into())),
        }
    }
    // The lock is sufficient; the pid only helps another daemon's error message. A full disk does not accept
    // it, and a daemon must be able to start on one: only then can the kubelet evict pods to free space.
    if writable && let Err(error) = write_pid(&file) {
        tracing::warn!(%error, path = %path.display(), "failed to write the pid into the lock file");
    }
    Ok(file)
}

/// Reads the holder's pid from the lock file; none if it was not written yet.
fn holder(file: &File) -> Option<Pid> {
    let mut text = [0_u8; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    Pid::from_raw(std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()?)
}

fn is_alive(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) != Err(Errno::SRCH)
}

/// Opens the lock file. Returns it and whether it is writable. On a disk that became read-only, an existing
/// lock can still be taken (flock(2) does not require write access).
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
    // Overwrite before truncating: a full disk would not give the freed block back.
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
    fn a_second_daemon_gets_the_pid_of_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let claim = Claim::take(&config).unwrap();
        let second = Claim::take(&config).unwrap_err().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        let other_root = Config { root: folder.path().join("other"), ..config.clone() };
        assert!(
            matches!(Claim::take(&other_root), Err(ClaimError::Held { folder, .. }) if folder == config.state)
        );
        assert!(matches!(Claim::check_free(&config), Err(ClaimError::Held { .. })));
        drop(claim);
        Claim::check_free(&config).unwrap();
        let unused = Config { root: folder.path().join("unused"), ..config.clone() };
        Claim::check_free(&unused).unwrap();
        assert!(!unused.root.exists(), "a check creates nothing");
        Claim::take(&config).unwrap();
    }

    #[test]
    fn the_lock_waits_for_the_last_child_of_a_dead_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        drop(Claim::take(&config).unwrap());
        // No process has the largest possible pid.
        let lock = config.root.join("lock");
        std::fs::write(&lock, "4194304\n").unwrap();
        let held = File::open(&lock).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        Claim::take(&config).unwrap();
        child.join().unwrap();
    }

    #[test]
    fn folders_are_created_private() {
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
    fn a_folder_writable_by_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        std::fs::create_dir_all(&config.root).unwrap();
        std::fs::set_permissions(&config.root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Claim::take(&config), Err(ClaimError::Unsafe { .. })));
    }
}
