//! The sizes of container logs. The kubelet names the log folders, and their disk may hang: the wait is limited, and
//! only one thread reads sizes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::ids::ContainerId;

/// The longest wait for the sizes of all logs.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Held by the thread that reads sizes.
static READING: Semaphore = Semaphore::const_new(1);

/// Returns the disk usage of log files in bytes. Logs that cannot be read in time are left out.
pub(super) async fn sizes(logs: Vec<(ContainerId, String)>) -> HashMap<ContainerId, u64> {
    sizes_by(logs, size, MAX_WAIT).await
}

async fn sizes_by(
    logs: Vec<(ContainerId, String)>,
    size: impl Fn(&str) -> Option<u64> + Send + 'static,
    max_wait: Duration,
) -> HashMap<ContainerId, u64> {
    let sizes = Arc::new(Mutex::new(HashMap::new()));
    let shared = sizes.clone();
    let read = async {
        let Ok(permit) = READING.acquire().await else { return };
        // The thread continues when the request stops waiting, and holds the permit until it ends.
        let thread = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            for (id, path) in logs {
                if let Some(bytes) = size(&path) {
                    shared.lock().unwrap_or_else(PoisonError::into_inner).insert(id, bytes);
                }
            }
        });
        drop(thread.await);
    };
    if tokio::time::timeout(max_wait, read).await.is_err() {
        tracing::warn!("timed out while reading the sizes of container logs");
    }
    let mut sizes = sizes.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *sizes)
}

/// Returns the disk usage of a file. As in `du`, blocks are counted (stat(3type): units of 512 bytes).
fn size(path: &str) -> Option<u64> {
    let file = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(file.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hung_disk_delays_a_request_by_a_limited_time() {
        const SHORT: Duration = Duration::from_millis(100);
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let logs = || ["answers", "hangs"].map(|path| (ContainerId::random(), path.to_owned())).to_vec();
        let first = logs();
        let hanging = move |path: &str| {
            if path == "hangs" {
                let _released = hung.recv();
            }
            Some(7)
        };
        // The wait is long enough for the log that answers.
        let found = sizes_by(first.clone(), hanging, Duration::from_secs(2)).await;
        assert_eq!(found, HashMap::from([(first[0].0.clone(), 7)]));
        // While this thread hangs, no other is started.
        let found = sizes_by(logs(), |_| panic!("a second thread"), SHORT).await;
        assert_eq!(found, HashMap::new());
        drop(release);
        let found = sizes_by(logs(), |_| Some(8), Duration::from_secs(60)).await;
        assert_eq!(found.len(), 2, "the next request reads sizes again");
    }

    #[test]
    fn only_a_file_has_a_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("log"), [0; 5000]).unwrap();
        std::os::unix::fs::symlink(path("log"), path("link")).unwrap();
        assert!(size(&path("log")).unwrap() >= 4096);
        assert_eq!((size(&path("link")), size(&path("none"))), (None, None));
    }
}
