//! Writes changed records in one background thread, so that a hanging disk blocks only the writes to it. A
//! failed write is repeated until it succeeds.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::file::FileError;

/// Delays between attempts after a failure: the first one and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A record with a file that is older than its value.
pub(super) trait PendingWrite: Send + Sync + std::fmt::Debug {
    /// Writes the current value.
    ///
    /// # Errors
    /// The file cannot be written.
    fn write(&self) -> Result<(), FileError>;
}

/// Queues records to be written. Clones share one thread, which exits after the last one is dropped.
#[derive(Clone, Debug)]
pub struct RecordWriter {
    state: Arc<WriterState>,
    _close: Arc<CloseOnDrop>,
}

/// Stops the thread when the last clone is dropped.
#[derive(Debug)]
struct CloseOnDrop {
    state: Arc<WriterState>,
}

#[derive(Debug, Default)]
struct WriterState {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Arc<dyn PendingWrite>>,
    /// The number of records that are being written or failed to be.
    in_progress: usize,
    closed: bool,
}

impl RecordWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start() -> std::io::Result<Self> {
        let state = Arc::new(WriterState::default());
        let worker = state.clone();
        std::thread::Builder::new().name("berth-records".to_owned()).spawn(move || worker.run())?;
        Ok(Self { state: state.clone(), _close: Arc::new(CloseOnDrop { state }) })
    }

    /// Queues a record; its write is repeated until it succeeds.
    pub(super) fn write(&self, record: Arc<dyn PendingWrite>) {
        self.state.queue().waiting.push(record);
        self.state.changed.notify_all();
    }

    /// Waits up to `timeout` until all records are written and returns whether they are.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut queue = self.state.queue();
        while !queue.waiting.is_empty() || queue.in_progress > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.state.wait(queue, left);
        }
        true
    }

    /// Returns the number of records that are not written yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        let queue = self.state.queue();
        queue.waiting.len() + queue.in_progress
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.state.queue().closed = true;
        self.state.changed.notify_all();
    }
}

impl WriterState {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, longest: Duration) -> MutexGuard<'a, Queue> {
        self.changed.wait_timeout(queue, longest).unwrap_or_else(PoisonError::into_inner).0
    }

    fn run(&self) {
        let mut failed: Vec<Arc<dyn PendingWrite>> = Vec::new();
        let mut delay = RETRY_MIN;
        loop {
            let Some(new) = self.next(&failed, delay) else { return };
            let was_failing = !failed.is_empty();
            failed.extend(new);
            let count = failed.len();
            let mut reason = None;
            failed.retain(|record| match record.write() {
                Ok(()) => false,
                Err(error) => {
                    reason.get_or_insert(error);
                    true
                }
            });
            match reason {
                Some(error) if !was_failing => {
                    tracing::error!(%error, records = failed.len(), "failed to write records, will retry");
                }
                Some(_) => {}
                None if was_failing => {
                    tracing::info!(records = count, "wrote records that had failed before")
                }
                None => {}
            }
            delay = if failed.is_empty() { RETRY_MIN } else { (delay * 2).min(RETRY_MAX) };
            self.queue().in_progress = failed.len();
            self.changed.notify_all();
        }
    }

    /// Waits for new records and returns them. If writes have failed, returns after `delay` at the latest.
    /// Returns none when the writer is closed.
    fn next(&self, failed: &[Arc<dyn PendingWrite>], delay: Duration) -> Option<Vec<Arc<dyn PendingWrite>>> {
        let until = Instant::now() + delay;
        let mut queue = self.queue();
        loop {
            if !queue.waiting.is_empty() {
                let new = std::mem::take(&mut queue.waiting);
                queue.in_progress = failed.len() + new.len();
                return Some(new);
            }
            if queue.closed {
                return None;
            }
            let left =
                if failed.is_empty() { RETRY_MAX } else { until.saturating_duration_since(Instant::now()) };
            if left.is_zero() {
                return Some(Vec::new());
            }
            queue = match failed.is_empty() {
                true => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                false => self.wait(queue, left),
            };
        }
    }
}
