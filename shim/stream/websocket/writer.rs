//! The task that writes a connection. Each item of a channel becomes a message.

use std::io;

use base64::Engine;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::outgoing::Item;
use super::coding::Coding;
use super::frame::{Opcode, encode_head};

/// Status codes of a close frame (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// Writes until the goodbye, or until all senders are gone.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut io: W,
    coding: Coding,
    mut items: mpsc::Receiver<Item>,
) -> io::Result<()> {
    loop {
        let item = match items.try_recv() {
            Ok(item) => Some(item),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                // TLS connections have a write buffer.
                io.flush().await?;
                items.recv().await
            }
        };
        match item {
            Some(Item::Data { stream, bytes }) => {
                let channel = u8::try_from(stream).unwrap_or(u8::MAX);
                let (head, bytes) = message(coding, channel, bytes);
                io.write_all_buf(&mut Buf::chain(&head[..], bytes)).await?;
            }
            Some(Item::Frame(frame)) => io.write_all(&frame).await?,
            // A channel has no end on the wire: it ends with the connection.
            Some(Item::Finish(_) | Item::Abort(_)) => {}
            goodbye @ (None | Some(Item::Goodbye { .. })) => {
                let in_order = !matches!(goodbye, Some(Item::Goodbye { in_order: false }));
                let code = if in_order { NORMAL } else { PROTOCOL_ERROR };
                let mut frame = Vec::new();
                encode_head(Opcode::Close, 2, &mut frame);
                frame.extend_from_slice(&code.to_be_bytes());
                io.write_all(&frame).await?;
                io.flush().await?;
                return io.shutdown().await;
            }
        }
    }
}

/// Encodes a message: its header with the channel, and its payload.
fn message(coding: Coding, channel: u8, bytes: Bytes) -> (Vec<u8>, Bytes) {
    let mut head = Vec::with_capacity(12);
    match coding {
        Coding::Binary => {
            encode_head(Opcode::Binary, bytes.len() + 1, &mut head);
            head.push(channel);
            (head, bytes)
        }
        Coding::Base64 => {
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            encode_head(Opcode::Text, text.len() + 1, &mut head);
            head.push(b'0'.saturating_add(channel));
            (head, Bytes::from(text))
        }
        Coding::Tunnel => {
            encode_head(Opcode::Binary, bytes.len(), &mut head);
            (head, bytes)
        }
    }
}
