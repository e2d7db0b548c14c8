//! The disk usage of the store. Images are measured when they are added. Writable layers are measured on
//! request, in a separate thread. The request waits for the result for a limited time, and each result has
//! the time of its measurement.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;

use super::disk_usage::{Measured, sum};
use super::jobs::DeletionJob;
use super::walk::measure;
use super::{ImageStore, Inner};
use crate::error::blocking;
use crate::image::{FsUsage, Usage};

/// The time for which a request waits for measurements. A measurement that takes longer continues for the
/// next request.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Serializes measurements: one thread measures, however many requests there are.
#[derive(Debug, Default)]
pub(super) struct Counters {
    walking: Arc<Mutex<()>>,
}

impl ImageStore {
    /// Measures the writable layers of these containers, unless that was done recently, and waits for a
    /// limited time.
    pub async fn measure_layers(&self, containers: &[String]) {
        let until = tokio::time::Instant::now() + MAX_WAIT;
        let measured = async {
            loop {
                let due = self.inner.due(containers);
                if due.is_empty() {
                    return;
                }
                let walking = self.inner.counters.walking.clone();
                let Ok(walking) = walking.clone().try_lock_owned() else {
                    // Another request measures, perhaps these layers.
                    drop(walking.lock_owned().await);
                    continue;
                };
                let inner = self.inner.clone();
                // In its own task, so that it continues when the request stops waiting.
                let walk = tokio::spawn(blocking("measure writable layers", move || {
                    let _walking = walking;
                    due.iter().for_each(|id| inner.measure_container(id));
                    Ok(())
                }));
                if let Ok(Err(error)) = walk.await {
                    tracing::warn!(%error, "failed to measure writable layers");
                }
                return;
            }
        };
        // After the timeout, the last measurements are used.
        drop(tokio::time::timeout_at(until, measured).await);
    }

    /// Measures the writable layers of all containers, and the trash.
    pub async fn measure_all_layers(&self) {
        let all: Vec<String> = self.inner.index().containers.keys().cloned().collect();
        self.measure_layers(&all).await;
        if self.inner.trash.is_empty() {
            return;
        }
        let inner = self.inner.clone();
        let measured = blocking("measure the trash", move || {
            inner.trash.measure();
            Ok(())
        });
        // This wait is limited as well.
        drop(tokio::time::timeout(MAX_WAIT, measured).await);
    }
}

impl Inner {
    pub(super) fn usage(&self) -> Usage {
        // A request for the usage may mean that space is short: failed deletions are retried.
        if self.trash.is_stuck() {
            self.reaper.send(DeletionJob::Retry);
        }
        let trash = self.trash.usage();
        let index = self.index();
        let (image, containers) = (sum([index.image_usage(), trash].into_iter()), index.container_usage());
        let at = |at| FsUsage { mountpoint: self.folders.root().to_owned(), bytes: 0, inodes: 0, at };
        // The time of the sum is that of its oldest part.
        let measured = index.containers.values().filter_map(|entry| entry.usage.map(|measured| measured.at));
        let oldest = measured.min().unwrap_or_else(now);
        Usage {
            image: FsUsage { bytes: image.bytes, inodes: image.inodes, ..at(now()) },
            containers: FsUsage { bytes: containers.bytes, inodes: containers.inodes, ..at(oldest) },
        }
    }

    /// Returns the last measured usage of a container.
    pub(super) fn layer_usage(&self, container_id: &str) -> Option<FsUsage> {
        let Measured { usage, at, .. } = self.index().containers.get(container_id)?.usage?;
        let mountpoint = self.folders.root().to_owned();
        Some(FsUsage { mountpoint, bytes: usage.bytes, inodes: usage.inodes, at })
    }

    fn due(&self, containers: &[String]) -> Vec<String> {
        let index = self.index();
        let is_due = |id: &&String| {
            index.containers.get(*id).is_some_and(|entry| entry.usage.is_none_or(|last| last.is_due()))
        };
        containers.iter().filter(is_due).cloned().collect()
    }

    fn measure_container(&self, id: &str) {
        let (at, start) = (now(), Instant::now());
        let by_project = self.usage_by_project(id);
        let is_walked = by_project.is_none();
        match by_project.map_or_else(|| measure(&self.folders.container(id)), Ok) {
            Ok(usage) => {
                if is_walked {
                    self.audit_project(id, usage, start.elapsed());
                }
                let measured = Measured { usage, at, done: Instant::now(), took: start.elapsed() };
                if let Some(container) = self.index().containers.get_mut(id) {
                    container.usage = Some(measured);
                }
            }
            Err(error) => {
                tracing::warn!(container = id, %error, "failed to measure a writable layer");
                // It is not retried immediately. The last measurement remains, with its time.
                if let Some(last) = self.index().containers.get_mut(id).and_then(|entry| entry.usage.as_mut())
                {
                    last.done = Instant::now();
                }
            }
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
