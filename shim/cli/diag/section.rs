//! A part of a page that may not be available: files and the kernel can hang. The work runs on a separate thread, and
//! is abandoned when its time is over.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The time limit of the sections of a page, which are gathered at the same time.
pub(in crate::cli) const PATIENCE: Duration = Duration::from_secs(3);

/// A part of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(in crate::cli) enum Section<T> {
    /// The data.
    Known(T),
    /// Why there is none.
    Unknown {
        /// Why the part cannot be read.
        #[serde(rename = "notAvailable")]
        reason: String,
    },
}

impl<T> Section<T> {
    pub(in crate::cli) fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown { .. } => None,
        }
    }
}

impl<T> From<Result<T, String>> for Section<T> {
    fn from(result: Result<T, String>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(reason) => Self::Unknown { reason },
        }
    }
}

/// Work in progress.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    result: Receiver<Result<T, String>>,
    until: Instant,
}

/// Starts to gather a section.
pub(super) fn gather<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Gathering<T> {
    let (sender, result) = channel();
    // If the thread cannot be started, the sender is dropped.
    drop(std::thread::Builder::new().name("berth-diag".to_owned()).spawn(move || {
        // The receiver is gone if the time is over.
        drop(sender.send(work()));
    }));
    Gathering { result, until: Instant::now() + limit }
}

impl<T> Gathering<T> {
    /// Waits for the result, up to the time limit.
    pub(super) fn wait(self) -> Section<T> {
        let left = self.until.saturating_duration_since(Instant::now());
        match self.result.recv_timeout(left) {
            Ok(result) => result.into(),
            Err(RecvTimeoutError::Timeout) => {
                Section::Unknown { reason: "no answer of the kernel or the disk in time".to_owned() }
            }
            Err(RecvTimeoutError::Disconnected) => {
                Section::Unknown { reason: "the thread that reads it has ended".to_owned() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_that_hangs_is_not_available() {
        let (_hold, hangs) = channel::<()>();
        let stuck = gather(Duration::from_millis(50), move || {
            hangs.recv().unwrap_err();
            Ok(1)
        });
        let failed = gather(PATIENCE, || Err::<i32, _>("failed to read x".to_owned()));
        let known = gather(PATIENCE, || Ok(2));
        assert_eq!(
            serde_json::to_value(stuck.wait()).unwrap(),
            serde_json::json!({ "notAvailable": "no answer of the kernel or the disk in time" })
        );
        assert_eq!(failed.wait(), Section::Unknown { reason: "failed to read x".to_owned() });
        assert_eq!(known.wait().known(), Some(&2));
    }
}
