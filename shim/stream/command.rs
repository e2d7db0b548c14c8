//! Exec and Attach after the client has opened its streams: relays bytes to and from the process, and reports
//! its exit last. If the client disconnects, this is dropped, which kills the process of an exec.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::inbox::Incoming;
use super::outgoing::Outgoing;
use super::resize::sizes;
use super::status::{CommandOutcome, encode_outcome};
use super::upgrade::ReportFormat;
use crate::error::CriError;
use crate::exec::ContainerAccess;
use crate::exec::attach::attach;
use crate::exec::session::{self, Control, Session, SessionEnd, TerminalSize};
use crate::session_url::{RequestedStreams, SessionRequest};

/// How long output is relayed after the command has ended, if a descendant holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long the start of a command with a terminal waits for the terminal's size, so that the command never
/// sees another one. Clients that have no terminal do not request one (kubectl and crictl drop `-t`).
const FIRST_SIZE: Duration = Duration::from_secs(1);

/// The largest capacity of a pipe (`/proc/sys/fs/pipe-max-size`). Output beyond it was produced after the
/// command's end.
const PIPE: usize = 1 << 20;

/// Size of one read: the capacity of a pipe.
const READ_SIZE: usize = 64 << 10;

/// Output up to this size is copied out of the read buffer; larger pieces take the buffer itself.
const COPY_LIMIT: usize = 16 << 10;

/// The streams of an exec or attach client.
#[derive(Debug)]
pub(super) struct CommandStreams {
    pub(super) stdin: Option<Incoming>,
    pub(super) stdout: Option<Outgoing>,
    pub(super) stderr: Option<Outgoing>,
    pub(super) error: Outgoing,
    pub(super) resize: Option<Incoming>,
    pub(super) report_format: ReportFormat,
}

/// The target of a client's streams.
#[derive(Clone, Debug)]
pub(super) enum CommandTarget {
    /// A command in a container.
    Exec {
        /// The container's id.
        container: String,
        /// The command to execute, with its arguments.
        command: Vec<String>,
    },
    /// A container's own streams.
    Attach {
        /// The container's id.
        container: String,
    },
}

impl CommandTarget {
    /// Splits a request into target and streams; none for port forwarding.
    pub(super) fn of(request: SessionRequest) -> Option<(Self, RequestedStreams)> {
        match request {
            SessionRequest::Exec { container, command, requested } => {
                Some((Self::Exec { container, command }, requested))
            }
            SessionRequest::Attach { container, requested } => Some((Self::Attach { container }, requested)),
            SessionRequest::PortForward { .. } => None,
        }
    }

    async fn begin(
        &self,
        access: &ContainerAccess,
        requested: RequestedStreams,
        sizes: Option<&mut TerminalSizes>,
    ) -> Result<Session, CriError> {
        match self {
            Self::Exec { container, command } => {
                let size = match sizes.filter(|_| requested.tty) {
                    Some(sizes) => sizes.first().await,
                    None => None,
                };
                session::exec_with_size(access, container, command.clone(), requested, size).await
            }
            Self::Attach { container } => attach(&access.store, container, requested).await,
        }
    }

    /// Formats an error as containerd and CRI-O do.
    fn failure(&self, reason: impl std::fmt::Display) -> CommandOutcome {
        CommandOutcome::Failed(match self {
            Self::Exec { .. } => format!("error executing command in container: {reason}"),
            Self::Attach { .. } => format!("error attaching to container: {reason}"),
        })
    }

    fn outcome(&self, end: SessionEnd) -> CommandOutcome {
        match (self, end) {
            (_, SessionEnd::Exited(0) | SessionEnd::Detached)
            | (Self::Attach { .. }, SessionEnd::Exited(_)) => CommandOutcome::Success,
            (Self::Exec { .. }, SessionEnd::Exited(code)) => CommandOutcome::Exit(code),
            (_, SessionEnd::TooSlow) => {
                self.failure("the client does not read; what it missed is in the log")
            }
            (_, SessionEnd::Gone) => self.failure("the pod's keeper has ended"),
        }
    }
}

/// Serves a client until its session ends.
pub(super) async fn serve(
    access: &ContainerAccess,
    target: &CommandTarget,
    requested: RequestedStreams,
    client: CommandStreams,
) {
    let CommandStreams { stdin, stdout, stderr, error, resize, report_format } = client;
    let mut sizes = resize.map(TerminalSizes::new);
    let outcome = match target.begin(access, requested, sizes.as_mut()).await {
        Ok(session) => relay(target, session, stdin, [stdout, stderr], sizes).await,
        Err(reason) => {
            for output in [stdout, stderr].into_iter().flatten() {
                // The client may be gone; errors are then dropped, here and below.
                drop(output.finish().await);
            }
            target.failure(reason)
        }
    };
    if let Some(report) = encode_outcome(report_format, &outcome) {
        drop(error.send(report).await);
    }
    drop(error.finish().await);
}

async fn relay(
    target: &CommandTarget,
    mut session: Session,
    stdin: Option<Incoming>,
    outputs: [Option<Outgoing>; 2],
    sizes: Option<TerminalSizes>,
) -> CommandOutcome {
    let input = session.streams.stdin.take();
    let [stdout, stderr] = outputs;
    let (out, err) = (session.streams.stdout.take(), session.streams.stderr.take());
    let control = session.control.clone();
    let (ended, end) = watch::channel(false);
    let to_process = async {
        tokio::join!(relay_input(stdin, input), relay_sizes(sizes, control));
        // The end of the client's input does not end the session.
        std::future::pending::<()>().await;
    };
    let from_process = async {
        let waiting = async {
            let end = session.end().await;
            ended.send_replace(true);
            end
        };
        tokio::join!(waiting, relay_output(out, stdout, end.clone()), relay_output(err, stderr, end.clone()))
            .0
    };
    tokio::select! {
        () = to_process => CommandOutcome::Success,
        end = from_process => target.outcome(end),
    }
}

/// Relays input. The end of the client's input closes the process's input.
async fn relay_input<W: AsyncWrite + Unpin>(from: Option<Incoming>, to: Option<W>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Ok(Some(bytes)) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            // The process has closed its input; further input is dropped.
            return;
        }
    }
    // The process may have closed it already.
    drop(to.shutdown().await);
}

/// The sizes of the terminal, which a client sends as they change.
struct TerminalSizes {
    from: Incoming,
    text: BytesMut,
    /// Received sizes that were not used yet.
    next: VecDeque<TerminalSize>,
}

impl TerminalSizes {
    fn new(from: Incoming) -> Self {
        Self { from, text: BytesMut::new(), next: VecDeque::new() }
    }

    /// Returns the first size, which clients with a terminal send immediately; none if it does not arrive in
    /// time.
    async fn first(&mut self) -> Option<TerminalSize> {
        tokio::time::timeout(FIRST_SIZE, self.next()).await.ok().flatten()
    }

    /// Returns the next size; none at the end of the stream.
    async fn next(&mut self) -> Option<TerminalSize> {
        while self.next.is_empty() {
            let bytes = self.from.next().await.ok().flatten()?;
            self.text.extend_from_slice(&bytes);
            let Ok(sizes) = sizes(&mut self.text) else {
                tracing::debug!("a client sent an invalid terminal size");
                return None;
            };
            self.next.extend(sizes);
        }
        self.next.pop_front()
    }
}

async fn relay_sizes(sizes: Option<TerminalSizes>, control: Control) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.next().await {
        if let Err(error) = control.resize(size).await {
            tracing::debug!(%error, "failed to resize a terminal");
        }
    }
}

/// Relays output to its end. After the end of the process, time and size are limited, since descendants may
/// hold the pipe open.
async fn relay_output<R: AsyncRead + Unpin>(
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
        buffer.reserve(READ_SIZE);
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
        // read(2) fails with EIO after the last process has closed the terminal (pty(7)).
        let count = read.unwrap_or(0);
        if count == 0 || to.send(take_bytes(&mut buffer)).await.is_err() {
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

fn take_bytes(buffer: &mut BytesMut) -> Bytes {
    if buffer.len() > COPY_LIMIT {
        return buffer.split().freeze();
    }
    let bytes = Bytes::copy_from_slice(buffer);
    buffer.clear();
    bytes
}
