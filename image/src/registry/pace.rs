//! The speed of a transfer. Only the time of waiting for the network counts, not that of a full disk or a
//! busy processor.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::error::Error;

/// The minimum rate, in bytes a second. A transfer below it is slow.
pub(crate) const MIN_RATE: u64 = 4 << 10;

/// The received bytes of a transfer, and the time of waiting for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) bytes: u64,
    pub(crate) waited: Duration,
}

impl Figures {
    fn is_slow(&self) -> bool {
        let least =
            u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX).saturating_mul(MIN_RATE) / 1000;
        self.bytes < least
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = u128::from(self.bytes) * 10_000 / self.waited.as_millis().max(1);
        let (whole, tenth) = (tenths / 10, tenths % 10);
        write!(f, "{} bytes in {:.1} s ({whole}.{tenth} bytes/s)", self.bytes, self.waited.as_secs_f64())
    }
}

/// A function that is called when a transfer has been slow for a whole window, with the figures of the whole
/// transfer. If it returns an error, the transfer is cancelled.
pub(crate) type OnSlow<'a> = dyn Fn(Figures) -> Result<(), Error> + Send + Sync + 'a;

/// Measures one transfer.
pub(crate) struct Pace<'a> {
    window: Duration,
    on_slow: &'a OnSlow<'a>,
    whole: Figures,
    /// The figures of the current window.
    recent: Figures,
}

impl fmt::Debug for Pace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl<'a> Pace<'a> {
    /// Creates a pace that is checked each time that `window` has been waited.
    pub(crate) fn new(window: Duration, on_slow: &'a OnSlow<'a>) -> Self {
        Self { window, on_slow, whole: Figures::default(), recent: Figures::default() }
    }

    pub(crate) fn figures(&self) -> Figures {
        self.whole
    }

    /// Adds received bytes.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.whole.bytes = self.whole.bytes.saturating_add(bytes);
        self.recent.bytes = self.recent.bytes.saturating_add(bytes);
    }

    /// Waits for the network.
    pub(crate) async fn wait<F: Future>(&mut self, network: F) -> Result<F::Output, Error> {
        let mut network = pin!(network);
        loop {
            let left = self.window.saturating_sub(self.recent.waited);
            if left.is_zero() {
                self.check()?;
                continue;
            }
            let start = Instant::now();
            let done = tokio::time::timeout(left, network.as_mut()).await;
            let waited = start.elapsed();
            self.whole.waited += waited;
            self.recent.waited += waited;
            if let Ok(output) = done {
                return Ok(output);
            }
        }
    }

    fn check(&mut self) -> Result<(), Error> {
        let recent = std::mem::take(&mut self.recent);
        if recent.is_slow() { (self.on_slow)(self.whole) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_slow_transfer_is_reported_repeatedly_while_it_waits() {
        let reported = Mutex::new(Vec::new());
        let on_slow = |figures: Figures| {
            reported.lock().unwrap().push(figures);
            Ok(())
        };
        let mut pace = Pace::new(WINDOW, &on_slow);
        pace.received(7);
        for _ in 0..3 {
            pace.wait(tokio::time::sleep(WINDOW * 2)).await.unwrap();
        }
        let reported = reported.into_inner().unwrap();
        assert!(reported.len() >= 2, "{reported:?}");
        assert!(
            reported.iter().all(|figures| figures.bytes == 7 && figures.waited >= WINDOW),
            "{reported:?}"
        );
        assert!(reported.windows(2).all(|pair| pair[0].waited < pair[1].waited), "{reported:?}");
    }

    #[tokio::test]
    async fn short_waits_add_up_and_an_error_cancels_the_transfer() {
        let on_slow = |figures: Figures| Err(Error::unavailable("x", figures));
        let mut pace = Pace::new(WINDOW, &on_slow);
        let error = loop {
            pace.received(1);
            if let Err(error) = pace.wait(tokio::time::sleep(WINDOW / 10)).await {
                break error;
            }
        };
        assert!(error.to_string().contains("bytes in 0."), "{error}");
    }

    #[tokio::test]
    async fn a_fast_transfer_is_not_reported() {
        let on_slow = |_: Figures| Err(Error::unavailable("x", "slow"));
        let mut pace = Pace::new(WINDOW, &on_slow);
        for _ in 0..30 {
            pace.received(1 << 20);
            pace.wait(tokio::time::sleep(WINDOW / 5)).await.unwrap();
        }
        assert_eq!(pace.figures().bytes, 30 << 20);
    }

    #[test]
    fn figures_are_readable() {
        let figures = Figures { bytes: 12, waited: Duration::from_secs(60) };
        assert_eq!(figures.to_string(), "12 bytes in 60.0 s (0.2 bytes/s)");
        assert!(figures.is_slow());
        assert!(!Figures { bytes: 5 << 10, waited: Duration::from_secs(1) }.is_slow());
    }
}
