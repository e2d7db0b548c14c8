//! Traces: a receiver of OTLP gets the spans of calls, in the trace of the caller and with the errors. Runs as root.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use berth_proto::v1::*;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::{Code, Request, Response, Status};

use crate::support::{Berth, PATIENCE, code, container, sleeper};

/// The trace and the span of the caller (W3C Trace Context).
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A received span with the attributes of its resource.
type Received = (Vec<(String, String)>, Span);

/// The received spans.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    spans: Arc<Mutex<Vec<Received>>>,
    /// The heads of HTTP requests.
    heads: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.add(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    fn add(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.spans.lock().unwrap();
        for resource in request.resource_spans {
            let of_resource =
                resource.resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default();
            for scope in resource.scope_spans {
                spans.extend(scope.spans.into_iter().map(|span| (of_resource.clone(), span)));
            }
        }
    }

    /// Serves HTTP/1.1 in the network namespace of a process, and returns the endpoint.
    fn start_http(pid: u32) -> (Self, String) {
        let listener = Self::listen(pid);
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self::default();
        let serving = receiver.clone();
        std::thread::spawn(move || {
            listener.incoming().flatten().try_for_each(|stream| serving.serve(stream))
        });
        (receiver, endpoint)
    }

    /// Answers one request.
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let head = head.to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if head.contains("content-encoding: gzip") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut plain)?;
            body = plain;
        }
        self.heads.lock().unwrap().push(head);
        self.add(prost::Message::decode(body.as_slice()).unwrap());
        (&stream).write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
        )
    }
}

fn attributes(found: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> Vec<(String, String)> {
    let text = |value: &Option<opentelemetry_proto::tonic::common::v1::AnyValue>| match &value.as_ref()?.value
    {
        Some(Value::StringValue(text)) => Some(text.clone()),
        Some(Value::IntValue(number)) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    };
    found.iter().map(|found| (found.key.clone(), text(&found.value).unwrap_or_default())).collect()
}

impl Receiver {
    /// Listens in the network namespace of a process.
    fn listen(pid: u32) -> TcpListener {
        let listening = std::thread::spawn(move || {
            let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind("127.0.0.1:0").unwrap()
        })
        .join();
        listening.unwrap()
    }

    /// Serves gRPC in the network namespace of a process, and returns the endpoint.
    pub(crate) fn start(pid: u32) -> (Self, String) {
        let listener = Self::listen(pid);
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self::default();
        let service = TraceServiceServer::new(receiver.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(
            tokio::net::TcpListener::from_std(listener).unwrap(),
        );
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (receiver, endpoint)
    }

    fn all(&self) -> Vec<Span> {
        self.spans.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }

    fn names(&self) -> Vec<String> {
        self.all().into_iter().map(|span| span.name).collect()
    }

    /// Waits for a span with this name in the caller's trace.
    async fn wait_for(&self, name: &str) -> Span {
        let until = Instant::now() + PATIENCE;
        loop {
            let found =
                self.all().into_iter().find(|span| span.name == name && hex::encode(&span.trace_id) == TRACE);
            if let Some(span) = found {
                return span;
            }
            assert!(Instant::now() < until, "no span {name:?}: {:?}", self.names());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits for a span with this name.
    pub(crate) async fn wait_for_any(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.names().iter().any(|found| found == name) {
            assert!(Instant::now() < until, "no span {name:?}: {:?}", self.names());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Returns the names of the spans from this one to the one that the caller's span contains.
    fn path(&self, span: &Span) -> Vec<String> {
        let all = self.all();
        let mut path = vec![span.name.clone()];
        let mut parent = span.parent_span_id.clone();
        while let Some(found) = all.iter().find(|span| span.span_id == parent) {
            path.push(found.name.clone());
            parent = found.parent_span_id.clone();
        }
        assert_eq!(hex::encode(&parent), CALLER, "{path:?}");
        path
    }
}

/// Returns a request in the trace of the caller.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    request
}

async fn with_traces(more: &[&str]) -> (Berth, Receiver) {
    let mut berth = Berth::start().await;
    let (receiver, endpoint) = Receiver::start(berth.host_process());
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}");
    let environment = ["env", "OTEL_BSP_SCHEDULE_DELAY=100", endpoint.as_str()];
    berth.start_under(&[&environment[..], more].concat());
    berth.restart().await;
    (berth, receiver)
}

const RUN: &str = "runtime.v1.RuntimeService/RunPodSandbox";
const START: &str = "runtime.v1.RuntimeService/StartContainer";

#[tokio::test(flavor = "multi_thread")]
async fn spans_lead_from_the_caller_to_the_kernel() {
    let (mut berth, receiver) =
        with_traces(&["OTEL_SERVICE_NAME=node-7", "OTEL_RESOURCE_ATTRIBUTES=zone=a,rack=3"]).await;
    let config = berth.pod_config("pod");
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let pod = berth.runtime.run_pod_sandbox(traced(request)).await.unwrap().into_inner().pod_sandbox_id;
    let call = receiver.wait_for(RUN).await;
    assert_eq!(hex::encode(&call.parent_span_id), CALLER);
    assert_eq!(call.kind(), SpanKind::Server);
    assert!(attributes(&call.attributes).contains(&("pod".to_owned(), pod.clone())), "{call:?}");
    assert_ne!(call.status.clone().unwrap_or_default().code(), StatusCode::Error);
    let operation = receiver.wait_for("operation RunPodSandbox").await;
    assert_eq!(receiver.path(&operation), ["operation RunPodSandbox", RUN]);
    let inside: BTreeSet<String> = receiver
        .all()
        .into_iter()
        .filter(|span| span.parent_span_id == operation.span_id)
        .map(|span| span.name)
        .collect();
    for name in
        ["step network", "step pause", "step record", "keeper Hello", "keeper Sandbox", "cni bridge ADD"]
    {
        assert!(inside.contains(name), "{name}: {inside:?}");
    }
    let all = receiver.all();
    let plugin = all.iter().find(|span| span.name == "cni bridge ADD").unwrap();
    let netlink =
        all.iter().find(|span| span.name.starts_with("netlink ") && span.parent_span_id == plugin.span_id);
    let netlink = netlink.unwrap_or_else(|| panic!("{:?}", receiver.names()));
    assert_eq!(receiver.path(netlink)[1..], ["cni bridge ADD", "operation RunPodSandbox", RUN]);
    for span in &all {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
    }
    let resource = receiver.spans.lock().unwrap()[0].0.clone();
    for (name, value) in [("service.name", "node-7"), ("zone", "a"), ("rack", "3")] {
        assert!(resource.contains(&(name.to_owned(), value.to_owned())), "{resource:?}");
    }
    // The pod is in the log, too.
    let log = std::fs::read_to_string(berth.path("daemon.log")).unwrap();
    let line = log.lines().find(|line| line.contains("RunPodSandbox done")).unwrap();
    assert!(line.contains(&format!("pod=\"{pod}\"")), "{line}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_on_every_span_down_to_the_system_call() {
    let (mut berth, receiver) = with_traces(&[]).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.try_create(&pod, container("none", &["/nonexistent"])).await.unwrap();
    let request = StartContainerRequest { container_id: id };
    assert_eq!(code(berth.runtime.start_container(traced(request)).await), Code::FailedPrecondition);
    let call = receiver.wait_for(START).await;
    let failed: Vec<Span> = receiver
        .all()
        .into_iter()
        .filter(|span| hex::encode(&span.trace_id) == TRACE)
        .filter(|span| span.status.clone().unwrap_or_default().code() == StatusCode::Error)
        .collect();
    let deepest =
        failed.iter().find(|span| span.name.starts_with("init ")).unwrap_or_else(|| panic!("{failed:?}"));
    assert_eq!(receiver.path(deepest), ["init exec", "keeper Start", "operation StartContainer", START]);
    assert!(attributes(&deepest.attributes).contains(&("errno".to_owned(), "2".to_owned())), "{deepest:?}");
    assert_eq!(failed.len(), 4, "{failed:?}");
    for span in &failed {
        let message = &span.status.as_ref().unwrap().message;
        assert!(message.contains("No such file or directory"), "{}: {message}", span.name);
    }
    assert!(call.status.unwrap().message.starts_with("FailedPrecondition: "));
    let resource = receiver.spans.lock().unwrap()[0].0.clone();
    assert!(resource.contains(&("service.name".to_owned(), "berth".to_owned())), "{resource:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_if_traces_are_disabled_or_not_sampled() {
    for variable in ["OTEL_SDK_DISABLED=true", "OTEL_TRACES_SAMPLER=always_off", "OTEL_TRACES_EXPORTER=none"]
    {
        let (mut berth, receiver) = with_traces(&[variable]).await;
        let pod = berth.run_pod(berth.pod_config("pod")).await;
        berth.run(&pod, sleeper("sleeper")).await;
        assert_eq!(berth.clean().await, Vec::<String>::new());
        // The exit sends all spans that are left.
        drop(berth);
        assert_eq!(receiver.names(), Vec::<String>::new(), "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_does_not_need_the_receiver() {
    let mut berth = Berth::start().await;
    berth.start_under(&[
        "env",
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY=100",
    ]);
    berth.restart().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.run(&pod, sleeper("sleeper")).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["serve", "--root"])
        .arg(folder.path())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error
            .contains("invalid OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is neither grpc nor http/protobuf"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_over_http_too() {
    for (variable, compressed) in [("OTEL_EXPORTER_OTLP_COMPRESSION=gzip", true), ("A=b", false)] {
        let mut berth = Berth::start().await;
        let (receiver, endpoint) = Receiver::start_http(berth.host_process());
        berth.start_under(&[
            "env",
            &format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}"),
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS=authorization=token-1",
            "OTEL_BSP_SCHEDULE_DELAY=100",
            variable,
        ]);
        berth.restart().await;
        let config = Some(berth.pod_config("pod"));
        let request = RunPodSandboxRequest { config, ..RunPodSandboxRequest::default() };
        berth.runtime.run_pod_sandbox(traced(request)).await.unwrap();
        let operation = receiver.wait_for("operation RunPodSandbox").await;
        receiver.wait_for(RUN).await;
        assert_eq!(receiver.path(&operation), ["operation RunPodSandbox", RUN]);
        let heads = receiver.heads.lock().unwrap().clone();
        for head in &heads {
            assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
            assert!(head.contains("content-type: application/x-protobuf"), "{head}");
            assert!(head.contains("authorization: token-1"), "{head}");
            assert_eq!(head.contains("content-encoding: gzip"), compressed, "{head}");
        }
        assert_eq!(berth.clean().await, Vec::<String>::new());
    }
}
