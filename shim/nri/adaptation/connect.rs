//! Plugins that connect: they register, get all pods and containers, and are called from then on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_proto::nri::{Container, PodSandbox, UpdateContainersRequest, UpdateContainersResponse};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Adaptation;
use crate::nri::merge::MergedUpdates;
use crate::nri::plugin::{LaunchedPlugin, NriPlugin};
use crate::nri::wire::message::TtrpcStatus;
use crate::nri::wire::{IncomingCall, PluginError, UNIMPLEMENTED, UNKNOWN};

impl Adaptation {
    /// Registers the plugin of a connection, sends it all pods and containers, and calls it from then on.
    ///
    /// # Errors
    /// The reason why the plugin is not used.
    pub async fn connect(
        self: &Arc<Self>,
        socket: UnixStream,
        launched: Option<LaunchedPlugin>,
    ) -> Result<Arc<NriPlugin>, String> {
        let (plugin, calls) = NriPlugin::register(socket, launched, &self.settings).await?;
        let plugin = Arc::new(plugin);
        // From now on, plugins are notified of new pods and containers.
        self.active.fetch_add(1, Ordering::SeqCst);
        let done = self.synchronize(&plugin).await;
        match done {
            Ok(()) => {
                self.watch(plugin.clone(), calls);
                Ok(plugin)
            }
            Err(error) => {
                self.active.fetch_sub(1, Ordering::SeqCst);
                Err(format!("{}: failed to synchronize it: {error}", plugin.name))
            }
        }
    }

    async fn synchronize(self: &Arc<Self>, plugin: &Arc<NriPlugin>) -> Result<(), PluginError> {
        self.wait_for_silent().await;
        let mut plugins = self.plugins.lock().await;
        let (pods, containers) = self.all().await;
        let updates = plugin.synchronize(pods, containers, self.settings.registration).await?;
        plugins.list.push(plugin.clone());
        plugins.list.sort_by(|a, b| a.name.index.cmp(&b.name.index));
        let order: Vec<String> = plugins.list.iter().map(|plugin| plugin.name.to_string()).collect();
        drop(plugins);
        tracing::info!(plugin = %plugin.name, ?order, "an NRI plugin has connected");
        let mut merged = MergedUpdates::default();
        // One plugin has no conflicts.
        drop(merged.add(&plugin.name, &updates, Vec::new()));
        self.apply_later(merged);
        Ok(())
    }

    /// Returns all pods and containers: those that are announced, and those in the store.
    async fn all(&self) -> (Vec<PodSandbox>, Vec<Container>) {
        // First those that are announced: they move to the store, never back.
        let (mut pods, mut containers) = {
            let announced = self.announced();
            (announced.pods.clone(), announced.containers.clone())
        };
        if let Some(host) = self.host.get() {
            let (stored_pods, stored_containers) = host.snapshot().await;
            pods.extend(stored_pods.into_iter().map(|pod| (pod.id.clone(), pod)));
            containers
                .extend(stored_containers.into_iter().map(|container| (container.id.clone(), container)));
        }
        (pods.into_values().collect(), containers.into_values().collect())
    }

    /// Handles the calls of a plugin, and removes it when its connection has ended.
    fn watch(self: &Arc<Self>, plugin: Arc<NriPlugin>, mut calls: mpsc::Receiver<IncomingCall>) {
        let adaptation = self.clone();
        tokio::spawn(async move {
            let why = loop {
                tokio::select! {
                    why = plugin.ended() => break why,
                    Some(call) = calls.recv() => adaptation.answer(&plugin, call).await,
                }
            };
            plugin.close(&why);
            tracing::warn!(plugin = %plugin.name, why, "an NRI plugin has disconnected");
            adaptation.plugins.lock().await.list.retain(|other| !Arc::ptr_eq(other, &plugin));
            adaptation.active.fetch_sub(1, Ordering::SeqCst);
        });
    }

    async fn answer(&self, plugin: &NriPlugin, call: IncomingCall) {
        let error = |code, message: String| Err(TtrpcStatus { code, message });
        let result = match call.method.as_str() {
            "UpdateContainers" => match UpdateContainersRequest::decode(call.payload.as_slice()) {
                Ok(request) => Ok(self.update_containers(plugin, request).await.encode_to_vec()),
                Err(invalid) => error(UNKNOWN, invalid.to_string()),
            },
            "RegisterPlugin" => error(UNKNOWN, "the plugin is already registered".to_owned()),
            other => error(UNIMPLEMENTED, format!("function {other} is not known")),
        };
        call.answer(result).await;
    }

    async fn update_containers(
        &self,
        plugin: &NriPlugin,
        request: UpdateContainersRequest,
    ) -> UpdateContainersResponse {
        tracing::info!(plugin = %plugin.name, updates = request.update.len(), evictions = request.evict.len(),
            "an NRI plugin changes containers");
        let failed = self.apply(request.update, request.evict).await;
        UpdateContainersResponse { failed: failed.into_iter().map(|failed| failed.update).collect() }
    }
}
