//! The connection to a pod's keeper, as the rest of the shim uses it: calls that wait for their answer, and a stream of
//! events in the order in which they happened.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_runtime::client::Connection;
use berth_runtime::wire::{Call, Detachment, Event, Failure, Message, Outcome, PROTOCOL, Request, Snapshot};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Why a call to a keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The keeper has ended, or the connection to it.
    #[error("the pod's keeper is gone")]
    Gone,
    /// The keeper says so.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// It answered something else than the call asks for.
    #[error("the pod's keeper answered {0} out of turn")]
    Unexpected(String),
    /// The connection could not be used.
    #[error("connection to the pod's keeper: {0}")]
    Connection(#[from] std::io::Error),
}

type Reply = Result<(Outcome, Vec<OwnedFd>), LinkError>;

struct Outgoing {
    call: Call,
    descriptors: Vec<OwnedFd>,
    reply: oneshot::Sender<Reply>,
}

#[derive(Debug)]
struct Shared {
    calls: mpsc::UnboundedSender<Outgoing>,
    /// What the keeper speaks: the oldest until it has said so.
    protocol: AtomicU32,
    /// Who waits for the end of which exec.
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
    /// Who waits to hear that which client is attached no more.
    clients: Mutex<HashMap<String, oneshot::Sender<Detachment>>>,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("call", &self.call).finish_non_exhaustive()
    }
}

/// A connection to a keeper. Clones share it; it closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Takes over a connection. Events go to the receiver, which ends when the keeper does.
    ///
    /// # Errors
    /// The connection cannot be watched.
    pub fn start(connection: Connection) -> Result<(Self, mpsc::UnboundedReceiver<Event>), LinkError> {
        let connection = Watched::new(connection)?;
        let (calls, outgoing) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            calls,
            protocol: AtomicU32::new(1),
            execs: Mutex::default(),
            clients: Mutex::default(),
        });
        let driver = Driver {
            connection,
            events,
            shared: Arc::downgrade(&shared),
            waiting: HashMap::new(),
            next_id: 1,
        };
        tokio::spawn(driver.run(outgoing));
        Ok((Self { shared }, receiver))
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// The keeper refuses or is gone.
    pub async fn call(&self, call: Call, descriptors: Vec<OwnedFd>) -> Reply {
        // A keeper of an older daemon takes a call that it does not know for garbage, and hangs up.
        if call.since() > self.shared.protocol.load(Ordering::Relaxed) {
            return Err(Failure::Unknown.into());
        }
        let (reply, answer) = oneshot::channel();
        self.shared.calls.send(Outgoing { call, descriptors, reply }).map_err(|_| LinkError::Gone)?;
        answer.await.map_err(|_| LinkError::Gone)?
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

    /// A call that has nothing to tell.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn done(&self, call: Call) -> Result<(), LinkError> {
        self.call(call, Vec::new()).await.map(drop)
    }

    /// Tells when an exec ends. To be asked for before the exec is started.
    #[must_use]
    pub fn exec_end(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (tell, told) = oneshot::channel();
        lock(&self.shared.execs).insert(exec.to_owned(), tell);
        told
    }

    /// Tells when a client is attached no more. To be asked for before it is attached.
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

struct Driver {
    connection: Watched,
    events: mpsc::UnboundedSender<Event>,
    shared: std::sync::Weak<Shared>,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    next_id: u64,
}

impl Driver {
    async fn run(mut self, mut outgoing: mpsc::UnboundedReceiver<Outgoing>) {
        loop {
            tokio::select! {
                call = outgoing.recv() => match call {
                    Some(call) => self.send(call).await,
                    None => return,
                },
                received = self.connection.receive() => match received {
                    Ok(Some((message, descriptors))) => self.take(message, descriptors),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "connection to a keeper failed");
                        break;
                    }
                },
            }
        }
        // Dropping `waiting`, `execs` and `clients` tells everyone who waits that the keeper is gone.
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.execs).clear();
            lock(&shared.clients).clear();
        }
    }

    async fn send(&mut self, outgoing: Outgoing) {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { id, call: outgoing.call };
        let borrowed: Vec<_> = outgoing.descriptors.iter().map(AsFd::as_fd).collect();
        let sent = self.connection.send(&request, &borrowed).await;
        match sent {
            Ok(()) => {
                self.waiting.insert(id, outgoing.reply);
            }
            // The caller may have gone: then there is nobody to tell.
            Err(error) => drop(outgoing.reply.send(Err(error.into()))),
        }
    }

    fn take(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        match message {
            Message::Answer { id, result } => {
                let reply = result.map(|outcome| (outcome, descriptors)).map_err(LinkError::from);
                if let Some(waiting) = self.waiting.remove(&id) {
                    // The caller may have gone: then there is nobody to tell.
                    drop(waiting.send(reply));
                }
            }
            Message::Event(Event::ExecExited { exec, code }) => {
                let waiting = self.shared.upgrade().and_then(|shared| lock(&shared.execs).remove(&exec));
                if let Some(waiting) = waiting {
                    let _gone = waiting.send(code);
                }
            }
            Message::Event(Event::Detached { client, why }) => {
                let waiting = self.shared.upgrade().and_then(|shared| lock(&shared.clients).remove(&client));
                if let Some(waiting) = waiting {
                    let _gone = waiting.send(why);
                }
            }
            Message::Event(event) => {
                if self.events.send(event).is_err() {
                    tracing::debug!("an event of a keeper that nobody follows");
                }
            }
        }
    }
}

/// A connection whose readiness tokio tells. It is registered as a stream, which is the kind of unix socket that tokio
/// knows; what is read and written are packets, by the connection itself.
struct Watched {
    connection: Connection,
    readiness: UnixStream,
}

impl Watched {
    fn new(connection: Connection) -> std::io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(connection.as_fd().try_clone_to_owned()?);
        Ok(Self { connection, readiness: UnixStream::from_std(socket)? })
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let send = || self.connection.send(request, descriptors);
        self.readiness.async_io(Interest::WRITABLE, send).await
    }

    async fn receive(&self) -> std::io::Result<Option<(Message, Vec<OwnedFd>)>> {
        self.readiness.async_io(Interest::READABLE, || self.connection.recv()).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
