//! Tokens: what Exec, Attach and PortForward were asked, under a name that only their caller knows, for one connection
//! within a minute.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRngCore;

use crate::error::CriError;
use crate::exec::session::Wanted;

/// How long a token is good (as the peers have it).
const LIFETIME: Duration = Duration::from_secs(60);

/// How many may wait for their connection (as the peers have it).
const MAX_WAITING: usize = 1000;

/// Bytes of chance in a token.
const SIZE: usize = 18;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A command in a container.
    Exec {
        /// The container's id.
        container: String,
        /// The command.
        command: Vec<String>,
        /// Its streams.
        wanted: Wanted,
    },
    /// The streams of a container.
    Attach {
        /// The container's id.
        container: String,
        /// Which.
        wanted: Wanted,
    },
    /// Ports of a pod.
    PortForward {
        /// The pod's id.
        pod: String,
        /// Those that were named: the channels of old WebSocket clients are by their order.
        ports: Vec<u16>,
    },
}

impl Request {
    /// The first part of its path.
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
struct Waiting {
    token: String,
    until: Instant,
    request: Request,
}

/// The requests that wait for their connection, the oldest first.
#[derive(Debug, Default)]
pub struct Tokens {
    waiting: Mutex<VecDeque<Waiting>>,
}

impl Tokens {
    /// A token for a request.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait.
    pub fn issue(&self, request: Request) -> Result<String, CriError> {
        self.issue_at(request, Instant::now())
    }

    fn issue_at(&self, request: Request, now: Instant) -> Result<String, CriError> {
        let mut chance = [0; SIZE];
        rand::rngs::OsRng
            .try_fill_bytes(&mut chance)
            .map_err(|error| CriError::internal("read random bytes", error))?;
        let token = hex::encode(chance);
        let mut waiting = self.lock();
        // They are in the order of their time: what is expired is in front. Nobody else has to look after them.
        while waiting.front().is_some_and(|oldest| oldest.until <= now) {
            waiting.pop_front();
        }
        if waiting.len() >= MAX_WAITING {
            let why = format!("{MAX_WAITING} sessions wait for their client");
            return Err(CriError::exhausted("open a session", why));
        }
        waiting.push_back(Waiting { token: token.clone(), until: now + LIFETIME, request });
        Ok(token)
    }

    /// The request of a token, once.
    #[must_use]
    pub fn redeem(&self, verb: &str, token: &str) -> Option<Request> {
        self.redeem_at(verb, token, Instant::now())
    }

    fn redeem_at(&self, verb: &str, token: &str, now: Instant) -> Option<Request> {
        let mut waiting = self.lock();
        let place = waiting.iter().position(|waiting| waiting.token == token)?;
        let found = waiting.remove(place)?;
        (found.until > now && found.request.verb() == verb).then_some(found.request)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn request(pod: &str) -> Request {
        Request::PortForward { pod: pod.to_owned(), ports: vec![80] }
    }

    #[test]
    fn a_token_is_good_once_and_for_its_verb() {
        let tokens = Tokens::default();
        let (one, two) = (tokens.issue(request("one")).unwrap(), tokens.issue(request("two")).unwrap());
        assert_ne!(one, two);
        assert_eq!(tokens.redeem("portforward", &two), Some(request("two")));
        assert_eq!(tokens.redeem("portforward", &two), None);
        assert_eq!(tokens.redeem("exec", &one), None);
        assert_eq!(tokens.redeem("portforward", &one), None, "who guesses has used it up");
    }

    #[test]
    fn a_token_is_good_for_a_minute() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.issue_at(request("one"), now).unwrap();
        assert_eq!(tokens.redeem_at("portforward", &token, now + LIFETIME), None);
    }

    #[test]
    fn too_many_wait_until_the_oldest_expire() {
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
