//! Requests and clients that are refused.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_are_refused_with_the_right_code() {
    let (mut berth, pod, id) = berth_and_container().await;
    let stopped = berth.run(&pod, shell("stopped", "exit 0")).await;
    berth.wait_exited(&stopped).await;
    let command = &["true"][..];
    let both = Streams { tty: true, ..Streams::ALL };
    for (request, expected) in [
        (exec("0123456789", command, Streams::ALL), Code::NotFound),
        (exec(&id, &[], Streams::ALL), Code::InvalidArgument),
        (exec(&id, command, Streams::default()), Code::InvalidArgument),
        (exec(&id, command, both), Code::InvalidArgument),
        (exec(&stopped, command, Streams::ALL), Code::FailedPrecondition),
    ] {
        let answer = berth.runtime.exec(request.clone()).await;
        assert_eq!(code(answer), expected, "{request:?}");
        let Streams { stdin, stdout, stderr, tty } = Streams::of(&request);
        if request.cmd.is_empty() {
            continue;
        }
        let request = AttachRequest { container_id: request.container_id, stdin, stdout, stderr, tty };
        assert_eq!(code(berth.runtime.attach(request.clone()).await), expected, "{request:?}");
    }
    for (pod_sandbox_id, port, expected) in [
        ("0123456789", vec![], Code::NotFound),
        (&pod, vec![80, 0], Code::InvalidArgument),
        (&pod, vec![65536], Code::InvalidArgument),
        (&pod, vec![1; 200], Code::InvalidArgument),
    ] {
        let request = PortForwardRequest { pod_sandbox_id: pod_sandbox_id.to_owned(), port };
        assert_eq!(code(berth.runtime.port_forward(request.clone()).await), expected, "{request:?}");
    }
    berth.stop_pod(&pod).await;
    let request = PortForwardRequest { pod_sandbox_id: pod, port: vec![] };
    assert_eq!(code(berth.runtime.port_forward(request).await), Code::FailedPrecondition);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_url_works_once_and_only_for_its_request() {
    let (mut berth, _, id) = berth_and_container().await;
    let url = berth.exec_url(exec(&id, &["echo", "once"], Streams::OUTPUT)).await;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let first = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!(first, (Some(0), "once\n".to_owned(), String::new()));
    let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!((code, stdout.as_str()), (Some(255), ""), "{stderr}");
    let url = berth.exec_url(exec(&id, &["touch", "/tmp/ran"], Streams::OUTPUT)).await;
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for (request, expected) in [
        (format!("POST {}", url.replace("/exec/", "/attach/")), "404"),
        // The wrong request has used the token.
        (format!("POST {url}"), "404"),
        (format!("POST {url}/more"), "404"),
        ("GET http://x/".to_owned(), "404"),
        (format!("DELETE {url}"), "405"),
    ] {
        let answer = berth.http(&url, &format!("{request} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{request}: {answer}");
    }
    let url = berth.exec_url(exec(&id, &["touch", "/tmp/ran"], Streams::OUTPUT)).await;
    for (headers, expected) in [
        ("", "400"),
        (
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n",
            "403",
        ),
    ] {
        let answer = berth.http(&url, &format!("GET {url} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{headers}: {answer}");
    }
    let many = "X: y\r\n".repeat(1000);
    let answer = berth.http(&url, &format!("GET {url} HTTP/1.1\r\nHost: x\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(berth.sh(&id, "ls /tmp").await, "", "none of these requests may run a command");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_clients_do_not_affect_other_clients() {
    let (mut berth, _, id) = berth_and_container().await;
    // This client does not read the output that it has requested.
    let url = berth.exec_url(exec(&id, &["sh", "-c", "cat /dev/zero; echo 4716"], Streams::OUTPUT)).await;
    let mut not_reading = berth.spdy(&url, "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdout"), (5, "stderr")] {
        not_reading.open(stream, &[("streamType", kind)]).await;
    }
    not_reading.until(|seen| seen.data.contains_key(&3)).await;
    // This client sends an invalid frame after a valid start.
    let url = berth.exec_url(exec(&id, &["sleep", "4717"], Streams::OUTPUT)).await;
    let mut invalid = berth.spdy(&url, "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdout"), (5, "stderr")] {
        invalid.open(stream, &[("streamType", kind)]).await;
    }
    invalid.until(|seen| seen.replies.len() == 3).await;
    invalid.io.write_all(&[0xff; 4096]).await.unwrap();
    // These clients close their half of the connection: one in the middle of a frame, one without any stream.
    for half in [&[][..], &[0x80, 3, 0, 1, 0, 0, 1]] {
        let url = berth.exec_url(exec(&id, &["sleep", "4717"], Streams::OUTPUT)).await;
        let mut closing = berth.spdy(&url, "v4.channel.k8s.io").await;
        closing.io.write_all(half).await.unwrap();
        closing.io.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // A connection reset is also accepted.
        drop(closing.io.read_to_end(&mut rest).await);
    }
    // This client sends a WebSocket frame without a mask.
    let url = berth.exec_url(exec(&id, &["sleep", "4717"], Streams::OUTPUT)).await;
    let mut unmasked = berth.websocket(&url, "v5.channel.k8s.io").await;
    unmasked.write_all(&[0x82, 1, 0]).await.unwrap();
    let mut rest = Vec::new();
    unmasked.read_to_end(&mut rest).await.unwrap();
    let close = [0x88, 2, 0x03, 0xea];
    assert!(
        rest.windows(4).any(|window| window == close),
        "the server must close with a protocol error: {rest:?}"
    );
    // Other clients are served meanwhile, and the commands of the broken clients are ended.
    let url = berth.exec_url(exec(&id, &["echo", "still here"], Streams::OUTPUT)).await;
    let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!((code, stdout.as_str()), (Some(0), "still here\n"), "{stderr}");
    let gone = "while ps -o args | grep -q '[s]leep 4717'; do sleep 0.05; done; echo gone";
    assert_eq!(berth.sh(&id, gone).await, "gone");
    assert_ne!(
        berth.sh(&id, "ps -o args | grep -c '[c]at /dev/zero'").await,
        "0",
        "the command of a client that does not read must wait"
    );
    drop(not_reading);
    let gone = "while ps -o args | grep -q '[c]at /dev/zero'; do sleep 0.05; done; echo gone";
    assert_eq!(berth.sh(&id, gone).await, "gone");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
