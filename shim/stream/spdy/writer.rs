//! The task that writes a session: the queued items of the streams, in order, and window updates for the
//! peer.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::outgoing::Item;
use super::frame::{ControlFrame, GoAwayStatus, ResetStatus, SpdyFrameHeader, StreamId};
use super::table::StreamTable;

/// The most data in one frame: its length has 24 bits.
const MAX_DATA: usize = (1 << 24) - 1;

pub(super) struct FrameWriter<W> {
    pub(super) io: W,
    pub(super) table: Arc<StreamTable>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes until the goodbye, or until all senders are gone.
    pub(super) async fn run(mut self, mut items: mpsc::Receiver<Item>) -> io::Result<()> {
        loop {
            let item = match items.try_recv() {
                Ok(item) => Some(item),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    // TLS connections have a write buffer.
                    self.io.flush().await?;
                    let table = self.table.clone();
                    tokio::select! {
                        item = items.recv() => item,
                        () = table.credited() => {
                            self.credits().await?;
                            continue;
                        }
                    }
                }
            };
            let done = matches!(item, None | Some(Item::Goodbye { .. }));
            if let Some(item) = item {
                self.item(item).await?;
            }
            self.credits().await?;
            if done {
                self.io.flush().await?;
                return self.io.shutdown().await;
            }
        }
    }

    async fn item(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::Data { stream, bytes } => self.data(StreamId::new(stream), bytes).await,
            Item::Finish(stream) => {
                let stream = StreamId::new(stream);
                if !self.table.finish_local(stream) {
                    return Ok(());
                }
                self.io.write_all(&SpdyFrameHeader::data(stream, true, 0)).await
            }
            Item::Abort(stream) => {
                let stream = StreamId::new(stream);
                if !self.table.remove(stream) {
                    return Ok(());
                }
                self.control(&ControlFrame::Reset { stream, status: ResetStatus::CANCEL }).await
            }
            Item::Frame(frame) => self.io.write_all(&frame).await,
            Item::Goodbye { in_order } => {
                let status = if in_order { GoAwayStatus::OK } else { GoAwayStatus::PROTOCOL_ERROR };
                self.control(&ControlFrame::GoAway { last: self.table.last(), status }).await
            }
        }
    }

    async fn data(&mut self, stream: StreamId, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA));
            let head = SpdyFrameHeader::data(stream, false, u32::try_from(piece.len()).unwrap_or_default());
            self.io.write_all_buf(&mut Buf::chain(&head[..], piece)).await?;
        }
        Ok(())
    }

    async fn credits(&mut self) -> io::Result<()> {
        for (stream, delta) in self.table.credits() {
            self.control(&ControlFrame::WindowUpdate { stream, delta }).await?;
        }
        Ok(())
    }

    async fn control(&mut self, control: &ControlFrame<'_>) -> io::Result<()> {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.io.write_all(&frame).await
    }
}
