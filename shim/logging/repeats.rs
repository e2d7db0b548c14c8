//! Holds back repeated warnings: of identical warnings or errors, only some are logged in a period. Two are identical if
//! they come from the same line of code and have the same texts; numbers, such as durations, may differ. The number of
//! those that were held back is logged with the first line after the period, so no timer runs.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// How many identical warnings are logged in a period.
const MOST: u32 = 10;

/// The length of a period.
const PERIOD: Duration = Duration::from_secs(10);

/// How many different warnings are counted. Beyond that, those with the oldest period are forgotten.
const MAX_DIFFERENT: usize = 256;

/// An output that does not get repeated warnings.
#[derive(Debug)]
pub(super) struct Repeats<L> {
    output: L,
    seen: Mutex<HashMap<u64, RepeatedWarning>>,
}

/// A warning in its period.
#[derive(Debug)]
struct RepeatedWarning {
    began: Instant,
    count: u32,
    message: String,
}

impl<L> Repeats<L> {
    pub(super) fn of(output: L) -> Self {
        Self { output, seen: Mutex::default() }
    }

    /// Counts a warning. Returns whether it is logged.
    fn count(&self, identity: u64, message: String, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_DIFFERENT && !seen.contains_key(&identity) {
            let oldest = seen.iter().min_by_key(|(_, warning)| warning.began).map(|(identity, _)| *identity);
            oldest.map(|oldest| seen.remove(&oldest));
        }
        let warning = seen.entry(identity).or_insert(RepeatedWarning { began: now, count: 0, message });
        warning.count = warning.count.saturating_add(1);
        warning.count <= MOST
    }

    /// Removes the warnings whose period is over. Returns those that were held back, with their number.
    fn take_ended(&self, now: Instant) -> Vec<(String, u32)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_empty() {
            return Vec::new();
        }
        let ended = seen.extract_if(|_, warning| now.duration_since(warning.began) >= PERIOD);
        ended
            .filter(|(_, warning)| warning.count > MOST)
            .map(|(_, warning)| (warning.message, warning.count - MOST))
            .collect()
    }
}

/// The identity of an event: a hash of its origin and its texts.
struct Identity {
    hash: DefaultHasher,
    message: String,
}

impl Identity {
    fn of(event: &Event<'_>) -> (u64, String) {
        let mut identity = Self { hash: DefaultHasher::new(), message: String::new() };
        event.metadata().callsite().hash(&mut identity.hash);
        event.record(&mut identity);
        (identity.hash.finish(), identity.message)
    }
}

impl Visit for Identity {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        text.hash(&mut self.hash);
        if field.name() == "message" {
            self.message = text;
        }
    }

    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_i128(&mut self, _: &Field, _: i128) {}
    fn record_u128(&mut self, _: &Field, _: u128) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
}

impl<S, L> Layer<S> for Repeats<L>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    L: Layer<S>,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let now = Instant::now();
        if *event.metadata().level() <= Level::WARN {
            let (identity, message) = Identity::of(event);
            if !self.count(identity, message, now) {
                return;
            }
        }
        self.output.on_event(event, context);
        for (message, repeats) in self.take_ended(now) {
            // An info line is not counted itself.
            tracing::info!(repeats, "held back repeats of: {message}");
        }
    }

    fn on_layer(&mut self, subscriber: &mut S) {
        self.output.on_layer(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.output.register_callsite(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        self.output.enabled(metadata, context)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.output.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.output.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.output.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.output.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.output.on_close(id, context);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn identical_warnings_are_held_back_and_others_are_not() {
        let lines = Lines::default();
        let writer = lines.clone();
        let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(Repeats::of(output));
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::warn!(number, path = "/a", "failed to remove cgroup");
                tracing::info!(number, "pulled");
            }
            tracing::warn!(path = "/b", "failed to remove cgroup");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("path=\"/a\"").count(), 10, "{text}");
        assert_eq!(text.matches("path=\"/b\"").count(), 1, "{text}");
        assert_eq!(text.matches("pulled").count(), 1000);
    }

    #[test]
    fn the_number_of_held_back_warnings_is_known_after_the_period() {
        let repeats = Repeats::of(());
        let start = Instant::now();
        let logged = (0..1000).filter(|_| repeats.count(7, "message".to_owned(), start)).count();
        assert_eq!(logged, 10);
        assert!(repeats.take_ended(start + PERIOD / 2).is_empty());
        assert_eq!(repeats.take_ended(start + PERIOD), [("message".to_owned(), 990)]);
        assert!(repeats.count(7, "message".to_owned(), start + PERIOD), "a new period");
    }

    #[test]
    fn many_different_warnings_use_a_bounded_memory() {
        let repeats = Repeats::of(());
        let start = Instant::now();
        for identity in 0..10_000 {
            assert!(repeats.count(identity, String::new(), start));
        }
        assert!(repeats.seen.lock().unwrap().len() <= MAX_DIFFERENT);
    }
}
