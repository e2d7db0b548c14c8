//! Clients that only hold connections open do not block the session server for others. Runs as root.

use std::time::{Duration, Instant};

use crate::support::streams::{Client, Streams, exec, finished, is_closed};
use crate::support::{Berth, sleeper};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn berth_and_container() -> (Berth, String) {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    (berth, id)
}

/// The time that the server waits for the request of a connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_block_other_clients() {
    let (mut berth, id) = berth_and_container().await;
    let mut rounds = 0;
    loop {
        let url = berth.exec_url(exec(&id, &["echo", "served"], Streams::OUTPUT)).await;
        let began = Instant::now();
        let others = [65_532, 65_533].map(|user| berth.silent_connections(user, &url, 40));
        let silent = berth.silent_connections(65_534, &url, 1200);
        let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
        assert_eq!((code, stdout.as_str()), (Some(0), "served\n"), "{stderr}");
        // This must happen before the server closes the silent connections because of their silence. A busy machine
        // can need several rounds.
        if began.elapsed() < REQUEST_TIMEOUT {
            // Each user has a limit. Beyond it the user's oldest connection is closed. Other users are not affected.
            assert!(is_closed(&silent[0]));
            let open = silent.iter().filter(|connection| !is_closed(connection)).count();
            let others = others.iter().flatten().filter(|connection| !is_closed(connection)).count();
            assert_eq!((open, others), (64, 80));
            break;
        }
        rounds += 1;
        assert!(rounds < 5, "a client waits until the silent connections are closed");
    }
    // The same holds for many users with a few connections each.
    let url = berth.exec_url(exec(&id, &["echo", "served"], Streams::OUTPUT)).await;
    let crowd: Vec<_> = (60_000..60_100).map(|user| berth.silent_connections(user, &url, 10)).collect();
    let (code, stdout, stderr) = finished(Client::run(&berth, &[], Streams::OUTPUT, &url));
    assert_eq!((code, stdout.as_str()), (Some(0), "served\n"), "{stderr}");
    let open = crowd.iter().flatten().filter(|connection| !is_closed(connection)).count();
    assert!(open <= 256, "{open}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_complete_request_is_closed() {
    let (mut berth, id) = berth_and_container().await;
    let url = berth.exec_url(exec(&id, &["true"], Streams::OUTPUT)).await;
    let mut silent = berth.connect(&url).await;
    let (mut answer, slow) = berth.connect(&url).await.into_split();
    // This client sends a byte from time to time and never completes its request.
    let slow = tokio::spawn(async move {
        let mut slow = slow;
        drop(slow.write_all(b"GET /exec/x HTTP/1.1\r\nX: ").await);
        while slow.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(crate::support::PATIENCE, async {
        // A connection reset is also accepted.
        drop(silent.read_to_end(&mut rest).await);
        drop(answer.read_to_end(&mut rest).await);
        slow.await
    });
    ended.await.expect("the connections are not closed").unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 101 "));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
