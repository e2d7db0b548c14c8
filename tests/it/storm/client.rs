//! Calls of a client that can cancel them, and of which the daemon can exit.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use berth::server::connect;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::*;
use rand::Rng as _;
use rand::rngs::StdRng;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::storm::truth::Ledger;
use crate::support::PATIENCE;

pub type Runtime = RuntimeServiceClient<Channel>;

/// The reason why there is no answer.
#[derive(Debug)]
pub enum Fail {
    /// The client cancelled the call, or the daemon exited: the operation can have happened.
    Unknown,
    Refused(Status),
}

impl Fail {
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Unknown => None,
            Self::Refused(status) => Some(status.code()),
        }
    }
}

/// A client that reconnects after a restart of the daemon.
pub struct StormClient {
    ledger: Arc<Ledger>,
    pub rng: StdRng,
    runtime: Option<Runtime>,
}

impl StormClient {
    pub fn new(ledger: Arc<Ledger>, rng: StdRng) -> Self {
        Self { ledger, rng, runtime: None }
    }

    async fn runtime(&mut self) -> Runtime {
        if let Some(runtime) = &self.runtime {
            return runtime.clone();
        }
        for _ in 0..PATIENCE.as_millis() / 20 {
            if let Ok(channel) = connect(&self.ledger.socket).await {
                let mut runtime = RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20);
                if runtime.version(VersionRequest::default()).await.is_ok() {
                    self.runtime = Some(runtime.clone());
                    return runtime;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.ledger.violation("no daemon answers".to_owned());
        panic!("no daemon answers");
    }

    /// Makes a call. One in eight is cancelled after a moment.
    pub async fn call<T, W>(&mut self, what: &str, make: impl FnOnce(Runtime) -> W) -> Result<T, Fail>
    where
        W: Future<Output = Result<Response<T>, Status>>,
    {
        let patience = match self.rng.random_ratio(1, 8) {
            true => Duration::from_millis(self.rng.random_range(0..60)),
            false => PATIENCE,
        };
        self.call_within(patience, what, make).await
    }

    /// Makes a call that is not cancelled.
    pub async fn wait<T, W>(&mut self, what: &str, make: impl FnOnce(Runtime) -> W) -> Result<T, Fail>
    where
        W: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(PATIENCE, what, make).await
    }

    async fn call_within<T, W>(
        &mut self,
        patience: Duration,
        what: &str,
        make: impl FnOnce(Runtime) -> W,
    ) -> Result<T, Fail>
    where
        W: Future<Output = Result<Response<T>, Status>>,
    {
        let runtime = self.runtime().await;
        let answer = answer(&self.ledger, patience, what, make(runtime)).await;
        if let Err(Fail::Unknown) = answer {
            self.runtime = None;
        }
        answer
    }

    /// Makes two calls at almost the same time on one connection.
    pub async fn both<A, B, V, W>(
        &mut self,
        whats: (&str, &str),
        first: impl FnOnce(Runtime) -> V,
        second: impl FnOnce(Runtime) -> W,
    ) -> (Result<A, Fail>, Result<B, Fail>)
    where
        V: Future<Output = Result<Response<A>, Status>>,
        W: Future<Output = Result<Response<B>, Status>>,
    {
        let runtime = self.runtime().await;
        let gap = Duration::from_micros(self.rng.random_range(0..20_000));
        let (first, second) = (first(runtime.clone()), second(runtime));
        let second = async {
            tokio::time::sleep(gap).await;
            second.await
        };
        let answers = tokio::join!(
            answer(&self.ledger, PATIENCE, whats.0, first),
            answer(&self.ledger, PATIENCE, whats.1, second)
        );
        if matches!(answers.0, Err(Fail::Unknown)) || matches!(answers.1, Err(Fail::Unknown)) {
            self.runtime = None;
        }
        answers
    }
}

async fn answer<T>(
    ledger: &Ledger,
    patience: Duration,
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Fail> {
    let answer = tokio::time::timeout(patience, call).await;
    ledger.count_call(answer.is_err());
    match answer {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if is_connection_error(&status) => Err(Fail::Unknown),
        Ok(Err(status)) => {
            let words = status.message();
            if words.contains("without an answer") || words.contains("panicked") {
                ledger.violation(format!("{what}: {status}"));
            }
            Err(Fail::Refused(status))
        }
        Err(_) => {
            if patience == PATIENCE {
                ledger.violation(format!("{what} was never answered"));
            }
            Err(Fail::Unknown)
        }
    }
}

/// Returns whether the daemon can have exited. If the daemon itself reports something as unavailable, that is the
/// keeper or the network.
fn is_connection_error(status: &Status) -> bool {
    let words = status.message();
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
        && !words.contains("keeper")
        && !words.contains("network")
}
