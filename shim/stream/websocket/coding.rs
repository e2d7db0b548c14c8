//! The encoding of messages, which a client and the server agree on.

/// The encoding of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// A byte for the channel, then bytes.
    Binary,
    /// A digit for the channel, then base64.
    Base64,
    /// The bytes of one stream, without channels.
    Tunnel,
}
