//! Starting keepers and speaking to them, as the daemon does it. Nothing here waits: the connection is for an event
//! loop of the caller's.

mod process;
mod stray;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::{self, Context};
use crate::wire::transport::{self, Received, TransportError};
use crate::wire::{Message, Request};

pub use process::KeeperProcess;
pub use stray::{FoundKeeper, StrayError, find_keepers};

/// The socket in a pod's volatile folder.
const SOCKET: &str = "keeper.sock";

/// What the keeper has to say that no daemon hears.
const LOG: &str = "keeper.log";

/// A keeper could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A system call failed.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// The program could not be started.
    #[error("start the keeper: {0}")]
    Spawn(io::Error),
    /// Its log could not be made.
    #[error("create {path}: {source}")]
    Log {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The programs of a pod, in memory files that nothing can change.
#[derive(Debug)]
pub struct Programs {
    keeper: Program,
    pause: Program,
}

/// A program that is executed from a memory file. A container can open the file of a program that runs in it; what it
/// changes about the file must not keep the next pod from starting.
#[derive(Debug)]
struct Program {
    name: &'static str,
    content: &'static [u8],
    file: Mutex<Arc<OwnedFd>>,
}

impl Program {
    fn seal(name: &'static str, content: &'static [u8]) -> Result<Self, ClientError> {
        let file = Arc::new(sys::fs::sealed(name, content, true)?);
        Ok(Self { name, content, file: Mutex::new(file) })
    }

    /// A file that can be executed: the one there is, or a new copy where that was changed.
    fn file(&self) -> Result<Arc<OwnedFd>, ClientError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if !sys::fs::is_as_made(file.as_ref())? {
            tracing::warn!(
                program = self.name,
                "a container has changed the mode or owner of a program of the runtime; a new copy is used"
            );
            *file = Arc::new(sys::fs::sealed(self.name, self.content, true)?);
        }
        Ok(file.clone())
    }
}

/// A process that does nothing but be in a cgroup, until it is dropped.
#[derive(Debug)]
pub struct Placeholder {
    process: std::process::Child,
}

impl Placeholder {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // The only error is that of a process which has ended.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Programs {
    /// Starts a process that only waits.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn placeholder(&self) -> Result<Placeholder, ClientError> {
        let null = Stdio::null;
        let file = self.pause.file()?;
        let program = sys::fs::descriptor_path(file.as_fd());
        let mut command = Command::new(program);
        command.arg0("berth-placeholder").env_clear().stdin(null()).stdout(null()).stderr(null());
        Ok(Placeholder { process: command.spawn().map_err(ClientError::Spawn)? })
    }

    /// Seals the programs.
    ///
    /// # Errors
    /// The kernel has no memory files.
    pub fn seal(keeper: &'static [u8], pause: &'static [u8]) -> Result<Self, ClientError> {
        Ok(Self {
            keeper: Program::seal("berth-keeper", keeper)?,
            pause: Program::seal("berth-pause", pause)?,
        })
    }
}

/// A keeper that was just started.
#[derive(Debug)]
pub struct Keeper {
    /// The process.
    pub process: KeeperProcess,
    /// To speak to it.
    pub connection: Connection,
}

/// Starts a keeper whose socket is in `folder`. The program is executed out of its sealed file by a spawn that shares
/// this process's memory until the exec (posix_spawn(3)): the daemon's heap is never copied.
///
/// # Errors
/// The socket or the log cannot be made, or the program does not start.
pub fn spawn(programs: &Programs, pod: &str, folder: &Path) -> Result<Keeper, ClientError> {
    let listener = sys::socket::listen(folder, SOCKET)?;
    // Before the keeper runs: the connection waits in the socket's queue.
    let connection = connect(folder)?;
    let log_path = folder.join(LOG);
    let log = File::create(&log_path)
        .map_err(|source| ClientError::Log { path: log_path.display().to_string(), source })?;
    let pause = programs.pause.file()?.try_clone().on("dup", "the pause's program")?;
    let keeper = programs.keeper.file()?;
    let mut command = Command::new(sys::fs::descriptor_path(keeper.as_fd()));
    command.arg0("berth-keeper").arg(pod).env_clear();
    command.stdin(Stdio::from(listener)).stdout(Stdio::from(pause)).stderr(Stdio::from(log));
    let child = command.spawn().map_err(ClientError::Spawn)?;
    // Nobody else reaps this child: its pid cannot be another's before that.
    let process = KeeperProcess::open(i32::try_from(child.id()).unwrap_or(0))?;
    Ok(Keeper { process, connection })
}

/// Whether the socket of a keeper is in `folder`.
#[must_use]
pub fn has_socket(folder: &Path) -> bool {
    folder.join(SOCKET).exists()
}

/// Connects to the keeper whose socket is in `folder`.
///
/// # Errors
/// There is none.
pub fn connect(folder: &Path) -> Result<Connection, ClientError> {
    let socket = sys::socket::connect(folder, SOCKET)?;
    Ok(Connection { socket, buffer: Mutex::new(Vec::new()) })
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    buffer: Mutex<Vec<u8>>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Sends a request.
    ///
    /// # Errors
    /// `WouldBlock` where the keeper is behind; the keeper is gone.
    pub fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(transport::send(self.socket.as_fd(), request, descriptors)?)
    }

    /// Receives a message; `None` is the end of the connection.
    ///
    /// # Errors
    /// `WouldBlock` where nothing has come; what came is no message.
    pub fn recv(&self) -> io::Result<Option<Received<Message>>> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let received = transport::receive(self.socket.as_fd(), &mut buffer);
        *buffer = Vec::new();
        match received {
            // A keeper that was killed leaves a reset where it had not read everything.
            Err(TransportError::System(error)) if error.errno == rustix::io::Errno::CONNRESET => Ok(None),
            received => Ok(received?),
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
