//! Port forwarding.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_port_forward_session_carries_many_connections() {
    let (mut berth, pod, _) = berth_and_container().await;
    let four = berth.run(&pod, web("four", "127.0.0.1:8081")).await;
    let six = berth.run(&pod, web("six", "[::1]:8082")).await;
    wait_for_listener(&mut berth, &four, 8081).await;
    wait_for_listener(&mut berth, &six, 8082).await;
    for transport in TRANSPORTS {
        let url = berth.port_forward_url(&pod).await;
        let mut client = Client::forward(&berth, transport, &url, &[8081, 8082]);
        let ports = [client.line(), client.line()];
        let gets: Vec<_> = (0..20)
            .map(|number| {
                let port = &ports[number % 2];
                berth.spawn_on_host(&[
                    "busybox",
                    "wget",
                    "-q",
                    "-O",
                    "-",
                    &format!("http://127.0.0.1:{port}/name"),
                ])
            })
            .collect();
        for (number, get) in gets.into_iter().enumerate() {
            let output = get.wait_with_output().unwrap();
            let expected = ["four\n", "six\n"][number % 2];
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{transport} {number}: {output:?}");
        }
        client.close();
        assert_eq!(finished(client).0, Some(0), "{transport}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_to_a_host_network_pod_reaches_the_hosts_loopback() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("host");
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        }),
        ..LinuxSandboxSecurityContext::default()
    });
    let pod = berth.run_pod(config).await;
    let mut server = web("host-web", "127.0.0.1:8083");
    let options = server.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    options.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
    let id = berth.run(&pod, server).await;
    wait_for_listener(&mut berth, &id, 8083).await;
    let url = berth.port_forward_url(&pod).await;
    let mut client = Client::forward(&berth, "spdy", &url, &[8083]);
    let address = format!("http://127.0.0.1:{}/name", client.line());
    let got = berth.on_host(&["busybox", "wget", "-q", "-O", "-", &address]);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "host-web\n", "{got:?}");
    client.close();
    assert_eq!(finished(client).0, Some(0));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_port_forward_is_reported_and_affects_no_other_port() {
    let (mut berth, pod, _) = berth_and_container().await;
    let server = berth.run(&pod, web("web", "127.0.0.1:8084")).await;
    wait_for_listener(&mut berth, &server, 8084).await;
    let url = berth.port_forward_url(&pod).await;
    let mut raw = berth.spdy(&url, "portforward.k8s.io").await;
    let pair = |port: &'static str, id: &'static str| {
        ["error", "data"].map(|kind| [("streamType", kind), ("port", port), ("requestID", id)])
    };
    // Streams 1 and 3 go to a port without a listener, 5 and 7 to the server, 9 to the invalid port 0.
    for (stream, headers) in
        [1, 3, 5, 7].into_iter().zip([pair("9", "a"), pair("8084", "b")].into_iter().flatten())
    {
        raw.open(stream, &headers).await;
    }
    raw.open(9, &[("streamType", "data"), ("port", "0")]).await;
    raw.data(7, b"GET /name HTTP/1.0\r\n\r\n").await;
    raw.until(|seen| seen.data.get(&7).is_some_and(|data| data.ends_with(b"web\n"))).await;
    let seen = raw.until(|seen| seen.data.get(&1).is_some_and(|message| message.len() > 100)).await;
    let message = String::from_utf8_lossy(&seen.data[&1]).into_owned();
    assert!(message.contains("error forwarding port 9") && message.contains("127.0.0.1:9"), "{message}");
    let seen = raw.until(|seen| seen.reset.contains(&3) && seen.reset.contains(&9)).await;
    assert!(!seen.reset.contains(&7) && !seen.reset.contains(&5), "{seen:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_v4_port_forward_reaches_the_requested_ports() {
    let (mut berth, pod, _) = berth_and_container().await;
    let server = berth.run(&pod, web("web", "127.0.0.1:8085")).await;
    wait_for_listener(&mut berth, &server, 8085).await;
    let request = PortForwardRequest { pod_sandbox_id: pod, port: vec![8085] };
    let url = berth.runtime.port_forward(request).await.unwrap().into_inner().url;
    let mut socket = berth.websocket(&url, "v4.channel.k8s.io").await;
    let get = b"\0GET /name HTTP/1.0\r\n\r\n";
    socket.write_all(&[0x82, 0x80 | u8::try_from(get.len()).unwrap(), 0, 0, 0, 0]).await.unwrap();
    socket.write_all(get).await.unwrap();
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    // Both channels begin with the port in little endian.
    let port = 8085_u16.to_le_bytes();
    assert!(all.starts_with(&[0x82, 3, 0, port[0], port[1], 0x82, 3, 1, port[0], port[1]]), "{all:?}");
    assert!(String::from_utf8_lossy(&all).contains("web\n"), "{}", String::from_utf8_lossy(&all));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
