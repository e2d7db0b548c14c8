//! Frames of the multiplexed socket. A frame is the number of a connection, a length and data; the numbers are big endian:
//!
//! ```text
//! connection (32 bits) | length (32 bits) | data
//! ```
//!
//! The data of a connection is a stream of ttrpc messages. A message can be divided over several frames.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::message::{HEADER, MAX_MESSAGE};

/// The connections of one socket. Other numbers are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The daemon calls the plugin.
    Plugin = 1,
    /// The plugin calls the daemon.
    Runtime = 2,
}

impl Channel {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Plugin, Self::Runtime].into_iter().find(|channel| channel.number() == number)
    }

    fn number(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }
}

/// The largest data of a frame: a whole message with its header.
const MAX_DATA: usize = HEADER + MAX_MESSAGE;

/// The size of the first frame of a long message. Plugins that use the Go library read the first frame into a buffer of this
/// size, and fail if it is larger.
const FIRST: usize = 4096;

/// Divides a message into frames: a short first one, and the rest.
#[must_use]
pub fn frames(channel: Channel, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST));
    let mut bytes = Vec::with_capacity(message.len() + 16);
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        bytes.extend(channel.number().to_be_bytes());
        bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

/// Reads a frame. Returns none for a frame of another connection.
///
/// # Errors
/// The socket is closed, or the frame is too large.
pub async fn read<R: AsyncRead + Unpin>(socket: &mut R) -> io::Result<Option<(Channel, Vec<u8>)>> {
    let channel = socket.read_u32().await?;
    let length = socket.read_u32().await?;
    let size = usize::try_from(length).ok().filter(|size| *size <= MAX_DATA);
    let size = size.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is above {MAX_DATA}"))
    })?;
    // The memory grows with the received data, not with the announced size.
    let mut data = Vec::new();
    let mut rest = socket.take(u64::from(length));
    rest.read_to_end(&mut data).await?;
    if data.len() < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Channel::from_number(channel).map(|channel| (channel, data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_message_has_two_frames() {
        let message: Vec<u8> = (0..10_000_u32).map(|number| number.to_be_bytes()[3]).collect();
        let bytes = frames(Channel::Runtime, &message);
        let mut socket = bytes.as_slice();
        let (channel, first) = read(&mut socket).await.unwrap().unwrap();
        let (_, rest) = read(&mut socket).await.unwrap().unwrap();
        assert_eq!((channel, first.len(), rest.len()), (Channel::Runtime, 4096, 5904));
        assert_eq!([first, rest].concat(), message);
        assert!(read(&mut socket).await.is_err(), "the end of the socket");
    }

    #[tokio::test]
    async fn invalid_frames_end_the_connection() {
        let mut huge = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff].as_slice();
        assert_eq!(read(&mut huge).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut short = [0, 0, 0, 1, 0, 0, 0, 4, 7].as_slice();
        assert_eq!(read(&mut short).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut other = [0, 0, 0, 9, 0, 0, 0, 1, 7].as_slice();
        assert!(read(&mut other).await.unwrap().is_none());
    }
}
