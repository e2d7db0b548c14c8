//! Whether pods that are attached have a network in fact: what programs say of themselves (`STATUS`, since CNI 1.1), and
//! whether rules of others drop what pods send. Both are looked at when somebody wants to know, beside that, and not more
//! often than every few seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Network;
use crate::conflist::{Conflist, Version};
use crate::nftables;
use crate::plugins::Plugin;

/// How old an answer may be: the kubelet asks for the node's status every five seconds.
const FRESH: Duration = Duration::from_secs(5);

/// What was found last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of which configuration.
    text: Option<String>,
    asked: Option<Instant>,
    asking: bool,
    why_not: Option<String>,
}

impl Health {
    /// Why pods of a configuration would have no network, as far as it was found. Needs a tokio runtime.
    pub(crate) fn of(&self, network: &Network, config: &Arc<Conflist>) -> Option<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.text.as_ref() != Some(&config.text) {
            *known = Known { text: Some(config.text.clone()), asking: known.asking, ..Known::default() };
        }
        let stale = known.asked.is_none_or(|asked| asked.elapsed() >= FRESH);
        if stale && !known.asking {
            known.asking = true;
            let (health, network, config) = (self.clone(), network.clone(), config.clone());
            tokio::spawn(async move { health.ask(&network, &config).await });
        }
        known.why_not.clone()
    }

    async fn ask(&self, network: &Network, config: &Conflist) {
        let answer = why_not(network, config).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.asking = false;
        if known.text.as_ref() == Some(&config.text) {
            if known.why_not != answer {
                tracing::info!(
                    network = config.name,
                    why_not = answer,
                    "the network's readiness has changed"
                );
            }
            known.asked = Some(Instant::now());
            known.why_not = answer;
        }
    }
}

async fn why_not(network: &Network, config: &Conflist) -> Option<String> {
    let programs =
        config.version >= Version::V1_1_0 && config.plugins.iter().any(|entry| entry.plugin.is_external());
    if programs && let Err(error) = network.ask_status(config).await {
        return Some(error.to_string());
    }
    // A firewall plugin permits what others forbid, for each pod when it comes; other programs may do so.
    let permits = |plugin: &Plugin| matches!(plugin, Plugin::Firewall(_) | Plugin::External(_));
    if config.plugins.iter().any(|entry| permits(&entry.plugin)) {
        return None;
    }
    match nftables::obstacle(network.packets(config)).await {
        Ok(obstacle) => obstacle,
        // It is nothing that keeps pods from their network.
        Err(error) => {
            tracing::debug!(%error, "failed to read the firewall rules of others");
            None
        }
    }
}
