//! Garbage collection (CNI specification, `GC`): records, addresses, links and rules of pods that do not exist are
//! removed. It runs when the daemon starts and has found all live pods.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::conflist::Conflist;
use crate::host::Host;
use crate::network::{Network, PluginParameters};
use crate::nftables::{self, masquerade};
use crate::plugins::Plugin;
use crate::record::Record;
use crate::version::Version;
use crate::{Error, Result};

/// The objects of a network that are marked as belonging to an attachment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned<'a> {
    pub(crate) host: &'a Host,
    pub(crate) network: &'a str,
}

impl Owned<'_> {
    /// Removes the objects of pods that are not in `live`. Returns what was removed.
    pub(crate) async fn release(self, live: &HashSet<String>) -> Result<Vec<String>> {
        let mut freed = Vec::new();
        let links = self.remove_links(live, &mut freed).await;
        let (network, live) = (self.network.to_owned(), live.clone());
        let gone = move |comment: &nftables::Comment| {
            comment.network == network && !live.contains(&comment.container)
        };
        let owners = nftables::release_where(gone).await?;
        freed.extend(owners.into_iter().map(|owner| format!("rules of {owner}")));
        links.map(|()| freed)
    }

    /// Removes links of the host, identified by their aliases.
    async fn remove_links(self, live: &HashSet<String>, removed: &mut Vec<String>) -> Result<()> {
        let prefix = crate::names::alias(self.network, "");
        for link in self.host.links.links().await? {
            let owner = link.alias.as_deref().and_then(|alias| alias.strip_prefix(&prefix));
            if owner.is_some_and(|owner| !live.contains(owner)) {
                self.host.links.remove(&link.name).await?;
                removed.push(format!("link {}", link.name));
            }
        }
        Ok(())
    }
}

impl Network {
    /// Frees everything that belongs to pods that are not in `live`. Returns what was freed.
    ///
    /// # Errors
    /// Something could not be freed.
    pub async fn gc(&self, live: &HashSet<String>) -> Result<Vec<String>> {
        let (mut freed, mut errors) = (Vec::new(), Vec::new());
        let recorded = self.shared.records.pods().await?;
        for pod in recorded.into_iter().filter(|pod| !live.contains(pod)) {
            match self.del(&pod, None).await {
                Ok(()) => freed.push(format!("pod {pod}")),
                Err(error) => errors.push(error),
            }
        }
        if let Ok(config) = self.shared.configuration.current()
            && !config.disable_gc
        {
            self.gc_network(&config, live, &mut freed, &mut errors).await;
        }
        if errors.is_empty() { Ok(freed) } else { Err(Error::Several(errors)) }
    }

    /// Removes a network's objects for pods that have no record: the folder of records may have been lost.
    async fn gc_network(
        &self,
        config: &Conflist,
        live: &HashSet<String>,
        freed: &mut Vec<String>,
        errors: &mut Vec<Error>,
    ) {
        let host = &self.shared.host;
        match (Owned { host, network: &config.name }).release(live).await {
            Ok(things) => freed.extend(things),
            Err(error) => errors.push(error),
        }
        errors.extend(masquerade::remove_unused(&host.made).await.err());
        for entry in &config.plugins {
            let done = match (&entry.plugin, entry.plugin.ipam()) {
                (Plugin::External(_), _) => self.gc_program(config, entry, live).await.map(|()| Vec::new()),
                (_, Some(ipam)) => ipam.gc(host, &config.name, live).await,
                _ => Ok(Vec::new()),
            };
            match done {
                Ok(addresses) => freed.extend(addresses.into_iter().map(|ip| format!("address {ip}"))),
                Err(error) => errors.push(error),
            }
        }
    }

    /// Calls `GC` of a program with the live attachments (`cni.dev/valid-attachments`). The program frees everything
    /// else.
    async fn gc_program(
        &self,
        config: &Conflist,
        entry: &crate::conflist::PluginEntry,
        live: &HashSet<String>,
    ) -> Result<()> {
        let Plugin::External(program) = &entry.plugin else { return Ok(()) };
        if config.version < Version::V1_1_0 {
            return Ok(());
        }
        let mut request = entry.config.clone();
        if let Some(request) = request.as_object_mut() {
            let live: Vec<Value> =
                live.iter().map(|pod| json!({ "containerID": pod, "ifname": "eth0" })).collect();
            request.insert("cni.dev/valid-attachments".to_owned(), Value::Array(live));
        }
        let record = Record::of_none("eth0");
        let parameters = PluginParameters::of(&record);
        let call = self.call(config, "", None, &record, &record.runtime, &parameters);
        program.run(&call, "GC", &request, None).await.map(drop)
    }

    /// Removes the network's bridges and rules if it has no pods. For the removal of berth from a node.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn teardown(&self) -> Result<()> {
        if !self.shared.records.pods().await?.is_empty() {
            return Ok(());
        }
        let config = self.shared.configuration.current()?;
        let mut errors = Vec::new();
        for entry in &config.plugins {
            if let Plugin::Bridge(bridge) = &entry.plugin {
                errors.extend(bridge.teardown(&self.shared.host).await.err());
            }
        }
        errors.extend(nftables::remove_if_unused(&self.shared.host.made).await.err());
        if errors.is_empty() { Ok(()) } else { Err(Error::Several(errors)) }
    }
}
