//! Sends ended spans in batches. Unlike the SDK's processor, it has no thread and no timer while there are no spans: an idle
//! daemon is not woken.

use std::env;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// The limits of batches: the `OTEL_BSP_*` variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchLimits {
    /// How long the first span of a batch waits for others.
    delay: Duration,
    /// The most spans that wait; further ones are dropped.
    queue: usize,
    /// The most spans of a batch.
    batch: usize,
    /// The time limit of an export.
    export: Duration,
}

impl BatchLimits {
    /// Reads the variables. An invalid value counts as missing.
    pub(super) fn from_environment() -> Self {
        Self::from(|name| env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str, default: u64| -> u64 {
            variable(name).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
        };
        let count =
            |name: &str, default: u64| usize::try_from(number(name, default).max(1)).unwrap_or(usize::MAX);
        let queue = count("OTEL_BSP_MAX_QUEUE_SIZE", 2048).min(1 << 20);
        Self {
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000)),
            queue,
            batch: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).min(queue),
            export: Duration::from_millis(number("OTEL_BSP_EXPORT_TIMEOUT", 30_000)),
        }
    }
}

/// A processor of spans.
#[derive(Debug)]
pub(super) struct Batches {
    /// `None` after the shutdown.
    queue: RwLock<Option<mpsc::Sender<SpanData>>>,
    /// Disconnected when the last batch was sent.
    sent: Mutex<Receiver<()>>,
}

impl Batches {
    /// Starts a task that sends spans with `exporter`. Needs a tokio runtime.
    pub(super) fn start<E: SpanExporter + 'static>(
        mut exporter: E,
        resource: &Resource,
        limits: BatchLimits,
    ) -> Self {
        exporter.set_resource(resource);
        let (queue, spans) = mpsc::channel(limits.queue);
        let (running, sent) = sync_channel(0);
        tokio::spawn(send(exporter, spans, limits, running));
        Self { queue: RwLock::new(Some(queue)), sent: Mutex::new(sent) }
    }
}

impl SpanProcessor for Batches {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_ref() {
            // A span is dropped if too many wait.
            drop(queue.try_send(span));
        }
    }

    /// Nothing waits longer than the delay of the batches.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        drop(self.queue.write().unwrap_or_else(PoisonError::into_inner).take());
        match self.sent.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Err(OTelSdkError::Timeout(limit)),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

/// Sends batches until the queue is closed and empty. `_running` is dropped at the end.
async fn send<E: SpanExporter>(
    exporter: E,
    mut spans: mpsc::Receiver<SpanData>,
    limits: BatchLimits,
    _running: SyncSender<()>,
) {
    while let Some(first) = spans.recv().await {
        let until = Instant::now() + limits.delay;
        let mut batch = vec![first];
        while batch.len() < limits.batch {
            tokio::select! {
                span = spans.recv() => match span {
                    Some(span) => batch.push(span),
                    None => break,
                },
                () = sleep_until(until) => break,
            }
        }
        let count = batch.len();
        let error = match timeout(limits.export, exporter.export(batch)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", limits.export.as_millis()),
        };
        tracing::warn!(error, spans = count, "failed to send spans");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct StubExporter {
        sizes: Arc<Mutex<Vec<usize>>>,
        hangs: bool,
    }

    impl SpanExporter for StubExporter {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            self.sizes.lock().unwrap().push(batch.len());
            Ok(())
        }
    }

    fn limits(delay: u64) -> BatchLimits {
        BatchLimits {
            delay: Duration::from_millis(delay),
            batch: 4,
            queue: 10,
            export: Duration::from_secs(1),
        }
    }

    fn provider(collector: &StubExporter, limits: BatchLimits) -> SdkTracerProvider {
        let batches = Batches::start(collector.clone(), &Resource::builder_empty().build(), limits);
        SdkTracerProvider::builder().with_span_processor(batches).build()
    }

    #[test]
    fn limits_are_those_of_the_environment() {
        let limits = BatchLimits::from(|name| match name {
            "OTEL_BSP_SCHEDULE_DELAY" => Some("100".to_owned()),
            "OTEL_BSP_MAX_QUEUE_SIZE" => Some("64".to_owned()),
            _ => Some("many".to_owned()),
        });
        assert_eq!((limits.delay, limits.queue, limits.batch), (Duration::from_millis(100), 64, 64));
        assert_eq!(limits.export, Duration::from_secs(30));
        assert_eq!(BatchLimits::from(|_| None).batch, 512);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_are_sent_in_batches_and_the_last_ones_at_the_shutdown() {
        let collector = StubExporter::default();
        let provider = provider(&collector, limits(60_000));
        let tracer = provider.tracer("test");
        for _ in 0..6 {
            drop(tracer.start("span"));
        }
        tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(Duration::from_secs(10)))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(*collector.sizes.lock().unwrap(), [4, 2]);
        drop(tracer.start("late"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_receiver_that_hangs_costs_a_limited_number_of_spans() {
        let collector = StubExporter { hangs: true, ..StubExporter::default() };
        let provider = provider(&collector, limits(0));
        let tracer = provider.tracer("test");
        for _ in 0..1000 {
            drop(tracer.start("span"));
        }
        let limit = Duration::from_millis(50);
        let stopped =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit)).await.unwrap();
        assert!(stopped.is_err());
        assert!(collector.sizes.lock().unwrap().is_empty());
    }
}
