//! The layer around every call. It creates a tracing span, to which handlers add pod and container ids,
//! enforces the deadline, counts the call, and logs its error. Errors of calls are logged nowhere else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;
use tracing::field::Empty;

use super::counters::{CallInFlight, Counters};
use super::large_answers;
use crate::traces;

/// Deadline of a call if the client sets none. The kubelet's own is two minutes.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(240);

/// Calls without a default deadline: streams, and calls that take as long as a registry, a grace period or a
/// command.
const WITHOUT_DEADLINE: [&str; 19] = [
    "PullImage",
    "LoadImage",
    "VerifyImages",
    "ExplainImage",
    "SaveImages",
    "Fsck",
    "ExecSync",
    "StopContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
    "GetContainerEvents",
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamImages",
    "Watch",
    "ServerReflectionInfo",
];

/// When the client gives up, for handlers that must not go on after that. It is an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct CallDeadline(pub Option<Instant>);

/// Wraps a service in [`Rpc`].
#[derive(Clone, Debug)]
pub struct RpcLayer {
    counters: Arc<Counters>,
}

impl RpcLayer {
    /// Creates a layer that counts calls in `counters`.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc { inner, counters: self.counters.clone() }
    }
}

/// A service that adds a span, a deadline and counters to each call.
#[derive(Clone, Debug)]
pub struct Rpc<S> {
    inner: S,
    counters: Arc<Counters>,
}

impl<S> Service<Request<Body>> for Rpc<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rpc = name_of(request.uri().path()).to_owned();
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let span = tracing::info_span!(
            "rpc",
            rpc,
            peer,
            pod = Empty,
            container = Empty,
            otel.name = Empty,
            otel.kind = Empty
        );
        traces::continue_trace(&span, request.uri().path(), request.headers());
        let deadline = deadline_of(&rpc, request.headers());
        // Start the timer now and not at the first poll. tonic handles the same header with the code
        // CANCELLED, and the timer that started first expires first. The kubelet retries only on
        // DEADLINE_EXCEEDED.
        let expiry = deadline.map(tokio::time::sleep);
        request.extensions_mut().insert(CallDeadline(deadline.map(|deadline| Instant::now() + deadline)));
        let in_flight = self.counters.begin(&rpc);
        let began = Instant::now();
        let answer = self.inner.call(request);
        let call = async move {
            tokio::pin!(answer);
            let result = match expiry {
                None => answer.await,
                Some(expiry) => tokio::select! {
                    biased;
                    result = &mut answer => result,
                    () = expiry => Ok(expired(&rpc, deadline).into_http()),
                },
            };
            let result = result.map(decode_error_to_invalid_argument);
            let result = result.map(|response| match is_large(&rpc) {
                true => response.map(large_answers::released),
                false => response,
            });
            record(&rpc, in_flight, &result, began.elapsed());
            result
        };
        Box::pin(call.instrument(span))
    }
}

/// Whether an RPC answers with data about all pods that grows to megabytes.
fn is_large(rpc: &str) -> bool {
    rpc.contains("Metrics") || rpc.contains("Stats")
}

/// Returns the name of the RPC in a path `/package.Service/Name`.
fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn deadline_of(rpc: &str, headers: &HeaderMap) -> Option<Duration> {
    let requested = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    match requested {
        Some(requested) => Some(requested),
        None if WITHOUT_DEADLINE.contains(&rpc) || rpc.starts_with("Stream") => None,
        None => Some(DEFAULT_DEADLINE),
    }
}

/// Parses a `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The start of the decoder's error messages (prost's `DecodeError`). tonic reports them as server errors.
const DECODE_ERROR_PREFIX: &str = "failed to decode Protobuf message";

/// Turns the error of an undecodable request, such as one with text that is not UTF-8, into
/// `InvalidArgument`.
fn decode_error_to_invalid_argument(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status)
            if status.code() == Code::Internal && status.message().starts_with(DECODE_ERROR_PREFIX) =>
        {
            Status::invalid_argument(status.message()).into_http()
        }
        _ => response,
    }
}

fn expired(rpc: &str, deadline: Option<Duration>) -> Status {
    let seconds = deadline.unwrap_or_default().as_secs_f64();
    Status::deadline_exceeded(format!("{rpc} did not finish within {seconds} s; its operation continues"))
}

/// Counts the call and logs its error, if any.
fn record<E>(rpc: &str, in_flight: CallInFlight, result: &Result<Response<Body>, E>, time: Duration) {
    // The status of a failed call is in the headers: there is no body, so there are no trailers.
    let status = match result {
        Ok(response) => Status::from_header_map(response.headers()),
        Err(_) => Some(Status::internal("the connection failed")),
    };
    let code = status.as_ref().map_or(Code::Ok, Status::code);
    let micros = time.as_micros();
    let message = status.as_ref().map_or("", |status| status.message());
    if code != Code::Ok {
        let span = tracing::Span::current();
        traces::fail(&span, &format_args!("{code:?}: {message}"));
    }
    match code {
        Code::Ok => tracing::debug!(micros, "answered"),
        // Expected: clients request objects that were just removed, and try calls that a runtime may not
        // have.
        Code::NotFound | Code::Unimplemented => tracing::info!(micros, ?code, "{rpc}: {message}"),
        Code::Internal | Code::Unknown | Code::DataLoss => tracing::error!(micros, ?code, "{rpc}: {message}"),
        _ => tracing::warn!(micros, ?code, "{rpc}: {message}"),
    }
    in_flight.answered(code, time);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeout_headers_are_parsed() {
        for (text, expected) in [
            ("2S", Some(Duration::from_secs(2))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("3M", Some(Duration::from_secs(180))),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("123456789S", None),
            ("5s", None),
            ("5é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn long_calls_have_no_deadline_unless_the_client_sets_one() {
        let none = HeaderMap::new();
        assert_eq!(deadline_of("PullImage", &none), None);
        assert_eq!(deadline_of("StreamContainerStats", &none), None);
        assert_eq!(deadline_of("Version", &none), Some(DEFAULT_DEADLINE));
        let requested = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), "2S".parse().unwrap())]);
        assert_eq!(deadline_of("PullImage", &requested), Some(Duration::from_secs(2)));
        assert_eq!(name_of("/runtime.v1.RuntimeService/Version"), "Version");
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_parser(text in ".*") {
            let parsed = parse_timeout(&text);
            prop_assert!(parsed.is_none() || text.len() <= 9);
        }
    }
}
