//! What a disk does not let go of: a read-only or broken disk keeps the files of an object that has ended. Stopping and
//! removing do not fail for that, since nothing of the object runs or is held any more: its files are removed as soon as
//! the disk lets them be. A daemon that starts before that finds them, and takes them for an object that has ended.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use tracing::Instrument;

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::ids::{ContainerId, PodId};
use crate::store::file::{self, FileError};

/// How long after a failure the next attempt comes, at first and at most.
const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(60);

/// Files of an object that has ended.
#[derive(Clone, Debug)]
pub enum Leftover {
    /// What is recorded of a pod's network: its addresses are taken until they are given back.
    Attachment(PodId),
    /// A container's writable layer.
    Layer(ContainerId),
    /// A folder of a pod or container.
    Folder(PathBuf),
}

/// Why a leftover could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Of the network.
    #[error(transparent)]
    Network(#[from] berth_cni::Error),
    /// Of the image store.
    #[error(transparent)]
    Layer(#[from] berth_image::Error),
    /// Of the store.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// The attempt itself failed.
    #[error(transparent)]
    Attempt(#[from] CriError),
}

impl RemoveError {
    /// The disk refuses to change anything.
    fn is_of_the_disk(&self) -> bool {
        let cause = match self {
            Self::Network(error) => error.cause_in_files(),
            Self::Layer(error) => error.cause_in_files(),
            Self::Folder(error) => Some(error.cause()),
            Self::Attempt(_) => None,
        };
        cause.is_some_and(refuses_all)
    }
}

impl From<RemoveError> for CriError {
    fn from(error: RemoveError) -> Self {
        match error {
            RemoveError::Network(error) => error.into(),
            RemoveError::Layer(error) => error.into(),
            RemoveError::Folder(error) => error.into(),
            RemoveError::Attempt(error) => error,
        }
    }
}

/// Whether a disk refuses every change (errno(3)): it is read-only, full to the last block of a folder, or broken.
fn refuses_all(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::ROFS | Errno::NOSPC | Errno::DQUOT | Errno::IO))
}

/// Removes files of an object that has ended, now or, where the disk refuses, as soon as it lets them be removed.
///
/// # Errors
/// They cannot be removed for another reason.
pub async fn remove(daemon: &Shared, leftover: Leftover) -> Result<(), RemoveError> {
    match attempt(daemon, &leftover).await {
        Err(error) if error.is_of_the_disk() => {
            tracing::warn!(?leftover, %error, "the disk does not let go of what has ended: it is removed later");
            let daemon = daemon.clone();
            tokio::spawn(async move { remove_later(&daemon, &leftover).await }.in_current_span());
            Ok(())
        }
        done => done,
    }
}

async fn remove_later(daemon: &Shared, leftover: &Leftover) {
    let mut pause = SOON;
    loop {
        tokio::time::sleep(pause).await;
        match attempt(daemon, leftover).await {
            Ok(()) => return tracing::info!(?leftover, "removed what the disk did not let go of"),
            Err(error) => tracing::debug!(?leftover, %error, "the disk still does not let go"),
        }
        pause = (pause * 2).min(LATE);
    }
}

async fn attempt(daemon: &Shared, leftover: &Leftover) -> Result<(), RemoveError> {
    match leftover {
        Leftover::Attachment(pod) => {
            let netns = daemon.store.pod(pod.as_str()).ok().and_then(|pod| pod.netns());
            Ok(daemon.network.del(pod.as_str(), netns.as_ref().map(std::os::fd::AsFd::as_fd)).await?)
        }
        Leftover::Layer(container) => Ok(daemon.images.remove_layer(container.as_str()).await?),
        Leftover::Folder(folder) => {
            let folder = folder.clone();
            blocking(move || Ok::<_, CriError>(file::remove_folder(&folder))).await?.map_err(Into::into)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_refuses_everything_is_waited_for() {
        for errno in [Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::IO] {
            assert!(refuses_all(&errno.into()), "{errno:?}");
        }
        for errno in [Errno::BUSY, Errno::NOTEMPTY, Errno::PERM, Errno::MFILE] {
            assert!(!refuses_all(&errno.into()), "{errno:?}");
        }
    }
}
