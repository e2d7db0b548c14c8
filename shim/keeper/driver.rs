//! The task that owns the connection to a keeper. It sends calls, delivers answers and events, and reconnects
//! if the connection breaks while the keeper's process lives.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use berth_runtime::client::{Connection, KeeperProcess, connect};
use berth_runtime::wire::transport::Received;
use berth_runtime::wire::{Call, Event, Message, Outcome, PROTOCOL, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::{ClientState, KeeperError, KeeperReply, KeeperUpdate, lock};

/// Delays between reconnection attempts: the first one and the longest.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long to wait for the keeper's process to exit after its pod was released. After that, it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls that change the keeper's state. The caller publishes the change; if the caller is gone, the driver
/// requests a snapshot instead.
const STATE_CHANGING_CALLS: [&str; 2] = ["Create", "Start"];

/// A call that was not sent yet.
#[derive(Debug)]
pub(super) struct QueuedCall {
    call: Call,
    descriptors: Vec<OwnedFd>,
    reply: oneshot::Sender<KeeperReply>,
}

impl QueuedCall {
    pub(super) fn new(call: Call, descriptors: Vec<OwnedFd>, reply: oneshot::Sender<KeeperReply>) -> Self {
        Self { call, descriptors, reply }
    }
}

/// A call that waits for its answer.
struct PendingCall {
    call: &'static str,
    /// None for the Hello that the driver sends itself.
    reply: Option<oneshot::Sender<KeeperReply>>,
}

/// A connection that is registered with tokio.
pub(super) type AsyncConnection = AsyncFd<Connection>;

pub(super) fn watch(connection: Connection) -> std::io::Result<AsyncConnection> {
    register(connection)
}

/// Registers an object that owns one descriptor for its whole life. The deprecated function is used because
/// its replacement is unsafe: it also accepts types that give their descriptor away.
#[expect(deprecated, reason = "the types that this is called with own one descriptor as long as they live")]
fn register<T: std::os::fd::AsRawFd>(owner: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::new(owner)
}

pub(super) struct Driver {
    folder: PathBuf,
    process: Arc<KeeperProcess>,
    updates: mpsc::UnboundedSender<KeeperUpdate>,
    shared: Weak<ClientState>,
    waiting: HashMap<u64, PendingCall>,
    next_id: u64,
    /// The call that was taken off the queue but not accepted by the keeper's socket yet.
    unsent: Option<QueuedCall>,
}

/// Why [`Driver::serve`] returned.
enum ServeEnd {
    /// All clones of the [`super::KeeperClient`] were dropped.
    Unused,
    Broken,
}

impl Driver {
    pub(super) fn new(
        folder: PathBuf,
        updates: mpsc::UnboundedSender<KeeperUpdate>,
        shared: &Arc<ClientState>,
    ) -> Self {
        Self {
            folder,
            process: shared.process.clone(),
            updates,
            shared: Arc::downgrade(shared),
            waiting: HashMap::new(),
            next_id: 1,
            unsent: None,
        }
    }

    /// Runs until the keeper's process has ended. After the last [`super::KeeperClient`] was dropped, waits at most
    /// [`EXIT_TIMEOUT`] for that and then kills the process.
    pub(super) async fn run(
        mut self,
        first: Option<AsyncConnection>,
        mut outgoing: mpsc::Receiver<QueuedCall>,
    ) {
        let mut was_connected = first.is_some();
        let mut next = first;
        loop {
            let (connection, is_new) = match next.take() {
                Some(connection) => (connection, false),
                None => match self.connect_again(was_connected).await {
                    Some(connection) => (connection, true),
                    None => break,
                },
            };
            if is_new {
                self.send_hello(&connection);
            }
            was_connected = true;
            if let ServeEnd::Unused = self.serve(&connection, &mut outgoing).await {
                drop(connection);
                // The keeper has received Shutdown. A stopped or hanging one must not stay behind.
                if !wait_for_end(&self.process, EXIT_TIMEOUT).await {
                    tracing::warn!(
                        keeper = self.process.describe(),
                        "killing a keeper that did not exit after its pod was released"
                    );
                    self.process.kill();
                    wait_for_end(&self.process, EXIT_TIMEOUT).await;
                }
                return;
            }
            for (_, PendingCall { call, reply }) in self.waiting.drain() {
                // The caller may be gone; the error is then dropped.
                drop(reply.map(|reply| reply.send(Err(KeeperError::Broken { call }))));
            }
        }
        // Dropping the senders reports the keeper's end to all receivers.
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.execs).clear();
            lock(&shared.clients).clear();
        }
    }

    /// Serves the connection until it breaks. A send never blocks receiving, because a stopped keeper accepts
    /// no calls.
    async fn serve(
        &mut self,
        connection: &AsyncConnection,
        outgoing: &mut mpsc::Receiver<QueuedCall>,
    ) -> ServeEnd {
        loop {
            tokio::select! {
                call = outgoing.recv(), if self.unsent.is_none() => match call {
                    Some(call) => {
                        self.unsent = Some(call);
                        self.send(connection);
                    }
                    None => return ServeEnd::Unused,
                },
                writable = connection.writable(), if self.unsent.is_some() => {
                    self.send(connection);
                    if let (Ok(mut writable), true) = (writable, self.unsent.is_some()) {
                        writable.clear_ready();
                    }
                }
                () = caller_gone(self.unsent.as_mut()), if self.unsent.is_some() => self.unsent = None,
                received = receive(connection) => match received {
                    Ok(Some(received)) => self.handle_message(received, connection),
                    Ok(None) => return ServeEnd::Broken,
                    Err(error) => {
                        tracing::warn!(%error, "lost the connection to a keeper");
                        return ServeEnd::Broken;
                    }
                },
            }
        }
    }

    /// Sends the pending call, if the keeper's socket accepts it.
    fn send(&mut self, connection: &AsyncConnection) {
        let Some(QueuedCall { call, descriptors, reply }) = self.unsent.take() else { return };
        // If its caller is gone, a call is not sent.
        if reply.is_closed() {
            return;
        }
        let request = Request { id: self.next_id, call };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match connection.get_ref().send(&request, &borrowed) {
            Ok(()) => {
                self.waiting
                    .insert(self.next_id, PendingCall { call: request.call.name(), reply: Some(reply) });
                self.next_id += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.unsent = Some(QueuedCall { call: request.call, descriptors, reply });
            }
            // The caller may be gone; the error is then dropped.
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    /// Sends Hello, the first call on a new connection.
    fn send_hello(&mut self, connection: &AsyncConnection) {
        let request = Request { id: self.next_id, call: Call::Hello { protocol: PROTOCOL } };
        // If the connection broke again, the reader notices.
        if connection.get_ref().send(&request, &[]).is_ok() {
            self.waiting.insert(self.next_id, PendingCall { call: request.call.name(), reply: None });
            self.next_id += 1;
        }
    }

    fn handle_message(&mut self, received: Received<Message>, connection: &AsyncConnection) {
        let Received { message, descriptors, cut } = received;
        if let Some(shared) = self.shared.upgrade() {
            shared.unresponsive.store(false, Ordering::Relaxed);
        }
        match message {
            Message::Answer { id, result } => {
                let reply = match cut {
                    true => Err(KeeperError::NoDescriptors),
                    false => result.map(|outcome| (outcome, descriptors)).map_err(KeeperError::from),
                };
                match self.waiting.remove(&id) {
                    Some(PendingCall { call, reply: Some(waiting) }) => {
                        // If the caller is gone, nothing publishes the change it made, so request a snapshot.
                        if waiting.send(reply).is_err() && STATE_CHANGING_CALLS.contains(&call) {
                            self.send_hello(connection);
                        }
                    }
                    Some(PendingCall { reply: None, .. }) | None => self.handle_snapshot(reply),
                }
            }
            Message::Event(Event::ExecExited { exec, code }) => {
                let waiting = self.shared.upgrade().and_then(|shared| lock(&shared.execs).remove(&exec));
                let _gone = waiting.map(|waiting| waiting.send(code));
            }
            Message::Event(Event::Detached { client, why }) => {
                let waiting = self.shared.upgrade().and_then(|shared| lock(&shared.clients).remove(&client));
                let _gone = waiting.map(|waiting| waiting.send(why));
            }
            Message::Event(event) => self.send_update(KeeperUpdate::Event(event)),
        }
    }

    /// Handles the answer to a Hello. Execs that ended while there was no connection are dropped from
    /// `execs`: their exit events are lost.
    fn handle_snapshot(&mut self, reply: KeeperReply) {
        let Ok((Outcome::Hello(snapshot), _)) = reply else { return };
        if let Some(shared) = self.shared.upgrade() {
            shared.protocol.store(snapshot.protocol, Ordering::Relaxed);
            lock(&shared.execs).retain(|exec, _| snapshot.execs.contains(exec));
            // The keeper drops a client with the connection that attached it.
            lock(&shared.clients).clear();
        }
        tracing::info!(keeper = self.process.pid(), "reconnected to a keeper");
        self.send_update(KeeperUpdate::Reconnected(snapshot));
    }

    fn send_update(&mut self, update: KeeperUpdate) {
        if self.updates.send(update).is_err() {
            tracing::debug!("dropped an update of a keeper: no receiver");
        }
    }

    /// Connects or reconnects. Returns none if the keeper's process has ended, which is why most connections
    /// break.
    async fn connect_again(&self, is_reconnect: bool) -> Option<AsyncConnection> {
        let mut delay = RETRY_MIN;
        if is_reconnect && wait_for_end(&self.process, delay).await {
            return None;
        }
        loop {
            let connection = connect(&self.folder).map_err(|error| error.to_string());
            match connection.and_then(|new| watch(new).map_err(|error| error.to_string())) {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    let keeper = self.process.describe();
                    tracing::warn!(error, keeper, "failed to connect to a keeper");
                }
            }
            if wait_for_end(&self.process, delay).await {
                return None;
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
    }
}

/// Waits until the caller of the pending call is gone. Without this, a stopped keeper would keep the call's
/// descriptors open.
async fn caller_gone(unsent: Option<&mut QueuedCall>) {
    match unsent {
        Some(call) => call.reply.closed().await,
        None => std::future::pending().await,
    }
}

async fn receive(connection: &AsyncConnection) -> std::io::Result<Option<Received<Message>>> {
    connection.async_io(Interest::READABLE, Connection::recv).await
}

/// Waits up to `timeout` for a process to end and returns whether it has. A child is reaped.
pub(crate) async fn wait_for_end(process: &Arc<KeeperProcess>, timeout: Duration) -> bool {
    let readiness = register(process.clone());
    let ended = async {
        match &readiness {
            Ok(readiness) => drop(readiness.readable().await),
            // The descriptor cannot be watched; check the process when the time is over.
            Err(_) => std::future::pending().await,
        }
    };
    drop(tokio::time::timeout(timeout, ended).await);
    process.has_ended(Duration::ZERO)
}
