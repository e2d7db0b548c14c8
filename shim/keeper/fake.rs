//! A keeper for unit tests: a thread that speaks the keeper's protocol and answers as the test decides. It needs no root.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use berth_runtime::client::{KeeperProcess, connect};
use berth_runtime::sys::socket;
use berth_runtime::wire::transport;
use berth_runtime::wire::{Call, Event, Failure, Message, Outcome, PROTOCOL, Request, Snapshot};

use super::{KeeperClient, KeeperUpdates, lock};

/// The answer to a call, and an event that follows it.
pub(crate) type Reaction = (Result<Outcome, Failure>, Option<Event>);

/// A keeper whose calls are answered by a function. Its process only waits; it ends with this.
#[derive(Debug)]
pub(crate) struct FakeKeeper {
    process: Child,
    socket: OwnedFd,
    calls: Arc<Mutex<Vec<&'static str>>>,
    _folder: tempfile::TempDir,
}

impl FakeKeeper {
    /// Starts a keeper and connects to it. `Hello` is answered with a keeper without containers.
    pub(crate) fn start(
        react: impl FnMut(&Call) -> Reaction + Send + 'static,
    ) -> (Self, KeeperClient, KeeperUpdates) {
        let folder = tempfile::tempdir().unwrap();
        let listener = socket::listen(folder.path(), "keeper.sock").unwrap();
        let connection = connect(folder.path()).unwrap();
        let accepted = rustix::net::accept(&listener).unwrap();
        let socket = accepted.try_clone().unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let opened = KeeperProcess::open(process.id().try_into().unwrap()).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        std::thread::spawn(move || serve(&accepted, react, &seen));
        let path = folder.path().to_owned();
        let (client, updates) = KeeperClient::start(connection, opened, path).unwrap();
        (Self { process, socket, calls, _folder: folder }, client, updates)
    }

    /// Returns the names of the calls so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        lock(&self.calls).clone()
    }

    /// Ends the keeper's process, as SIGKILL does: its connection ends with it.
    pub(crate) fn kill(&mut self) {
        drop(self.process.kill());
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
    }
}

impl Drop for FakeKeeper {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn serve(socket: &OwnedFd, mut react: impl FnMut(&Call) -> Reaction, calls: &Mutex<Vec<&'static str>>) {
    let mut buffer = Vec::new();
    while let Ok(Some(received)) = transport::receive::<Request>(socket.as_fd(), &mut buffer) {
        let Request { id, call } = received.message;
        lock(calls).push(call.name());
        let (result, event) = match call {
            Call::Hello { .. } => (Ok(Outcome::Hello(without_containers())), None),
            call => react(&call),
        };
        let answer = Message::Answer { id, result };
        for message in [Some(answer), event.map(Message::Event)].into_iter().flatten() {
            if transport::send(socket.as_fd(), &message, &[]).is_err() {
                return;
            }
        }
    }
}

fn without_containers() -> Snapshot {
    Snapshot { protocol: PROTOCOL, keeper_pid: 1, pause: Some(1), containers: Vec::new(), execs: Vec::new() }
}
