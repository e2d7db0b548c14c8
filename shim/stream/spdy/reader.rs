//! The task that reads a session. It turns frames into streams and their data, until the peer disconnects or
//! violates the protocol. It waits for the consumers of streams and for the writer, and holds at most one
//! control frame.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use tokio::sync::mpsc;

use super::super::inbox::inbox;
use super::super::outgoing::{Item, Outgoing};
use super::frame::{ControlFrame, HEAD, ResetStatus, SpdyFrameError, SpdyFrameHeader, StreamId};
use super::headers::{Decompressor, HeaderError, HeaderWriter, StreamHeaders};
use super::new_stream::NewStream;
use super::table::{Credit, OpenError, StreamState, StreamTable};

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyReadError {
    /// The connection is lost.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A frame is invalid.
    #[error(transparent)]
    Frame(#[from] SpdyFrameError),
    /// A header block is invalid.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// A new stream does not have the client's next number.
    #[error("invalid stream number {0}: not the client's next")]
    Number(u32),
    /// A flow control window is out of range.
    #[error("invalid window: out of range")]
    Window,
    /// The writer has ended.
    #[error("the connection is closed")]
    Closed,
}

pub(super) struct FrameReader<R> {
    pub(super) io: R,
    pub(super) table: Arc<StreamTable>,
    pub(super) items: mpsc::Sender<Item>,
    pub(super) accepted: mpsc::Sender<NewStream>,
    pub(super) decompressor: Decompressor,
    pub(super) writer: HeaderWriter,
}

impl<R: AsyncBufRead + Unpin> FrameReader<R> {
    /// Reads until the end. A disconnect between two frames is not an error.
    pub(super) async fn run(&mut self) -> Result<(), SpdyReadError> {
        loop {
            if self.io.fill_buf().await?.is_empty() {
                return Ok(());
            }
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await?;
            match SpdyFrameHeader::parse(head)? {
                SpdyFrameHeader::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                SpdyFrameHeader::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.io.read_exact(&mut payload).await?;
                    self.control(ControlFrame::parse(kind, flags, &payload)?).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: StreamId, fin: bool, mut length: usize) -> Result<(), SpdyReadError> {
        let state = self.table.find(stream);
        match &state {
            // Data that was sent before the client learned of the stream's end is not an error.
            StreamState::Open(_) | StreamState::Closed => {}
            StreamState::HalfClosed => {
                self.table.remove(stream);
                self.reset(stream, ResetStatus::PROTOCOL_ERROR).await?;
            }
            StreamState::NeverOpened => self.reset(stream, ResetStatus::INVALID_STREAM).await?,
        }
        while length > 0 {
            let arrived = self.io.fill_buf().await?;
            if arrived.is_empty() {
                return Err(SpdyReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let piece = arrived.get(..length).unwrap_or(arrived);
            let unused = match &state {
                StreamState::Open(inbox) => inbox.push(piece).await,
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
            self.table.finish_remote(stream);
        }
        Ok(())
    }

    async fn control(&mut self, control: ControlFrame<'_>) -> Result<(), SpdyReadError> {
        match control {
            ControlFrame::SynStream { stream, fin, block } => {
                let headers = self.decompressor.block(block)?;
                self.open(stream, fin, headers).await?;
            }
            // The block must be decompressed in any case, to keep the compression state.
            ControlFrame::Headers { stream, fin, block } | ControlFrame::SynReply { stream, fin, block } => {
                let _unused = self.decompressor.block(block)?;
                if fin {
                    self.table.finish_remote(stream);
                }
            }
            ControlFrame::Reset { stream, .. } => {
                self.table.remove(stream);
            }
            ControlFrame::Settings { initial_window: Some(window) } => {
                if !self.table.set_initial(window) {
                    return Err(SpdyReadError::Window);
                }
            }
            ControlFrame::WindowUpdate { stream, delta } => {
                if !self.table.widen(stream, delta) {
                    if stream == StreamId::SESSION {
                        return Err(SpdyReadError::Window);
                    }
                    self.table.remove(stream);
                    self.reset(stream, ResetStatus::FLOW_CONTROL_ERROR).await?;
                }
            }
            // The client's pings have odd numbers. Even ones would answer pings of the server, which sends
            // none.
            ControlFrame::Ping(id) if id % 2 == 1 => self.send(&ControlFrame::Ping(id)).await?,
            // After GOAWAY, the client cannot open streams; open ones continue.
            ControlFrame::Ping(_)
            | ControlFrame::GoAway { .. }
            | ControlFrame::Settings { .. }
            | ControlFrame::Unknown(_) => {}
        }
        Ok(())
    }

    async fn open(
        &mut self,
        stream: StreamId,
        fin: bool,
        headers: StreamHeaders,
    ) -> Result<(), SpdyReadError> {
        let credit = Credit { table: self.table.clone(), stream };
        let (inbox, incoming) = inbox(Some(Arc::new(credit)));
        match self.table.open(stream, fin, inbox) {
            Ok(()) => {}
            Err(OpenError::Number) => return Err(SpdyReadError::Number(stream.get())),
            Err(OpenError::TooMany) => return self.reset(stream, ResetStatus::REFUSED_STREAM).await,
        }
        // The reply must come first: the client's library drops data that arrives on a stream before its
        // reply.
        let block = self.writer.block(&StreamHeaders::default());
        self.send(&ControlFrame::SynReply { stream, fin: false, block: &block }).await?;
        let outgoing = Outgoing::new(stream.get(), self.items.clone(), Some(self.table.clone()));
        let new = NewStream { id: stream, headers, incoming, outgoing };
        // While the session ends, no streams are accepted.
        if self.accepted.send(new).await.is_err() {
            self.table.remove(stream);
        }
        Ok(())
    }

    async fn reset(&mut self, stream: StreamId, status: ResetStatus) -> Result<(), SpdyReadError> {
        self.send(&ControlFrame::Reset { stream, status }).await
    }

    async fn send(&mut self, control: &ControlFrame<'_>) -> Result<(), SpdyReadError> {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.items.send(Item::Frame(Bytes::from(frame))).await.map_err(|_| SpdyReadError::Closed)
    }
}
