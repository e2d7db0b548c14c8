//! Invalid requests: each is answered with the right code and a message that names the object, and leaves nothing
//! behind. Runs as root.

use crate::support::{Berth, code, container, shell, with_security};
use berth_proto::v1::*;
use tonic::{Code, Status};

fn check<T: std::fmt::Debug>(result: Result<T, Status>, expected: Code, words: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), expected, "{status}");
    assert!(status.message().contains(words), "{:?} does not contain {words:?}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_pod_requests_are_refused_with_a_clear_error() {
    let mut berth = Berth::start().await;
    for id in ["nosuch", "../../etc", "\u{1F6A2}"] {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        check(berth.runtime.pod_sandbox_status(request).await, Code::NotFound, "pod sandbox");
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        check(berth.runtime.container_status(request).await, Code::NotFound, "container");
        berth.stop_pod(id).await;
        berth.remove_pod(id).await;
        berth.stop_container(id, 0).await;
        berth.remove_container(id).await;
    }
    let request = PodSandboxStatusRequest::default();
    check(berth.runtime.pod_sandbox_status(request).await, Code::InvalidArgument, "pod_sandbox_id");
    let request = RunPodSandboxRequest { config: None, runtime_handler: String::new() };
    check(berth.runtime.run_pod_sandbox(request).await, Code::InvalidArgument, "config");
    let request =
        RunPodSandboxRequest { config: Some(berth.pod_config("x")), runtime_handler: "kata".to_owned() };
    check(berth.runtime.run_pod_sandbox(request).await, Code::InvalidArgument, "kata");

    type Break = fn(&mut PodSandboxConfig);
    let broken: [(&str, Break); 7] = [
        ("metadata.name", |config| config.metadata.as_mut().unwrap().name.clear()),
        ("metadata.uid", |config| config.metadata.as_mut().unwrap().uid = "a\nb".to_owned()),
        ("metadata.namespace", |config| config.metadata.as_mut().unwrap().namespace = "x".repeat(5000)),
        ("hostname", |config| config.hostname = "x".repeat(65)),
        ("dns_config", |config| {
            config.dns_config = Some(DnsConfig {
                servers: vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()],
                ..Default::default()
            });
        }),
        ("cgroup", |config| config.linux.as_mut().unwrap().cgroup_parent = "/a/../../b".to_owned()),
        ("kernel.core_pattern", |config| {
            let sysctls = [("kernel.core_pattern".to_owned(), "|/bin/sh".to_owned())];
            config.linux.as_mut().unwrap().sysctls = sysctls.into();
        }),
    ];
    for (words, break_it) in broken {
        let mut config = berth.pod_config("broken");
        break_it(&mut config);
        check(berth.try_run_pod(config).await, Code::InvalidArgument, words);
    }
    // The kernel does not have this sysctl. The failed step undoes all steps before it.
    let mut config = berth.pod_config("late");
    config.linux.as_mut().unwrap().sysctls = [("net.ipv4.no_such_sysctl".to_owned(), "1".to_owned())].into();
    let error = berth.try_run_pod(config).await.unwrap_err();
    assert!(error.message().contains("net/ipv4/no_such_sysctl"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A PodSandboxStatusRequest with an id that is not valid UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
struct Bytes {
    #[prost(bytes = "vec", tag = "1")]
    pod_sandbox_id: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_messages_are_refused() {
    let mut berth = Berth::start_with("").await;
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let mut client = tonic::client::Grpc::new(channel).max_encoding_message_size(64 << 20);
    let mut send = async |pod_sandbox_id: Vec<u8>| {
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Bytes, PodSandboxStatusResponse>::default();
        let path = "/runtime.v1.RuntimeService/PodSandboxStatus".parse().unwrap();
        client.unary(tonic::Request::new(Bytes { pod_sandbox_id }), path, codec).await.map(drop)
    };
    check(send(vec![b'a', 0xff, 0xfe]).await, Code::InvalidArgument, "pod_sandbox_id");
    check(send(vec![b'a'; 17 << 20]).await, Code::OutOfRange, "");
    check(send(vec![b'a'; 1 << 20]).await, Code::NotFound, "pod sandbox");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_container_requests_are_refused_with_a_clear_error() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    check(berth.try_create("nosuch", container("c", &["sh"])).await, Code::NotFound, "nosuch");
    let mut missing = container("c", &["sh"]);
    missing.image.as_mut().unwrap().image = "localhost/none:1".to_owned();
    check(berth.try_create(&pod, missing).await, Code::NotFound, "localhost/none:1");
    let unknown = |name: &str| {
        let name = name.to_owned();
        with_security(container("c", &["sh"]), move |context| context.run_as_username = name)
    };
    check(berth.try_create(&pod, unknown("nobody-here")).await, Code::InvalidArgument, "nobody-here");
    check(berth.try_create(&pod, unknown("4294967295")).await, Code::InvalidArgument, "4294967295");

    let mount = |host: &str, inside: &str| Mount {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        ..Mount::default()
    };
    let mut with = async |mount: Mount, expected: Code, words: &str| {
        let config = ContainerConfig { mounts: vec![mount], ..container("c", &["sh"]) };
        check(berth.try_create(&pod, config).await, expected, words);
    };
    with(mount("/proc/no/such", "/data"), Code::FailedPrecondition, "/data").await;
    with(mount("/dev/null/x", "/data"), Code::FailedPrecondition, "/dev/null/x").await;
    with(mount("", "/data"), Code::InvalidArgument, "/data").await;
    with(mount("/tmp", "relative"), Code::InvalidArgument, "relative").await;
    with(mount("/tmp", "/"), Code::InvalidArgument, "mounts[/]").await;

    let mut binary = shell("c", "true");
    binary.envs = vec![KeyValue { key: "B".to_owned(), value: vec![0xff, 0xfe] }];
    check(berth.try_create(&pod, binary).await, Code::InvalidArgument, "envs[B]");
    let escape = ContainerConfig { log_path: "../../etc/x".to_owned(), ..shell("c", "true") };
    check(berth.try_create(&pod, escape).await, Code::InvalidArgument, "log_path");
    let capability = with_security(shell("c", "true"), |context| {
        context.capabilities =
            Some(Capability { add_capabilities: vec!["FLY".to_owned()], ..Capability::default() });
    });
    check(berth.try_create(&pod, capability).await, Code::InvalidArgument, "FLY");

    let id = berth.run(&pod, shell("same", "sleep 100")).await;
    let again = berth.try_create(&pod, shell("same", "true")).await;
    check(again, Code::AlreadyExists, &id);
    check(berth.try_start_container(&id).await, Code::FailedPrecondition, &id);
    check(berth.exec(&id, &[], 0).await, Code::InvalidArgument, "cmd");
    let stopped = berth.try_create(&pod, shell("idle", "true")).await.unwrap();
    check(berth.exec(&stopped, &["true"], 0).await, Code::FailedPrecondition, &stopped);
    berth.stop_pod(&pod).await;
    check(berth.try_create(&pod, shell("late", "true")).await, Code::FailedPrecondition, &pod);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_image_requests_are_refused_with_a_clear_error() {
    let mut berth = Berth::start().await;
    let spec = |image: &str| ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
    let pull = |image: &str| PullImageRequest { image: Some(spec(image)), ..PullImageRequest::default() };
    check(berth.images.pull_image(pull("NOT a reference")).await, Code::InvalidArgument, "NOT a reference");
    check(berth.images.pull_image(pull("")).await, Code::InvalidArgument, "");
    let request = ImageStatusRequest { image: Some(spec("localhost/none:1")), verbose: false };
    assert!(berth.images.image_status(request).await.unwrap().into_inner().image.is_none());
    let request = RemoveImageRequest { image: Some(spec("localhost/none:1")) };
    berth.images.remove_image(request).await.unwrap();
    assert_eq!(code(berth.images.remove_image(RemoveImageRequest::default()).await), Code::InvalidArgument);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_from_an_unreachable_registry_fails_and_stores_nothing() {
    let mut berth = Berth::start().await;
    let image = ImageSpec { image: "127.0.0.1:5999/a:1".to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    check(berth.images.pull_image(request).await, Code::Unknown, "127.0.0.1:5999");
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 1, "only the image that was loaded");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
