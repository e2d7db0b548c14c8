//! Exec and Attach, from the moment on that the client's streams are there: bytes go to and from the process, its end is
//! told last. A client that vanishes ends this by dropping it, and with it the process of an exec.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::inbox::Incoming;
use super::outgoing::Outgoing;
use super::resize::sizes;
use super::status::{Outcome, told};
use super::token::Request;
use super::upgrade::Ending;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::exec::session::{self, Control, End, Session, TerminalSize, Wanted};

/// How long output is waited for after the command has ended, when something that it left behind holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a command with a terminal waits for the size of that, so that it never sees another one. Clients without a
/// terminal ask for none (kubectl and crictl then give up `-t`).
const FIRST_SIZE: Duration = Duration::from_secs(1);

/// What a pipe holds at most (`/proc/sys/fs/pipe-max-size`): what comes after it was produced after the command's end.
const PIPE: usize = 1 << 20;

/// How much output is read at once: the size of a pipe.
const PIECE: usize = 64 << 10;

/// Up to which size output is copied out of the buffer that it was read into, instead of handing that on.
const SMALL: usize = 16 << 10;

/// A client's streams.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stdin: Option<Incoming>,
    pub(super) stdout: Option<Outgoing>,
    pub(super) stderr: Option<Outgoing>,
    pub(super) error: Outgoing,
    pub(super) resize: Option<Incoming>,
    pub(super) ending: Ending,
}

/// What is run for a client, or what it is connected to.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// A command in a container.
    Exec {
        /// The container.
        container: String,
        /// The command.
        command: Vec<String>,
    },
    /// A container's own streams.
    Attach {
        /// The container.
        container: String,
    },
}

impl Work {
    /// The part of a request that is about a command, with its streams.
    pub(super) fn of(request: Request) -> Option<(Self, Wanted)> {
        match request {
            Request::Exec { container, command, wanted } => Some((Self::Exec { container, command }, wanted)),
            Request::Attach { container, wanted } => Some((Self::Attach { container }, wanted)),
            Request::PortForward { .. } => None,
        }
    }

    async fn begin(
        &self,
        daemon: &Shared,
        wanted: Wanted,
        sizes: Option<&mut Sizes>,
    ) -> Result<Session, CriError> {
        match self {
            Self::Exec { container, command } => {
                let size = match sizes.filter(|_| wanted.tty) {
                    Some(sizes) => sizes.first().await,
                    None => None,
                };
                session::exec_sized(daemon, container, command.clone(), wanted, size).await
            }
            Self::Attach { container } => session::attach(daemon, container, wanted).await,
        }
    }

    /// What is said of an error, as the peers say it.
    fn failure(&self, why: impl std::fmt::Display) -> Outcome {
        Outcome::Failed(match self {
            Self::Exec { .. } => format!("error executing command in container: {why}"),
            Self::Attach { .. } => format!("error attaching to container: {why}"),
        })
    }

    fn outcome(&self, end: End) -> Outcome {
        match (self, end) {
            (_, End::Exited(0) | End::Detached) | (Self::Attach { .. }, End::Exited(_)) => Outcome::Success,
            (Self::Exec { .. }, End::Exited(code)) => Outcome::Exit(code),
            (_, End::TooSlow) => self.failure("the client does not read; what it missed is in the log"),
            (_, End::Gone) => self.failure("the pod's keeper is gone"),
        }
    }
}

/// Serves a client to its end.
pub(super) async fn serve(daemon: &Shared, work: &Work, wanted: Wanted, client: Client) {
    let Client { stdin, stdout, stderr, error, resize, ending } = client;
    let mut sizes = resize.map(Sizes::new);
    let outcome = match work.begin(daemon, wanted, sizes.as_mut()).await {
        Ok(session) => converse(work, session, stdin, [stdout, stderr], sizes).await,
        Err(why) => {
            for output in [stdout, stderr].into_iter().flatten() {
                // The client may be gone: then there is nobody to tell, here and below.
                drop(output.finish().await);
            }
            work.failure(why)
        }
    };
    if let Some(told) = told(ending, &outcome) {
        drop(error.send(told).await);
    }
    drop(error.finish().await);
}

async fn converse(
    work: &Work,
    mut session: Session,
    stdin: Option<Incoming>,
    outputs: [Option<Outgoing>; 2],
    sizes: Option<Sizes>,
) -> Outcome {
    let input = session.streams.stdin.take();
    let [stdout, stderr] = outputs;
    let (out, err) = (session.streams.stdout.take(), session.streams.stderr.take());
    let control = session.control.clone();
    let (ended, end) = watch::channel(false);
    let to_process = async {
        tokio::join!(pass_in(stdin, input), pass_sizes(sizes, control));
        // What the client sends ends nothing by itself.
        std::future::pending::<()>().await;
    };
    let from_process = async {
        let waiting = async {
            let end = session.end().await;
            ended.send_replace(true);
            end
        };
        tokio::join!(waiting, pass_out(out, stdout, end.clone()), pass_out(err, stderr, end.clone())).0
    };
    tokio::select! {
        () = to_process => Outcome::Success,
        end = from_process => work.outcome(end),
    }
}

/// Input: the client's end of it becomes that of the process.
async fn pass_in<W: AsyncWrite + Unpin>(from: Option<Incoming>, to: Option<W>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Ok(Some(bytes)) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            // The process does not read any more; what still comes is passed over.
            return;
        }
    }
    // The process may have closed it before.
    drop(to.shutdown().await);
}

/// Sizes of the terminal, which a client sends as they change.
struct Sizes {
    from: Incoming,
    text: BytesMut,
    /// Those that have come.
    next: VecDeque<TerminalSize>,
}

impl Sizes {
    fn new(from: Incoming) -> Self {
        Self { from, text: BytesMut::new(), next: VecDeque::new() }
    }

    /// The first size, which clients with a terminal send as soon as they are connected. None where it does not come.
    async fn first(&mut self) -> Option<TerminalSize> {
        tokio::time::timeout(FIRST_SIZE, self.next()).await.ok().flatten()
    }

    /// The next size; none when no more can come.
    async fn next(&mut self) -> Option<TerminalSize> {
        while self.next.is_empty() {
            let bytes = self.from.next().await.ok().flatten()?;
            self.text.extend_from_slice(&bytes);
            let Ok(sizes) = sizes(&mut self.text) else {
                tracing::debug!("a client sends sizes of its terminal that are none");
                return None;
            };
            self.next.extend(sizes);
        }
        self.next.pop_front()
    }
}

async fn pass_sizes(sizes: Option<Sizes>, control: Control) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.next().await {
        if let Err(error) = control.resize(size).await {
            tracing::debug!(%error, "resize a terminal");
        }
    }
}

/// Output, to its end; after the end of the process within bounds, since what it left behind may hold the pipe open.
async fn pass_out<R: AsyncRead + Unpin>(
    from: Option<R>,
    to: Option<Outgoing>,
    mut end: watch::Receiver<bool>,
) {
    let Some(to) = to else { return };
    let Some(mut from) = from else {
        drop(to.finish().await);
        return;
    };
    let mut buffer = BytesMut::new();
    let mut after: Option<(Instant, usize)> = None;
    loop {
        buffer.reserve(PIECE);
        let read = match after {
            None => tokio::select! {
                read = from.read_buf(&mut buffer) => read,
                _ended = end.wait_for(|ended| *ended) => {
                    after = Some((Instant::now(), 0));
                    continue;
                }
            },
            Some(_) => match tokio::time::timeout(DRAIN, from.read_buf(&mut buffer)).await {
                Ok(read) => read,
                Err(_elapsed) => break,
            },
        };
        // A terminal that its last process has left answers EIO (pty(7)).
        let count = read.unwrap_or(0);
        if count == 0 || to.send(taken(&mut buffer)).await.is_err() {
            break;
        }
        if let Some((since, bytes)) = &mut after {
            *bytes += count;
            if *bytes > PIPE && since.elapsed() > DRAIN {
                break;
            }
        }
    }
    drop(to.finish().await);
}

fn taken(buffer: &mut BytesMut) -> Bytes {
    if buffer.len() > SMALL {
        return buffer.split().freeze();
    }
    let bytes = Bytes::copy_from_slice(buffer);
    buffer.clear();
    bytes
}
