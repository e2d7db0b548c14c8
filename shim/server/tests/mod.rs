//! Tests of the server with test doubles: sockets, deadlines, limits and shutdown as clients see them.

mod double;

use std::path::Path;
use std::time::{Duration, Instant};

use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::*;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::*;
use double::{BEGUN, Double};

/// Far shorter than a call or a server that hangs, and long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    folder: tempfile::TempDir,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let claim = Claim::take(&config).unwrap();
        let server = tokio::spawn(serve(config, claim, Double, Double, Double, Double, Arc::default()));
        let running = Self { folder, server };
        let until = Instant::now() + PATIENCE;
        while let Err(error) = connect::answers(&running.socket()).await {
            assert!(Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running
    }

    fn socket(&self) -> std::path::PathBuf {
        config(self.folder.path()).socket
    }

    async fn runtime(&self) -> RuntimeServiceClient<tonic::transport::Channel> {
        RuntimeServiceClient::new(connect(&self.socket()).await.unwrap())
            .max_decoding_message_size(MAX_ANSWER)
            .max_encoding_message_size(MAX_ANSWER)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn config(folder: &Path) -> Config {
    Config {
        socket: folder.join("run/berth.sock"),
        root: folder.join("root"),
        state: folder.join("run"),
        ..Config::default()
    }
}

#[tokio::test]
async fn both_services_answer() {
    let running = Running::start().await;
    let version = running.runtime().await.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.runtime_name, "double");
    let mut images = ImageServiceClient::new(connect(&running.socket()).await.unwrap());
    assert_eq!(images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images.len(), 1);
    let later = running.runtime().await.attach(AttachRequest::default()).await.unwrap_err();
    assert_eq!((later.code(), later.message()), (Code::Unimplemented, "berth does not implement attach"));
}

/// Uses plain HTTP/2: tonic's client has its own timer and would report the timeout itself.
#[tokio::test]
async fn the_client_deadline_is_enforced_with_deadline_exceeded() {
    let running = Running::start().await;
    let socket = running.socket();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        Box::pin(
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) },
        )
    });
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build::<_, tonic::body::Body>(connector);
    for _ in 0..20 {
        let request = http::Request::post("http://localhost/runtime.v1.RuntimeService/StopContainer")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "30m")
            // An empty message, not compressed (gRPC over HTTP2, "Length-Prefixed-Message").
            .body(tonic::body::Body::new("\0\0\0\0\0".to_owned()))
            .unwrap();
        let began = Instant::now();
        let answer = client.request(request).await.unwrap();
        let status = tonic::Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn large_answers_pass_and_too_large_requests_do_not() {
    let running = Running::start().await;
    let mut client = running.runtime().await;
    let answer = client.exec_sync(ExecSyncRequest::default()).await.unwrap().into_inner();
    assert_eq!((answer.stdout.len(), answer.stderr.len()), (16 << 20, 16 << 20));
    let request = ExecSyncRequest { cmd: vec!["x".repeat(MAX_REQUEST + 1)], ..ExecSyncRequest::default() };
    assert_eq!(client.exec_sync(request).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn reflection_names_every_service_in_both_versions() {
    let running = Running::start().await;
    let channel = connect(&running.socket()).await.unwrap();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let services = services(answers).await;
    for service in ["runtime.v1.RuntimeService", "runtime.v1.ImageService", "berth.v1.Admin"] {
        assert!(services.iter().any(|name| name == service), "{services:?}");
    }
    let older = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "runtime.v1.RuntimeService".to_owned(),
            ),
        ),
    };
    let mut answers =
        tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(older))
            .await
            .unwrap()
            .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse as Older;
    assert!(matches!(answer, Older::FileDescriptorResponse(_)), "{answer:?}");
}

async fn services(mut answers: tonic::Streaming<ServerReflectionResponse>) -> Vec<String> {
    match answers.message().await.unwrap().unwrap().message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|s| s.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// The only test that sends a signal to the process, which every server in the process receives.
#[test]
fn a_signal_ends_the_server_after_its_calls() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The other tests' servers must not receive it, so this test runs itself in a separate process, marked by
    // this variable.
    const CHILD: &str = "BERTH_TEST_SIGNAL";
    if std::env::var_os(CHILD).is_some() {
        runtime().block_on(stop_by_signal());
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server::tests::a_signal_ends_the_server_after_its_calls", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn stop_by_signal() {
    let mut running = Running::start().await;
    let socket = running.socket();
    let mut client = running.runtime().await;
    // A stream that never ends must not delay the shutdown.
    let _events = running.runtime().await.get_container_events(GetEventsRequest {}).await.unwrap();
    let slow = tokio::spawn(async move { client.start_container(StartContainerRequest::default()).await });
    BEGUN.notified().await;
    let own_process = rustix::process::getpid();
    rustix::process::kill_process(own_process, rustix::process::Signal::HUP).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!running.server.is_finished(), "SIGHUP is ignored");
    rustix::process::kill_process(own_process, rustix::process::Signal::TERM).unwrap();
    tokio::time::timeout(PATIENCE, &mut running.server).await.expect("it ends").unwrap().unwrap();
    slow.await.unwrap().expect("the call in flight is answered");
    assert!(!socket.exists(), "the socket is removed");
    Claim::take(&config(running.folder.path())).expect("the locks are given back");
}
