//! Numbered channels over one connection (`channel.k8s.io` and its later versions). The first byte of a
//! message is its channel; in base64 it is a digit.
//!
//! Version 5 adds a message that closes a channel: byte 255 and the channel. Before version 5, a client
//! cannot close a channel.

use base64::Engine;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc;

use super::super::connection::ConnectionTasks;
use super::super::inbox::{Inbox, Incoming, inbox};
use super::super::outgoing::{Outgoing, QUEUE};
use super::coding::Coding;
use super::reader::{ReadError, Receive, read};
use super::writer::write;

/// Size of the read buffer.
const READ: usize = 64 << 10;

/// The first byte of a message that closes a channel.
const CLOSE: u8 = 255;

/// A connection with numbered channels. Dropping it aborts the connection.
#[derive(Debug)]
pub struct Channels {
    connection: ConnectionTasks,
    incoming: Vec<(u8, Option<Incoming>)>,
}

impl Channels {
    /// Starts on an upgraded connection. The client may send on the `readable` channels. `closes` is set for
    /// version 5.
    pub fn start<T>(io: T, coding: Coding, closes: bool, readable: &[u8]) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from_client, to_client) = tokio::io::split(io);
        let (items, queued) = mpsc::channel(QUEUE);
        let (mut inboxes, mut incoming) = (Vec::new(), Vec::new());
        for channel in readable {
            let (end, begin) = inbox(None);
            inboxes.push((*channel, end));
            incoming.push((*channel, Some(begin)));
        }
        let mut demux =
            Demultiplexer { coding, closes, inboxes, position: Position::Channel, carry: Vec::new() };
        let pongs = items.clone();
        let reading = async move {
            let mut io = BufReader::with_capacity(READ, from_client);
            let ended = read(&mut io, &mut demux, &pongs).await;
            demux.inboxes.iter().for_each(|(_, inbox)| inbox.break_off());
            ended.inspect_err(|error| tracing::debug!(%error, "failed to read from a WebSocket")).is_ok()
        };
        let writing = write(to_client, coding, queued);
        Self { connection: ConnectionTasks::start(items, reading, writing), incoming }
    }

    /// Returns a sender for a channel.
    #[must_use]
    pub fn outgoing(&self, channel: u8) -> Outgoing {
        self.connection.outgoing(u32::from(channel))
    }

    /// Takes the receiver of a readable channel.
    pub fn incoming(&mut self, channel: u8) -> Option<Incoming> {
        self.incoming
            .iter_mut()
            .find(|(number, _)| *number == channel)
            .and_then(|(_, incoming)| incoming.take())
    }

    /// Waits until the client has disconnected.
    pub async fn gone(&self) {
        self.connection.gone().await;
    }

    /// Closes the connection after everything that was sent before is delivered.
    pub async fn close(self) {
        // Dropped receivers do not block the reader.
        drop(self.incoming);
        self.connection.close().await;
    }
}

/// The reader's position in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Before its first byte.
    Channel,
    /// In the data of a channel.
    Data(u8),
    /// After the close byte, before the channel.
    Closing,
    /// After the channel to close.
    Closed(u8),
}

#[derive(Debug)]
struct Demultiplexer {
    coding: Coding,
    closes: bool,
    inboxes: Vec<(u8, Inbox)>,
    position: Position,
    /// Incomplete base64: fewer than four characters.
    carry: Vec<u8>,
}

impl Demultiplexer {
    fn find(&self, channel: u8) -> Option<&Inbox> {
        self.inboxes.iter().find(|(number, _)| *number == channel).map(|(_, inbox)| inbox)
    }

    /// Passes data to its channel's consumer. Data of other channels is dropped, as in containerd and CRI-O.
    async fn data(&mut self, channel: u8, piece: &[u8]) -> Result<(), ReadError> {
        if self.coding != Coding::Base64 {
            if let Some(inbox) = self.find(channel) {
                let _unused = inbox.push(piece).await;
            }
            return Ok(());
        }
        self.carry.extend_from_slice(piece);
        let whole = self.carry.len() - self.carry.len() % 4;
        let rest = self.carry.split_off(whole);
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.carry)
            .map_err(|_| ReadError::Message("invalid message: not base64"))?;
        self.carry = rest;
        if let Some(inbox) = self.find(channel) {
            let _unused = inbox.push(&bytes).await;
        }
        Ok(())
    }
}

impl Receive for Demultiplexer {
    async fn piece(&mut self, mut piece: &[u8]) -> Result<(), ReadError> {
        while let Some((first, rest)) = piece.split_first() {
            self.position = match self.position {
                Position::Channel if self.closes && *first == CLOSE => Position::Closing,
                Position::Channel if self.coding == Coding::Base64 => {
                    Position::Data(first.wrapping_sub(b'0'))
                }
                Position::Channel => Position::Data(*first),
                Position::Closing => Position::Closed(*first),
                Position::Closed(_) => {
                    return Err(ReadError::Message("invalid close message: more than one channel"));
                }
                Position::Data(channel) => return self.data(channel, piece).await,
            };
            piece = rest;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), ReadError> {
        let position = std::mem::replace(&mut self.position, Position::Channel);
        match position {
            Position::Closed(channel) => self.find(channel).into_iter().for_each(Inbox::finish),
            Position::Closing => return Err(ReadError::Message("invalid close message: no channel")),
            Position::Data(_) if !self.carry.is_empty() => {
                return Err(ReadError::Message("invalid message: incomplete base64"));
            }
            Position::Data(_) | Position::Channel => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::super::super::inbox::Broken;
    use super::*;

    /// Encodes a frame as a client does, with a mask of zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    }

    fn pair(coding: Coding, closes: bool) -> (DuplexStream, Channels) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (far, Channels::start(near, coding, closes, &[0, 4]))
    }

    async fn all(incoming: &mut Incoming) -> Result<Vec<u8>, Broken> {
        let mut all = Vec::new();
        while let Some(bytes) = incoming.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn messages_go_to_their_channels_and_a_channel_can_be_closed() {
        let (mut client, mut channels) = pair(Coding::Binary, true);
        let (mut stdin, mut resize) = (channels.incoming(0).unwrap(), channels.incoming(4).unwrap());
        for (first, payload) in [
            (0x02, &b"\x00in"[..]),
            (0x89, b"are you there"),
            (0x80, b"put"),
            (0x82, b""),
            (0x82, b"\x04{}"),
            (0x82, b"\x09nobody reads this"),
            (0x82, b"\xff\x00"),
        ] {
            client.write_all(&frame(first, payload)).await.unwrap();
        }
        assert_eq!(all(&mut stdin).await.unwrap(), b"input");
        assert_eq!(resize.next().await, Ok(Some(Bytes::from_static(b"{}"))));
        let mut pong = [0; 15];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x0dare you there");
        channels.outgoing(1).send(Bytes::from_static(b"out")).await.unwrap();
        client.write_all(&frame(0x88, b"\x03\xe8")).await.unwrap();
        channels.gone().await;
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x82\x04\x01out\x88\x02\x03\xe8");
        assert_eq!(resize.next().await, Err(Broken));
    }

    #[tokio::test]
    async fn base64_can_arrive_in_pieces() {
        let (mut client, mut channels) = pair(Coding::Base64, false);
        let mut stdin = channels.incoming(0).unwrap();
        for (first, payload) in [(0x01, &b"0aGV"[..]), (0x00, b"sbG"), (0x80, b"8="), (0x81, b"0IQ==")] {
            client.write_all(&frame(first, payload)).await.unwrap();
        }
        let mut got = Vec::new();
        while got.len() < 6 {
            got.extend_from_slice(&stdin.next().await.unwrap().unwrap());
        }
        assert_eq!(got, b"hello!");
        channels.outgoing(1).send(Bytes::from_static(b"out")).await.unwrap();
        let mut message = [0; 7];
        client.read_exact(&mut message).await.unwrap();
        assert_eq!(&message, b"\x81\x051b3V0");
    }

    #[tokio::test]
    async fn a_client_that_violates_the_protocol_gets_an_error() {
        let cases = [
            (Coding::Binary, &b"\x82\x01\x00"[..]),
            (Coding::Binary, b"\x80\x80\0\0\0\0"),
            (Coding::Base64, b"\x81\x84\0\0\0\x000a=b"),
            (Coding::Base64, b"\x81\x83\0\0\0\x000ab"),
            (Coding::Binary, b"\x82\x83\0\0\0\0\xff\x00\x00"),
            (Coding::Binary, b"\x82\x81\0\0\0\0\xff"),
        ];
        for (coding, bytes) in cases {
            let (mut client, mut channels) = pair(coding, true);
            let mut stdin = channels.incoming(0).unwrap();
            client.write_all(bytes).await.unwrap();
            channels.gone().await;
            assert_eq!(stdin.next().await, Err(Broken));
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"\x88\x02\x03\xea", "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn the_close_frame_follows_all_data() {
        let (mut client, channels) = pair(Coding::Binary, true);
        let out = channels.outgoing(1);
        for _ in 0..20 {
            out.send(Bytes::from(vec![7; 1000])).await.unwrap();
        }
        let closing = tokio::spawn(channels.close());
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 20 * (4 + 1 + 1000) + 4);
        drop(client);
        closing.await.unwrap();
    }
}
