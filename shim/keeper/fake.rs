//! A keeper for unit tests: a thread that speaks the keeper's protocol and answers as the test decides. It needs no root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use berth_runtime::client::{Keeper, KeeperProcess, connect};
use berth_runtime::sys::{fs, socket};
use berth_runtime::wire::transport;
use berth_runtime::wire::{Call, Event, Failure, Message, Outcome, PROTOCOL, Request, Snapshot};
use rustix::event::{PollFd, PollFlags, poll};

use super::{KeeperClient, KeeperUpdates, lock};
use crate::ids::PodId;

/// The name of a keeper's socket in its folder.
const SOCKET: &str = "keeper.sock";

/// The answer to a call, and an event that follows it.
pub(crate) type Reaction = (Result<Outcome, Failure>, Option<Event>);

/// The effects on the host so far, in order. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    entries: Arc<Mutex<Vec<&'static str>>>,
}

impl Journal {
    pub(crate) fn add(&self, entry: &'static str) {
        lock(&self.entries).push(entry);
    }

    pub(crate) fn entries(&self) -> Vec<&'static str> {
        lock(&self.entries).clone()
    }
}

/// A keeper whose calls are answered by a function. Its process only waits; it ends with this.
#[derive(Debug)]
pub(crate) struct FakeKeeper {
    process: Child,
    /// The end of a connection that [`FakeKeeper::kill`] closes.
    socket: Option<OwnedFd>,
    calls: Journal,
    _folder: Option<tempfile::TempDir>,
}

impl FakeKeeper {
    /// Starts a keeper and connects to it. `Hello` is answered with a keeper without containers.
    pub(crate) fn start(
        react: impl FnMut(&Call) -> Reaction + Send + 'static,
    ) -> (Self, KeeperClient, KeeperUpdates) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let (mut keeper, started) = Self::launch(&path, Journal::default(), react);
        keeper._folder = Some(folder);
        let (client, updates) = KeeperClient::start(started.connection, started.process, path).unwrap();
        (keeper, client, updates)
    }

    /// Starts a keeper with its socket in `folder`, as [`super::KeeperLauncher`] does. Its calls are added to `journal`.
    pub(crate) fn launch(
        folder: &Path,
        journal: Journal,
        react: impl FnMut(&Call) -> Reaction + Send + 'static,
    ) -> (Self, Keeper) {
        let listener = socket::listen(folder, SOCKET).unwrap();
        let connection = connect(folder).unwrap();
        let accepted = rustix::net::accept(&listener).unwrap();
        let socket = accepted.try_clone().unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let opened = KeeperProcess::open(process.id().try_into().unwrap()).unwrap();
        let seen = journal.clone();
        std::thread::spawn(move || serve(&accepted, &without_containers(), react, &seen));
        let keeper = Self { process, socket: Some(socket), calls: journal, _folder: None };
        (keeper, Keeper { process: opened, connection })
    }

    /// Starts a keeper as an earlier daemon has left it: recovery finds it among the processes of the host. `Hello` is
    /// answered with `snapshot`.
    pub(crate) fn left_behind(
        pod: &PodId,
        folder: &Path,
        snapshot: Snapshot,
        react: impl FnMut(&Call) -> Reaction + Send + 'static,
    ) -> Self {
        let listener = socket::listen(folder, SOCKET).unwrap();
        let journal = Journal::default();
        let seen = journal.clone();
        std::thread::spawn(move || {
            let connected = PollFd::new(&listener, PollFlags::IN);
            if poll(&mut [connected], None).is_ok()
                && let Ok(accepted) = rustix::net::accept(&listener)
            {
                serve(&accepted, &snapshot, react, &seen);
            }
        });
        Self { process: waiting_as_keeper(pod, folder), socket: None, calls: journal, _folder: None }
    }

    /// Returns the names of the calls so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.calls.entries()
    }

    /// Ends the keeper's process, as SIGKILL does: its connection ends with it.
    pub(crate) fn kill(&mut self) {
        drop(self.process.kill());
        if let Some(socket) = &self.socket {
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap();
        }
    }
}

impl Drop for FakeKeeper {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Starts a process with all that identifies a keeper: its program's name, its argument, its session and its log. The
/// program is cat(1), which waits for a writer of the FIFO with the name of its argument.
fn waiting_as_keeper(pod: &PodId, folder: &Path) -> Child {
    let program = std::fs::read("/bin/cat").unwrap();
    let program = fs::sealed("berth-keeper", &program, true).unwrap();
    let fifo = folder.join(pod.as_str());
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&program));
    let log = std::fs::File::create(folder.join("keeper.log")).unwrap();
    // setsid(1) does not fork: its process does not lead a group.
    let mut command = Command::new("setsid");
    command.arg(path).arg(pod.as_str()).current_dir(folder).stdin(Stdio::null()).stderr(log);
    let process = command.spawn().unwrap();
    let exe = format!("/proc/{}/exe", process.id());
    while !std::fs::read_link(&exe).is_ok_and(|exe| exe.to_string_lossy().contains("berth-keeper")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    process
}

fn serve(socket: &OwnedFd, snapshot: &Snapshot, mut react: impl FnMut(&Call) -> Reaction, calls: &Journal) {
    let mut buffer = Vec::new();
    let null = std::fs::File::open("/dev/null").unwrap();
    while let Ok(Some(received)) = transport::receive::<Request>(socket.as_fd(), &mut buffer) {
        let Request { id, call } = received.message;
        calls.add(call.name());
        let (result, event) = match call {
            Call::Hello { .. } => (Ok(Outcome::Hello(snapshot.clone())), None),
            call => react(&call),
        };
        // The pause's pidfd and network namespace, or the pidfd of a first process.
        let descriptors: &[BorrowedFd<'_>] = match &result {
            Ok(Outcome::Sandbox { .. }) => &[null.as_fd(), null.as_fd()],
            _ => &[],
        };
        let answer = transport::send(socket.as_fd(), &Message::Answer { id, result }, descriptors);
        let event = event.map(|event| transport::send(socket.as_fd(), &Message::Event(event), &[]));
        if answer.is_err() || event.is_some_and(|sent| sent.is_err()) {
            return;
        }
    }
}

/// The state of a keeper whose pause runs and that has no containers.
pub(crate) fn without_containers() -> Snapshot {
    Snapshot { protocol: PROTOCOL, keeper_pid: 1, pause: Some(1), containers: Vec::new(), execs: Vec::new() }
}
