//! What programs say of themselves: whether they could attach a pod (`STATUS`, since CNI 1.1). They are asked when
//! somebody wants to know, beside that, and not more often than every few seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Network;
use crate::conflist::{Conflist, Version};

/// How old an answer may be: the kubelet asks for the node's status every five seconds.
const FRESH: Duration = Duration::from_secs(5);

/// What was said last.
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
    /// Why the programs of a configuration could not attach a pod, as far as they have said. Needs a tokio runtime.
    pub(crate) fn of(&self, network: &Network, config: &Arc<Conflist>) -> Option<String> {
        let asks = config.version >= Version::V1_1_0
            && config.plugins.iter().any(|entry| entry.plugin.is_external());
        if !asks {
            return None;
        }
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
        let answer = network.ask_status(config).await.err().map(|error| error.to_string());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.asking = false;
        if known.text.as_ref() == Some(&config.text) {
            known.asked = Some(Instant::now());
            known.why_not = answer;
        }
    }
}
