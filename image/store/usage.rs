//! What the store takes of the disk. Images are counted when they come; what containers write is counted in the
//! background, and only when somebody has asked.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Inner;
use super::reaper::Job;
use super::walk::measure;
use crate::image::{FsUsage, Usage};

/// The kubelet asks every ten seconds; this often it gets new figures.
const REFRESH: Duration = Duration::from_secs(5);

/// When containers' layers were counted.
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
        self.refresh_containers();
        let index = self.index();
        let (image, containers) = (index.image_usage(), index.container_usage());
        let mountpoint = self.folders.root().to_owned();
        Usage {
            image: FsUsage { mountpoint: mountpoint.clone(), bytes: image.bytes, inodes: image.inodes },
            containers: FsUsage { mountpoint, bytes: containers.bytes, inodes: containers.inodes },
        }
    }

    /// What a container has written, as it was last counted.
    pub(super) fn layer_usage(&self, container_id: &str) -> Option<FsUsage> {
        self.refresh_containers();
        let usage = self.index().containers.get(container_id)?.usage;
        Some(FsUsage { mountpoint: self.folders.root().to_owned(), bytes: usage.bytes, inodes: usage.inodes })
    }

    fn refresh_containers(&self) {
        let mut counting = self.counters.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !counting.under_way && counting.done.is_none_or(|done| done.elapsed() > REFRESH) {
            counting.under_way = true;
            self.reaper.send(Job::MeasureContainers);
        }
    }

    pub(super) fn measure_containers(&self) {
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
        let mut counting = self.counters.state.lock().unwrap_or_else(PoisonError::into_inner);
        *counting = Counting { under_way: false, done: Some(Instant::now()) };
    }
}
