//! How fast a transfer is. What counts is the time in which the network was waited for: a full disk or a busy processor
//! is not the registry's fault.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::error::Error;

/// A transfer that brings fewer bytes a second is slow.
pub(crate) const MIN_RATE: u64 = 4 << 10;

/// What a transfer has brought, and in which time.
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

/// Is told when a transfer has been slow for some time, with all that it has brought so far; its error ends the transfer.
pub(crate) type OnSlow<'a> = dyn Fn(Figures) -> Result<(), Error> + Send + Sync + 'a;

/// Measures one transfer.
pub(crate) struct Pace<'a> {
    window: Duration,
    on_slow: &'a OnSlow<'a>,
    whole: Figures,
    /// Since the last time that it was looked at.
    recent: Figures,
}

impl fmt::Debug for Pace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl<'a> Pace<'a> {
    /// Is looked at each time that `window` has been waited.
    pub(crate) fn new(window: Duration, on_slow: &'a OnSlow<'a>) -> Self {
        Self { window, on_slow, whole: Figures::default(), recent: Figures::default() }
    }

    pub(crate) fn figures(&self) -> Figures {
        self.whole
    }

    /// Counts what has come.
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
                self.look()?;
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

    fn look(&mut self) -> Result<(), Error> {
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
    async fn what_is_slow_is_told_while_it_waits_and_again() {
        let told = Mutex::new(Vec::new());
        let on_slow = |figures: Figures| {
            told.lock().unwrap().push(figures);
            Ok(())
        };
        let mut pace = Pace::new(WINDOW, &on_slow);
        pace.received(7);
        for _ in 0..3 {
            pace.wait(tokio::time::sleep(WINDOW * 2)).await.unwrap();
        }
        let told = told.into_inner().unwrap();
        assert!(told.len() >= 2, "{told:?}");
        assert!(told.iter().all(|figures| figures.bytes == 7 && figures.waited >= WINDOW), "{told:?}");
        assert!(told.windows(2).all(|pair| pair[0].waited < pair[1].waited), "{told:?}");
    }

    #[tokio::test]
    async fn many_short_waits_are_one_long_one_and_an_error_ends_it() {
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
    async fn what_is_fast_is_left_alone_however_long_it_takes() {
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
