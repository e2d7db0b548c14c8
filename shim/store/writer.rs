//! Writes the records of what has happened, in one background thread: a disk that hangs blocks only the writes to it. A
//! write that fails is repeated until it succeeds.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::file::FileError;

/// How long after a failure the next attempt comes, at first and at most.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(10);

/// A record whose file is out of date.
pub(super) trait Unwritten: Send + Sync + std::fmt::Debug {
    /// Writes it as it is now.
    ///
    /// # Errors
    /// The disk refuses.
    fn write(&self) -> Result<(), FileError>;
}

/// Takes records to write. Clones share one thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct RecordWriter {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// Ends the thread when the last clone is dropped.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Arc<dyn Unwritten>>,
    /// Records that are being written or have failed.
    in_progress: usize,
    closed: bool,
}

impl RecordWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// There are too many threads.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = shared.clone();
        std::thread::Builder::new().name("berth-records".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared: shared.clone(), _open: Arc::new(Open { shared }) })
    }

    /// Writes a record soon, and again until that succeeds.
    pub(super) fn write(&self, record: Arc<dyn Unwritten>) {
        self.shared.queue().waiting.push(record);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, but no longer than `patience`; whether it is.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut queue = self.shared.queue();
        while !queue.waiting.is_empty() || queue.in_progress > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.wait(queue, left);
        }
        true
    }

    /// How many records are not on disk yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        let queue = self.shared.queue();
        queue.waiting.len() + queue.in_progress
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, longest: Duration) -> MutexGuard<'a, Queue> {
        self.changed.wait_timeout(queue, longest).unwrap_or_else(PoisonError::into_inner).0
    }

    fn run(&self) {
        let mut failed: Vec<Arc<dyn Unwritten>> = Vec::new();
        let mut pause = SOON;
        loop {
            let Some(new) = self.next(&failed, pause) else { return };
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
                    tracing::error!(%error, records = failed.len(), "failed to write records: they are written later");
                }
                Some(_) => {}
                None if was_failing => tracing::info!(records = count, "records are written again"),
                None => {}
            }
            pause = if failed.is_empty() { SOON } else { (pause * 2).min(LATE) };
            self.queue().in_progress = failed.len();
            self.changed.notify_all();
        }
    }

    /// What has come, after waiting for it; where writes have failed, no longer than until these are tried again. Nothing at
    /// the end.
    fn next(&self, failed: &[Arc<dyn Unwritten>], pause: Duration) -> Option<Vec<Arc<dyn Unwritten>>> {
        let until = Instant::now() + pause;
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
            let left = if failed.is_empty() { LATE } else { until.saturating_duration_since(Instant::now()) };
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
