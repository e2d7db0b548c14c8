//! CPU usage in cores: the difference between two requests. Nothing is sampled in between.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are closer together than this get the same answer: the difference would be noise.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// The last sample of a pod or container.
#[derive(Debug, Default)]
pub struct Rate {
    last: Mutex<Option<Sample>>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu: u64,
    rate: Option<u64>,
}

impl Rate {
    /// Returns the usage since the last request in billionths of a core; none for the first request. `cpu` is
    /// the total CPU time in nanoseconds.
    pub fn nano_cores(&self, cpu: u64) -> Option<u64> {
        self.at(Instant::now(), cpu)
    }

    fn at(&self, now: Instant, cpu: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = *last else {
            *last = Some(Sample { at: now, cpu, rate: None });
            return None;
        };
        let elapsed = now.saturating_duration_since(before.at);
        if elapsed < MIN_INTERVAL {
            return before.rate;
        }
        let used = u128::from(cpu.saturating_sub(before.cpu));
        let rate = u64::try_from(used * 1_000_000_000 / elapsed.as_nanos().max(1)).unwrap_or(u64::MAX);
        *last = Some(Sample { at: now, cpu, rate: Some(rate) });
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_difference_between_two_requests() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.at(start, 1_000), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(rate.at(later, 1_000 + 1_000_000_000), Some(500_000_000));
        assert_eq!(rate.at(later + Duration::from_millis(10), 9_000_000_000), Some(500_000_000));
    }
}
