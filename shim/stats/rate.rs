//! Processor time as cores: the difference between two questions. Nothing is sampled in between.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Two questions that are closer than this have the same answer: the difference would be noise.
const SHORTEST: Duration = Duration::from_millis(500);

/// The last question about each pod and container.
#[derive(Debug, Default)]
pub struct Rates {
    last: Mutex<HashMap<String, Sample>>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Billionths of a core since the last question; none at the first one.
    pub fn nano_cores(&self, id: &str, cpu: u64) -> Option<u64> {
        self.at(Instant::now(), id, cpu)
    }

    fn at(&self, now: Instant, id: &str, cpu: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = last.get(id).copied() else {
            last.insert(id.to_owned(), Sample { at: now, cpu, rate: None });
            return None;
        };
        let elapsed = now.saturating_duration_since(before.at);
        if elapsed < SHORTEST {
            return before.rate;
        }
        let used = u128::from(cpu.saturating_sub(before.cpu));
        let rate = u64::try_from(used * 1_000_000_000 / elapsed.as_nanos().max(1)).unwrap_or(u64::MAX);
        last.insert(id.to_owned(), Sample { at: now, cpu, rate: Some(rate) });
        Some(rate)
    }

    /// Forgets what is there no more.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| is_there(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_difference_between_two_questions() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.at(start, "a", 1_000), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(rates.at(later, "a", 1_000 + 1_000_000_000), Some(500_000_000));
        assert_eq!(rates.at(later + Duration::from_millis(10), "a", 9_000_000_000), Some(500_000_000));
        rates.keep(|id| id != "a");
        assert_eq!(rates.at(later, "a", 5), None);
    }
}
