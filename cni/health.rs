//! The network's health: the `STATUS` of plugin programs (since CNI 1.1), and whether foreign firewall rules drop the
//! pods' packets. Both are checked in the background when the status is requested, at most every few seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::conflist::Conflist;
use crate::plugins::Plugin;
use crate::version::Version;
use crate::{Network, nftables};

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
    /// Returns why pods of a configuration would have no network, as of the last check. Needs a tokio runtime.
    pub(crate) fn of(&self, network: &Network, config: &Arc<Conflist>) -> Option<String> {
        let mut cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.text.as_ref() != Some(&config.text) {
            *cached =
                Cached { text: Some(config.text.clone()), checking: cached.checking, ..Cached::default() };
        }
        let stale = cached.checked.is_none_or(|checked| checked.elapsed() >= FRESH);
        if stale && !cached.checking {
            cached.checking = true;
            let (health, network, config) = (self.clone(), network.clone(), config.clone());
            tokio::spawn(async move { health.check(&network, &config).await });
        }
        cached.problem.clone()
    }

    async fn check(&self, network: &Network, config: &Conflist) {
        let problem = find_problem(network, config).await;
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

async fn find_problem(network: &Network, config: &Conflist) -> Option<String> {
    let programs =
        config.version >= Version::V1_1_0 && config.plugins.iter().any(|entry| entry.plugin.is_external());
    if programs && let Err(error) = network.ask_status(config).await {
        return Some(error.to_string());
    }
    // A firewall plugin accepts each pod's packets before foreign rules drop them; a program may do the same.
    let permits = |plugin: &Plugin| matches!(plugin, Plugin::Firewall(_) | Plugin::External(_));
    if config.plugins.iter().any(|entry| permits(&entry.plugin)) {
        return None;
    }
    match nftables::obstacle(network.packets(config)).await {
        Ok(obstacle) => obstacle,
        // A failed check does not mean that pods have no network.
        Err(error) => {
            tracing::debug!(%error, "failed to read the firewall rules of others");
            None
        }
    }
}
