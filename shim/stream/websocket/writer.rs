//! The task that writes a connection: what the channels are handed, each piece a message.

use std::io;

use base64::Engine;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::outgoing::Item;
use super::channels::Coding;
use super::frame::{Opcode, encode_head};

/// How a connection ends (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// Writes until the goodbye, or until nobody is left who could send.
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
                // For connections with a buffer of their own (TLS).
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
            // A client takes the end of the connection for that of its channels.
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

/// A message: its head with the channel, and its payload.
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
