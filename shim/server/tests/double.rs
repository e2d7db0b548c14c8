//! Test doubles of the services with fixed answers.

use std::time::Duration;

use berth_proto::admin::admin_server::Admin;
use berth_proto::admin::observer_server::Observer;
use berth_proto::admin::{
    self, ArchivePiece, DescribePodRequest, DescribePodResponse, ExplainImageRequest, ExplainImageResponse,
    FsckRequest, FsckResponse, ListOperationsRequest, ListOperationsResponse, LoadImageRequest,
    LoadImageResponse, NodeEvent, PullProgress, SaveImagesRequest, StreamEventsRequest, VerifyImagesRequest,
    VerifyImagesResponse,
};
use berth_proto::v1::image_service_server::ImageService;
use berth_proto::v1::runtime_service_server::RuntimeService;
use berth_proto::v1::*;
use futures_util::stream::{BoxStream, StreamExt, pending};
use tonic::{Request, Response, Status};

use crate::error::CriError;

pub(super) struct Double;

/// Notified when a call to StartContainer has begun.
pub(super) static BEGUN: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Implements a service: the first block has the calls that tests use, the others list those that return
/// `Unimplemented`. The macro wraps the whole `impl`, since `async_trait` does not see into macros.
macro_rules! service {
    (
        $service:ident { $($own:tt)* }
        unary { $($name:ident($request:ty) -> $answer:ty;)* }
        streams { $($stream_name:ident($stream_request:ty) -> $stream_answer:ty as $stream:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl $service for Double {
            $($own)*

            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$answer>, Status> {
                Err(CriError::unimplemented(stringify!($name)).into())
            })*

            $(type $stream = BoxStream<'static, Result<$stream_answer, Status>>;

            async fn $stream_name(&self, _: Request<$stream_request>) -> Result<Response<Self::$stream>, Status> {
                Err(CriError::unimplemented(stringify!($stream_name)).into())
            })*
        }
    };
}

service! { RuntimeService {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { runtime_name: "double".to_owned(), ..VersionResponse::default() }))
    }

    /// Never answers.
    async fn stop_container(
        &self,
        _: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        std::future::pending().await
    }

    /// Notifies `BEGUN`, then answers after a delay.
    async fn start_container(
        &self,
        _: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        BEGUN.notify_one();
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok(Response::new(StartContainerResponse {}))
    }

    /// Answers with the largest possible output.
    async fn exec_sync(&self, _: Request<ExecSyncRequest>) -> Result<Response<ExecSyncResponse>, Status> {
        let output = vec![b'x'; 16 << 20];
        Ok(Response::new(ExecSyncResponse { stdout: output.clone(), stderr: output, exit_code: 0 }))
    }

    type GetContainerEventsStream = BoxStream<'static, Result<ContainerEventResponse, Status>>;

    /// Never sends an event and never ends.
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(pending().boxed()))
    }
    }
    unary {
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        list_containers(ListContainersRequest) -> ListContainersResponse;
        container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        status(StatusRequest) -> StatusResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod(RestorePodRequest) -> RestorePodResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }

    streams {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse as StreamPodSandboxesStream;
        stream_containers(StreamContainersRequest) -> StreamContainersResponse as StreamContainersStream;
        stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse as StreamContainerStatsStream;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse as StreamPodSandboxStatsStream;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse as StreamPodSandboxMetricsStream;
    }
}

service! { ImageService {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: vec![Image::default()] }))
    }
    }
    unary {
        image_status(ImageStatusRequest) -> ImageStatusResponse;
        pull_image(PullImageRequest) -> PullImageResponse;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    streams {
        stream_images(StreamImagesRequest) -> StreamImagesResponse as StreamImagesStream;
    }
}

service! { Admin {}
    unary {
        load_image(LoadImageRequest) -> LoadImageResponse;
        verify_images(VerifyImagesRequest) -> VerifyImagesResponse;
        log_level(admin::LogLevelRequest) -> admin::LogLevelResponse;
        explain_image(ExplainImageRequest) -> ExplainImageResponse;
        fsck(FsckRequest) -> FsckResponse;
    }

    streams {
        pull_image(admin::PullImageRequest) -> PullProgress as PullImageStream;
        save_images(SaveImagesRequest) -> ArchivePiece as SaveImagesStream;
    }
}

service! { Observer {}
    unary {
        list_operations(ListOperationsRequest) -> ListOperationsResponse;
        describe_pod(DescribePodRequest) -> DescribePodResponse;
    }

    streams {
        stream_events(StreamEventsRequest) -> NodeEvent as StreamEventsStream;
    }
}
