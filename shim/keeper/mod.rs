//! The connection to a pod's keeper, as the rest of the shim uses it: calls that wait for their answer, and a stream of
//! news in the order in which it happened.
//!
//! A connection that breaks is made again as long as the keeper's process lives: only the end of that process, seen by its
//! pidfd, is the end of the keeper. A call has a deadline; what a keeper that does not answer is doing is part of the error.
//!
//! * [`driver`]: the task that owns the connection
//! * this file: the calls

mod driver;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_runtime::client::{Connection, KeeperProcess};
use berth_runtime::wire::{Call, Detachment, Event, Failure, Outcome, PROTOCOL, Snapshot};
use tokio::sync::{mpsc, oneshot};

pub(crate) use driver::wait_for_end;
use driver::{Driver, Outgoing};

/// How many calls may wait until the keeper takes them: one that is stopped takes none.
const MOST_WAITING: usize = 256;

/// How long a keeper may take for a call that only it is concerned with.
const AT_ONCE: Duration = Duration::from_secs(10);

/// How long a keeper may take that did not answer the last call in time.
const STILL_SILENT: Duration = Duration::from_secs(1);

/// How long a first process may take up to the gate, or to its exec: it opens paths that users name, on any disk. After
/// that it is killed.
const ON_THEIR_DISKS: Duration = Duration::from_secs(60);

/// Why a call to a keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The keeper's process has ended.
    #[error("the pod's keeper has ended")]
    Gone,
    /// The connection broke before the answer came: whether the call was carried out is not known.
    #[error("the connection to the pod's keeper broke before the answer to {call}")]
    Broken {
        /// Which call.
        call: &'static str,
    },
    /// The answer did not come in time.
    #[error("the pod's keeper did not answer {call} within {} s: {keeper}", .patience.as_secs())]
    NoAnswer {
        /// Which call.
        call: &'static str,
        /// How long was waited for it.
        patience: Duration,
        /// What the keeper's process is doing.
        keeper: String,
    },
    /// Too many calls wait for the keeper.
    #[error("too many calls wait for the pod's keeper: {keeper}")]
    Busy {
        /// What the keeper's process is doing.
        keeper: String,
    },
    /// The answer's descriptors are lost.
    #[error("the daemon has no descriptors left for the keeper's answer (RLIMIT_NOFILE)")]
    NoDescriptors,
    /// The keeper refuses.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The keeper answered something else than the call asks for.
    #[error("unexpected answer from the pod's keeper: {0}")]
    Unexpected(String),
    /// The connection could not be used.
    #[error("failed to use the connection to the pod's keeper: {0}")]
    Connection(#[from] std::io::Error),
}

/// What a keeper tells unasked.
#[derive(Debug)]
pub enum News {
    /// Something has happened.
    Event(Event),
    /// The connection was made again: everything the keeper knows, since events may have been missed.
    Reconnected(Snapshot),
}

/// The news, which ends when the keeper's process has ended or nobody holds its link any more.
pub type NewsReceiver = mpsc::UnboundedReceiver<News>;

type Reply = Result<(Outcome, Vec<OwnedFd>), LinkError>;

#[derive(Debug)]
struct Shared {
    calls: mpsc::Sender<Outgoing>,
    process: Arc<KeeperProcess>,
    /// What the keeper speaks: the oldest until it has said so.
    protocol: AtomicU32,
    /// A call was not answered in time, and nothing has come since.
    silent: AtomicBool,
    /// Who waits for the end of which exec.
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
    /// Who waits for the detachment of which client.
    clients: Mutex<HashMap<String, oneshot::Sender<Detachment>>>,
}

/// A connection to a keeper. Clones share it; it closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Takes over a connection to a keeper whose socket is in `folder`.
    ///
    /// # Errors
    /// The connection cannot be watched.
    pub fn start(
        connection: Connection,
        process: KeeperProcess,
        folder: PathBuf,
    ) -> Result<(Self, NewsReceiver), LinkError> {
        let connection = driver::watch(connection)?;
        Ok(Self::with(Some(connection), process, folder))
    }

    /// Connects to a keeper that a former daemon has started, as soon as it answers: the first news is what it knows.
    #[must_use]
    pub fn adopt(process: KeeperProcess, folder: PathBuf) -> (Self, NewsReceiver) {
        Self::with(None, process, folder)
    }

    fn with(
        connection: Option<driver::Watched>,
        process: KeeperProcess,
        folder: PathBuf,
    ) -> (Self, NewsReceiver) {
        let (calls, outgoing) = mpsc::channel(MOST_WAITING);
        let (news, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            calls,
            process: Arc::new(process),
            protocol: AtomicU32::new(1),
            silent: AtomicBool::new(false),
            execs: Mutex::default(),
            clients: Mutex::default(),
        });
        tokio::spawn(Driver::new(folder, news, &shared).run(connection, outgoing));
        (Self { shared }, receiver)
    }

    /// Makes a call and waits for its answer, up to the deadline of its kind.
    ///
    /// # Errors
    /// The keeper refuses, does not answer in time or has ended.
    pub async fn call(&self, call: Call, descriptors: Vec<OwnedFd>) -> Reply {
        // A keeper of an older daemon takes a call that it does not know for garbage, and hangs up.
        if call.since() > self.shared.protocol.load(Ordering::Relaxed) {
            return Err(Failure::Unknown.into());
        }
        let name = call.name();
        let patience = match self.shared.silent.load(Ordering::Relaxed) {
            true => STILL_SILENT,
            false => patience(&call),
        };
        let (reply, answer) = oneshot::channel();
        self.shared.calls.try_send(Outgoing::new(call, descriptors, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LinkError::Busy { keeper: self.shared.process.describe() },
            mpsc::error::TrySendError::Closed(_) => LinkError::Gone,
        })?;
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| LinkError::Gone)?,
            Err(_) => {
                self.shared.silent.store(true, Ordering::Relaxed);
                Err(LinkError::NoAnswer { call: name, patience, keeper: self.shared.process.describe() })
            }
        }
    }

    /// The first call on every connection.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn hello(&self) -> Result<Snapshot, LinkError> {
        match self.call(Call::Hello { protocol: PROTOCOL }, Vec::new()).await?.0 {
            Outcome::Hello(snapshot) => {
                self.shared.protocol.store(snapshot.protocol, Ordering::Relaxed);
                Ok(snapshot)
            }
            other => Err(LinkError::Unexpected(format!("{other:?}"))),
        }
    }

    /// A call whose answer has nothing to tell.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn done(&self, call: Call) -> Result<(), LinkError> {
        self.call(call, Vec::new()).await.map(drop)
    }

    /// The keeper's process.
    #[must_use]
    pub fn process(&self) -> Arc<KeeperProcess> {
        self.shared.process.clone()
    }

    /// Tells when an exec ends. To be asked for before the exec is started.
    #[must_use]
    pub fn exec_end(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (tell, told) = oneshot::channel();
        lock(&self.shared.execs).insert(exec.to_owned(), tell);
        told
    }

    /// Tells when a client is detached. To be asked for before it is attached.
    #[must_use]
    pub fn detachment(&self, client: &str) -> oneshot::Receiver<Detachment> {
        let (tell, told) = oneshot::channel();
        lock(&self.shared.clients).insert(client.to_owned(), tell);
        told
    }

    /// Nobody waits for the detachment of this client any more.
    pub fn forget_client(&self, client: &str) {
        lock(&self.shared.clients).remove(client);
    }

    /// Nobody waits for the end of this exec any more.
    pub fn forget_exec(&self, exec: &str) {
        lock(&self.shared.execs).remove(exec);
    }
}

/// How long the answer to a call may take.
fn patience(call: &Call) -> Duration {
    match call {
        Call::Create { .. } | Call::Start { .. } | Call::Exec { .. } => ON_THEIR_DISKS,
        _ => AT_ONCE,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
