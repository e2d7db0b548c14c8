//! What the store takes of the disk. Images are counted when they come; what containers write, and what waits to be deleted,
//! is counted by a thread of its own, and only when somebody has asked.

use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Inner;
use super::reaper;
use super::record::DiskUsage;
use super::walk::measure;
use crate::image::{FsUsage, Usage};

/// The kubelet asks every ten seconds; this often it gets new figures.
const REFRESH: Duration = Duration::from_secs(5);

/// What the thread is asked to do: to count again.
#[derive(Debug)]
pub(super) struct Count;

pub(super) fn run(store: &Weak<Inner>, inbox: &Receiver<Count>) {
    while let Ok(Count) = inbox.recv() {
        let Some(inner) = store.upgrade() else { return };
        inner.measure();
    }
}

/// When was counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    state: Mutex<Counting>,
}

#[derive(Debug, Default)]
struct Counting {
    under_way: bool,
    done: Option<Instant>,
}

impl Inner {
    pub(super) fn usage(&self) -> Usage {
        self.refresh();
        // Who looks at the disk's use waits for space: what could not be deleted is tried again.
        if self.trash.is_stuck() {
            self.reaper.send(reaper::Job::Retry);
        }
        let trash = self.trash.usage();
        let index = self.index();
        let (image, containers) = (sum([index.image_usage(), trash].into_iter()), index.container_usage());
        let mountpoint = self.folders.root().to_owned();
        Usage {
            image: FsUsage { mountpoint: mountpoint.clone(), bytes: image.bytes, inodes: image.inodes },
            containers: FsUsage { mountpoint, bytes: containers.bytes, inodes: containers.inodes },
        }
    }

    /// What a container has written, as it was last counted.
    pub(super) fn layer_usage(&self, container_id: &str) -> Option<FsUsage> {
        self.refresh();
        let usage = self.index().containers.get(container_id)?.usage;
        Some(FsUsage { mountpoint: self.folders.root().to_owned(), bytes: usage.bytes, inodes: usage.inodes })
    }

    fn refresh(&self) {
        let mut counting = self.counters.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !counting.under_way && counting.done.is_none_or(|done| done.elapsed() > REFRESH) {
            counting.under_way = true;
            self.meter.send(Count);
        }
    }

    fn measure(&self) {
        let ids: Vec<String> = self.index().containers.keys().cloned().collect();
        for id in ids {
            match measure(&self.folders.container(&id)) {
                Ok(usage) => {
                    if let Some(container) = self.index().containers.get_mut(&id) {
                        container.usage = usage;
                    }
                }
                Err(error) => tracing::warn!(container = id, %error, "measure a writable layer"),
            }
        }
        self.trash.measure();
        let mut counting = self.counters.state.lock().unwrap_or_else(PoisonError::into_inner);
        *counting = Counting { under_way: false, done: Some(Instant::now()) };
    }
}

/// The sum of several.
pub(super) fn sum(parts: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    parts.fold(DiskUsage::default(), |sum, part| DiskUsage {
        bytes: sum.bytes.saturating_add(part.bytes),
        inodes: sum.inodes.saturating_add(part.inodes),
    })
}
