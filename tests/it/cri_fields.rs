//! Every field of a request is validated, applied and reported: security contexts, enums, namespaces, images. Runs as
//! root.

use std::fs;

use crate::support::{Berth, IMAGE, code, pod_with, shell, sleeper, with_security};
use berth_proto::v1::*;
use tonic::{Code, Status};

fn limited(mut config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    config.linux.as_mut().unwrap().resources = Some(resources);
    config
}

async fn pod_info(berth: &mut Berth, pod: &str) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_has_the_security_context_of_its_pod() {
    let mut berth = Berth::start().await;
    let asked = |security: &mut LinuxSandboxSecurityContext| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000, 4000];
        security.readonly_rootfs = true;
        security.seccomp = Some(SecurityProfile::default());
    };
    let config = pod_with(&berth, "user", asked);
    let pod = berth.run_pod(config).await;
    let info = pod_info(&mut berth, &pod).await;
    let pid = info["pid"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid"), "1000 1000 1000 1000");
    assert_eq!(field("Gid"), "2000 2000 2000 2000");
    assert_eq!(field("Groups"), "3000 4000");
    assert_eq!(
        (field("CapEff"), field("NoNewPrivs"), field("Seccomp")),
        ("0".repeat(16), "1".into(), "2".into())
    );
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert_eq!(info["runtimeSpec"]["process"]["user"]["uid"], 1000);
    // The security context of the pod does not affect its containers.
    assert_eq!(
        berth.script(&pod, "c", "id -u; cat /etc/hostname; ip -o addr show dev eth0 | wc -l").await.0,
        0
    );

    let mut refused = async |name: &str, expected: Code, change: fn(&mut LinuxSandboxSecurityContext)| {
        let config = pod_with(&berth, name, change);
        let error = berth.try_run_pod(config).await.unwrap_err();
        assert_eq!(error.code(), expected, "{name}: {error}");
        error.message().to_owned()
    };
    let message = refused("group", Code::InvalidArgument, |security| {
        security.run_as_group = Some(Int64Value { value: 5 });
    })
    .await;
    assert!(message.contains("run_as_group"), "{message}");
    refused("id", Code::InvalidArgument, |security| {
        security.run_as_user = Some(Int64Value { value: i64::from(u32::MAX) });
    })
    .await;
    let message = refused("seccomp", Code::InvalidArgument, |security| {
        let localhost = security_profile::ProfileType::Localhost.into();
        security.seccomp =
            Some(SecurityProfile { profile_type: localhost, localhost_ref: "/no/such.json".to_owned() });
    })
    .await;
    assert!(message.contains("/no/such.json"), "{message}");
    if fs::metadata("/sys/kernel/security/apparmor/profiles").is_err() {
        refused("apparmor", Code::FailedPrecondition, |security| {
            security.apparmor = Some(SecurityProfile::default());
        })
        .await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_enum_values_and_windows_fields_are_refused() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let refused = |result: Result<String, Status>, field: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        assert!(error.message().contains(field), "{field}: {error}");
    };
    let options = |change: fn(&mut NamespaceOption)| {
        let mut options = NamespaceOption::default();
        change(&mut options);
        options
    };
    type Change = fn(&mut NamespaceOption);
    let modes: [(&str, Change); 6] = [
        ("namespace_options.network", |options| options.network = 77),
        ("namespace_options.pid", |options| options.pid = -1),
        ("namespace_options.network", |options| options.network = NamespaceMode::Container.into()),
        ("namespace_options.network", |options| options.network = NamespaceMode::Target.into()),
        ("namespace_options.ipc", |options| options.ipc = NamespaceMode::Target.into()),
        ("userns_options", |options| {
            options.userns_options = Some(UserNamespace { mode: 9, ..Default::default() })
        }),
    ];
    for (field, change) in modes {
        let config = pod_with(&berth, "modes", |security| security.namespace_options = Some(options(change)));
        refused(berth.try_run_pod(config).await, field);
        let config =
            with_security(sleeper("modes"), |security| security.namespace_options = Some(options(change)));
        refused(berth.try_create(&pod, config).await, field);
    }
    let target = pod_with(&berth, "target", |security| {
        security.namespace_options = Some(options(|options| options.pid = NamespaceMode::Target.into()));
    });
    refused(berth.try_run_pod(target).await, "namespace_options.pid");
    let mapping = PortMapping { protocol: 7, container_port: 80, ..PortMapping::default() };
    let ports = PodSandboxConfig { port_mappings: vec![mapping], ..berth.pod_config("ports") };
    refused(berth.try_run_pod(ports).await, "port_mappings[0].protocol");
    refused(
        berth.try_create(&pod, ContainerConfig { stop_signal: 99, ..sleeper("signal") }).await,
        "stop_signal",
    );
    let mount = Mount {
        container_path: "/x".to_owned(),
        host_path: "/tmp".to_owned(),
        propagation: 3,
        ..Mount::default()
    };
    refused(
        berth.try_create(&pod, ContainerConfig { mounts: vec![mount], ..sleeper("mount") }).await,
        "propagation",
    );
    let groups = with_security(sleeper("groups"), |security| security.supplemental_groups_policy = 2);
    refused(berth.try_create(&pod, groups).await, "supplemental_groups_policy");
    let state = Some(ContainerStateValue { state: 12 });
    let filter = Some(ContainerFilter { state, ..ContainerFilter::default() });
    let listed = berth.runtime.list_containers(ListContainersRequest { filter }).await;
    assert_eq!(code(listed), Code::InvalidArgument);

    let windows = PodSandboxConfig { windows: Some(Default::default()), ..berth.pod_config("windows") };
    refused(berth.try_run_pod(windows).await, "windows");
    let windows = ContainerConfig { windows: Some(Default::default()), ..sleeper("windows") };
    refused(berth.try_create(&pod, windows).await, "windows");
    let group =
        with_security(sleeper("group"), |security| security.run_as_group = Some(Int64Value { value: 5 }));
    refused(berth.try_create(&pod, group).await, "run_as_group");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn image_calls_refuse_an_unknown_runtime_handler() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let spec = |handler: &str| ImageSpec {
        image: IMAGE.to_owned(),
        runtime_handler: handler.to_owned(),
        ..ImageSpec::default()
    };
    let image = Some(spec("none-such"));
    let pull = PullImageRequest { image: image.clone(), ..PullImageRequest::default() };
    let error = berth.images.pull_image(pull).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("none-such"), "{error}");
    let status = ImageStatusRequest { image: image.clone(), verbose: false };
    assert_eq!(code(berth.images.image_status(status).await), Code::InvalidArgument);
    let remove = RemoveImageRequest { image: image.clone() };
    assert_eq!(code(berth.images.remove_image(remove).await), Code::InvalidArgument);
    let list = ListImagesRequest { filter: Some(ImageFilter { image }) };
    assert_eq!(code(berth.images.list_images(list).await), Code::InvalidArgument);
    let config = ContainerConfig { image: Some(spec("none-such")), ..sleeper("c") };
    assert_eq!(code(berth.try_create(&pod, config).await), Code::InvalidArgument);
    let known = ImageStatusRequest { image: Some(spec("")), verbose: false };
    assert!(berth.images.image_status(known).await.unwrap().into_inner().image.is_some());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn container_status_shows_the_image_name_from_the_request() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("pod");
    let pod = berth.run_pod(config.clone()).await;
    let request = ImageStatusRequest {
        image: Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }),
        verbose: false,
    };
    let image = berth.images.image_status(request).await.unwrap().into_inner().image.unwrap();
    // The kubelet sends the id that PullImage has returned, and the name that the author of the pod wrote.
    let by_id = |user: &str| ImageSpec {
        image: image.id.clone(),
        user_specified_image: user.to_owned(),
        ..ImageSpec::default()
    };
    let prefix = ImageSpec { image: image.id["sha256:".len()..][..7].to_owned(), ..ImageSpec::default() };
    for (name, spec, shown) in [
        ("by-id", by_id(""), IMAGE),
        ("by-author", by_id("busybox"), "busybox"),
        ("by-tag", ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }, IMAGE),
        ("by-prefix", prefix, IMAGE),
    ] {
        let id =
            berth.try_create(&pod, ContainerConfig { image: Some(spec), ..sleeper(name) }).await.unwrap();
        let status = berth.status(&id).await;
        assert_eq!(status.image.unwrap().image, shown, "{name}");
        assert_eq!(status.image_id, image.id);
        let filter = Some(ContainerFilter { id: id.clone(), ..ContainerFilter::default() });
        let listed = berth.runtime.list_containers(ListContainersRequest { filter }).await.unwrap();
        assert_eq!(listed.into_inner().containers[0].image.as_ref().unwrap().image, shown, "{name}");
    }
    // CreateContainer repeats the pod's config. Differences in it have no effect on the pod.
    let before = pod_info(&mut berth, &pod).await["config"].clone();
    config.hostname = "other".to_owned();
    config.log_directory = berth.path("other-logs").display().to_string();
    config.annotations = [("a".to_owned(), "b".to_owned())].into();
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(shell("late", "hostname")),
        sandbox_config: Some(config),
    };
    let id = berth.runtime.create_container(request).await.unwrap().into_inner().container_id;
    assert!(berth.status(&id).await.log_path.contains("/logs/pod/"));
    assert_eq!(pod_info(&mut berth, &pod).await["config"], before);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn error_messages_name_the_cause() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let tiny = LinuxContainerResources { memory_limit_in_bytes: 1, ..Default::default() };
    let error = match berth.try_create(&pod, limited(sleeper("tiny"), tiny)).await {
        Err(error) => error,
        Ok(id) => berth.try_start_container(&id).await.unwrap_err(),
    };
    assert!(error.message().contains("memory_limit_in_bytes) is 1 bytes"), "{error}");

    let (file, folder) = (berth.path("file"), berth.path("folder"));
    fs::write(&file, "x").unwrap();
    fs::create_dir(&folder).unwrap();
    for (host, inside, words) in [
        (&file, "/srv", "a file cannot be mounted over a folder"),
        (&folder, "/bin/busybox", "a folder cannot be mounted over a file"),
    ] {
        let mount = Mount {
            host_path: host.display().to_string(),
            container_path: inside.to_owned(),
            ..Mount::default()
        };
        let config = ContainerConfig { mounts: vec![mount], ..sleeper("mount") };
        let error = berth.try_create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(words) && error.message().contains(inside), "{error}");
    }

    let registry = crate::support::registry::Registry::start(berth.host_process());
    let refused = crate::support::registry::Answer::Whole(401, "text/plain", b"no".to_vec());
    registry.answer("/v2/silent/manifests/1", refused);
    let image = Some(ImageSpec { image: format!("{}/silent:1", registry.address), ..ImageSpec::default() });
    let request = PullImageRequest { image, ..PullImageRequest::default() };
    let error = berth.images.pull_image(request).await.unwrap_err();
    assert!(error.message().contains("401 without a challenge"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signature_policy_applies_to_images_that_are_already_stored() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    fs::write(berth.path("policy.json"), r#"{ "default": [{ "type": "reject" }] }"#).unwrap();
    let refused = berth.try_create(&pod, shell("c", "true")).await.unwrap_err();
    // k8s.io/cri-api/pkg/errors: the kubelet sees the original text only if the code is Unknown.
    assert_eq!(refused.code(), Code::Unknown);
    assert!(refused.message().starts_with("SignatureValidationFailed: "), "{refused}");
    // The image came from an archive, which the policy can allow.
    let archives = r#"{ "default": [{ "type": "reject" }],
        "transports": { "docker-archive": { "": [{ "type": "insecureAcceptAnything" }] } } }"#;
    fs::write(berth.path("policy.json"), archives).unwrap();
    berth.restart().await;
    assert_eq!(berth.script(&pod, "loaded", "echo runs").await, (0, "runs\n".to_owned()));
    fs::write(berth.path("policy.json"), "{").unwrap();
    assert!(
        berth.try_create(&pod, shell("broken", "true")).await.is_err(),
        "a broken policy refuses every container"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
