//! Disk usage, and the measurement of a container's.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The age up to which a measurement is used. The kubelet requests one every ten seconds.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The measurement of a layer may take at most one part in this many of the time: a layer with a million
/// files takes seconds.
const DUTY: u32 = 10;

/// The disk usage of a folder, counted as by `du`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl DiskUsage {
    pub(super) fn without(self, part: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(part.bytes), inodes: self.inodes.saturating_sub(part.inodes) }
    }
}

/// Returns the sum of several usages.
pub(super) fn sum(parts: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    parts.fold(DiskUsage::default(), |sum, part| DiskUsage {
        bytes: sum.bytes.saturating_add(part.bytes),
        inodes: sum.inodes.saturating_add(part.inodes),
    })
}

/// The measured usage of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) usage: DiskUsage,
    /// The time of the measurement, in nanoseconds since the epoch.
    pub(super) at: i64,
    pub(super) done: Instant,
    pub(super) took: Duration,
}

impl Measured {
    /// Returns whether it should be measured again.
    pub(super) fn is_due(&self) -> bool {
        self.done.elapsed() > MAX_AGE.max(self.took.saturating_mul(DUTY))
    }
}
