//! Messages of ttrpc (github.com/containerd/ttrpc, PROTOCOL.md): a header of ten bytes and a protobuf message.
//!
//! ```text
//! length (32 bits) | stream (32 bits) | kind (8 bits) | flags (8 bits) | protobuf
//! ```

use std::io;

use prost::Message;

/// The size of a header.
pub const HEADER: usize = 10;

/// The largest size of a message without its header (PROTOCOL.md, "Message Frame").
pub const MAX_MESSAGE: usize = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// A call.
#[derive(Clone, PartialEq, Message)]
pub struct TtrpcRequest {
    /// The name of the service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The name of the function.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The argument, encoded.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// The time limit of the caller; 0 is none.
    #[prost(int64, tag = "4")]
    pub timeout_nanoseconds: i64,
}

/// The answer to a call.
#[derive(Clone, PartialEq, Message)]
pub struct TtrpcResponse {
    /// The error, if there is one.
    #[prost(message, optional, tag = "1")]
    pub status: Option<TtrpcStatus>,
    /// The result.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// An error (google.rpc.Status).
#[derive(Clone, PartialEq, Message)]
pub struct TtrpcStatus {
    /// The code, as in gRPC.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The text.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A message of a stream. A stream is one call.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    /// A call.
    Request(u32, TtrpcRequest),
    /// An answer.
    Response(u32, TtrpcResponse),
}

impl Packet {
    /// Encodes the message with its header.
    ///
    /// # Errors
    /// The message is too large.
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let (stream, kind, body) = match self {
            Self::Request(stream, request) => (*stream, REQUEST, request.encode_to_vec()),
            Self::Response(stream, response) => (*stream, RESPONSE, response.encode_to_vec()),
        };
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
        let length = length.ok_or(TooLarge { size: body.len() })?;
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(body);
        Ok(bytes)
    }
}

/// A message is larger than [`MAX_MESSAGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {size} bytes is above {MAX_MESSAGE}")]
pub struct TooLarge {
    /// The size of the message.
    pub size: usize,
}

/// Collects the data of one connection and divides it into messages.
#[derive(Debug, Default)]
pub struct Unpacker {
    data: Vec<u8>,
}

impl Unpacker {
    /// Adds data of a frame.
    pub fn push(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
    }

    /// Returns the next complete message.
    ///
    /// # Errors
    /// The message is too large, of an unknown kind, or not protobuf.
    pub fn next_packet(&mut self) -> io::Result<Option<Packet>> {
        let Some((header, rest)) = self.data.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h, kind, _flags] = *header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(invalid(TooLarge { size: length }));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let stream = u32::from_be_bytes([e, f, g, h]);
        let packet = match kind {
            REQUEST => TtrpcRequest::decode(body).map(|request| Packet::Request(stream, request)),
            RESPONSE => TtrpcResponse::decode(body).map(|response| Packet::Response(stream, response)),
            _ => return Err(invalid(format!("unknown kind of message {kind}"))),
        };
        self.data.drain(..HEADER + length);
        packet.map(Some).map_err(invalid)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(stream: u32) -> Packet {
        let request = TtrpcRequest {
            service: "service".to_owned(),
            method: "Method".to_owned(),
            payload: vec![7; 300],
            timeout_nanoseconds: 5,
        };
        Packet::Request(stream, request)
    }

    #[test]
    fn messages_are_found_at_every_division() {
        let response = TtrpcResponse {
            status: Some(TtrpcStatus { code: 2, message: "no".to_owned() }),
            payload: vec![],
        };
        let packets = [request(1), Packet::Response(1, response), request(3)];
        let bytes: Vec<u8> = packets.iter().flat_map(|packet| packet.encode().unwrap()).collect();
        for size in [1, 3, 10, 11, 400, bytes.len()] {
            let mut unpacker = Unpacker::default();
            let mut found = Vec::new();
            for part in bytes.chunks(size) {
                unpacker.push(part);
                while let Some(packet) = unpacker.next_packet().unwrap() {
                    found.push(packet);
                }
            }
            assert_eq!(found, packets, "in parts of {size}");
        }
    }

    #[test]
    fn invalid_messages_are_errors() {
        let next = |bytes: &[u8]| {
            let mut unpacker = Unpacker::default();
            unpacker.push(bytes);
            unpacker.next_packet()
        };
        assert!(next(&[0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0]).is_err(), "too large");
        assert!(next(&[0, 0, 0, 0, 0, 0, 0, 1, 3, 0]).is_err(), "data of a stream");
        assert!(next(&[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0xff]).is_err(), "not protobuf");
        assert!(next(&[0, 0, 0, 1, 0, 0, 0, 1, 1, 0]).unwrap().is_none(), "incomplete");
        let large = TtrpcResponse { status: None, payload: vec![0; MAX_MESSAGE] };
        assert!(Packet::Response(1, large).encode().is_err());
    }
}
