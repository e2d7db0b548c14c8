//! Counts pulls by their result, with their duration.

use std::sync::Arc;
use std::time::Instant;

use crate::instruments::{Instruments, PullResult};

/// A pull that is counted when this is dropped: as cancelled, unless its result is known.
#[derive(Debug)]
pub(super) struct MeasuredPull {
    instruments: Arc<Instruments>,
    started: Instant,
    result: PullResult,
}

impl MeasuredPull {
    pub(super) fn start(instruments: Arc<Instruments>) -> Self {
        Self { instruments, started: Instant::now(), result: PullResult::Cancelled }
    }

    /// Records the result of the pull.
    pub(super) fn ended<T, E>(mut self, result: &Result<T, E>) {
        self.result = if result.is_ok() { PullResult::Success } else { PullResult::Failure };
    }
}

impl Drop for MeasuredPull {
    fn drop(&mut self) {
        self.instruments.pull_ended(self.result, self.started.elapsed());
    }
}
