//! SPDY/3.1, the server's side of it, as the kubelet's clients use it for streams over one connection: kubectl, crictl
//! and the API server (moby/spdystream). There is no other library for it with a usable licence.
//!
//! * [`frame`]: the frames; [`headers`] and [`dictionary`]: blocks of headers. Both know bytes only
//! * [`table`]: the streams of a session and their windows
//! * [`reader`], [`writer`]: the two tasks of a session
//! * [`session`]: a session as the rest of the shim uses it

pub mod dictionary;
pub mod frame;
pub mod headers;
mod reader;
pub mod session;
pub mod table;
mod writer;

pub use headers::Headers;
pub use session::{NewStream, Session};
