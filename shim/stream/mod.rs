//! The streaming server: what `kubectl exec`, `attach` and `port-forward` connect to.
//!
//! Exec, Attach and PortForward return a URL of this server with a token for the request ([`crate::session_url`]). The
//! kubelet, the API server and crictl connect to it and negotiate a protocol ([`upgrade`]):
//!
//! * [`server`], [`tls`]: connections and their requests; [`source`], [`waiting`]: limits of connections by
//!   their source
//! * [`spdy`]: SPDY/3.1; [`websocket`]: WebSocket. Each has a codec without I/O, and two tasks per connection
//! * [`inbox`], [`outgoing`]: the receiving and the sending side of one stream, for both protocols;
//!   [`connection`]: how the two tasks end
//! * [`clients`]: the streams of an exec or attach client; [`command`], [`resize`], [`status`]: what is sent
//!   over them
//! * [`forwarder`]: the streams of a port-forward client; [`ports`]: what is sent over them
//! * [`activity`]: the idle timeout
//!
//! All memory is bounded. Each stream has one receive buffer; each connection has a short send queue. A peer
//! that does not read delays only the sender that writes to it.

pub mod activity;
mod clients;
mod command;
mod connection;
mod forwarder;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod inbox;
pub mod outgoing;
mod ports;
pub mod resize;
pub mod server;
mod source;
pub mod spdy;
pub mod status;
pub mod tls;
pub mod upgrade;
mod waiting;
pub mod websocket;

pub use server::{SessionListener, StreamError};
