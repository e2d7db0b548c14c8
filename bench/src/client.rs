//! The connection to a runtime. Each call has a deadline and is timed.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::error::BenchError;

/// The deadline of one pull.
pub(crate) const PULL_DEADLINE: Duration = Duration::from_secs(300);

/// The deadline of every call except pulls.
const DEADLINE: Duration = Duration::from_secs(120);

/// The maximum size of an answer. Lists of a thousand pods are larger than tonic's default of 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// The clients of both services of a runtime.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

/// The answer of a call and the time that it took.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    pub(crate) answer: T,
    pub(crate) took: Duration,
}

impl Client {
    /// Connects to the socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, BenchError> {
        let target = socket.to_owned();
        // The URI is not used: the connector opens the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let target = target.clone();
                async move { UnixStream::connect(target).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|error| BenchError::Connect { path: socket.to_owned(), why: root_cause(&error) })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        })
    }
}

/// Returns the last error of the chain. The others are only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Waits for the answer of a call and measures the time.
pub(crate) async fn timed<T>(
    rpc: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Timed<T>, BenchError> {
    timed_within(rpc, DEADLINE, call).await
}

/// Like [`timed`], with a different deadline.
pub(crate) async fn timed_within<T>(
    rpc: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Timed<T>, BenchError> {
    let start = Instant::now();
    match tokio::time::timeout(deadline, call).await {
        Err(_) => Err(BenchError::TooSlow(rpc.to_owned(), deadline.as_secs())),
        Ok(Err(status)) => Err(BenchError::Rpc { rpc, status: Box::new(status) }),
        Ok(Ok(response)) => Ok(Timed { took: start.elapsed(), answer: response.into_inner() }),
    }
}
