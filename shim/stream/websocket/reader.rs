//! The task that reads a connection. It turns frames into pieces of messages, in order, until the client
//! disconnects or violates the protocol.

use std::future::Future;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use tokio::sync::mpsc;

use super::super::outgoing::Item;
use super::frame::{
    FrameError, MAX_CONTROL, MAX_HEAD, Opcode, Order, Part, WebSocketFrameHeader, encode_head, unmask,
};

/// Largest piece of a message.
const PIECE: usize = 32 << 10;

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The connection is lost.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A frame is invalid.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message is invalid for its receiver.
    #[error("{0}")]
    Message(&'static str),
    /// The writer has ended.
    #[error("the connection is closed")]
    Closed,
}

/// Receives the messages of a connection.
pub(super) trait Receive: Send {
    /// Handles the next piece of a message.
    fn piece(&mut self, piece: &[u8]) -> impl Future<Output = Result<(), ReadError>> + Send;

    /// Handles the end of a message.
    fn end(&mut self) -> impl Future<Output = Result<(), ReadError>> + Send;
}

/// Reads until the client sends a close frame or disconnects between two frames.
pub(super) async fn read<R, T>(
    io: &mut R,
    receiver: &mut T,
    items: &mpsc::Sender<Item>,
) -> Result<(), ReadError>
where
    R: AsyncBufRead + Unpin,
    T: Receive,
{
    let mut order = Order::default();
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        let Some(head) = next_head(io).await? else { return Ok(()) };
        match order.next(&head)? {
            Part::Message { ends, .. } => {
                let mut mask = head.mask;
                let mut left = head.length;
                while left > 0 {
                    let arrived = io.fill_buf().await?;
                    if arrived.is_empty() {
                        return Err(ReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
                    }
                    let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    piece.clear();
                    piece.extend_from_slice(arrived.get(..most).unwrap_or(arrived));
                    io.consume(piece.len());
                    left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(left));
                    unmask(&mut mask, &mut piece);
                    receiver.piece(&piece).await?;
                }
                if ends {
                    receiver.end().await?;
                }
            }
            Part::Close => return Ok(()),
            Part::Ping => {
                let pong = pong(control(io, &head).await?);
                items.send(Item::Frame(pong)).await.map_err(|_| ReadError::Closed)?;
            }
            Part::Pong => drop(control(io, &head).await?),
        }
    }
}

/// Reads the next frame header; none at the end of the connection.
async fn next_head<R: AsyncBufRead + Unpin>(io: &mut R) -> Result<Option<WebSocketFrameHeader>, ReadError> {
    let mut bytes = [0; MAX_HEAD];
    let mut have = 0;
    loop {
        let arrived = io.fill_buf().await?;
        if arrived.is_empty() {
            let end = std::io::ErrorKind::UnexpectedEof.into();
            return if have == 0 { Ok(None) } else { Err(ReadError::Io(end)) };
        }
        let room = bytes.get_mut(have..).unwrap_or_default();
        let count = room.len().min(arrived.len());
        room.iter_mut().zip(arrived).for_each(|(to, from)| *to = *from);
        match WebSocketFrameHeader::parse(bytes.get(..have + count).unwrap_or_default())? {
            Some((head, length)) => {
                io.consume(length.saturating_sub(have));
                return Ok(Some(head));
            }
            None => {
                io.consume(count);
                have += count;
            }
        }
    }
}

/// Reads the payload of a control frame.
async fn control<R: AsyncBufRead + Unpin>(
    io: &mut R,
    head: &WebSocketFrameHeader,
) -> Result<Vec<u8>, ReadError> {
    let mut payload = vec![0; usize::try_from(head.length).unwrap_or(MAX_CONTROL).min(MAX_CONTROL)];
    io.read_exact(&mut payload).await?;
    unmask(&mut { head.mask }, &mut payload);
    Ok(payload)
}

fn pong(payload: Vec<u8>) -> Bytes {
    let mut frame = Vec::new();
    encode_head(Opcode::Pong, payload.len(), &mut frame);
    frame.extend_from_slice(&payload);
    Bytes::from(frame)
}
