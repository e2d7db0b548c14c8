//! A person's session with a container: the streams of a further process ([`exec`]) or of the container itself
//! ([`attach`](super::attach::attach)), for whoever carries them to kubectl.
//!
//! A reader of [`Streams`] reads to the end even after [`Session::end`] has told it; of an exec that has left children
//! behind which hold its output open, that may be never: the carrier gives it a bounded time.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use berth_runtime::sys::pty;
use berth_runtime::wire::Call;

pub use super::attach::attach;
use super::process::{Ends, Process};
pub use super::stream::{Reader, Writer};
use crate::daemon::Shared;
use crate::error::CriError;
use crate::keeper::Link;

/// Which streams a client wants. With a terminal there is no stderr of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The client writes.
    pub stdin: bool,
    /// The client reads the output.
    pub stdout: bool,
    /// The client reads the errors.
    pub stderr: bool,
    /// A terminal; of an attach it is the container's config that says.
    pub tty: bool,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The host's ends of the streams that were wanted and that there are.
#[derive(Debug)]
pub struct Streams {
    /// To the process. Its end (shutdown or drop) is the end of the process's input.
    pub stdin: Option<Writer>,
    /// From the process; with a terminal all its output.
    pub stdout: Option<Reader>,
    /// Errors of the process.
    pub stderr: Option<Reader>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process has ended with this code.
    Exited(i32),
    /// An attached client's input has ended where the container's stays open for others: as with containerd and CRI-O
    /// that is the end of the session, and a success.
    Detached,
    /// An attached client did not read: what it was not sent is in the log. The container is never held up by it.
    TooSlow,
    /// The keeper has ended, and with it the container.
    Gone,
}

type Waiting = Pin<Box<dyn Future<Output = End> + Send>>;

/// A session. Dropping one of an exec before its end kills everything that it has started; dropping one that is attached
/// only detaches.
pub struct Session {
    /// To be taken.
    pub streams: Streams,
    /// For whoever changes the terminal's size.
    pub control: Control,
    kind: Kind,
}

enum Kind {
    Exec(Process),
    Attached { waiting: Waiting, end: Option<End> },
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn attached(streams: Streams, control: Control, waiting: Waiting) -> Self {
        Self { streams, control, kind: Kind::Attached { waiting, end: None } }
    }

    /// Waits for the end of the process or, attached, of the container or of the attachment. May be given up and asked
    /// again; the answer stays the same.
    pub async fn end(&mut self) -> End {
        match &mut self.kind {
            Kind::Exec(process) => process.ended().await.map_or(End::Gone, End::Exited),
            Kind::Attached { end: Some(end), .. } => *end,
            Kind::Attached { waiting, end } => *end.insert(waiting.await),
        }
    }
}

/// Changes a session's terminal.
#[derive(Clone, Debug)]
pub struct Control {
    terminal: Terminal,
}

#[derive(Clone, Debug)]
enum Terminal {
    None,
    /// Of an exec: its master is the session's.
    Own(Arc<OwnedFd>),
    /// Of a container: its master is the keeper's.
    Kept {
        link: Link,
        container: String,
    },
}

impl Control {
    pub(super) fn kept(link: Link, container: String) -> Self {
        Self { terminal: Terminal::Kept { link, container } }
    }

    pub(super) fn none() -> Self {
        Self { terminal: Terminal::None }
    }

    /// Tells the terminal its size, and the processes in its foreground that it has changed (`SIGWINCH`). Without a
    /// terminal there is nothing to tell.
    ///
    /// # Errors
    /// The terminal refuses, or the container's keeper is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), CriError> {
        match &self.terminal {
            Terminal::None => Ok(()),
            Terminal::Own(master) => Ok(pty::resize(master.as_fd(), size.width, size.height)?),
            Terminal::Kept { link, container } => {
                let TerminalSize { width, height } = size;
                Ok(link.done(Call::Resize { container: container.clone(), width, height }).await?)
            }
        }
    }
}

/// Runs a further process in a running container, with the streams wanted.
///
/// # Errors
/// `NotFound`; `InvalidArgument` without a command; `FailedPrecondition` where the container does not run; the reason why
/// the command cannot be run.
pub async fn exec(
    daemon: &Shared,
    container_id: &str,
    command: Vec<String>,
    wanted: Wanted,
) -> Result<Session, CriError> {
    exec_sized(daemon, container_id, command, wanted, None).await
}

/// The same, where the size of the terminal is known already: the process never sees another one.
///
/// # Errors
/// As [`exec`].
pub async fn exec_sized(
    daemon: &Shared,
    container_id: &str,
    command: Vec<String>,
    wanted: Wanted,
    size: Option<TerminalSize>,
) -> Result<Session, CriError> {
    let container = daemon.store.container(container_id)?;
    let failed = |error| CriError::internal("make the streams of an exec", error);
    let (mut ends, mut streams) = ends_of(wanted).map_err(failed)?;
    ends.size = size.map(|size| (size.width, size.height));
    let (process, master) = Process::start(daemon, container, command, ends).await?;
    let mut control = Control::none();
    if wanted.tty {
        let master = master.ok_or_else(|| CriError::internal("exec", "the terminal did not come"))?;
        let another = || master.try_clone().map_err(failed);
        if wanted.stdin {
            streams.stdin = Some(Writer::new(another()?, true).map_err(failed)?);
        }
        if wanted.stdout {
            streams.stdout = Some(Reader::new(another()?).map_err(failed)?);
        }
        control.terminal = Terminal::Own(Arc::new(master));
    }
    Ok(Session { streams, control, kind: Kind::Exec(process) })
}

/// The command's ends of its streams, and the host's. Those of a terminal come with the answer.
fn ends_of(wanted: Wanted) -> std::io::Result<(Ends, Streams)> {
    let mut ends = Ends { tty: wanted.tty, ..Ends::default() };
    let mut streams = Streams { stdin: None, stdout: None, stderr: None };
    if wanted.tty {
        return Ok((ends, streams));
    }
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    if wanted.stdin {
        let (read, write) = pipe()?;
        (ends.stdin, streams.stdin) = (Some(read), Some(Writer::new(write, false)?));
    }
    if wanted.stdout {
        let (read, write) = pipe()?;
        (ends.stdout, streams.stdout) = (Some(write), Some(Reader::new(read)?));
    }
    if wanted.stderr {
        let (read, write) = pipe()?;
        (ends.stderr, streams.stderr) = (Some(write), Some(Reader::new(read)?));
    }
    Ok((ends, streams))
}
