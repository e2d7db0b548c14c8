//! One daemon per root and state folder: a lock that the kernel gives back when the daemon dies, however it dies.

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

/// How long the lock of a daemon that has ended may be held on: a child that it was starting when it was killed has its
/// descriptors until its exec.
const LAST_CHILDREN: Duration = Duration::from_secs(5);

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
    let until = Instant::now() + LAST_CHILDREN;
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
    // The lock is what counts; the pid is for the message of another daemon. A full disk does not take it, and a daemon
    // must start on one: only then can the kubelet evict what fills it.
    if writable && let Err(error) = write_pid(&file) {
        tracing::warn!(%error, path = %path.display(), "failed to write the pid into the lock");
    }
    Ok(file)
}

/// Who has the lock, as it wrote into it; none where it is about to.
fn holder(file: &File) -> Option<Pid> {
    let mut text = [0_u8; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    Pid::from_raw(std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()?)
}

fn is_alive(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) != Err(Errno::SRCH)
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
    fn the_last_child_of_a_daemon_that_has_ended_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        drop(Claim::take(&config).unwrap());
        // No process has the greatest pid that there can be.
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
