//! Sessions of people with pods: what `kubectl exec`, `attach` and `port-forward` connect to.
//!
//! Exec, Attach and PortForward answer with a URL of this server, whose token stands for the request ([`token`]). The
//! kubelet, the API server and crictl connect to it and agree on a protocol ([`upgrade`]):
//!
//! * [`server`], [`tls`]: connections and their requests; [`source`], [`waiting`]: who has how many of them
//! * [`spdy`]: SPDY/3.1; [`websocket`]: WebSocket. Each is a codec that knows bytes only, and two tasks a connection
//! * [`inbox`], [`outgoing`]: one stream of either, received and sent; [`connection`]: how the two tasks end
//! * [`clients`]: the streams of a command's client; [`command`], [`resize`], [`status`]: what goes over them
//! * [`forwarder`]: the streams of a client that forwards ports; [`ports`]: what goes over them
//! * [`activity`]: sessions that nobody uses
//!
//! Everything is bounded: what is received waits in one buffer a stream, what is sent in a short queue; whoever does not
//! read holds up only the one that writes to him.

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
pub mod token;
pub mod upgrade;
mod waiting;
pub mod websocket;

use std::sync::OnceLock;

pub use server::{Listener, StreamError};
pub use token::{Request, Tokens};

use crate::error::CriError;

/// What the RPCs know of the server.
#[derive(Debug, Default)]
pub struct Streams {
    tokens: Tokens,
    base: OnceLock<String>,
}

impl Streams {
    /// Says where the server is.
    pub fn serve_at(&self, base: String) {
        // It is said once, before the first request.
        let _before = self.base.set(base);
    }

    /// Where a client finds the session that it has asked for.
    ///
    /// # Errors
    /// Too many wait for their client, or there is no server yet.
    pub fn url(&self, request: Request) -> Result<String, CriError> {
        let base = self.base.get();
        let base = base.ok_or_else(|| CriError::unavailable("sessions", "they are not served yet"))?;
        let verb = request.verb();
        Ok(format!("{base}/{verb}/{}", self.tokens.issue(request)?))
    }
}
