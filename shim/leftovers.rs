//! Files that the disk does not remove: a read-only or broken disk keeps the files of an object that has ended. Stop
//! and remove calls succeed anyway, since nothing of the object runs or is held. The files are removed as soon as the
//! disk permits it. If the daemon restarts before that, it finds them and treats them as an object that has ended.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_image::ImageStore;
use rustix::io::Errno;
use tracing::Instrument;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::ids::{ContainerId, PodId};
use crate::network::PodNetwork;
use crate::store::Store;
use crate::store::file::{self, FileError};

/// The delay before the first retry, and the longest delay.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Files of an object that has ended, with what removes them.
#[derive(Clone)]
pub enum Leftover {
    /// The record of a pod's network. Its addresses are in use until they are released.
    Attachment {
        /// The network.
        network: Arc<PodNetwork>,
        /// The pods, for the pod's network namespace.
        store: Arc<Store>,
        /// The pod.
        pod: PodId,
    },
    /// A container's writable layer.
    Layer {
        /// The store of the layer.
        images: ImageStore,
        /// The container.
        container: ContainerId,
    },
    /// A folder of a pod or container.
    Folder(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attachment { pod, .. } => write!(f, "network of pod {pod}"),
            Self::Layer { container, .. } => write!(f, "writable layer of container {container}"),
            Self::Folder(folder) => write!(f, "folder {}", folder.display()),
        }
    }
}

impl fmt::Debug for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The reason why a leftover could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The network failed.
    #[error(transparent)]
    Network(#[from] berth_cni::Error),
    /// The image store failed.
    #[error(transparent)]
    Layer(#[from] berth_image::Error),
    /// The removal of a folder failed.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// The attempt itself failed.
    #[error(transparent)]
    Attempt(#[from] CriError),
}

impl RemoveError {
    /// Whether the disk refuses every change.
    fn is_disk_refusal(&self) -> bool {
        let cause = match self {
            Self::Network(error) => error.cause_in_files(),
            Self::Layer(error) => error.cause_in_files(),
            Self::Folder(error) => Some(error.cause()),
            Self::Attempt(_) => None,
        };
        cause.is_some_and(refuses_every_change)
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

/// Whether an error means that the disk refuses every change (errno(3)): it is read-only, full or broken.
fn refuses_every_change(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::ROFS | Errno::NOSPC | Errno::DQUOT | Errno::IO))
}

/// Removes files of an object that has ended. If the disk refuses, they are removed later in the background.
///
/// # Errors
/// The files cannot be removed for another reason.
pub async fn remove(leftover: Leftover) -> Result<(), RemoveError> {
    match attempt(&leftover).await {
        Err(error) if error.is_disk_refusal() => {
            tracing::warn!(%leftover, %error, "the disk refuses to remove files of an ended object; retrying later");
            tokio::spawn(async move { remove_later(&leftover).await }.in_current_span());
            Ok(())
        }
        done => done,
    }
}

async fn remove_later(leftover: &Leftover) {
    let mut pause = FIRST_RETRY;
    loop {
        tokio::time::sleep(pause).await;
        match attempt(leftover).await {
            Ok(()) => return tracing::info!(%leftover, "removed the files of an ended object"),
            Err(error) => tracing::debug!(%leftover, %error, "the disk still refuses to remove the files"),
        }
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

async fn attempt(leftover: &Leftover) -> Result<(), RemoveError> {
    match leftover {
        Leftover::Attachment { network, store, pod } => {
            let netns = store.pod(pod.as_str()).ok().and_then(|pod| pod.netns());
            Ok(network.detach(pod.as_str(), netns.as_ref().map(std::os::fd::AsFd::as_fd)).await?)
        }
        Leftover::Layer { images, container } => Ok(images.remove_layer(container.as_str()).await?),
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
    fn only_a_disk_that_refuses_every_change_is_retried() {
        for errno in [Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::IO] {
            assert!(refuses_every_change(&errno.into()), "{errno:?}");
        }
        for errno in [Errno::BUSY, Errno::NOTEMPTY, Errno::PERM, Errno::MFILE] {
            assert!(!refuses_every_change(&errno.into()), "{errno:?}");
        }
    }
}
