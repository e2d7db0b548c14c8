//! The URLs of streaming sessions. Exec, Attach and PortForward return a URL with a token for the request ([`token`]). The
//! streaming server redeems the token when the client connects.

pub mod token;

use std::sync::OnceLock;

pub use token::{SessionRequest, Tokens};

use crate::error::CriError;

/// The streams that a client requests. With a terminal, stderr is part of stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestedStreams {
    /// The client sends input.
    pub stdin: bool,
    /// The client receives the output.
    pub stdout: bool,
    /// The client receives the errors.
    pub stderr: bool,
    /// The process has a terminal. Attach ignores this and uses the container's config.
    pub tty: bool,
}

/// Creates the URLs of sessions.
#[derive(Debug, Default)]
pub struct SessionUrls {
    tokens: Tokens,
    base: OnceLock<String>,
}

impl SessionUrls {
    /// Sets the base URL of the server.
    pub fn set_base_url(&self, base: String) {
        // It is set once, before the first request.
        let _previous = self.base.set(base);
    }

    /// Creates the URL of a session for a request.
    ///
    /// # Errors
    /// Too many sessions wait for their client, or the server is not running yet.
    pub fn url(&self, request: SessionRequest) -> Result<String, CriError> {
        let base = self.base.get();
        let base =
            base.ok_or_else(|| CriError::unavailable("sessions", "the streaming server is not running yet"))?;
        let verb = request.verb();
        Ok(format!("{base}/{verb}/{}", self.tokens.issue(request)?))
    }

    /// Returns the request of a URL's token and invalidates the token.
    #[must_use]
    pub fn redeem(&self, verb: &str, token: &str) -> Option<SessionRequest> {
        self.tokens.redeem(verb, token)
    }
}
