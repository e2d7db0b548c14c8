//! Tokens: each identifies a request of Exec, Attach or PortForward. Only the caller receives it, and it is
//! valid for one connection within a minute.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRngCore;

use super::RequestedStreams;
use crate::error::CriError;

/// How long a token is valid, as in containerd and CRI-O.
const LIFETIME: Duration = Duration::from_secs(60);

/// How many tokens may wait for their connection, as in containerd and CRI-O.
const MAX_WAITING: usize = 1000;

/// Number of random bytes in a token.
const SIZE: usize = 18;

/// The request that a session serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionRequest {
    /// A command in a container.
    Exec {
        /// The container's id.
        container: String,
        /// The command to execute, with its arguments.
        command: Vec<String>,
        /// The requested streams.
        requested: RequestedStreams,
    },
    /// The streams of a container.
    Attach {
        /// The container's id.
        container: String,
        /// The requested streams.
        requested: RequestedStreams,
    },
    /// Ports of a pod.
    PortForward {
        /// The pod's id.
        pod: String,
        /// The requested ports. Channels of old WebSocket clients are assigned in their order.
        ports: Vec<u16>,
    },
}

impl SessionRequest {
    /// Returns the first segment of the URL's path.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

#[derive(Debug)]
struct PendingRequest {
    token: String,
    until: Instant,
    request: SessionRequest,
}

/// The requests that wait for their connection, oldest first.
#[derive(Debug, Default)]
pub struct Tokens {
    waiting: Mutex<VecDeque<PendingRequest>>,
}

impl Tokens {
    /// Creates a token for a request.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait.
    pub fn issue(&self, request: SessionRequest) -> Result<String, CriError> {
        self.issue_at(request, Instant::now())
    }

    fn issue_at(&self, request: SessionRequest, now: Instant) -> Result<String, CriError> {
        let mut random = [0; SIZE];
        rand::rngs::OsRng
            .try_fill_bytes(&mut random)
            .map_err(|error| CriError::internal("read random bytes", error))?;
        let token = hex::encode(random);
        let mut waiting = self.lock();
        // Expired tokens are at the front, since all have the same lifetime. No other cleanup is needed.
        while waiting.front().is_some_and(|oldest| oldest.until <= now) {
            waiting.pop_front();
        }
        if waiting.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} sessions already wait for their client");
            return Err(CriError::exhausted("open a session", reason));
        }
        waiting.push_back(PendingRequest { token: token.clone(), until: now + LIFETIME, request });
        Ok(token)
    }

    /// Returns the request of a token and invalidates the token.
    #[must_use]
    pub fn redeem(&self, verb: &str, token: &str) -> Option<SessionRequest> {
        self.redeem_at(verb, token, Instant::now())
    }

    fn redeem_at(&self, verb: &str, token: &str, now: Instant) -> Option<SessionRequest> {
        let mut waiting = self.lock();
        let place = waiting.iter().position(|waiting| waiting.token == token)?;
        let pending = waiting.remove(place)?;
        (pending.until > now && pending.request.verb() == verb).then_some(pending.request)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<PendingRequest>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn request(pod: &str) -> SessionRequest {
        SessionRequest::PortForward { pod: pod.to_owned(), ports: vec![80] }
    }

    #[test]
    fn a_token_is_valid_once_and_for_its_verb() {
        let tokens = Tokens::default();
        let (one, two) = (tokens.issue(request("one")).unwrap(), tokens.issue(request("two")).unwrap());
        assert_ne!(one, two);
        assert_eq!(tokens.redeem("portforward", &two), Some(request("two")));
        assert_eq!(tokens.redeem("portforward", &two), None);
        assert_eq!(tokens.redeem("exec", &one), None);
        assert_eq!(tokens.redeem("portforward", &one), None, "an attempt with the wrong verb invalidates it");
    }

    #[test]
    fn a_token_is_valid_for_a_minute() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.issue_at(request("one"), now).unwrap();
        assert_eq!(tokens.redeem_at("portforward", &token, now + LIFETIME), None);
    }

    #[test]
    fn tokens_are_limited_until_the_oldest_expire() {
        let tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..MAX_WAITING {
            tokens.issue_at(request("many"), now).unwrap();
        }
        let error = tokens.issue_at(request("more"), now).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        tokens.issue_at(request("more"), now + LIFETIME).unwrap();
        assert_eq!(tokens.lock().len(), 1);
    }
}
