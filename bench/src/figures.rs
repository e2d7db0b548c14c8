//! Samples and their statistics.

use std::time::Duration;

use serde::Serialize;

/// The statistics of a repeated measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Distribution {
    pub(crate) name: String,
    pub(crate) samples: usize,
    /// The median in milliseconds. The following fields are also in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A measurement with a single value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// Durations by name, in the order in which the names were added.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    series: Vec<(String, Vec<Duration>)>,
}

impl Samples {
    /// Adds a sample to the series with this name.
    pub(crate) fn push(&mut self, name: &str, sample: Duration) {
        match self.series.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.series.push((name.to_owned(), vec![sample])),
        }
    }

    /// Returns the statistics of each series.
    pub(crate) fn distributions(self) -> Vec<Distribution> {
        self.series.into_iter().filter_map(|(name, samples)| distribution(name, samples)).collect()
    }
}

fn distribution(name: String, mut samples: Vec<Duration>) -> Option<Distribution> {
    samples.sort_unstable();
    Some(Distribution {
        name,
        samples: samples.len(),
        p50: milliseconds(percentile(&samples, 50)?),
        p95: milliseconds(percentile(&samples, 95)?),
        min: milliseconds(*samples.first()?),
        max: milliseconds(*samples.last()?),
    })
}

/// Returns the smallest sample that is not below `percent` of all samples (nearest rank). It is always a measured
/// value.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Converts a count to a float. Counts here fit in a `u32`.
pub(crate) fn number(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: &[u64]) -> Distribution {
        let mut samples = Samples::default();
        milliseconds.iter().for_each(|ms| samples.push("x", Duration::from_millis(*ms)));
        samples.distributions().remove(0)
    }

    #[test]
    fn percentiles_are_measured_samples() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let all = of(&hundred);
        assert_eq!((all.p50, all.p95, all.min, all.max, all.samples), (50.0, 95.0, 1.0, 100.0, 100));
        let few = of(&[3, 1, 2]);
        assert_eq!((few.p50, few.p95), (2.0, 3.0));
        let one = of(&[7]);
        assert_eq!((one.p50, one.p95), (7.0, 7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn series_keep_their_order() {
        let mut samples = Samples::default();
        for name in ["b", "a", "b"] {
            samples.push(name, Duration::ZERO);
        }
        let found = samples.distributions();
        assert_eq!(
            found.iter().map(|d| (d.name.as_str(), d.samples)).collect::<Vec<_>>(),
            [("b", 2), ("a", 1)]
        );
    }
}
