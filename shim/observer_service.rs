//! The RPCs of `berth diag`, `berth events` and `berth bundle` (`proto/berth/v1/observer.proto`).

use berth_proto::admin::observer_server::Observer;
use berth_proto::admin::{
    DescribePodRequest, DescribePodResponse, ListOperationsRequest, ListOperationsResponse, NodeEvent,
    StreamEventsRequest,
};
use tonic::{Request, Response};

use crate::daemon::{Daemon, Shared};
use crate::observe;
use crate::responses::{Reply, ResponseStream};

/// The Observer service of one daemon.
#[derive(Clone, Debug)]
pub struct ObserverService {
    daemon: Shared,
}

impl ObserverService {
    /// Creates the service of `daemon`.
    #[must_use]
    pub fn new(daemon: Shared) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Observer for ObserverService {
    async fn list_operations(&self, _: Request<ListOperationsRequest>) -> Reply<ListOperationsResponse> {
        let Daemon { pods, network, images, .. } = &*self.daemon;
        Ok(Response::new(observe::operations::list(pods, &network.network, images)))
    }

    async fn describe_pod(&self, request: Request<DescribePodRequest>) -> Reply<DescribePodResponse> {
        let Daemon { pods, network, .. } = &*self.daemon;
        let described = observe::pod::describe(pods, &network.network, &request.into_inner().pod_id).await?;
        Ok(Response::new(described))
    }

    type StreamEventsStream = ResponseStream<NodeEvent>;

    async fn stream_events(&self, request: Request<StreamEventsRequest>) -> Reply<Self::StreamEventsStream> {
        let StreamEventsRequest { since, recent_only } = request.into_inner();
        let events = &self.daemon.pods.events;
        Ok(Response::new(match recent_only {
            true => Box::pin(events.recent(since)),
            false => Box::pin(events.watch((since > 0).then_some(since))),
        }))
    }
}
