//! The server side of WebSocket (RFC 6455), with the protocols that Kubernetes runs over it: numbered
//! channels, and SPDY in a tunnel. Messages are handled in pieces, so a message of any size needs only one
//! buffer.
//!
//! * [`frame`]: frame headers and the order of frames, without I/O
//! * [`reader`], [`writer`]: the two tasks of a connection
//! * [`channels`]: numbered channels, `*.channel.k8s.io`
//! * [`tunnel`]: SPDY in messages, `SPDY/3.1+portforward.k8s.io`
//! * [`coding`]: the encoding of messages, which a client and the server agree on

pub mod channels;
pub mod coding;
pub mod frame;
mod reader;
pub mod tunnel;
mod writer;

pub use channels::Channels;
pub use coding::Coding;
