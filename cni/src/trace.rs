//! Spans for traces: the calls of plugins and the requests to the kernel. Their target is one that the log does not show; if
//! nobody collects traces, they do not exist.

use std::fmt::{Debug, Display};

use tracing::Span;
use tracing::field::Empty;

use crate::PluginCommand;

/// Returns the span of a call of a plugin.
pub(crate) fn plugin(kind: &str, command: PluginCommand) -> Span {
    tracing::trace_span!(
        target: "berth::trace", "plugin",
        otel.name = %format_args!("cni {kind} {}", command.name()),
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// Returns the span of requests on a netlink socket.
pub(crate) fn netlink<T: Debug>(count: usize, requests: impl Iterator<Item = T>) -> Span {
    tracing::trace_span!(
        target: "berth::trace", "netlink",
        otel.name = %names(count, requests),
        requests = count,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// Returns the names of requests: the start of their text, up to the first parenthesis.
fn names<T: Debug>(count: usize, requests: impl Iterator<Item = T>) -> String {
    let mut text = "netlink".to_owned();
    for request in requests.take(MOST_NAMES) {
        let request = format!("{request:?}");
        let name = request.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default();
        text = format!("{text} {name}");
    }
    if count > MOST_NAMES { text + " ..." } else { text }
}

/// How many requests the name of a span lists.
const MOST_NAMES: usize = 4;

/// Records the error of a span, if there is one.
pub(crate) fn end<T, E: Display>(span: &Span, result: &Result<T, E>) {
    if let Err(error) = result
        && !span.is_disabled()
    {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", error.to_string());
    }
}
