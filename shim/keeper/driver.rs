//! The task that owns the connection to a keeper: it sends calls, hands out answers and news, and connects again where the
//! connection breaks while the keeper's process lives.

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

use super::{LinkError, News, Reply, Shared, lock};

/// How long after a broken connection the next attempt comes, at first and at most.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(2);

/// How long the end of a process is waited for, to reap it, when its pod is released; then it is killed.
const UNUSED: Duration = Duration::from_secs(30);

/// Calls that change what a keeper knows of its containers: whoever makes one makes the change known.
const CHANGING: [&str; 2] = ["Create", "Start"];

/// A call on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    call: Call,
    descriptors: Vec<OwnedFd>,
    reply: oneshot::Sender<Reply>,
}

impl Outgoing {
    pub(super) fn new(call: Call, descriptors: Vec<OwnedFd>, reply: oneshot::Sender<Reply>) -> Self {
        Self { call, descriptors, reply }
    }
}

/// Who waits for an answer.
struct Waiting {
    call: &'static str,
    /// None of the driver's own first call.
    reply: Option<oneshot::Sender<Reply>>,
}

/// A connection whose readiness tokio tells.
pub(super) type Watched = AsyncFd<Connection>;

pub(super) fn watch(connection: Connection) -> std::io::Result<Watched> {
    readiness(connection)
}

/// Registers what owns one descriptor and never gives it away. The function that replaces this one is unsafe, since some types
/// do.
#[expect(deprecated, reason = "the types that this is called with own one descriptor as long as they live")]
fn readiness<T: std::os::fd::AsRawFd>(owner: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::new(owner)
}

pub(super) struct Driver {
    folder: PathBuf,
    process: Arc<KeeperProcess>,
    news: mpsc::UnboundedSender<News>,
    shared: Weak<Shared>,
    waiting: HashMap<u64, Waiting>,
    next_id: u64,
    /// Taken off the queue, and not taken by the keeper yet.
    unsent: Option<Outgoing>,
}

/// Why serving a connection ended.
enum Ended {
    /// Nobody holds the link any more.
    Unused,
    Broken,
}

impl Driver {
    pub(super) fn new(folder: PathBuf, news: mpsc::UnboundedSender<News>, shared: &Arc<Shared>) -> Self {
        Self {
            folder,
            process: shared.process.clone(),
            news,
            shared: Arc::downgrade(shared),
            waiting: HashMap::new(),
            next_id: 1,
            unsent: None,
        }
    }

    /// Goes on until the keeper's process has ended; where nobody holds the link any more, that is waited for in vain at most
    /// [`UNUSED`].
    pub(super) async fn run(mut self, first: Option<Watched>, mut outgoing: mpsc::Receiver<Outgoing>) {
        let mut known = first.is_some();
        let mut next = first;
        loop {
            let (connection, again) = match next.take() {
                Some(connection) => (connection, false),
                None => match self.connect_again(known).await {
                    Some(connection) => (connection, true),
                    None => break,
                },
            };
            if again {
                self.say_hello(&connection);
            }
            known = true;
            if let Ended::Unused = self.serve(&connection, &mut outgoing).await {
                drop(connection);
                // It was told to end. One that is stopped, or that hangs, is not left behind.
                if !wait_for_end(&self.process, UNUSED).await {
                    tracing::warn!(keeper = self.process.describe(), "a keeper that nobody needs is killed");
                    self.process.kill();
                    wait_for_end(&self.process, UNUSED).await;
                }
                return;
            }
            for (_, Waiting { call, reply }) in self.waiting.drain() {
                // The caller may have gone: then there is nobody to tell.
                drop(reply.map(|reply| reply.send(Err(LinkError::Broken { call }))));
            }
        }
        // Dropping what waits tells everyone that the keeper has ended.
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.execs).clear();
            lock(&shared.clients).clear();
        }
    }

    /// Serves the connection until it breaks. Sending never holds up receiving: a keeper that is stopped takes nothing.
    async fn serve(&mut self, connection: &Watched, outgoing: &mut mpsc::Receiver<Outgoing>) -> Ended {
        loop {
            tokio::select! {
                call = outgoing.recv(), if self.unsent.is_none() => match call {
                    Some(call) => {
                        self.unsent = Some(call);
                        self.send(connection);
                    }
                    None => return Ended::Unused,
                },
                writable = connection.writable(), if self.unsent.is_some() => {
                    self.send(connection);
                    if let (Ok(mut writable), true) = (writable, self.unsent.is_some()) {
                        writable.clear_ready();
                    }
                }
                () = given_up(self.unsent.as_mut()), if self.unsent.is_some() => self.unsent = None,
                received = receive(connection) => match received {
                    Ok(Some(received)) => self.take(received, connection),
                    Ok(None) => return Ended::Broken,
                    Err(error) => {
                        tracing::warn!(%error, "the connection to a keeper broke");
                        return Ended::Broken;
                    }
                },
            }
        }
    }

    /// Sends the call that waits, if the keeper takes it.
    fn send(&mut self, connection: &Watched) {
        let Some(Outgoing { call, descriptors, reply }) = self.unsent.take() else { return };
        // One that nobody waits for any more is not sent late.
        if reply.is_closed() {
            return;
        }
        let request = Request { id: self.next_id, call };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match connection.get_ref().send(&request, &borrowed) {
            Ok(()) => {
                self.waiting.insert(self.next_id, Waiting { call: request.call.name(), reply: Some(reply) });
                self.next_id += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.unsent = Some(Outgoing { call: request.call, descriptors, reply });
            }
            // The caller may have gone: then there is nobody to tell.
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    /// The first call on a connection that was made again.
    fn say_hello(&mut self, connection: &Watched) {
        let request = Request { id: self.next_id, call: Call::Hello { protocol: PROTOCOL } };
        // A connection that is broken again is noticed by whoever reads from it.
        if connection.get_ref().send(&request, &[]).is_ok() {
            self.waiting.insert(self.next_id, Waiting { call: request.call.name(), reply: None });
            self.next_id += 1;
        }
    }

    fn take(&mut self, received: Received<Message>, connection: &Watched) {
        let Received { message, descriptors, cut } = received;
        if let Some(shared) = self.shared.upgrade() {
            shared.silent.store(false, Ordering::Relaxed);
        }
        match message {
            Message::Answer { id, result } => {
                let reply = match cut {
                    true => Err(LinkError::NoDescriptors),
                    false => result.map(|outcome| (outcome, descriptors)).map_err(LinkError::from),
                };
                match self.waiting.remove(&id) {
                    Some(Waiting { call, reply: Some(waiting) }) => {
                        // The caller may have gone: what such a call has changed is told to nobody then, so it is asked.
                        if waiting.send(reply).is_err() && CHANGING.contains(&call) {
                            self.say_hello(connection);
                        }
                    }
                    Some(Waiting { reply: None, .. }) | None => self.take_snapshot(reply),
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
            Message::Event(event) => self.tell(News::Event(event)),
        }
    }

    /// The answer to the driver's own call. What has ended while there was no connection is not told any more.
    fn take_snapshot(&mut self, reply: Reply) {
        let Ok((Outcome::Hello(snapshot), _)) = reply else { return };
        if let Some(shared) = self.shared.upgrade() {
            shared.protocol.store(snapshot.protocol, Ordering::Relaxed);
            lock(&shared.execs).retain(|exec, _| snapshot.execs.contains(exec));
            // The keeper lets go of a client with the connection that has attached it.
            lock(&shared.clients).clear();
        }
        tracing::info!(keeper = self.process.pid(), "connected to a keeper again");
        self.tell(News::Reconnected(snapshot));
    }

    fn tell(&mut self, news: News) {
        if self.news.send(news).is_err() {
            tracing::debug!("news of a keeper that nobody follows");
        }
    }

    /// Connects, for the first time or again; none where the keeper's process has ended, which is why most connections break.
    async fn connect_again(&self, again: bool) -> Option<Watched> {
        let mut pause = SOON;
        if again && wait_for_end(&self.process, pause).await {
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
            if wait_for_end(&self.process, pause).await {
                return None;
            }
            pause = (pause * 2).min(LATE);
        }
    }
}

/// Waits until nobody waits for the answer to a call any more: a keeper that is stopped must not keep its descriptors open.
async fn given_up(unsent: Option<&mut Outgoing>) {
    match unsent {
        Some(call) => call.reply.closed().await,
        None => std::future::pending().await,
    }
}

async fn receive(connection: &Watched) -> std::io::Result<Option<Received<Message>>> {
    connection.async_io(Interest::READABLE, Connection::recv).await
}

/// Waits for the end of a process, but no longer than `patience`; whether it has ended. A child is reaped.
pub(crate) async fn wait_for_end(process: &Arc<KeeperProcess>, patience: Duration) -> bool {
    let watched = readiness(process.clone());
    let ended = async {
        match &watched {
            Ok(watched) => drop(watched.readable().await),
            // No descriptor to watch it with: it is asked at the end of the patience.
            Err(_) => std::future::pending().await,
        }
    };
    drop(tokio::time::timeout(patience, ended).await);
    process.has_ended(Duration::ZERO)
}
