//! An interactive session with a container: the streams of a new process ([`exec`]) or of the container
//! itself ([`super::attach::attach`]). The streaming server carries them to kubectl.
//!
//! The readers in [`SessionStreams`] can return data even after [`Session::end`] has returned. If an exec left
//! children behind that hold its output open, a reader may never reach the end: the caller must limit the
//! time.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use berth_runtime::sys::pty;
use berth_runtime::wire::Call;

use super::access::ContainerAccess;
use super::process::{ExecProcess, Stdio};
pub use super::stream::{OutputReader, Writer};
use crate::error::CriError;
use crate::keeper::KeeperClient;
use crate::session_url::RequestedStreams;

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Width in columns of characters.
    pub width: u16,
    /// Height in rows of characters.
    pub height: u16,
}

/// The host's ends of the requested streams; absent ones were not requested or do not exist.
#[derive(Debug)]
pub struct SessionStreams {
    /// Input of the process. Shutdown or drop ends the input.
    pub stdin: Option<Writer>,
    /// Output of the process; with a terminal, all its output.
    pub stdout: Option<OutputReader>,
    /// Error output of the process.
    pub stderr: Option<OutputReader>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The process ended with this exit code.
    Exited(i32),
    /// The input of an attached client ended while the container's input stays open for other clients. As in
    /// containerd and CRI-O, this ends the session successfully.
    Detached,
    /// An attached client did not read fast enough. The container never waits for a client; the log has the
    /// output that the client missed.
    TooSlow,
    /// The keeper ended, and the container with it.
    Gone,
}

type EndFuture = Pin<Box<dyn Future<Output = SessionEnd> + Send>>;

/// A session. If an exec session is dropped before its end, the process is killed with everything that it
/// started. Dropping an attach session only detaches.
pub struct Session {
    /// The streams; the user takes them out.
    pub streams: SessionStreams,
    /// Changes the terminal's size.
    pub control: Control,
    kind: SessionKind,
}

enum SessionKind {
    Exec(ExecProcess),
    Attached { waiting: EndFuture, end: Option<SessionEnd> },
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn attached(streams: SessionStreams, control: Control, waiting: EndFuture) -> Self {
        Self { streams, control, kind: SessionKind::Attached { waiting, end: None } }
    }

    /// Waits for the process to end or, when attached, for the container to end or the client to be detached.
    /// Can be cancelled and called again; later calls return the same.
    pub async fn end(&mut self) -> SessionEnd {
        match &mut self.kind {
            SessionKind::Exec(process) => process.ended().await.map_or(SessionEnd::Gone, SessionEnd::Exited),
            SessionKind::Attached { end: Some(end), .. } => *end,
            SessionKind::Attached { waiting, end } => *end.insert(waiting.await),
        }
    }
}

/// Controls the terminal of a session.
#[derive(Clone, Debug)]
pub struct Control {
    terminal: Terminal,
}

#[derive(Clone, Debug)]
enum Terminal {
    None,
    /// The terminal of an exec; the session holds its master.
    OfExec(Arc<OwnedFd>),
    /// The terminal of a container; the keeper holds its master.
    OfContainer {
        link: KeeperClient,
        container: String,
    },
}

impl Control {
    pub(super) fn of_container(link: KeeperClient, container: String) -> Self {
        Self { terminal: Terminal::OfContainer { link, container } }
    }

    pub(super) fn none() -> Self {
        Self { terminal: Terminal::None }
    }

    /// Sets the terminal's size, which sends SIGWINCH to its foreground processes. Without a terminal, does
    /// nothing.
    ///
    /// # Errors
    /// The ioctl fails, or the container's keeper has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), CriError> {
        match &self.terminal {
            Terminal::None => Ok(()),
            Terminal::OfExec(master) => Ok(pty::resize(master.as_fd(), size.width, size.height)?),
            Terminal::OfContainer { link, container } => {
                let TerminalSize { width, height } = size;
                Ok(link.execute(Call::Resize { container: container.clone(), width, height }).await?)
            }
        }
    }
}

/// Starts a process in a running container, with the requested streams.
///
/// # Errors
/// `NotFound`; `InvalidArgument` if the command is empty; `FailedPrecondition` if the container does not run;
/// an error with the reason if the command cannot be run.
pub async fn exec(
    access: &ContainerAccess,
    container_id: &str,
    command: Vec<String>,
    requested: RequestedStreams,
) -> Result<Session, CriError> {
    exec_with_size(access, container_id, command, requested, None).await
}

/// Like [`exec`], with an initial terminal size: the process never sees another one.
///
/// # Errors
/// As [`exec`].
pub async fn exec_with_size(
    access: &ContainerAccess,
    container_id: &str,
    command: Vec<String>,
    requested: RequestedStreams,
    size: Option<TerminalSize>,
) -> Result<Session, CriError> {
    let container = access.store.container(container_id)?;
    let failed = |error| CriError::internal("create the streams of an exec", error);
    let (mut stdio, mut streams) = pipes_for(requested).map_err(failed)?;
    stdio.size = size.map(|size| (size.width, size.height));
    let (process, master) = ExecProcess::start(access, container, command, stdio).await?;
    let mut control = Control::none();
    if requested.tty {
        let master = master
            .ok_or_else(|| CriError::internal("exec", "the keeper did not return the terminal's master"))?;
        let clone = || master.try_clone().map_err(failed);
        if requested.stdin {
            streams.stdin = Some(Writer::new(clone()?, true).map_err(failed)?);
        }
        if requested.stdout {
            streams.stdout = Some(OutputReader::new(clone()?).map_err(failed)?);
        }
        control.terminal = Terminal::OfExec(Arc::new(master));
    }
    Ok(Session { streams, control, kind: SessionKind::Exec(process) })
}

/// Creates the pipes of a command. A terminal's streams come with the answer to the start.
fn pipes_for(requested: RequestedStreams) -> std::io::Result<(Stdio, SessionStreams)> {
    let mut stdio = Stdio { tty: requested.tty, ..Stdio::default() };
    let mut streams = SessionStreams { stdin: None, stdout: None, stderr: None };
    if requested.tty {
        return Ok((stdio, streams));
    }
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    if requested.stdin {
        let (read, write) = pipe()?;
        (stdio.stdin, streams.stdin) = (Some(read), Some(Writer::new(write, false)?));
    }
    if requested.stdout {
        let (read, write) = pipe()?;
        (stdio.stdout, streams.stdout) = (Some(write), Some(OutputReader::new(read)?));
    }
    if requested.stderr {
        let (read, write) = pipe()?;
        (stdio.stderr, streams.stderr) = (Some(write), Some(OutputReader::new(read)?));
    }
    Ok((stdio, streams))
}
