//! Starts keepers and talks to them, for the daemon. Nothing here blocks: the connection is meant for the caller's
//! event loop.
//!
//! * [`process`]: the process of a keeper, by its pidfd
//! * [`stray`]: finds keepers that cannot be reached over their socket because its folder was removed

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

/// The name of the keeper's socket in the pod's volatile folder.
const SOCKET: &str = "keeper.sock";

/// The name of the keeper's own log in the pod's volatile folder.
const LOG: &str = "keeper.log";

/// An error of starting or connecting to a keeper.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A system call failed.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// The keeper's program could not be started.
    #[error("failed to start the keeper: {0}")]
    Spawn(io::Error),
    /// The keeper's log could not be created.
    #[error("failed to create {path}: {source}")]
    Log {
        /// The log's path.
        path: String,
        /// The error of the operating system.
        source: io::Error,
    },
}

/// The programs of a pod, in sealed memory files.
#[derive(Debug)]
pub struct Programs {
    keeper: SealedProgram,
    pause: SealedProgram,
}

/// A program that is executed from a memory file. A container can open the file of a program that runs in it. A
/// change that it makes to the file's metadata must not prevent the start of the next pod.
#[derive(Debug)]
struct SealedProgram {
    name: &'static str,
    content: &'static [u8],
    file: Mutex<Arc<OwnedFd>>,
}

impl SealedProgram {
    fn seal(name: &'static str, content: &'static [u8]) -> Result<Self, ClientError> {
        let file = Arc::new(sys::fs::sealed(name, content, true)?);
        Ok(Self { name, content, file: Mutex::new(file) })
    }

    /// Returns a file that can be executed. If a container has changed the current file, a new copy replaces it.
    fn file(&self) -> Result<Arc<OwnedFd>, ClientError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if !sys::fs::is_unmodified(file.as_ref())? {
            tracing::warn!(
                program = self.name,
                "a container changed the mode or owner of a program of the runtime; using a new copy"
            );
            *file = Arc::new(sys::fs::sealed(self.name, self.content, true)?);
        }
        Ok(file.clone())
    }
}

/// A process that only occupies a cgroup. It is killed when this is dropped.
#[derive(Debug)]
pub struct Placeholder {
    process: std::process::Child,
}

impl Placeholder {
    /// Returns the process's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // The only possible error is that the process has ended.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Programs {
    /// Starts a process that only waits.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn placeholder(&self) -> Result<Placeholder, ClientError> {
        let null = Stdio::null;
        let file = self.pause.file()?;
        let program = sys::fs::descriptor_path(file.as_fd());
        let mut command = Command::new(program);
        command.arg0("berth-placeholder").env_clear().stdin(null()).stdout(null()).stderr(null());
        Ok(Placeholder { process: command.spawn().map_err(ClientError::Spawn)? })
    }

    /// Copies the programs into sealed memory files.
    ///
    /// # Errors
    /// The kernel does not support memory files.
    pub fn seal(keeper: &'static [u8], pause: &'static [u8]) -> Result<Self, ClientError> {
        Ok(Self {
            keeper: SealedProgram::seal("berth-keeper", keeper)?,
            pause: SealedProgram::seal("berth-pause", pause)?,
        })
    }
}

/// A keeper that was just started.
#[derive(Debug)]
pub struct Keeper {
    /// The process of the keeper.
    pub process: KeeperProcess,
    /// The connection to it.
    pub connection: Connection,
}

/// Starts a keeper with its socket in `folder`. The program is executed from its sealed file by a spawn that
/// shares this process's memory until the exec (posix_spawn(3)): the daemon's heap is never copied.
///
/// # Errors
/// The socket or the log cannot be created, or the program does not start.
pub fn spawn(programs: &Programs, pod: &str, folder: &Path) -> Result<Keeper, ClientError> {
    let listener = sys::socket::listen(folder, SOCKET)?;
    // The connection is made before the keeper runs: it waits in the socket's queue.
    let connection = connect(folder)?;
    let log_path = folder.join(LOG);
    let log = File::create(&log_path)
        .map_err(|source| ClientError::Log { path: log_path.display().to_string(), source })?;
    let pause = programs.pause.file()?.try_clone().on("dup", "the pause's program")?;
    let keeper = programs.keeper.file()?;
    let mut command = Command::new(sys::fs::descriptor_path(keeper.as_fd()));
    command.arg0("berth-keeper").arg(pod).env_clear();
    berth_failpoint::pass_on(&mut command);
    command.stdin(Stdio::from(listener)).stdout(Stdio::from(pause)).stderr(Stdio::from(log));
    let child = command.spawn().map_err(ClientError::Spawn)?;
    // No other code reaps this child, so its pid cannot be reused before this call.
    let process = KeeperProcess::open(i32::try_from(child.id()).unwrap_or(0))?;
    Ok(Keeper { process, connection })
}

/// Returns whether a keeper's socket is in `folder`.
#[must_use]
pub fn has_socket(folder: &Path) -> bool {
    folder.join(SOCKET).exists()
}

/// Connects to the keeper with its socket in `folder`.
///
/// # Errors
/// No keeper listens there.
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
    /// `WouldBlock` if the keeper's buffer is full, or an error if the keeper has ended.
    pub fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(transport::send(self.socket.as_fd(), request, descriptors)?)
    }

    /// Receives a message. Returns `None` at the end of the connection.
    ///
    /// # Errors
    /// `WouldBlock` if no message has arrived, or an error if what arrived is not a valid message.
    pub fn recv(&self) -> io::Result<Option<Received<Message>>> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let received = transport::receive(self.socket.as_fd(), &mut buffer);
        *buffer = Vec::new();
        match received {
            // If a keeper is killed before it has read everything, the read fails with ECONNRESET.
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
