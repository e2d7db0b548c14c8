//! The server side of SPDY/3.1, as Kubernetes clients use it for multiple streams over one connection:
//! kubectl, crictl and the API server (moby/spdystream). No other library for it has a usable licence.
//!
//! * [`frame`]: the frames; [`headers`] and [`dictionary`]: header blocks. Both work without I/O
//! * [`table`]: the streams of a session and their flow control windows
//! * [`reader`], [`writer`]: the two tasks of a session
//! * [`session`], [`new_stream`]: the interface for the rest of the shim

pub mod dictionary;
pub mod frame;
pub mod headers;
pub mod new_stream;
mod reader;
pub mod session;
pub mod table;
mod writer;

pub use headers::StreamHeaders;
pub use new_stream::NewStream;
pub use session::SpdySession;
