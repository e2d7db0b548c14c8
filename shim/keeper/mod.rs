//! The client of a pod's keeper: calls that wait for their answer, and a stream of updates in the order in
//! which they happened.
//!
//! If the connection breaks, it is restored as long as the keeper's process lives. Only the end of that
//! process, seen through its pidfd, counts as the end of the keeper. Every call has a deadline. If the keeper
//! does not answer in time, the error describes what its process is doing.
//!
//! * [`driver`]: the task that owns the connection
//! * [`launch`]: starts keepers; `fake`: a keeper in a thread, for unit tests
//! * this file: the calls

mod driver;
#[cfg(test)]
pub(crate) mod fake;
mod launch;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_runtime::client::{Connection, KeeperProcess};
use berth_runtime::wire::{Call, Detachment, Event, Failure, Outcome, PROTOCOL, Snapshot};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;
use tracing::{Instrument, Span};

pub(crate) use driver::wait_for_end;
use driver::{Driver, QueuedCall};
pub use launch::KeeperLauncher;

use crate::error::{CriError, subsystem};
use crate::traces;

/// Capacity of the queue of unsent calls: a stopped keeper accepts none.
const MAX_QUEUED_CALLS: usize = 256;

/// Timeout of a call that only involves the keeper itself.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of a call if the previous one was not answered in time.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout of a call in which a container's init or an exec runs up to the gate or to its exec. It opens
/// paths that users name, on any disk. After this time, it is killed.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call to a keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The keeper's process has ended.
    #[error("the pod's keeper has ended")]
    Gone,
    /// The connection broke before the answer arrived: the call may or may not have been carried out.
    #[error("lost the connection to the pod's keeper before the answer to {call}")]
    Broken {
        /// The name of the call.
        call: &'static str,
    },
    /// The answer did not come in time.
    #[error("the pod's keeper did not answer {call} within {} s: {keeper}", .timeout.as_secs())]
    NoAnswer {
        /// The name of the call.
        call: &'static str,
        /// The timeout that passed.
        timeout: Duration,
        /// The activity of the keeper's process.
        keeper: String,
    },
    /// The queue of unsent calls is full.
    #[error("failed to call the pod's keeper: too many calls are queued: {keeper}")]
    Busy {
        /// The activity of the keeper's process.
        keeper: String,
    },
    /// The descriptors of the answer were lost.
    #[error("failed to receive the keeper's answer: no descriptors left (RLIMIT_NOFILE)")]
    NoDescriptors,
    /// The keeper reported that the call failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The answer does not match the call.
    #[error("unexpected answer from the pod's keeper: {0}")]
    Unexpected(String),
    /// The connection could not be used.
    #[error("failed to use the connection to the pod's keeper: {0}")]
    Connection(#[from] std::io::Error),
}

impl From<KeeperError> for CriError {
    fn from(error: KeeperError) -> Self {
        let code = match &error {
            KeeperError::Gone | KeeperError::Connection(_) | KeeperError::Broken { .. } => Code::Unavailable,
            KeeperError::NoAnswer { .. } => Code::DeadlineExceeded,
            KeeperError::Busy { .. } | KeeperError::NoDescriptors => Code::ResourceExhausted,
            KeeperError::Failure(Failure::NotFound { .. }) => Code::NotFound,
            KeeperError::Failure(Failure::Init(_) | Failure::State { .. }) => Code::FailedPrecondition,
            KeeperError::Failure(Failure::Unknown) => Code::Unimplemented,
            KeeperError::Failure(Failure::System { .. }) | KeeperError::Unexpected(_) => Code::Internal,
        };
        subsystem(code, error)
    }
}

/// A message of a keeper that is not the answer to a call.
#[derive(Debug)]
pub enum KeeperUpdate {
    /// A container changed its state.
    Event(Event),
    /// The connection was restored. The snapshot is the keeper's whole state, since events may have been
    /// lost.
    Reconnected(Snapshot),
}

/// The updates of one keeper. The stream ends when the keeper's process has ended or all clones of its
/// [`KeeperClient`] were dropped.
pub type KeeperUpdates = mpsc::UnboundedReceiver<KeeperUpdate>;

type KeeperReply = Result<(Outcome, Vec<OwnedFd>), KeeperError>;

#[derive(Debug)]
struct ClientState {
    calls: mpsc::Sender<QueuedCall>,
    process: Arc<KeeperProcess>,
    /// The keeper's protocol version; the oldest one until the keeper has reported it.
    protocol: AtomicU32,
    /// The last call was not answered in time, and no message has arrived since.
    unresponsive: AtomicBool,
    /// Receivers of exit codes, by exec.
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
    /// Receivers of detachments, by client.
    clients: Mutex<HashMap<String, oneshot::Sender<Detachment>>>,
}

/// A client of one keeper. Clones share the connection; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct KeeperClient {
    shared: Arc<ClientState>,
}

impl KeeperClient {
    /// Uses an open connection to a keeper. Its socket is in `folder`, for reconnections.
    ///
    /// # Errors
    /// The connection cannot be registered with tokio.
    pub fn start(
        connection: Connection,
        process: KeeperProcess,
        folder: PathBuf,
    ) -> Result<(Self, KeeperUpdates), KeeperError> {
        let connection = driver::watch(connection)?;
        Ok(Self::with(Some(connection), process, folder))
    }

    /// Connects to a keeper that an earlier daemon started, as soon as it answers. The first update is its
    /// snapshot.
    #[must_use]
    pub fn adopt(process: KeeperProcess, folder: PathBuf) -> (Self, KeeperUpdates) {
        Self::with(None, process, folder)
    }

    fn with(
        connection: Option<driver::AsyncConnection>,
        process: KeeperProcess,
        folder: PathBuf,
    ) -> (Self, KeeperUpdates) {
        let (calls, outgoing) = mpsc::channel(MAX_QUEUED_CALLS);
        let (updates, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(ClientState {
            calls,
            process: Arc::new(process),
            protocol: AtomicU32::new(1),
            unresponsive: AtomicBool::new(false),
            execs: Mutex::default(),
            clients: Mutex::default(),
        });
        tokio::spawn(Driver::new(folder, updates, &shared).run(connection, outgoing));
        (Self { shared }, receiver)
    }

    /// Sends a call and waits for its answer, up to the timeout of its kind.
    ///
    /// # Errors
    /// The keeper refuses the call, does not answer in time or has ended.
    pub async fn call(&self, call: Call, descriptors: Vec<OwnedFd>) -> KeeperReply {
        self.call_with(call, descriptors, Duration::ZERO).await
    }

    /// Like [`KeeperClient::call`], with additional time: for hooks.
    ///
    /// # Errors
    /// As [`KeeperClient::call`].
    pub async fn call_with(&self, call: Call, descriptors: Vec<OwnedFd>, more: Duration) -> KeeperReply {
        let span = tracing::trace_span!(
            target: traces::TARGET, "keeper", otel.name = %format_args!("keeper {}", call.name())
        );
        let reply = self.send(call, descriptors, more).instrument(span.clone()).await;
        if let Err(error) = &reply {
            trace_failure(&span, error);
        }
        reply
    }

    async fn send(&self, call: Call, descriptors: Vec<OwnedFd>, more: Duration) -> KeeperReply {
        // A keeper of an older daemon takes an unknown call for an invalid message and closes the connection.
        if call.since() > self.shared.protocol.load(Ordering::Relaxed) {
            return Err(Failure::Unknown.into());
        }
        let name = call.name();
        let timeout = match self.shared.unresponsive.load(Ordering::Relaxed) {
            true => UNRESPONSIVE_TIMEOUT,
            false => timeout_of(&call).saturating_add(more),
        };
        let (reply, answer) = oneshot::channel();
        self.shared.calls.try_send(QueuedCall::new(call, descriptors, reply)).map_err(
            |error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    KeeperError::Busy { keeper: self.shared.process.describe() }
                }
                mpsc::error::TrySendError::Closed(_) => KeeperError::Gone,
            },
        )?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer.map_err(|_| KeeperError::Gone)?,
            Err(_) => {
                self.shared.unresponsive.store(true, Ordering::Relaxed);
                Err(KeeperError::NoAnswer { call: name, timeout, keeper: self.shared.process.describe() })
            }
        }
    }

    /// Sends Hello, the first call on every connection, and returns the keeper's snapshot.
    ///
    /// # Errors
    /// As [`KeeperClient::call`].
    pub async fn hello(&self) -> Result<Snapshot, KeeperError> {
        match self.call(Call::Hello { protocol: PROTOCOL }, Vec::new()).await?.0 {
            Outcome::Hello(snapshot) => {
                self.shared.protocol.store(snapshot.protocol, Ordering::Relaxed);
                Ok(snapshot)
            }
            other => Err(KeeperError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Sends a call without descriptors and ignores the content of its answer.
    ///
    /// # Errors
    /// As [`KeeperClient::call`].
    pub async fn execute(&self, call: Call) -> Result<(), KeeperError> {
        self.call(call, Vec::new()).await.map(drop)
    }

    /// The keeper's process.
    #[must_use]
    pub fn process(&self) -> Arc<KeeperProcess> {
        self.shared.process.clone()
    }

    /// Returns a receiver for the exit code of an exec. Must be called before the exec is started.
    #[must_use]
    pub fn exec_end(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.shared.execs).insert(exec.to_owned(), sender);
        receiver
    }

    /// Returns a receiver for the detachment of a client. Must be called before the client is attached.
    #[must_use]
    pub fn detachment(&self, client: &str) -> oneshot::Receiver<Detachment> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.shared.clients).insert(client.to_owned(), sender);
        receiver
    }

    /// Removes the receiver of a client's detachment.
    pub fn forget_client(&self, client: &str) {
        lock(&self.shared.clients).remove(client);
    }

    /// Removes the receiver of an exec's exit code.
    pub fn forget_exec(&self, exec: &str) {
        lock(&self.shared.execs).remove(exec);
    }
}

/// Records the failure of a call in its span. The failed step of a first process gets a separate span, with the error of
/// its system call.
fn trace_failure(span: &Span, error: &KeeperError) {
    if let KeeperError::Failure(Failure::Init(failure)) = error {
        let step = tracing::trace_span!(
            target: traces::TARGET, parent: span, "init",
            otel.name = %format_args!("init {}", failure.step.description()),
            errno = failure.errno,
            detail = failure.detail,
        );
        traces::fail(&step, failure);
    }
    traces::fail(span, error);
}

/// Returns the timeout of a call.
fn timeout_of(call: &Call) -> Duration {
    match call {
        Call::Create { .. } | Call::Start { .. } | Call::Exec { .. } => START_TIMEOUT,
        _ => CALL_TIMEOUT,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_that_has_ended_is_unavailable() {
        let gone = CriError::from(KeeperError::Gone);
        assert_eq!(
            (gone.code(), gone.to_string().as_str()),
            (Code::Unavailable, "the pod's keeper has ended")
        );
    }
}
