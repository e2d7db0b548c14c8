//! Traces by OpenTelemetry: spans from a call through its operation, the calls of the keeper, the network plugins and
//! netlink. They are sent by OTLP over gRPC if the standard environment variables name an endpoint; otherwise no span is
//! created. The spans of this crate and of `berth-cni` have the target [`TARGET`], which the log does not show.
//!
//! * [`export`]: the environment, and the layer that sends spans
//! * this file: the caller's trace, and failures

pub mod export;

use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of spans that are only for traces.
pub const TARGET: &str = "berth::trace";

/// Whether spans are sent.
static ON: AtomicBool = AtomicBool::new(false);

struct TraceHeaders<'a>(&'a HeaderMap);

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Makes the span of a call a part of the caller's trace, if its headers name one (W3C Trace Context, `traceparent`). Must be
/// called before the span is entered.
pub fn continue_trace(span: &Span, path: &str, headers: &HeaderMap) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let caller = TraceContextPropagator::new().extract(&TraceHeaders(headers));
    if caller.span().span_context().is_valid() {
        // An error means that the span is not traced.
        drop(span.set_parent(caller));
    }
    // The convention for the names of calls: the path without its first slash.
    span.record("otel.name", path.trim_start_matches('/'));
    span.record("otel.kind", "server");
}

/// Records that the work of a span has failed.
pub fn fail(span: &Span, error: &dyn std::fmt::Display) {
    if ON.load(Ordering::Relaxed) {
        span.set_status(opentelemetry::trace::Status::error(error.to_string()));
    }
}
