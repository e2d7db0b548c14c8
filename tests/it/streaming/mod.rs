//! Exec, Attach and PortForward as users call them: with crictl, with a client that uses the same libraries as
//! kubectl (streamclient), and with clients that violate the protocol.

mod port_forward;
mod requests;

use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use crate::support::streams::{self, Client, Streams, TRANSPORTS, exec, finished, output_of};
use crate::support::{Berth, code, container, shell, sleeper};
use berth_proto::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

async fn berth_and_container() -> (Berth, String, String) {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    (berth, pod, id)
}

/// Returns a web server that listens on the loopback of its pod.
fn web(name: &str, listen: &str) -> ContainerConfig {
    shell(name, &format!("echo {name} >/srv/name; exec httpd -f -p {listen} -h /srv"))
}

/// Waits until a process listens on a port, according to the container's procfs.
async fn wait_for_listener(berth: &mut Berth, id: &str, port: u16) {
    let script = format!(
        "until grep -qi ':{port:04X} 0*:0000 0A' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done; echo yes"
    );
    assert_eq!(berth.sh(id, &script).await, "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_delivers_streams_and_exit_code() {
    let (mut berth, _, id) = berth_and_container().await;
    let script = "cat; echo error >&2; exit 3";
    for versions in
        [&["-transport", "spdy"][..], &["-transport", "websocket"], &["-protocols", "v4.channel.k8s.io"]]
    {
        let url = berth.exec_url(exec(&id, &["sh", "-c", script], Streams::ALL)).await;
        let mut client = Client::run(&berth, versions, Streams::ALL, &url);
        // `cat` exits at the end of the input.
        client.send(b"some input");
        let (code, stdout, stderr) = finished(client);
        assert_eq!((code, stdout.as_str()), (Some(3), "some input"), "{versions:?}: {stderr}");
        assert_eq!(stderr, "error\n", "{versions:?}");
    }
    // Before version 4 the exit status is sent as text.
    for version in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let url = berth.exec_url(exec(&id, &["sh", "-c", "echo out; exit 3"], Streams::OUTPUT)).await;
        let client = Client::run(&berth, &["-protocols", version], Streams::OUTPUT, &url);
        let (_, stdout, stderr) = finished(client);
        assert_eq!(stdout, "out\n", "{version}");
        // The first version of the client library does not wait for the exit status.
        assert!(stderr.contains("exit status 3") || version == "channel.k8s.io", "{version}: {stderr}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_reports_a_command_that_cannot_run() {
    let (mut berth, _, id) = berth_and_container().await;
    for transport in TRANSPORTS {
        let url = berth.exec_url(exec(&id, &["/no/such/command"], Streams::OUTPUT)).await;
        let (code, _, stderr) =
            finished(Client::run(&berth, &["-transport", transport], Streams::OUTPUT, &url));
        assert_eq!(code, Some(255), "{transport}: {stderr}");
        assert!(stderr.contains("/no/such/command"), "{transport}: {stderr}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_size_of_the_clients_window() {
    let (mut berth, _, id) = berth_and_container().await;
    // The size is set before the command starts.
    let script =
        "[ \"$(stty size)\" = '40 100' ] || stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all";
    for transport in TRANSPORTS {
        let url = berth.exec_url(exec(&id, &["sh", "-c", script], Streams::TERMINAL)).await;
        let options = ["-transport", transport, "-size", "100x40"];
        let client = Client::run(&berth, &options, Streams::TERMINAL, &url);
        let (code, stdout, stderr) = output_of(client);
        assert_eq!(code, Some(0), "{transport}: {stderr}");
        assert!(stdout.starts_with("/dev/pts/") && stdout.ends_with("all\r\n"), "{transport}: {stdout:?}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_output_is_delivered_before_the_exit_code() {
    let (mut berth, _, id) = berth_and_container().await;
    // A child keeps the output open. The output is larger than the client's socket buffer.
    let script = "head -c 3000000 /dev/zero; sleep 4714 & exit 4";
    let url = berth.exec_url(exec(&id, &["sh", "-c", script], Streams::OUTPUT)).await;
    let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!((code, stdout.len()), (Some(4), 3_000_000), "{stderr}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_exec_attach_and_port_forward_work() {
    let (mut berth, pod, id) = berth_and_container().await;
    let server = berth.run(&pod, web("web", "127.0.0.1:8080")).await;
    wait_for_listener(&mut berth, &server, 8080).await;
    let reader = ContainerConfig {
        stdin: true,
        stdin_once: true,
        ..shell("reader", "read line; echo \"got $line\"; exit 0")
    };
    for transport in TRANSPORTS {
        let mut client =
            berth.crictl(&["exec", "--transport", transport, "-i", &id, "sh", "-c", "cat; exit 7"]);
        client.send(b"through crictl\n");
        let (code, stdout, stderr) = finished(client);
        assert_eq!(stdout, "through crictl\n", "{transport}: {stderr}");
        assert!(code != Some(0) && stderr.contains('7'), "{transport}: {code:?} {stderr}");

        let mut config = reader.clone();
        config.metadata.as_mut().unwrap().name = format!("reader-{transport}");
        let reader = berth.run(&pod, config).await;
        let mut client = berth.crictl(&["attach", "--transport", transport, "-i", &reader]);
        client.send(b"a line\n");
        let (code, stdout, stderr) = finished(client);
        assert_eq!((code, stdout.as_str()), (Some(0), "got a line\n"), "{transport}: {stderr}");

        let client = berth.crictl(&["port-forward", "--transport", transport, &pod, "18080:8080"]);
        client.until("Forwarding from 127.0.0.1:18080");
        let got = berth.on_host(&["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:18080/name"]);
        assert_eq!(String::from_utf8_lossy(&got.stdout), "web\n", "{transport}");
        client.kill();
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_can_attach_at_the_same_time() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    // The container prints what it reads, and exits after the line "end".
    let script = "while read line; do echo \"said $line\"; [ \"$line\" = end ] && exit 5; done; exit 6";
    let id = berth.run(&pod, ContainerConfig { stdin: true, ..shell("speaker", script) }).await;
    let (listen, speak) = (Streams { stdin: false, ..Streams::ALL }, Streams::ALL);
    let mut clients = Vec::new();
    for transport in TRANSPORTS {
        let url = berth.attach_url(&id, listen).await;
        clients.push(Client::run(&berth, &["-transport", transport], listen, &url));
    }
    let url = berth.attach_url(&id, speak).await;
    let mut speaker = Client::run(&berth, &[], speak, &url);
    // The line is repeated until every client has received it.
    let mut received = false;
    while !received {
        speaker.send(b"hello\n");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        received = clients.iter_mut().all(|client| client.has("said hello\n"));
    }
    speaker.send(b"end\n");
    for client in clients {
        let (code, stdout, stderr) = output_of(client);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout.ends_with("said end\n"), "{stdout}");
    }
    assert!(finished(speaker).1.ends_with("said end\n"));
    assert_eq!(berth.wait_exited(&id).await.exit_code, 5);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_a_disconnected_client_is_ended() {
    let (mut berth, _, id) = berth_and_container().await;
    for transport in TRANSPORTS {
        let script = "echo there; sleep 4715 & sleep 4715";
        let url = berth.exec_url(exec(&id, &["sh", "-c", script], Streams::ALL)).await;
        let client = Client::run(&berth, &["-transport", transport], Streams::ALL, &url);
        client.until("there");
        client.kill();
        let gone = "while ps -o args | grep -q '[s]leep 4715'; do sleep 0.05; done; echo gone";
        assert_eq!(berth.sh(&id, gone).await, "gone", "{transport}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_base64_protocols_work() {
    let (mut berth, _, id) = berth_and_container().await;
    let url = berth.exec_url(exec(&id, &["head", "-c", "5"], Streams::ALL)).await;
    let mut socket = berth.websocket(&url, "v4.base64.channel.k8s.io").await;
    // A text message in two frames: channel 0, "hello" in base64. The masks are zeros.
    socket.write_all(b"\x01\x84\0\0\0\x000aGV").await.unwrap();
    socket.write_all(b"\x80\x85\0\0\0\0sbG8=").await.unwrap();
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains("1aGVsbG8="), "{text}");
    // {"metadata":{},"status":"Success"}
    assert!(text.contains("3eyJtZXRhZGF0YSI6e30sInN0YXR1cyI6IlN1Y2Nlc3MifQ=="), "{text}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_run_in_parallel() {
    let (mut berth, _, id) = berth_and_container().await;
    for (transport, count) in [("spdy", 200), ("websocket", 100)] {
        let mut urls = String::new();
        for _ in 0..count {
            urls += &berth.exec_url(exec(&id, &["cat"], Streams { stderr: false, ..Streams::ALL })).await;
            urls.push('\n');
        }
        let mut client = Client::many(&berth, transport);
        client.send(urls.as_bytes());
        let (code, stdout, stderr) = finished(client);
        assert_eq!((code, stdout), (Some(0), format!("{count}\n")), "{transport}: {stderr}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_copied_in_and_out_unchanged() {
    let (mut berth, _, id) = berth_and_container().await;
    let size: usize = std::env::var("BERTH_STREAM_BYTES").ok().map_or(16 << 20, |size| size.parse().unwrap());
    let file = berth.path("data");
    streams::write_noise(&file, size);
    let expected = output_of_command("sha256sum", file.to_str().unwrap());
    for transport in TRANSPORTS {
        let folder = format!("/tmp/{transport}");
        let input = Streams { stdin: true, ..Streams::default() };
        let extract = format!("mkdir {folder} && exec tar xf - -C {folder}");
        let url = berth.exec_url(exec(&id, &["sh", "-c", &extract], Streams { stdout: true, ..input })).await;
        let begun = Instant::now();
        let mut tar = std::process::Command::new("tar")
            .args(["cf", "-", "-C", berth.folder.path().to_str().unwrap(), "data"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let archive = tar.stdout.take().unwrap();
        let options = ["-transport", transport];
        let client =
            Client::run_from(&berth, &options, Streams { stdout: true, ..input }, &url, archive.into());
        let (code, _, stderr) = output_of(client);
        assert!(tar.wait().unwrap().success() && code == Some(0), "{transport}: {stderr}");
        streams::report(transport, "in", size, begun);
        let inside = berth.sh(&id, &format!("sha256sum <{folder}/data")).await;
        assert_eq!(inside.split(' ').next(), expected.split(' ').next(), "{transport}");

        let url =
            berth.exec_url(exec(&id, &["tar", "cf", "-", "-C", &folder, "data"], Streams::OUTPUT)).await;
        let begun = Instant::now();
        let mut untar = std::process::Command::new("sh")
            .args(["-c", "tar xOf - | sha256sum"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let sink = untar.stdin.take().unwrap();
        let (code, stderr) = Client::run_into(&berth, &options, Streams::OUTPUT, &url, sink.into());
        let outside = untar.wait_with_output().unwrap().stdout;
        assert_eq!(code, Some(0), "{transport}: {stderr}");
        streams::report(transport, "out", size, begun);
        assert_eq!(
            String::from_utf8_lossy(&outside).split(' ').next(),
            expected.split(' ').next(),
            "{transport}"
        );
        berth.sh(&id, &format!("rm -r {folder}")).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn output_of_command(program: &str, argument: &str) -> String {
    let output = std::process::Command::new(program).arg(argument).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_work_over_tls() {
    let files = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (files.path().join("crt"), files.path().join("key"));
    std::fs::File::create(&certificate).unwrap().write_all(made.cert.pem().as_bytes()).unwrap();
    std::fs::File::create(&key).unwrap().write_all(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let more =
        format!("stream_certificate = \"{}\"\nstream_key = \"{}\"\n", certificate.display(), key.display());
    let mut berth = Berth::start_with(&more).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let mut silent = None;
    for transport in TRANSPORTS {
        let url = berth.exec_url(exec(&id, &["sh", "-c", "cat; exit 9"], Streams::ALL)).await;
        assert!(url.starts_with("https://"), "{url}");
        // This client never sends a TLS handshake.
        silent = Some(berth.connect(&url).await);
        let mut client = Client::run(&berth, &["-transport", transport], Streams::ALL, &url);
        let text = vec![b'x'; 1 << 20];
        client.send(&text);
        let (code, stdout, stderr) = finished(client);
        assert_eq!((code, stdout.len()), (Some(9), text.len()), "{transport}: {stderr}");
    }
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(crate::support::PATIENCE, silent.unwrap().read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty(), "a connection without a handshake must be closed");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_continues_when_an_attached_client_disconnects() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth
        .run(&pod, container("counter", &["sh", "-c", "while true; do echo tick; sleep 0.1; done"]))
        .await;
    let streams = Streams { stdin: false, ..Streams::ALL };
    let url = berth.attach_url(&id, streams).await;
    let client = Client::run(&berth, &[], streams, &url);
    client.until("tick");
    client.kill();
    assert_eq!(berth.status(&id).await.state(), ContainerState::ContainerRunning);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
