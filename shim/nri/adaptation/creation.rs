//! Pods and containers that are being created, so that a plugin that connects gets each of them once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Adaptation, NriError};

/// The creation of a pod or container, until it is in the store.
#[derive(Debug)]
pub struct NriCreation {
    adaptation: Arc<Adaptation>,
    /// The number of overtakings at the start, if no plugin was notified.
    silent: Option<u64>,
    id: String,
}

impl NriCreation {
    /// Whether plugins are notified of the creation.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.silent.is_none()
    }

    /// Checks that each plugin knows the pod or container. Call it when the object is in the store, or just before.
    ///
    /// # Errors
    /// A plugin has connected in the meantime and did not get it.
    pub fn check(&self) -> Result<(), NriError> {
        match self.silent {
            Some(before) if before != self.adaptation.overtakings.load(Ordering::SeqCst) => {
                Err(NriError::Overtaken)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for NriCreation {
    fn drop(&mut self) {
        if self.silent.is_some() {
            self.adaptation.silent.fetch_sub(1, Ordering::SeqCst);
            self.adaptation.silent_ended.notify_waiters();
            return;
        }
        let mut announced = self.adaptation.announced();
        announced.pods.remove(&self.id);
        announced.containers.remove(&self.id);
    }
}

impl Adaptation {
    /// Begins the creation of a pod or container.
    #[must_use]
    pub fn begin(self: &Arc<Self>, id: &str) -> NriCreation {
        // A plugin that connects first becomes active, then waits until no creation is silent.
        self.silent.fetch_add(1, Ordering::SeqCst);
        let silent = (!self.is_active()).then(|| self.overtakings.load(Ordering::SeqCst));
        if silent.is_none() {
            self.silent.fetch_sub(1, Ordering::SeqCst);
            self.silent_ended.notify_waiters();
        }
        NriCreation { adaptation: self.clone(), silent, id: id.to_owned() }
    }

    /// Waits until the unannounced creations are in the store. If one takes too long, it will fail.
    pub(super) async fn wait_for_silent(&self) {
        let none = async {
            loop {
                let ended = self.silent_ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.silent.load(Ordering::SeqCst) == 0 {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(self.settings.registration, none).await.is_err() {
            tracing::warn!(
                "an NRI plugin connects while pods or containers are being created: they will fail"
            );
            self.overtakings.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
