//! The time in the unit of the CRI.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
