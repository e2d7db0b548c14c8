//! The server of sessions and clients that only hold connections: they keep nobody out. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::time::{Duration, Instant};

use support::streams::{Client, Streams, exec, finished, is_closed};
use support::{Berth, sleeper};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn berth_and_container() -> (Berth, String) {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    (berth, id)
}

/// How long the server waits for the request of a connection.
const GIVEN_UP: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_a_user_keep_nobody_out() {
    let (mut berth, id) = berth_and_container().await;
    let mut rounds = 0;
    loop {
        let url = berth.exec_url(exec(&id, &["echo", "served"], Streams::OUTPUT)).await;
        let began = Instant::now();
        let others = [65_532, 65_533].map(|user| berth.silent_connections(user, &url, 40));
        let silent = berth.silent_connections(65_534, &url, 1200);
        let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
        assert_eq!((code, stdout.as_str()), (Some(0), "served\n"), "{stderr}");
        // Before the server has given up any of the silent ones for its silence. A machine may take longer for all
        // this once.
        if began.elapsed() < GIVEN_UP {
            // Each user has a limit, beyond which the oldest goes, and takes nothing from the others.
            assert!(is_closed(&silent[0]));
            let open = silent.iter().filter(|connection| !is_closed(connection)).count();
            let others = others.iter().flatten().filter(|connection| !is_closed(connection)).count();
            assert_eq!((open, others), (64, 80));
            break;
        }
        rounds += 1;
        assert!(rounds < 5, "a client waits for connections that nobody uses");
    }
    // Not those of one user alone: each of many has only a few.
    let url = berth.exec_url(exec(&id, &["echo", "served"], Streams::OUTPUT)).await;
    let crowd: Vec<_> = (60_000..60_100).map(|user| berth.silent_connections(user, &url, 10)).collect();
    let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!((code, stdout.as_str()), (Some(0), "served\n"), "{stderr}");
    let open = crowd.iter().flatten().filter(|connection| !is_closed(connection)).count();
    assert!(open <= 256, "{open}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_must_become_a_session_in_time() {
    let (mut berth, id) = berth_and_container().await;
    let url = berth.exec_url(exec(&id, &["true"], Streams::OUTPUT)).await;
    let mut silent = berth.connect(&url).await;
    let (mut answer, slow) = berth.connect(&url).await.into_split();
    // One that is never silent for long, and never done.
    let slow = tokio::spawn(async move {
        let mut slow = slow;
        drop(slow.write_all(b"GET /exec/x HTTP/1.1\r\nX: ").await);
        while slow.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(support::PATIENCE, async {
        // A reset is as good as an end.
        drop(silent.read_to_end(&mut rest).await);
        drop(answer.read_to_end(&mut rest).await);
        slow.await
    });
    ended.await.expect("they are closed").unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 101 "));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
