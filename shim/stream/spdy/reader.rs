//! The task that reads a session: frames become streams and their data, until the peer goes or breaks the protocol. It
//! waits for whoever uses a stream and for the writer, and never holds more than one control frame.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use tokio::sync::mpsc;

use super::super::inbox::inbox;
use super::super::outgoing::{Item, Outgoing};
use super::frame::{Control, FrameError, HEAD, Head, ResetStatus, StreamId};
use super::headers::{Decompressor, HeaderError, Headers, Writer};
use super::session::NewStream;
use super::table::{Credit, Found, Refused, Table};

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The connection is lost.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A frame that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Headers that are none.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// A stream with a number that is not the next.
    #[error("stream {0} is not the client's next")]
    Number(u32),
    /// A window that is larger than any can be.
    #[error("a window out of range")]
    Window,
    /// Nobody writes any more.
    #[error("the connection is closed")]
    Closed,
}

pub(super) struct Reader<R> {
    pub(super) io: R,
    pub(super) table: Arc<Table>,
    pub(super) items: mpsc::Sender<Item>,
    pub(super) accepted: mpsc::Sender<NewStream>,
    pub(super) decompressor: Decompressor,
    pub(super) writer: Writer,
}

impl<R: AsyncBufRead + Unpin> Reader<R> {
    /// Reads until the end. An end between two frames is one in order.
    pub(super) async fn run(&mut self) -> Result<(), ReadError> {
        loop {
            if self.io.fill_buf().await?.is_empty() {
                return Ok(());
            }
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await?;
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.io.read_exact(&mut payload).await?;
                    self.control(Control::parse(kind, flags, &payload)?).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: StreamId, fin: bool, mut length: usize) -> Result<(), ReadError> {
        let found = self.table.find(stream);
        match &found {
            // What was under way when the stream ended is no mistake.
            Found::Open(_) | Found::Over => {}
            Found::Finished => {
                self.table.remove(stream);
                self.reset(stream, ResetStatus::PROTOCOL_ERROR).await?;
            }
            Found::Never => self.reset(stream, ResetStatus::INVALID_STREAM).await?,
        }
        while length > 0 {
            let arrived = self.io.fill_buf().await?;
            if arrived.is_empty() {
                return Err(ReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let piece = arrived.get(..length).unwrap_or(arrived);
            let unused = match &found {
                Found::Open(inbox) => inbox.push(piece).await,
                _ => piece.len(),
            };
            let taken = piece.len();
            self.io.consume(taken);
            length -= taken;
            if unused > 0 {
                self.table.credit(stream, unused);
            }
        }
        if fin {
            self.table.finish_there(stream);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), ReadError> {
        match control {
            Control::SynStream { stream, fin, block } => {
                let headers = self.decompressor.block(block)?;
                self.open(stream, fin, headers).await?;
            }
            // The state of the compression goes on, whoever wants the headers.
            Control::Headers { stream, fin, block } | Control::SynReply { stream, fin, block } => {
                let _unused = self.decompressor.block(block)?;
                if fin {
                    self.table.finish_there(stream);
                }
            }
            Control::Reset { stream, .. } => {
                self.table.remove(stream);
            }
            Control::Settings { initial_window: Some(window) } => {
                if !self.table.set_initial(window) {
                    return Err(ReadError::Window);
                }
            }
            Control::WindowUpdate { stream, delta } => {
                if !self.table.widen(stream, delta) {
                    if stream == StreamId::SESSION {
                        return Err(ReadError::Window);
                    }
                    self.table.remove(stream);
                    self.reset(stream, ResetStatus::FLOW_CONTROL_ERROR).await?;
                }
            }
            // The client's own pings have odd numbers; others are answers to ours, which we do not send.
            Control::Ping(id) if id % 2 == 1 => self.send(&Control::Ping(id)).await?,
            // The client opens no more streams; those that there are go on.
            Control::Ping(_) | Control::GoAway { .. } | Control::Settings { .. } | Control::Unknown(_) => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: StreamId, fin: bool, headers: Headers) -> Result<(), ReadError> {
        let credit = Credit { table: self.table.clone(), stream };
        let (inbox, incoming) = inbox(Some(Arc::new(credit)));
        match self.table.open(stream, fin, inbox) {
            Ok(()) => {}
            Err(Refused::Number) => return Err(ReadError::Number(stream.get())),
            Err(Refused::TooMany) => return self.reset(stream, ResetStatus::REFUSED_STREAM).await,
        }
        // Answered at once: the client's library drops what comes on a stream before its answer.
        let block = self.writer.block(&Headers::default());
        self.send(&Control::SynReply { stream, fin: false, block: &block }).await?;
        let outgoing = Outgoing::new(stream.get(), self.items.clone(), Some(self.table.clone()));
        let new = NewStream { id: stream, headers, incoming, outgoing };
        // Nobody accepts streams any more while the session ends.
        if self.accepted.send(new).await.is_err() {
            self.table.remove(stream);
        }
        Ok(())
    }

    async fn reset(&mut self, stream: StreamId, status: ResetStatus) -> Result<(), ReadError> {
        self.send(&Control::Reset { stream, status }).await
    }

    async fn send(&mut self, control: &Control<'_>) -> Result<(), ReadError> {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.items.send(Item::Frame(Bytes::from(frame))).await.map_err(|_| ReadError::Closed)
    }
}
