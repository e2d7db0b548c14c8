//! Counters of calls in flight and answered calls, by RPC. The drain at shutdown waits for the calls in
//! flight and logs them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Code;

use crate::instruments::Instruments;

/// The totals of one RPC since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls in progress.
    pub in_flight: u64,
    /// Calls answered with OK.
    pub succeeded: u64,
    /// Calls answered with another code.
    pub failed: u64,
    /// Calls that the client cancelled.
    pub abandoned: u64,
    /// Total time of the answered calls.
    pub time: Duration,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// It was answered. A stream counts as answered when it begins.
    Answered(Code),
    /// The client disconnected or cancelled it.
    Abandoned,
}

/// The totals of all RPCs that were called.
#[derive(Debug)]
pub struct Counters {
    totals: Mutex<BTreeMap<String, Totals>>,
    in_flight: watch::Sender<usize>,
    instruments: Arc<Instruments>,
}

/// How many different RPC names are counted. Beyond that, unknown names share one counter.
const MAX_NAMES: usize = 200;

impl Default for Counters {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Counters {
    /// Creates counters at zero that also record the calls in the daemon's metrics.
    #[must_use]
    pub fn new(instruments: Arc<Instruments>) -> Self {
        Self { totals: Mutex::default(), in_flight: watch::Sender::new(0), instruments }
    }

    /// Counts a new call. It counts as abandoned if the result is dropped without an answer.
    #[must_use]
    pub fn begin(self: &Arc<Self>, rpc: &str) -> CallInFlight {
        let mut totals = self.lock();
        let name = if totals.len() < MAX_NAMES || totals.contains_key(rpc) { rpc } else { "other" };
        totals.entry(name.to_owned()).or_default().in_flight += 1;
        drop(totals);
        self.instruments.call_began(name);
        self.in_flight.send_modify(|count| *count += 1);
        CallInFlight { counters: self.clone(), rpc: name.to_owned(), end: None }
    }

    /// Returns the totals by RPC.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        self.lock().clone()
    }

    /// Returns the RPCs in flight as text.
    #[must_use]
    pub fn describe_in_flight(&self) -> String {
        let totals = self.lock();
        let names: Vec<_> = totals
            .iter()
            .filter(|(_, totals)| totals.in_flight > 0)
            .map(|(rpc, totals)| format!("{rpc} ({})", totals.in_flight))
            .collect();
        names.join(", ")
    }

    /// Waits until no call is in flight.
    pub async fn idle(&self) {
        // `self` owns the sender, so this cannot fail.
        drop(self.in_flight.subscribe().wait_for(|count| *count == 0).await);
    }

    /// Logs the totals of each RPC, at shutdown.
    pub fn log_totals(&self) {
        for (rpc, totals) in self.totals() {
            let Totals { succeeded, failed, abandoned, time, .. } = totals;
            tracing::debug!(rpc, succeeded, failed, abandoned, seconds = time.as_secs_f64(), "totals");
        }
    }

    fn end(&self, rpc: &str, end: CallEnd, time: Duration) {
        match end {
            CallEnd::Answered(code) => self.instruments.call_answered(rpc, code, time),
            CallEnd::Abandoned => self.instruments.call_cancelled(rpc),
        }
        if let Some(totals) = self.lock().get_mut(rpc) {
            totals.in_flight = totals.in_flight.saturating_sub(1);
            match end {
                CallEnd::Answered(Code::Ok) => totals.succeeded += 1,
                CallEnd::Answered(_) => totals.failed += 1,
                CallEnd::Abandoned => totals.abandoned += 1,
            }
            totals.time += time;
        }
        self.in_flight.send_modify(|count| *count = count.saturating_sub(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Totals>> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct CallInFlight {
    counters: Arc<Counters>,
    rpc: String,
    end: Option<(CallEnd, Duration)>,
}

impl CallInFlight {
    /// Marks the call as answered.
    pub fn answered(mut self, code: Code, time: Duration) {
        self.end = Some((CallEnd::Answered(code), time));
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        let (end, time) = self.end.unwrap_or((CallEnd::Abandoned, Duration::ZERO));
        if end == CallEnd::Abandoned {
            tracing::info!(rpc = self.rpc, "the client cancelled the call");
        }
        self.counters.end(&self.rpc, end, time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_counted_by_their_end() {
        let counters = Arc::new(Counters::default());
        let (a, b, c) = (counters.begin("Version"), counters.begin("Version"), counters.begin("Status"));
        assert_eq!(counters.describe_in_flight(), "Status (1), Version (2)");
        a.answered(Code::Ok, Duration::from_secs(1));
        b.answered(Code::NotFound, Duration::from_secs(2));
        assert!(tokio::time::timeout(Duration::from_millis(10), counters.idle()).await.is_err());
        drop(c);
        counters.idle().await;
        let version = Totals { succeeded: 1, failed: 1, time: Duration::from_secs(3), ..Totals::default() };
        assert_eq!(counters.totals()["Version"], version);
        assert_eq!(counters.totals()["Status"], Totals { abandoned: 1, ..Totals::default() });
    }

    #[test]
    fn unknown_names_do_not_grow_the_map_without_bound() {
        let counters = Arc::new(Counters::default());
        for number in 0..(2 * MAX_NAMES) {
            counters.begin(&format!("Rpc{number}")).answered(Code::Unimplemented, Duration::ZERO);
        }
        assert_eq!(counters.totals().len(), MAX_NAMES + 1);
    }
}
