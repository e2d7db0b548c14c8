//! The client side of commands that show pods and containers: it calls the CRI and berth's observer service on the
//! daemon's socket. Every call has a deadline.
//!
//! * [`select`]: finds pods and containers by id or name
//! * this file: the connection and the calls

pub(super) mod select;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use berth_proto::admin::observer_client::ObserverClient;
use berth_proto::admin::{
    DescribePodRequest, DescribePodResponse, ListOperationsRequest, ListOperationsResponse, NodeEvent,
    StreamEventsRequest,
};
use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::{
    Container, ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest, ListPodSandboxRequest,
    PodSandbox, PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use clap::{Args, ValueEnum};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::{ConfigSource, Flags};
use crate::config::{Config, ConfigError, value};
use crate::server::connect;

/// The time limit of a call: none of them waits for a pod.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer: lists grow with the node.
const MAX_ANSWER: usize = 80 << 20;

/// Where the daemon is.
#[derive(Clone, Debug, Args)]
pub(super) struct Endpoint {
    /// Read this configuration file for the socket [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Connect to this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<value::SocketPath>,
}

impl Endpoint {
    pub(super) fn load(self) -> Result<Config, ConfigError> {
        ConfigSource { config: self.config, flags: Flags { socket: self.socket, ..Flags::default() } }.load()
    }
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people
    #[default]
    Text,
    /// For programs, as JSON
    Json,
}

/// Runs a command and prints its result.
pub(super) fn run(work: impl Future<Output = Result<String, String>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("failed to start: {error}")),
    };
    match runtime.block_on(work) {
        Ok(text) => super::print(&text),
        Err(error) => super::fail(&error),
    }
}

/// Encodes a value as JSON, for programs.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| format!("failed to encode JSON: {error}"))
}

/// A connection to the daemon.
#[derive(Clone, Debug)]
pub(super) struct NodeClient {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    pub(super) observer: ObserverClient<Channel>,
}

impl NodeClient {
    pub(super) async fn connect(endpoint: Endpoint) -> Result<Self, String> {
        let config = endpoint.load().map_err(|error| error.to_string())?;
        let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            observer: ObserverClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        })
    }

    pub(super) async fn pods(&mut self) -> Result<Vec<PodSandbox>, String> {
        let call = self.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None });
        Ok(answer("list pods", call).await?.items)
    }

    pub(super) async fn containers(&mut self) -> Result<Vec<Container>, String> {
        let call = self.runtime.list_containers(ListContainersRequest { filter: None });
        Ok(answer("list containers", call).await?.containers)
    }

    pub(super) async fn pod_status(&mut self, id: &str) -> Result<PodSandboxStatusResponse, String> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        answer(&format!("get the status of pod {id}"), self.runtime.pod_sandbox_status(request)).await
    }

    pub(super) async fn container_status(&mut self, id: &str) -> Result<ContainerStatusResponse, String> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        answer(&format!("get the status of container {id}"), self.runtime.container_status(request)).await
    }

    pub(super) async fn operations(&mut self) -> Result<ListOperationsResponse, String> {
        answer("list operations", self.observer.list_operations(ListOperationsRequest {})).await
    }

    /// Returns the events that the daemon has kept.
    pub(super) async fn recent_events(&mut self) -> Result<Vec<NodeEvent>, String> {
        let request = StreamEventsRequest { since: 0, recent_only: true };
        let mut stream = answer("list recent events", self.observer.stream_events(request)).await?;
        let all = async {
            let mut events = Vec::new();
            while let Some(event) = stream.message().await? {
                events.push(event);
            }
            Ok(Response::new(events))
        };
        answer("list recent events", all).await
    }

    pub(super) async fn describe_pod(&mut self, id: &str) -> Result<DescribePodResponse, String> {
        let request = DescribePodRequest { pod_id: id.to_owned() };
        answer(&format!("describe pod {id}"), self.observer.describe_pod(request)).await
    }
}

/// Waits for the answer of a call, within its deadline.
pub(super) async fn answer<T>(
    action: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("failed to {action}: {}", status.message())),
        Err(_) => Err(format!("failed to {action}: no answer within {} s", PATIENCE.as_secs())),
    }
}
