//! The client's frames. Those with header blocks are rewritten; all others are passed on unchanged.

use bytes::{Buf, BytesMut};
use loona_hpack::Decoder;
use tokio::io::ReadBuf;

use super::fields::{self, FieldsError};
use super::frame::{CONTINUATION, END_HEADERS, FrameHeader, HEAD, HEADERS, MAX_PAYLOAD, PADDED, PRIORITY};

/// Length of the preface that a client sends first (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Limit of an encoded header block.
const MAX_BLOCK: usize = 64 << 10;
/// The default of `SETTINGS_HEADER_TABLE_SIZE`; the server does not set it (RFC 9113, section 6.5.2).
const TABLE: usize = 4096;
/// Length of the fields that the flag `PRIORITY` adds.
const PRIORITY_FIELDS: usize = 5;

/// Why a client's bytes are passed on unparsed. The server finds the same fault and ends the connection.
#[derive(Debug, thiserror::Error)]
enum ParseError {
    #[error("a header block is interrupted by another frame")]
    Interrupted,
    #[error("a HEADERS frame is shorter than its padding")]
    Padding,
    #[error("an encoded header block is larger than {MAX_BLOCK} bytes")]
    TooLarge,
    #[error(transparent)]
    Fields(#[from] FieldsError),
}

/// The kind of the next bytes.
enum ReadState {
    /// This many bytes to pass on.
    Payload(usize),
    /// The header of a frame.
    Frame,
    /// Anything: the client violated the protocol.
    Opaque,
}

/// An incomplete header block.
struct Block {
    /// The HEADERS frame.
    head: FrameHeader,
    /// The fields that the flag `PRIORITY` adds.
    priority: BytesMut,
    /// The received part of the block.
    encoded: BytesMut,
    /// The received frames, unchanged.
    frames: BytesMut,
}

/// Rewrites what a client sends.
pub(super) struct Requests {
    peer: Option<i32>,
    state: ReadState,
    received: BytesMut,
    block: Option<Block>,
    decoder: Decoder<'static>,
    ready: BytesMut,
}

impl Requests {
    /// For a new connection.
    pub(super) fn new(peer: Option<i32>) -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE);
        Self {
            peer,
            state: ReadState::Payload(PREFACE),
            received: BytesMut::new(),
            block: None,
            decoder,
            ready: BytesMut::new(),
        }
    }

    /// Moves bytes that are ready for the server into `buffer`. Returns whether there were any.
    pub(super) fn read(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let length = self.ready.len().min(buffer.remaining());
        buffer.put_slice(&self.ready[..length]);
        self.ready.advance(length);
        if self.ready.is_empty() {
            // Free the memory of an idle connection.
            self.ready = BytesMut::new();
        }
        length > 0
    }

    /// Handles received bytes.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while self.step() {}
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
    }

    /// Handles the end of the client's bytes. An incomplete frame is passed on, for the server to reject.
    pub(super) fn end(&mut self) {
        if let Some(block) = self.block.take() {
            self.ready.unsplit(block.frames);
        }
        self.ready.unsplit(self.received.split());
    }

    /// Handles the next frame, or a part of it. Returns whether there may be more to handle.
    fn step(&mut self) -> bool {
        match self.state {
            ReadState::Opaque => {
                self.ready.unsplit(self.received.split());
                false
            }
            ReadState::Payload(length) => {
                let now = length.min(self.received.len());
                self.ready.unsplit(self.received.split_to(now));
                self.state = if now == length { ReadState::Frame } else { ReadState::Payload(length - now) };
                now == length
            }
            ReadState::Frame => self.frame(),
        }
    }

    fn frame(&mut self) -> bool {
        let Some(head) = FrameHeader::read(&self.received) else { return false };
        let belongs = match &self.block {
            None => head.kind == HEADERS,
            Some(block) => head.kind == CONTINUATION && head.stream == block.head.stream,
        };
        if !belongs || head.length > MAX_PAYLOAD {
            match self.block {
                None => self.state = ReadState::Payload(HEAD + head.length),
                Some(_) => self.pass_unparsed(&ParseError::Interrupted),
            }
            return true;
        }
        if self.received.len() < HEAD + head.length {
            return false;
        }
        let frame = self.received.split_to(HEAD + head.length);
        if let Err(error) = self.block_frame(head, &frame) {
            self.pass_unparsed(&error);
        }
        true
    }

    /// Handles a whole HEADERS or CONTINUATION frame.
    fn block_frame(&mut self, head: FrameHeader, frame: &[u8]) -> Result<(), ParseError> {
        let block = self.block.get_or_insert_with(|| Block {
            head,
            priority: BytesMut::new(),
            encoded: BytesMut::new(),
            frames: BytesMut::new(),
        });
        block.frames.extend_from_slice(frame);
        let payload = frame.get(HEAD..).unwrap_or_default();
        if head.kind == HEADERS {
            let (priority, encoded) = without_padding(head, payload).ok_or(ParseError::Padding)?;
            block.priority.extend_from_slice(priority);
            block.encoded.extend_from_slice(encoded);
        } else {
            block.encoded.extend_from_slice(payload);
        }
        if block.frames.len() > MAX_BLOCK {
            return Err(ParseError::TooLarge);
        }
        if head.has(END_HEADERS) {
            let fields = fields::rewrite(&mut self.decoder, &block.encoded)?;
            let (first, priority) = (block.head, block.priority.split());
            self.block = None;
            self.write(first, &priority, &fields);
        }
        Ok(())
    }

    /// Writes a block as one HEADERS frame and as many CONTINUATION frames as it needs.
    fn write(&mut self, first: FrameHeader, priority: &[u8], mut fields: &[u8]) {
        let mut head = FrameHeader { flags: first.flags & !(PADDED | END_HEADERS), ..first };
        let mut before = priority;
        loop {
            let (now, rest) = fields.split_at(fields.len().min(MAX_PAYLOAD - before.len()));
            head.length = before.len() + now.len();
            if rest.is_empty() {
                head.flags |= END_HEADERS;
            }
            self.ready.extend_from_slice(&head.bytes());
            self.ready.extend_from_slice(before);
            self.ready.extend_from_slice(now);
            if rest.is_empty() {
                return;
            }
            fields = rest;
            before = &[];
            head = FrameHeader { kind: CONTINUATION, flags: 0, ..head };
        }
    }

    /// Passes on the received part of the block, and everything that follows, unparsed.
    fn pass_unparsed(&mut self, error: &ParseError) {
        tracing::warn!(peer = self.peer, %error, "failed to parse a client's HTTP/2 frames; passing its bytes on unchanged");
        if let Some(block) = self.block.take() {
            self.ready.unsplit(block.frames);
        }
        self.state = ReadState::Opaque;
    }
}

/// Splits a HEADERS frame into priority fields and block, without padding (RFC 9113, section 6.2).
fn without_padding(head: FrameHeader, mut payload: &[u8]) -> Option<(&[u8], &[u8])> {
    if head.has(PADDED) {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    payload.split_at_checked(if head.has(PRIORITY) { PRIORITY_FIELDS } else { 0 })
}
