//! The environment variables of OpenTelemetry, and the layer that sends spans. The SDK reads the variables of the sampler,
//! the resource, the headers and the compression itself.

use std::env;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Metadata;
use tracing_subscriber::filter::{LevelFilter, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::batches::{BatchLimits, Batches};
use super::client::OtlpClient;
use super::{ON, TARGET};

/// The name of the service, unless the environment has another one.
const SERVICE: &str = "berth";

/// The time limit for sending the last spans at exit.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The protocol is not supported.
    #[error("invalid {variable}: {protocol:?} is neither grpc nor http/protobuf")]
    Protocol {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        protocol: String,
    },
    /// The exporter cannot be created.
    #[error("failed to start the export of traces: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// TLS cannot be configured.
    #[error("failed to start the export of traces: {0}")]
    Tls(#[from] rustls::Error),
}

/// Sends spans until it is stopped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

/// A layer that sends spans.
pub type TracesLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Returns the layer that sends spans, or none if the environment names no endpoint. Needs a tokio runtime, which carries the
/// connection.
///
/// # Errors
/// The environment requests something that is not supported, or the endpoint is invalid.
pub fn from_environment() -> Result<Option<(Traces, TracesLayer)>, TracesError> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(variable);
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let none = variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    if endpoint.is_none() || disabled || none {
        return Ok(None);
    }
    let exporter = match protocol(variable)? {
        Protocol::Grpc => SpanExporter::builder().with_tonic().with_protocol(Protocol::Grpc).build()?,
        _ => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(OtlpClient::from_environment()?)
            .build()?,
    };
    let resource = resource();
    let batches = Batches::start(exporter, &resource, BatchLimits::from_environment());
    let provider = SdkTracerProvider::builder().with_span_processor(batches).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(dynamic_filter_fn(is_traced).with_max_level_hint(LevelFilter::TRACE));
    ON.store(true, Ordering::Relaxed);
    Ok(Some((Traces { provider }, layer.boxed())))
}

/// Returns the protocol that the environment requests.
fn protocol(variable: impl Fn(&str) -> Option<String>) -> Result<Protocol, TracesError> {
    // The first one takes precedence.
    let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let found = names.into_iter().find_map(|name| Some((name, variable(name)?)));
    match found {
        None => Ok(Protocol::Grpc),
        Some((variable, protocol)) => match protocol.as_str() {
            "grpc" => Ok(Protocol::Grpc),
            "http/protobuf" => Ok(Protocol::HttpBinary),
            _ => Err(TracesError::Protocol { variable, protocol }),
        },
    }
}

/// Returns the resource: the environment's, with a name of the service.
fn resource() -> Resource {
    let from_environment = Resource::builder().build();
    let unnamed = from_environment
        .get(&opentelemetry::Key::from_static_str("service.name"))
        .is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let mut resource = Resource::builder();
    if unnamed {
        resource = resource.with_service_name(SERVICE);
    }
    resource
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Whether a span is sent: the span of a call, and the spans in it. Work that no call has started is not traced. Events are
/// for the log.
fn is_traced<S>(metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let is_call = metadata.name() == "rpc" && metadata.target().starts_with("berth::server");
    metadata.is_span() && (is_call || (metadata.target() == TARGET && context.lookup_current().is_some()))
}

impl Traces {
    /// Sends the last spans, within a time limit.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "failed to send the last spans");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_of_traces_takes_precedence() {
        let of = |set: &'static [(&str, &str)]| {
            protocol(move |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(matches!(of(&[]), Ok(Protocol::Grpc)));
        assert!(matches!(of(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), Ok(Protocol::HttpBinary)));
        let both = &[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ];
        assert!(matches!(of(both), Ok(Protocol::Grpc)));
        let error = of(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is neither grpc nor http/protobuf"
        );
    }
}
