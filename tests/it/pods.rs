//! Pods on the real daemon: RunPodSandbox and the other calls on pod sandboxes. Runs as root.

use crate::support::{Berth, code, shell, sleeper};
use berth_proto::v1::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_its_removal_leaves_nothing() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let status = berth.pod_status(&pod).await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    let network = status.network.unwrap();
    assert!(network.ip.starts_with("10.77.0."), "{network:?}");
    assert!(
        network.additional_ips[0].ip.starts_with("fd77::"),
        "the pod must have both address families in the order of the config"
    );

    let (exit, log) = berth.script(&pod, "hello", "echo hello; echo oops >&2; exit 3").await;
    assert_eq!((exit, log.as_str()), (3, "hello\noops\n"));
    berth.stop_pod(&pod).await;
    berth.stop_pod(&pod).await;
    let status = berth.pod_status(&pod).await;
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    berth.remove_pod(&pod).await;
    berth.remove_pod(&pod).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_one_pod_and_a_retry_joins_the_call_in_progress() {
    let mut berth = Berth::start().await;
    let config = berth.pod_config("twin");
    let (mut a, mut b) = (berth.runtime.clone(), berth.runtime.clone());
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let (first, second) = tokio::join!(a.run_pod_sandbox(request.clone()), b.run_pod_sandbox(request));
    let ids = [first, second].map(|answer| answer.map(|a| a.into_inner().pod_sandbox_id));
    match &ids {
        // Either both calls were in progress together, or the second call arrived after the first had finished.
        [Ok(a), Ok(b)] => assert_eq!(a, b),
        [Ok(a), Err(error)] | [Err(error), Ok(a)] => assert!(error.message().contains(a)),
        other => panic!("{other:?}"),
    }
    let holder = ids.iter().find_map(|id| id.as_ref().ok()).unwrap().clone();
    let error = berth.try_run_pod(config.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains(&holder), "{error}");
    let mut next = config;
    next.metadata.as_mut().unwrap().attempt = 1;
    berth.run_pod(next).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn slashes_do_not_make_different_pod_names_equal() {
    let mut berth = Berth::start().await;
    let named = |berth: &Berth, namespace: &str, name: &str, uid: &str| {
        let mut config = berth.pod_config("pod");
        config.metadata = Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            attempt: 0,
        });
        config
    };
    let mut pods = Vec::new();
    for (namespace, name, uid) in [("a/b", "c", "u"), ("a", "b/c", "u"), ("a", "b", "c/u")] {
        let config = named(&berth, namespace, name, uid);
        pods.push(berth.run_pod(config).await);
    }
    pods.sort();
    pods.dedup();
    assert_eq!(pods.len(), 3);
    // Each pod keeps its name over a restart.
    berth.restart().await;
    for (namespace, name, uid) in [("a/b", "c", "u"), ("a", "b/c", "u"), ("a", "b", "c/u")] {
        let config = named(&berth, namespace, name, uid);
        assert_eq!(code(berth.try_run_pod(config).await), Code::AlreadyExists, "{namespace} {name} {uid}");
    }
    // A semicolon would add another argument for the network plugins, such as a requested address.
    let config = named(&berth, "a", "x;IP=10.77.0.77", "u");
    let refused = berth.try_run_pod(config).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("metadata.name"), "{refused}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_leaves_a_complete_pod_or_none() {
    let mut berth = Berth::start().await;
    for attempt in 0..10 {
        let mut config = berth.pod_config("impatient");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let wait = std::time::Duration::from_micros(u64::from(attempt) * 1500);
        drop(tokio::time::timeout(wait, berth.runtime.run_pod_sandbox(request)).await);
    }
    // When a retry is answered, the operation that it joined is complete.
    for attempt in 0..10 {
        let mut config = berth.pod_config("impatient");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let answer = berth.try_run_pod(config).await;
        assert!(matches!(code(answer), Code::Ok | Code::AlreadyExists), "attempt {attempt}");
    }
    let list = berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    let items = list.into_inner().items;
    assert_eq!(items.len(), 10);
    for pod in items {
        assert_eq!(pod.state(), PodSandboxState::SandboxReady);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_have_the_hostname_dns_sysctls_and_shm_of_their_pod() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("shared");
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["svc.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls = [
        ("net.ipv4.ip_local_port_range".to_owned(), "2000\t3000".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
    ]
    .into();
    let pod = berth.run_pod(config).await;
    let script = "hostname; cat /etc/resolv.conf /proc/sys/kernel/shm_rmid_forced; \
                  cat /proc/sys/net/ipv4/ip_local_port_range; cat /etc/hostname; echo x >/dev/shm/from-a; \
                  ip -o addr show dev eth0";
    let (_, log) = berth.script(&pod, "a", script).await;
    for expected in [
        "shared\n",
        "nameserver 10.96.0.10\n",
        "search svc.local\n",
        "options ndots:5\n",
        "\n1\n",
        "2000\t3000",
        "10.77.0.",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    let (exit, log) = berth.script(&pod, "b", "cat /dev/shm/from-a; mount | grep ' /dev/shm '").await;
    assert_eq!(exit, 0, "the containers of a pod must share /dev/shm: {log}");
    assert!(log.contains("size=65536k"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_the_host() {
    let mut berth = Berth::start().await;
    let one = berth.run_pod(berth.pod_config("one")).await;
    let two = berth.run_pod(berth.pod_config("two")).await;
    let ip = berth.pod_status(&one).await.network.unwrap().ip;
    let serve = "while true; do echo served | nc -l -p 8080; done";
    berth.run(&one, shell("server", serve)).await;
    let client = berth.run(&two, sleeper("client")).await;
    let fetch =
        format!("for i in 1 2 3 4 5 6 7 8 9; do nc -w 2 {ip} 8080 </dev/null && break; sleep 0.2; done");
    assert_eq!(berth.sh(&client, &fetch).await, "served");
    // The gateway is the bridge on the host.
    let gateway = berth.sh(&client, "ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'").await;
    assert_eq!(gateway, "10.77.0.1");
    assert!(berth.exec(&client, &["ping", "-c", "1", "-W", "2", &gateway], 0).await.unwrap().exit_code == 0);
    assert!(
        berth.exec(&client, &["ping", "-6", "-c", "1", "-W", "2", "fd77::1"], 0).await.unwrap().exit_code
            == 0
    );
    assert!(berth.on_host(&["busybox", "ping", "-c", "1", "-W", "2", &ip]).status.success());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_the_pod_the_container_or_the_host_can_be_requested() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("host");
    let options = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    };
    let context =
        LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(context);
    let pod = berth.run_pod(config).await;
    assert_eq!(berth.pod_status(&pod).await.network.unwrap().ip, "");
    let container = crate::support::with_security(
        shell("c", "ls -l /proc/1/exe; ip link; readlink /proc/self/ns/ipc"),
        |context| {
            context.namespace_options = Some(options.clone());
        },
    );
    let (_, log) = berth.run_to_end(&pod, container).await;
    assert!(log.contains("testbr0") || log.contains("lo:"), "the container must see the host's links: {log}");
    let ipc = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    assert!(log.contains(ipc.to_str().unwrap()), "the container must have the host's IPC namespace: {log}");

    let mut config = berth.pod_config("pids");
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..NamespaceOption::default() };
    let context =
        LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(context);
    let pod = berth.run_pod(config).await;
    let shared = |name: &str, script: &str| {
        crate::support::with_security(shell(name, script), |context| {
            context.namespace_options = Some(options.clone())
        })
    };
    berth.run(&pod, shared("first", "exec sleep 1234")).await;
    let (_, log) = berth.run_to_end(&pod, shared("second", "ps -o args; cat /proc/1/comm")).await;
    assert!(log.contains("sleep 1234") && log.contains("berth-pause"), "{log}");
    let own = berth.script(&pod, "own", "echo $$").await.1;
    assert_eq!(own, "1\n", "the shell must be process 1 of a separate PID namespace");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_of_shared_processes_reaps_orphans() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("orphans");
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..NamespaceOption::default() };
    let context =
        LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(context);
    let pod = berth.run_pod(config).await;
    // The orphan becomes a child of process 1 of the namespace, which is the pause.
    let script = "sh -c 'sleep 0.2 & echo left'; exec sleep 4321";
    let shared = crate::support::with_security(shell("c", script), |context| {
        context.namespace_options = Some(options)
    });
    let id = berth.run(&pod, shared).await;
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let seen = berth.sh(&id, "ps -o ppid,stat,args").await;
        // An exited process that is not waited for stays as a zombie.
        let children_of_pause = seen.lines().filter(|line| line.trim_start().starts_with("1 "));
        if seen.contains("sleep 4321") && children_of_pause.count() == 0 {
            break;
        }
        assert!(std::time::Instant::now() < until, "{seen}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_shares_the_processes_of_its_target() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("debugged")).await;
    let other = berth.run_pod(berth.pod_config("other")).await;
    let target = berth.run(&pod, shell("target", "exec sleep 4242")).await;
    let bystander = berth.run(&pod, shell("bystander", "exec sleep 4343")).await;
    let unrelated = berth.run(&other, sleeper("unrelated")).await;
    let debug = |name: &str, target: &str, script: &str| {
        crate::support::with_security(shell(name, script), |context| {
            let options = context.namespace_options.as_mut().unwrap();
            options.pid = NamespaceMode::Target.into();
            options.target_id = target.to_owned();
        })
    };
    let inspect = "ps -o pid,args; cat /proc/1/root/etc/hostname; hostname; id -u";
    let (code_, log) = berth.run_to_end(&pod, debug("inspect", &target, inspect)).await;
    assert!(log.contains("1 sleep 4242") && !log.contains("4343"), "{log}");
    assert_eq!((code_, log.ends_with("debugged\ndebugged\n0\n")), (0, true), "{log}");
    let staying = berth.run(&pod, debug("stay", &target, "exec sleep 4444")).await;
    assert!(berth.sh(&target, "ps -o args").await.contains("sleep 4444"));

    for (name, target, expected) in [
        ("unrelated", unrelated.as_str(), Code::InvalidArgument),
        ("none", "0123456789", Code::NotFound),
        ("empty", "", Code::InvalidArgument),
    ] {
        let refused = berth.try_create(&pod, debug(name, target, "true")).await;
        assert_eq!(code(refused), expected, "{name}");
    }
    // A PID namespace ends with its first process.
    berth.stop_container(&target, 0).await;
    assert_eq!(berth.wait_exited(&staying).await.exit_code, 137);
    let late = berth.try_create(&pod, debug("late", &target, "true")).await;
    assert_eq!(code(late), Code::FailedPrecondition);
    assert_eq!(berth.status(&bystander).await.state(), ContainerState::ContainerRunning);
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered() {
    let mut berth = Berth::start().await;
    let mut labelled = berth.pod_config("labelled");
    labelled.labels = [("app".to_owned(), "web".to_owned())].into();
    labelled.annotations = [("note".to_owned(), "kept".to_owned())].into();
    let labelled = berth.run_pod(labelled).await;
    let plain = berth.run_pod(berth.pod_config("plain")).await;
    berth.stop_pod(&plain).await;
    let mut list = async |filter: PodSandboxFilter| {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let items = berth.runtime.list_pod_sandbox(request).await.unwrap().into_inner().items;
        items.into_iter().map(|pod| pod.id).collect::<Vec<_>>()
    };
    let by_label = [("app".to_owned(), "web".to_owned())].into();
    assert_eq!(
        list(PodSandboxFilter { label_selector: by_label, ..Default::default() }).await,
        std::slice::from_ref(&labelled)
    );
    let stopped = PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
    assert_eq!(
        list(PodSandboxFilter { state: Some(stopped), ..Default::default() }).await,
        std::slice::from_ref(&plain)
    );
    let id = labelled[..12].to_owned();
    assert_eq!(list(PodSandboxFilter { id, ..Default::default() }).await, std::slice::from_ref(&labelled));
    assert_eq!(list(PodSandboxFilter::default()).await, [plain, labelled.clone()], "newest first");
    let status = berth.pod_status(&labelled).await;
    assert_eq!(status.annotations["note"], "kept");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
