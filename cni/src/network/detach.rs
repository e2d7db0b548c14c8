//! Detaches a pod (`DEL`).

use std::os::fd::BorrowedFd;
use std::time::Instant;

use tracing::Instrument;

use super::{Network, PluginParameters, lock};
use crate::conflist::Conflist;
use crate::plugins::Plugin;
use crate::record::Record;
use crate::{Error, PluginCommand, Result, pin, trace};

impl Network {
    /// Detaches a pod before its namespace is destroyed. Parts that are not attached are skipped. Continues after an
    /// error and reports all errors.
    ///
    /// # Errors
    /// Something could not be released. A retry continues there.
    pub async fn del(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(record) = self.shared.records.read(pod).await? else {
            lock(&self.shared.attachments).remove(pod);
            return self.shared.records.remove(pod).await;
        };
        let mut errors = Vec::new();
        {
            let _alone = self.shared.restoring.lock().await;
            lock(&self.shared.ending).insert(pod.to_owned());
        }
        let _ended = Ended { network: self, pod };
        match self.shared.configuration.recorded(&record.made_by()) {
            Ok(config) => self.del_all(&config, pod, &record, netns, &mut errors).await,
            Err(error) => errors.push(error),
        }
        if let Some(path) = &record.pinned {
            errors.extend(pin::unpin(path).err());
        }
        if errors.is_empty() {
            lock(&self.shared.attachments).remove(pod);
            self.shared.records.remove(pod).await?;
            return self.clear_away(&record).await;
        }
        Err(Error::Several(errors))
    }

    /// Removes a bridge of the built-in network after its last pod is detached, if the active network has another
    /// bridge.
    async fn clear_away(&self, record: &Record) -> Result<()> {
        let made_by = record.made_by();
        if !record.built_in
            || self
                .shared
                .configuration
                .current()
                .is_ok_and(|config| Some(&config.text) == record.config.as_ref())
        {
            return Ok(());
        }
        let config = self.shared.configuration.recorded(&made_by)?;
        let current = self.shared.configuration.current();
        let names =
            |config: &Conflist| config.bridges().map(|bridge| bridge.name().to_owned()).collect::<Vec<_>>();
        let mut used: Vec<String> = current.iter().flat_map(|config| names(config)).collect();
        for pod in self.shared.records.pods().await? {
            let config = self.shared.records.read(&pod).await?.map(|record| record.made_by());
            let config = config.and_then(|by| self.shared.configuration.recorded(&by).ok());
            used.extend(config.iter().flat_map(names));
        }
        for bridge in config.bridges().filter(|bridge| !used.iter().any(|name| name == bridge.name())) {
            tracing::info!(
                bridge = bridge.name(),
                "removing the bridge: its last pod is gone, and the network uses another bridge"
            );
            bridge.teardown(&self.shared.host).await?;
        }
        Ok(())
    }

    async fn del_all(
        &self,
        config: &Conflist,
        pod: &str,
        record: &Record,
        netns: Option<BorrowedFd<'_>>,
        errors: &mut Vec<Error>,
    ) {
        let parameters = PluginParameters::of(record);
        let result = record.result.clone().unwrap_or_default();
        for entry in config.plugins.iter().rev() {
            if matches!(entry.plugin, Plugin::Loopback(_)) {
                continue;
            }
            let deleted = match parameters.of_entry(entry) {
                Ok(runtime) => {
                    let call = self.call(config, pod, netns, record, &runtime, &parameters);
                    let started = Instant::now();
                    let span = trace::plugin(entry.kind(), PluginCommand::Del);
                    let deleted =
                        entry.plugin.del(&call, &entry.config, &result).instrument(span.clone()).await;
                    trace::end(&span, &deleted);
                    self.observe(entry, PluginCommand::Del, started, deleted.is_ok());
                    deleted
                }
                Err(error) => Err(error),
            };
            errors.extend(deleted.err());
        }
    }
}

/// Marks a pod as being detached, until it is dropped: also when the caller is cancelled.
struct Ended<'a> {
    network: &'a Network,
    pod: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.network.shared.ending).remove(self.pod);
    }
}
