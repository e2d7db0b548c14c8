//! What the store takes of the disk. Images are counted when they come. What containers have written is counted when
//! somebody asks, away from the request: that waits for the figures, but not for long, and each figure says when it was
//! measured.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;

use super::record::DiskUsage;
use super::walk::measure;
use super::{ImageStore, Inner, reaper};
use crate::error::blocking;
use crate::image::{FsUsage, Usage};

/// For how long a figure is good: the kubelet asks every ten seconds.
const FRESH: Duration = Duration::from_secs(5);

/// A layer is not counted for more than one part in so many of the time: one of a million files takes seconds.
const DUTY: u32 = 10;

/// How long a request waits for figures. What takes longer is counted nevertheless, for the next one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held while layers are counted: by one walker, however many ask.
#[derive(Debug, Default)]
pub(super) struct Counters {
    walking: Arc<Mutex<()>>,
}

/// What a container had written at some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) usage: DiskUsage,
    /// Nanoseconds since the epoch.
    pub(super) at: i64,
    done: Instant,
    took: Duration,
}

impl Measured {
    /// Whether it is time to count again.
    fn is_due(&self) -> bool {
        self.done.elapsed() > FRESH.max(self.took.saturating_mul(DUTY))
    }
}

impl ImageStore {
    /// Counts what these containers have written, where that was not done a moment ago, and waits for it within bounds.
    pub async fn measure_layers(&self, containers: &[String]) {
        let until = tokio::time::Instant::now() + PATIENCE;
        let measured = async {
            loop {
                let due = self.inner.due(containers);
                if due.is_empty() {
                    return;
                }
                let walking = self.inner.counters.walking.clone();
                let Ok(walking) = walking.clone().try_lock_owned() else {
                    // Somebody counts: perhaps these, too.
                    drop(walking.lock_owned().await);
                    continue;
                };
                let inner = self.inner.clone();
                // Not ended by a request that does not wait any longer.
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
        // Answered with what there is.
        drop(tokio::time::timeout_at(until, measured).await);
    }

    /// The same for all containers, and for what waits to be deleted.
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
        // Nor is this waited for longer.
        drop(tokio::time::timeout(PATIENCE, measured).await);
    }
}

impl Inner {
    pub(super) fn usage(&self) -> Usage {
        // Who looks at the disk's use waits for space: what could not be deleted is tried again.
        if self.trash.is_stuck() {
            self.reaper.send(reaper::Job::Retry);
        }
        let trash = self.trash.usage();
        let index = self.index();
        let (image, containers) = (sum([index.image_usage(), trash].into_iter()), index.container_usage());
        let at = |at| FsUsage { mountpoint: self.folders.root().to_owned(), bytes: 0, inodes: 0, at };
        // Of many figures the oldest says how old the sum is.
        let measured = index.containers.values().filter_map(|entry| entry.usage.map(|measured| measured.at));
        let oldest = measured.min().unwrap_or_else(now);
        Usage {
            image: FsUsage { bytes: image.bytes, inodes: image.inodes, ..at(now()) },
            containers: FsUsage { bytes: containers.bytes, inodes: containers.inodes, ..at(oldest) },
        }
    }

    /// What a container has written, as it was last counted.
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
                // Not tried again at once; the figure stays, with its time.
                if let Some(last) = self.index().containers.get_mut(id).and_then(|found| found.usage.as_mut())
                {
                    last.done = Instant::now();
                }
            }
        }
    }
}

/// The sum of several.
pub(super) fn sum(parts: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    parts.fold(DiskUsage::default(), |sum, part| DiskUsage {
        bytes: sum.bytes.saturating_add(part.bytes),
        inodes: sum.inodes.saturating_add(part.inodes),
    })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
