//! The calls to all plugins.

use std::sync::Arc;

use berth_proto::nri::{
    Container, ContainerAdjustment, CreateContainerRequest, CreateContainerResponse, Empty, Event,
    LinuxResources, PluginInstance, PodSandbox, StopContainerRequest, StopContainerResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};

use super::{Adaptation, NriError, failed};
use crate::nri::events::Notice;
use crate::nri::limits;
use crate::nri::merge::{MergedCreation, MergedUpdates};
use crate::nri::owners::Ownership;
use crate::nri::plugin::{NriPlugin, PluginName};
use crate::nri::validate;
use crate::nri::wire::PluginError;

/// The changes that plugins request for a container that is being created.
#[derive(Clone, Debug, Default)]
pub struct CreationChanges {
    /// The changes to the container.
    pub adjustment: ContainerAdjustment,
    /// The changes to others.
    pub others: MergedUpdates,
}

impl Adaptation {
    /// Notifies the plugins of a new pod.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn run_pod(&self, pod: &PodSandbox) -> Result<(), NriError> {
        let plugins = self.plugins.lock().await;
        self.announced().pods.insert(pod.id.clone(), pod.clone());
        plugins.notify(Notice::RunPod, pod, None).await
    }

    /// Notifies the plugins of an event of a pod or container.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn notify(
        &self,
        notice: Notice,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        let mut plugins = self.plugins.lock().await;
        if let (Notice::Remove, Some(container)) = (notice, container) {
            plugins.stopped.remove(&container.id);
        }
        plugins.notify(notice, pod, container).await
    }

    /// Notifies the plugins that the resources of a pod will be updated.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn update_pod(&self, request: &UpdatePodSandboxRequest) -> Result<(), NriError> {
        let plugins = self.plugins.lock().await;
        for plugin in plugins.open() {
            let sent = plugin.request::<_, Empty>(Event::UpdatePodSandbox, request).await;
            sent.map_err(|error| failed(&plugin, error))?;
        }
        Ok(())
    }

    /// Collects the changes of all plugins to a container that is being created, and validates them.
    ///
    /// # Errors
    /// A plugin rejects the container, two plugins conflict, or a validator rejects the changes.
    pub async fn create_container(
        &self,
        pod: &PodSandbox,
        container: Container,
    ) -> Result<CreationChanges, NriError> {
        let plugins = self.plugins.lock().await;
        let original = container.clone();
        let mut merged = MergedCreation::new(container);
        let called = plugins.open();
        for plugin in &called {
            let (pod, container) = (Some(pod.clone()), Some(merged.container.clone()));
            let request = CreateContainerRequest { pod, container };
            let answer = plugin.request(Event::CreateContainer, &request).await;
            let answer: Option<CreateContainerResponse> = answer.map_err(|error| failed(plugin, error))?;
            let Some(CreateContainerResponse { adjust, update, evict }) = answer else { continue };
            if let Some(adjust) = adjust {
                merged.adjust(&plugin.name, adjust)?;
            }
            merged.update(&plugin.name, &update, evict)?;
        }
        let names: Vec<PluginName> = called.iter().map(|plugin| plugin.name.clone()).collect();
        validate::check(&self.validator, pod, &original, &merged.owners, &names)?;
        call_validators(&called, pod, original, &merged).await?;
        self.announced().containers.insert(merged.container.id.clone(), merged.container.clone());
        Ok(CreationChanges { adjustment: merged.adjustment, others: merged.others })
    }

    /// Collects the changes of all plugins to an update of a container. Returns the limits to set, and the changes to others.
    ///
    /// # Errors
    /// A plugin rejects the update, or two plugins conflict.
    pub async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        resources: LinuxResources,
    ) -> Result<(LinuxResources, MergedUpdates), NriError> {
        let plugins = self.plugins.lock().await;
        let (mut resources, mut merged) = (resources, MergedUpdates::default());
        for plugin in plugins.open() {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(resources.clone()),
            };
            let answer = plugin.request(Event::UpdateContainer, &request).await;
            let answer: Option<UpdateContainerResponse> = answer.map_err(|error| failed(&plugin, error))?;
            let Some(UpdateContainerResponse { update, evict }) = answer else { continue };
            merged.add(&plugin.name, &update, evict)?;
            // The next plugin sees the limits with the changes of this one.
            let own = update.iter().filter(|update| update.container_id == container.id);
            for own in own.filter_map(|update| update.linux.as_ref()?.resources.as_ref()) {
                let mut unclaimed = Ownership::default();
                limits::merge(&mut unclaimed, &container.id, &plugin.name, &mut resources, own)?;
            }
        }
        drop(merged.take(&container.id));
        Ok((resources, merged))
    }

    /// Notifies the plugins of the end of a container, once. Returns the changes to others.
    ///
    /// # Errors
    /// A plugin rejects it, or two plugins conflict.
    pub async fn stop_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<MergedUpdates, NriError> {
        let mut plugins = self.plugins.lock().await;
        let mut merged = MergedUpdates::default();
        if !plugins.stopped.insert(container.id.clone()) {
            return Ok(merged);
        }
        let request = StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        for plugin in plugins.open() {
            let answer = plugin.request(Event::StopContainer, &request).await;
            let answer: Option<StopContainerResponse> = answer.map_err(|error| failed(&plugin, error))?;
            let updates = answer.map(|answer| answer.update).unwrap_or_default();
            merged.add(&plugin.name, &updates, Vec::new())?;
        }
        Ok(merged)
    }
}

/// Has the validator plugins check the merged changes.
async fn call_validators(
    plugins: &[Arc<NriPlugin>],
    pod: &PodSandbox,
    container: Container,
    merged: &MergedCreation,
) -> Result<(), NriError> {
    let validators = plugins.iter().filter(|plugin| plugin.handles(Event::ValidateContainerAdjustment));
    let instance = |plugin: &Arc<NriPlugin>| PluginInstance {
        name: plugin.name.name.to_string(),
        index: plugin.name.index.to_string(),
    };
    let request = ValidateContainerAdjustmentRequest {
        pod: Some(pod.clone()),
        container: Some(container),
        adjust: Some(merged.adjustment.clone()),
        update: merged.others.updates(),
        owners: Some(merged.owners.message()),
        plugins: plugins.iter().map(instance).collect(),
    };
    for plugin in validators {
        let answer = plugin.request(Event::ValidateContainerAdjustment, &request).await;
        // A validator that does not answer has not approved the container.
        let answer: ValidateContainerAdjustmentResponse =
            answer.map_err(|error| failed(plugin, error))?.ok_or_else(|| {
                failed(plugin, PluginError::Protocol("the validator did not answer".to_owned()))
            })?;
        if answer.reject {
            return Err(NriError::Invalid { plugin: plugin.name.clone(), reason: answer.reason });
        }
    }
    Ok(())
}
