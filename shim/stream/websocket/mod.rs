//! WebSocket (RFC 6455), the server's side of it, with what Kubernetes runs over it: numbered channels, and SPDY in a
//! tunnel. Messages go by in pieces: one of any size costs no more than a buffer.
//!
//! * [`frame`]: heads of frames and the order they come in: bytes only
//! * [`reader`], [`writer`]: the two tasks of a connection
//! * [`channels`]: numbered ones, `*.channel.k8s.io`
//! * [`tunnel`]: SPDY in messages, `SPDY/3.1+portforward.k8s.io`

pub mod channels;
pub mod frame;
mod reader;
pub mod tunnel;
mod writer;

pub use channels::{Channels, Coding};
