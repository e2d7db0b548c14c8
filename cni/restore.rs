//! Rules of pods that somebody has taken away are put back: a reload of the host's own firewall must not cut its pods off.
//! The kernel tells of it; nothing is looked at meanwhile.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use crate::network::{Network, Told, lock};
use crate::nftables::{self, Loss};
use crate::{Context, Result};

impl Network {
    /// Puts rules back that are not there, now and whenever somebody takes them away, as long as this process runs. Needs a
    /// tokio runtime.
    pub fn keep_rules(&self) {
        let network = self.clone();
        tokio::spawn(async move {
            if let Err(error) = network.rules_kept().await {
                tracing::warn!(%error, "rules of pods that somebody takes away will not be put back");
            }
        });
    }

    async fn rules_kept(&self) -> Result<()> {
        let mut watch = nftables::Watch::open().doing("listen to changes of nftables")?;
        // While nobody listened.
        let mut loss = Loss::Unknown;
        loop {
            // Pods that are being attached look at this when they are.
            self.shared.losses.fetch_add(1, Ordering::SeqCst);
            match loss {
                Loss::Table => self.restore(|_| true).await,
                Loss::Unknown => {
                    let known = nftables::owners().await?.into_iter().map(|owner| owner.container);
                    let known: HashSet<String> = known.collect();
                    self.restore(|pod| !known.contains(pod)).await;
                }
            }
            loss = watch.loss().await.doing("listen to changes of nftables")?;
        }
    }

    async fn restore(&self, lacks: impl Fn(&str) -> bool) {
        let mut restored = 0;
        let recorded = self.shared.records.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "put the rules of pods back");
            Vec::new()
        });
        for pod in recorded.into_iter().filter(|pod| lacks(pod)) {
            match self.restore_pod(&pod).await {
                Ok(true) => restored += 1,
                Ok(false) => {}
                Err(error) => tracing::warn!(pod, %error, "put the rules of a pod back"),
            }
        }
        if restored > 0 {
            tracing::warn!(pods = restored, "rules of pods were not in nftables any more: they are put back");
        }
    }

    /// Puts back what rules a pod has by its configuration; whether it has any.
    pub(crate) async fn restore_pod(&self, pod: &str) -> Result<bool> {
        let Some(record) = self.shared.records.read(pod).await? else { return Ok(false) };
        // One that is still being attached sees to its rules itself.
        let Some(result) = &record.result else { return Ok(false) };
        let config = self.shared.configuration.recorded(record.config.as_deref())?;
        let told = Told::of(&record);
        let mut any = false;
        for entry in &config.plugins {
            let runtime = told.of_entry(entry)?;
            let call = self.call(&config, pod, None, &record, &runtime, &told);
            any |= entry.plugin.restore(&call, result).await?;
        }
        // It may have begun to end meanwhile: then its rules have been removed before these came.
        if lock(&self.shared.ending).contains(pod) || self.shared.records.read(pod).await?.is_none() {
            let pod = pod.to_owned();
            nftables::release_where(move |owner| owner.container == pod).await?;
        }
        Ok(any)
    }
}
