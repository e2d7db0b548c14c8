//! Serves the daemon's own metrics at `metrics_address`, in the text formats of Prometheus and OpenMetrics. Nothing runs
//! between two scrapes.
//!
//! * [`scrape`]: values that are read when a client asks: pods, containers, operations in flight
//! * [`process`]: values of the process, with the names that all client libraries of Prometheus use
//! * [`sources`]: the parts of the daemon that are read
//! * [`listener`]: the socket, and its connections within limits
//! * this file: requests and responses

mod listener;
mod process;
mod scrape;
mod sources;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

pub use listener::{ExpositionError, MetricsListener};
pub use sources::ScrapeSources;

/// The path of the metrics.
const PATH: &str = "/metrics";

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The formats of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// Returns the format that a client prefers. Prometheus sends a list such as
    /// `application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2`.
    fn preferred(headers: &HeaderMap) -> Self {
        let weight = |kind: &str| {
            let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let ranges = accepted.flat_map(|value| value.split(','));
            ranges.filter_map(|range| weight_of(range, kind)).fold(0.0, f64::max)
        };
        match weight(OPEN_METRICS) > weight("text/plain").max(weight("*/*")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => OPEN_METRICS_TYPE,
        }
    }
}

/// Returns the weight of a media range if it has this type (RFC 9110, section 12.4.2).
fn weight_of(range: &str, kind: &str) -> Option<f64> {
    let mut parts = range.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(kind) {
        return None;
    }
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
}

/// Answers a request. Everything but `GET /metrics` is unknown.
async fn answer<B>(sources: &ScrapeSources, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "not found; the metrics are at GET /metrics\n");
    }
    let format = Format::preferred(request.headers());
    let sources = sources.clone();
    // The values of the process are read from procfs.
    match tokio::task::spawn_blocking(move || encode(&sources, format)).await {
        Ok(Ok(text)) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            response
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "failed to encode metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics\n")
        }
        Err(error) => {
            tracing::error!(%error, "failed to collect metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "failed to collect the metrics\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

fn encode(sources: &ScrapeSources, format: Format) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    sources.pods.instruments.register(&mut registry);
    registry.register_collector(Box::new(scrape::Scrape::new(sources.clone())));
    registry.register_collector(Box::new(process::ProcessMetrics));
    let mut encoded = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut encoded, &registry)?,
        Format::OpenMetrics => text::encode(&mut encoded, &registry)?,
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_client_prefers() {
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=x", Format::Prometheus),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(accept).unwrap())]);
            assert_eq!(Format::preferred(&headers), expected, "{accept}");
        }
    }
}
