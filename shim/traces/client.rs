//! The HTTP client of the protocol `http/protobuf`. Each batch has its own connection: none stays open while there are no
//! spans.

use std::env;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use rustls::{ClientConfig, RootCertStore};

/// The time limit of a request, if the environment has none (OpenTelemetry Protocol Exporter, "Timeout").
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer in bytes: it has at most an error message.
const MAX_ANSWER: usize = 64 << 10;

/// A client for requests to the receiver.
#[derive(Debug)]
pub(super) struct OtlpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl OtlpClient {
    /// Creates a client. Certificates of the receiver are checked with those of the host.
    ///
    /// # Errors
    /// TLS cannot be configured.
    pub(super) fn from_environment() -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, timeout: timeout() })
    }
}

/// Returns the time limit of the environment, in milliseconds there.
fn timeout() -> Duration {
    let names = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let value = names.into_iter().find_map(|name| env::var(name).ok()?.trim().parse().ok());
    value.map_or(TIMEOUT, Duration::from_millis)
}

#[tonic::async_trait]
impl HttpClient for OtlpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let response = self.client.request(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis()).into()),
        }
    }
}
