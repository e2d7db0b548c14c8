//! The last result of the network's health check, which runs in the background when the status is requested, at most
//! every few seconds.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::conflist::Conflist;

/// How long an answer is valid. The kubelet requests the node's status every five seconds.
const FRESH: Duration = Duration::from_secs(5);

/// The last result of the health check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    cache: Arc<Mutex<Cached>>,
}

#[derive(Debug, Default)]
struct Cached {
    /// The text of the configuration that was checked.
    text: Option<String>,
    checked: Option<Instant>,
    checking: bool,
    problem: Option<String>,
}

impl Health {
    /// Returns why pods of a configuration would have no network, as of the last check. `find` starts a check. Needs a
    /// tokio runtime.
    pub(crate) fn of<F>(&self, config: &Arc<Conflist>, find: impl FnOnce() -> F) -> Option<String>
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        let mut cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.text.as_ref() != Some(&config.text) {
            *cached =
                Cached { text: Some(config.text.clone()), checking: cached.checking, ..Cached::default() };
        }
        let stale = cached.checked.is_none_or(|checked| checked.elapsed() >= FRESH);
        if stale && !cached.checking {
            cached.checking = true;
            let (health, config, found) = (self.clone(), config.clone(), find());
            tokio::spawn(async move { health.note(&config, found.await) });
        }
        cached.problem.clone()
    }

    fn note(&self, config: &Conflist, problem: Option<String>) {
        let mut cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cached.checking = false;
        if cached.text.as_ref() == Some(&config.text) {
            if cached.problem != problem {
                tracing::info!(network = config.name, problem, "network readiness changed");
            }
            cached.checked = Some(Instant::now());
            cached.problem = problem;
        }
    }
}
