//! Processor time as cores: the difference between two questions. Nothing is sampled in between.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Two questions that are closer than this have the same answer: the difference would be noise.
const SHORTEST: Duration = Duration::from_millis(500);

/// The last question about a pod or container.
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
    /// Billionths of a core since the last question; none at the first one. `cpu` is in nanoseconds.
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
        if elapsed < SHORTEST {
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
    fn a_rate_is_the_difference_between_two_questions() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.at(start, 1_000), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(rate.at(later, 1_000 + 1_000_000_000), Some(500_000_000));
        assert_eq!(rate.at(later + Duration::from_millis(10), 9_000_000_000), Some(500_000_000));
    }
}
