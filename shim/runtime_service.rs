//! The CRI's RuntimeService: each RPC calls the function that is named after it.

use berth_proto::v1::runtime_service_server::RuntimeService;
use berth_proto::v1::*;
use tonic::{Request, Response};

use crate::container::checkpoint::CheckpointParts;
use crate::container::update::LimitParts;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::exec::ContainerAccess;
use crate::pod::stopper::PodStopper;
use crate::responses::{Reply, ResponseStream, in_messages, in_messages_of};
use crate::server::rpc::CallDeadline;
use crate::stats::StatsSources;
use crate::{container, exec, info, metrics, pod, stats};

/// The number of pods with metrics in one message. The metrics of a container have about 30 KB.
const PODS_WITH_METRICS_PER_MESSAGE: usize = 10;

/// The RuntimeService of one daemon.
#[derive(Clone, Debug)]
pub struct Runtime {
    daemon: Shared,
}

impl Runtime {
    /// Creates the service of `daemon`.
    #[must_use]
    pub fn new(daemon: Shared) -> Self {
        Self { daemon }
    }

    fn checkpoint_parts(&self) -> CheckpointParts {
        CheckpointParts {
            pods: self.daemon.pods.clone(),
            cgroups: self.daemon.cgroups.clone(),
            images: self.daemon.images.clone(),
            criu: self.daemon.config.criu_path.clone(),
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = ResponseStream<StreamPodSandboxesResponse>;
    type StreamContainersStream = ResponseStream<StreamContainersResponse>;
    type StreamContainerStatsStream = ResponseStream<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = ResponseStream<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = ResponseStream<StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = ResponseStream<ContainerEventResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Reply<VersionResponse> {
        Ok(Response::new(info::version()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusResponse> {
        let config = &self.daemon.config;
        let criu = match request.into_inner().verbose {
            true => Some(info::criu_report(config).await?),
            false => None,
        };
        Ok(Response::new(info::status_of(config, &self.daemon.network.network, criu.as_ref()).await?))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Reply<RuntimeConfigResponse> {
        Ok(Response::new(info::runtime_config(&self.daemon.config)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        // An empty CIDR requests nothing: a network plugin manages addresses itself.
        if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
            self.daemon.network.network.set_pod_cidr(&network.pod_cidr).map_err(CriError::from)?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Reply<RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| CriError::invalid("config", "is missing"))?;
        let pod_sandbox_id =
            pod::run::run_pod_sandbox(&self.daemon, config, request.runtime_handler, false).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Reply<StopPodSandboxResponse> {
        pod::stop::stop_pod_sandbox(&PodStopper::of(&self.daemon), &request.into_inner().pod_sandbox_id)
            .await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Reply<RemovePodSandboxResponse> {
        pod::remove::remove_pod_sandbox(&self.daemon, &request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Reply<PodSandboxStatusResponse> {
        let request = request.into_inner();
        Ok(Response::new(pod::status::pod_sandbox_status(
            &self.daemon.pods,
            &self.daemon.network.network,
            &request.pod_sandbox_id,
            request.verbose,
        )?))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Reply<ListPodSandboxResponse> {
        let items =
            pod::list::list_pod_sandboxes(&self.daemon.pods.store, request.into_inner().filter.as_ref());
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let items =
            pod::list::list_pod_sandboxes(&self.daemon.pods.store, request.into_inner().filter.as_ref());
        Ok(Response::new(in_messages(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Reply<CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| CriError::invalid("config", "is missing"))?;
        let container_id =
            container::create::create_container(&self.daemon, &request.pod_sandbox_id, config, None).await?;
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Reply<StartContainerResponse> {
        container::start::start_container(
            &self.daemon.pods,
            &self.daemon.cgroups,
            &request.into_inner().container_id,
        )
        .await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Reply<StopContainerResponse> {
        let request = request.into_inner();
        container::stop::stop_container(
            &self.daemon.pods,
            &self.daemon.cgroups,
            &request.container_id,
            request.timeout,
        )
        .await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Reply<RemoveContainerResponse> {
        let Daemon { pods, cgroups, images, .. } = &*self.daemon;
        container::remove::remove_container(pods, cgroups, images, &request.into_inner().container_id)
            .await?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Reply<ListContainersResponse> {
        let containers =
            container::list::list_containers(&self.daemon.pods.store, request.into_inner().filter.as_ref());
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let items =
            container::list::list_containers(&self.daemon.pods.store, request.into_inner().filter.as_ref());
        Ok(Response::new(in_messages(items, |containers| StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Reply<ContainerStatusResponse> {
        let request = request.into_inner();
        Ok(Response::new(container::status::container_status_response(
            &self.daemon.pods,
            &request.container_id,
            request.verbose,
        )?))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        let request = request.into_inner();
        let timeout = request.timeout;
        let answer = exec::sync::exec_sync(
            &ContainerAccess::of(&self.daemon),
            &request.container_id,
            &request.cmd,
            timeout,
        )
        .await?;
        Ok(Response::new(answer))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        container::log::reopen(&self.daemon.pods.store, &request.into_inner().container_id).await?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        container::update::update_container_resources(LimitParts::of(&self.daemon), request.into_inner())
            .await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Reply<UpdatePodSandboxResourcesResponse> {
        pod::update::update_pod_sandbox_resources(&self.daemon.pods, request.into_inner()).await?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Reply<ExecResponse> {
        let url =
            exec::exec_url::create(&self.daemon.pods.store, &self.daemon.sessions, request.into_inner())?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<AttachResponse> {
        let url =
            exec::attach_url::create(&self.daemon.pods.store, &self.daemon.sessions, &request.into_inner())?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Reply<PortForwardResponse> {
        let url = pod::port_forward::port_forward_url(
            &self.daemon.pods.store,
            &self.daemon.sessions,
            &request.into_inner(),
        )?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Reply<ContainerStatsResponse> {
        let found = stats::container::container_stats(
            StatsSources::of(&self.daemon),
            &request.into_inner().container_id,
        )
        .await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(found) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        let stats = stats::container::list_container_stats(
            StatsSources::of(&self.daemon),
            request.into_inner().filter,
        )
        .await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let items = stats::container::list_container_stats(
            StatsSources::of(&self.daemon),
            request.into_inner().filter,
        )
        .await?;
        Ok(Response::new(in_messages(items, |container_stats| StreamContainerStatsResponse {
            container_stats,
        })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Reply<PodSandboxStatsResponse> {
        let found = stats::pod::pod_sandbox_stats(
            StatsSources::of(&self.daemon),
            &request.into_inner().pod_sandbox_id,
        )
        .await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(found) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        let stats =
            stats::pod::list_pod_sandbox_stats(StatsSources::of(&self.daemon), request.into_inner().filter)
                .await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let items =
            stats::pod::list_pod_sandbox_stats(StatsSources::of(&self.daemon), request.into_inner().filter)
                .await?;
        Ok(Response::new(in_messages(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })))
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Reply<CheckpointContainerResponse> {
        let parts = self.checkpoint_parts();
        container::checkpoint::checkpoint_container(parts, request.into_inner()).await?;
        Ok(Response::new(CheckpointContainerResponse {}))
    }

    async fn checkpoint_pod(&self, request: Request<CheckpointPodRequest>) -> Reply<CheckpointPodResponse> {
        let deadline = request.extensions().get::<CallDeadline>().and_then(|deadline| deadline.0);
        let parts = self.checkpoint_parts();
        pod::checkpoint::checkpoint_pod(parts, request.into_inner(), deadline).await?;
        Ok(Response::new(CheckpointPodResponse {}))
    }

    async fn restore_pod(&self, request: Request<RestorePodRequest>) -> Reply<RestorePodResponse> {
        let restore = pod::restore::PodRestore { daemon: self.daemon.clone() };
        Ok(Response::new(restore.run(request.into_inner()).await?))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        Ok(Response::new(Box::pin(self.daemon.pods.events.subscribe())))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::list_metric_descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        let pod_metrics = metrics::list_pod_sandbox_metrics(StatsSources::of(&self.daemon)).await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let items = metrics::list_pod_sandbox_metrics(StatsSources::of(&self.daemon)).await?;
        let message = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(in_messages_of(PODS_WITH_METRICS_PER_MESSAGE, items, message)))
    }
}
