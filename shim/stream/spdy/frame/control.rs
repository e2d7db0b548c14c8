//! Control frames.

use super::{CONTROL, FLAG_FIN, GoAwayStatus, HEAD, ResetStatus, SpdyFrameError, StreamId, VERSION};

// The kinds of control frames (draft 3.1, section 2.6).
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const SETTINGS_INITIAL_WINDOW: u32 = 7;

/// A control frame. Header blocks are compressed, as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame<'a> {
    /// Opens a stream.
    SynStream {
        /// The new stream.
        stream: StreamId,
        /// The last frame of this direction of the stream.
        fin: bool,
        /// Its headers.
        block: &'a [u8],
    },
    /// Accepts a stream.
    SynReply {
        /// The accepted stream.
        stream: StreamId,
        /// The last frame of this direction of the stream.
        fin: bool,
        /// Headers of the reply.
        block: &'a [u8],
    },
    /// Resets a stream.
    Reset {
        /// The stream that ends.
        stream: StreamId,
        /// Why it ends.
        status: ResetStatus,
    },
    /// Settings; only this one is used.
    Settings {
        /// The initial window of new streams.
        initial_window: Option<u32>,
    },
    /// A ping, or the answer to one: the same frame.
    Ping(u32),
    /// No further streams are accepted.
    GoAway {
        /// The last accepted stream.
        last: StreamId,
        /// Why the session ends.
        status: GoAwayStatus,
    },
    /// Additional headers of a stream.
    Headers {
        /// The open stream that they belong to.
        stream: StreamId,
        /// The last frame of this direction of the stream.
        fin: bool,
        /// The additional headers.
        block: &'a [u8],
    },
    /// Widens a flow control window.
    WindowUpdate {
        /// The stream, or the session.
        stream: StreamId,
        /// The number of bytes to add.
        delta: u32,
    },
    /// Any other kind, which is ignored (section 2.2.1).
    Unknown(u16),
}

/// Reads numbers from the front of a payload.
struct PayloadReader<'a>(&'a [u8]);

impl<'a> PayloadReader<'a> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

impl<'a> ControlFrame<'a> {
    /// Parses the payload of a control frame.
    ///
    /// # Errors
    /// The payload does not fit the kind.
    pub fn parse(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Self, SpdyFrameError> {
        Self::fields(kind, flags & FLAG_FIN != 0, PayloadReader(payload))
            .ok_or(SpdyFrameError::Length { kind, length: payload.len() })
    }

    fn fields(kind: u16, fin: bool, mut fields: PayloadReader<'a>) -> Option<Self> {
        let control = match kind {
            SYN_STREAM => {
                let stream = StreamId::new(fields.number()?);
                // The associated stream, the priority and a slot; all unused.
                fields.skip(6)?;
                return Some(Self::SynStream { stream, fin, block: fields.rest() });
            }
            SYN_REPLY => {
                let stream = StreamId::new(fields.number()?);
                return Some(Self::SynReply { stream, fin, block: fields.rest() });
            }
            RST_STREAM => {
                Self::Reset { stream: StreamId::new(fields.number()?), status: ResetStatus(fields.number()?) }
            }
            SETTINGS => {
                let mut initial_window = None;
                for _ in 0..fields.number()? {
                    // One byte of flags, then three bytes with the setting's id.
                    let (name, value) = (fields.number()? & 0x00ff_ffff, fields.number()?);
                    if name == SETTINGS_INITIAL_WINDOW {
                        initial_window = Some(value);
                    }
                }
                Self::Settings { initial_window }
            }
            PING => Self::Ping(fields.number()?),
            GOAWAY => {
                Self::GoAway { last: StreamId::new(fields.number()?), status: GoAwayStatus(fields.number()?) }
            }
            HEADERS => {
                let stream = StreamId::new(fields.number()?);
                return Some(Self::Headers { stream, fin, block: fields.rest() });
            }
            WINDOW_UPDATE => Self::WindowUpdate {
                stream: StreamId::new(fields.number()?),
                delta: fields.number()? & 0x7fff_ffff,
            },
            other => return Some(Self::Unknown(other)),
        };
        fields.end()?;
        Some(control)
    }

    /// Appends the encoded frame. An unknown kind has no payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let number = |out: &mut Vec<u8>, value: u32| out.extend_from_slice(&value.to_be_bytes());
        out.extend_from_slice(&[0; HEAD]);
        let (kind, fin) = match self {
            Self::SynStream { stream, fin, block } => {
                number(out, stream.0);
                out.extend_from_slice(&[0; 6]);
                out.extend_from_slice(block);
                (SYN_STREAM, *fin)
            }
            Self::SynReply { stream, fin, block } => {
                number(out, stream.0);
                out.extend_from_slice(block);
                (SYN_REPLY, *fin)
            }
            Self::Reset { stream, status } => {
                number(out, stream.0);
                number(out, status.0);
                (RST_STREAM, false)
            }
            Self::Settings { initial_window } => {
                number(out, u32::from(initial_window.is_some()));
                if let Some(window) = initial_window {
                    number(out, SETTINGS_INITIAL_WINDOW);
                    number(out, *window);
                }
                (SETTINGS, false)
            }
            Self::Ping(id) => {
                number(out, *id);
                (PING, false)
            }
            Self::GoAway { last, status } => {
                number(out, last.0);
                number(out, status.0);
                (GOAWAY, false)
            }
            Self::Headers { stream, fin, block } => {
                number(out, stream.0);
                out.extend_from_slice(block);
                (HEADERS, *fin)
            }
            Self::WindowUpdate { stream, delta } => {
                number(out, stream.0);
                number(out, *delta);
                (WINDOW_UPDATE, false)
            }
            Self::Unknown(kind) => (*kind, false),
        };
        let length = u32::try_from(out.len() - start - HEAD).unwrap_or(u32::MAX);
        let [_, x, y, z] = length.to_be_bytes();
        let [a, b] = VERSION.to_be_bytes();
        let [c, d] = u16::to_be_bytes(kind);
        if let Some(head) = out.get_mut(start..start + HEAD) {
            head.copy_from_slice(&[a | CONTROL, b, c, d, u8::from(fin), x, y, z]);
        }
    }
}
