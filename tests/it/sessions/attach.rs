//! Clients that are attached to a container.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_share_streams_and_stdin_once_closes_with_the_first() {
    let config = interactive(shell("once", "cat; echo eof; read x </dev/null; sleep 600"), true, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut watching =
        inside.attach(&ids[0], RequestedStreams { stdout: true, ..RequestedStreams::default() }).await;
    let mut first = inside.attach(&ids[0], ALL).await;
    let mut second = inside.attach(&ids[0], ALL).await;
    write(&mut first.streams.stdin, "from the first\n").await;
    until(&mut first.streams.stdout, "from the first\n").await;
    until(&mut second.streams.stdout, "from the first\n").await;
    write(&mut second.streams.stdin, "from the second\n").await;
    until(&mut watching.streams.stdout, "from the second\n").await;
    drop(watching);
    drop(first.streams.stdin.take());
    until(&mut first.streams.stdout, "eof\n").await;
    until(&mut second.streams.stdout, "eof\n").await;
    // The input of the container is closed for every client, also for later ones.
    let mut late = inside.attach(&ids[0], ALL).await;
    for session in [&mut second, &mut late] {
        let stdin = session.streams.stdin.as_mut().unwrap();
        eventually_broken(stdin).await;
    }
    assert_eq!(inside.log("once"), "from the first\nfrom the second\neof\n");
    drop((first, second, late));
    assert!(
        inside.daemon.pods.store.container(&ids[0]).unwrap().state().pid().is_some(),
        "the container must still run"
    );
    inside.finish().await;
}

async fn eventually_broken(stdin: &mut Writer) {
    let writing = async {
        while stdin.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(writing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stdin_once_the_input_stays_open_after_clients_leave() {
    let script = "while read line; do echo got $line; [ $line = bye ] && exit 7; done; exit 9";
    let config = interactive(shell("stays", script), false, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut first = inside.attach(&ids[0], ALL).await;
    write(&mut first.streams.stdin, "one\n").await;
    until(&mut first.streams.stdout, "got one\n").await;
    within(first.streams.stdin.as_mut().unwrap().shutdown()).await.unwrap();
    assert_eq!(within(first.end()).await, SessionEnd::Detached);
    assert_eq!(all(&mut first.streams.stdout).await, "");
    let vanished = inside.attach(&ids[0], ALL).await;
    drop(vanished);
    let mut second = inside.attach(&ids[0], ALL).await;
    write(&mut second.streams.stdin, "bye\n").await;
    assert_eq!(all(&mut second.streams.stdout).await, "got bye\n");
    assert_eq!(within(second.end()).await, SessionEnd::Exited(7));
    assert_eq!(inside.log("stays"), "got one\ngot bye\n");
    let error = attach(&inside.daemon.pods.store, &ids[0], ALL).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_is_not_lost_while_the_container_does_not_read() {
    let script = "read go; read line; echo $line; wc -c";
    let config = interactive(shell("slow", script), true, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut client = inside.attach(&ids[0], ALL).await;
    let mut stdin = client.streams.stdin.take().unwrap();
    // More than the pipes in between can hold.
    let sending = tokio::spawn(async move {
        let large = vec![b'x'; 3 << 20];
        stdin.write_all(b"go\nline\n").await.unwrap();
        stdin.write_all(&large).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    until(&mut client.streams.stdout, "line\n").await;
    within(sending).await.unwrap();
    until(&mut client.streams.stdout, &format!("{}\n", 3 << 20)).await;
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_blocks_nothing() {
    let script = "read go; head -c 25000000 /dev/zero | tr '\\0' x; echo; echo end; read more; exit 0";
    let config = interactive(shell("fast", script), false, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut slow =
        inside.attach(&ids[0], RequestedStreams { stdout: true, ..RequestedStreams::default() }).await;
    let mut writing =
        inside.attach(&ids[0], RequestedStreams { stdin: true, ..RequestedStreams::default() }).await;
    write(&mut writing.streams.stdin, "go\n").await;
    let log = inside.path("logs/pod/fast.log");
    let ends = || fs::read(&log).is_ok_and(|log| log.ends_with(b" stdout F end\n"));
    eventually("the log does not contain all output", ends).await;
    assert_eq!(within(slow.end()).await, SessionEnd::TooSlow);
    let behind = all(&mut slow.streams.stdout).await;
    assert!(
        behind.bytes().all(|byte| byte == b'x'),
        "a slow client must receive the beginning of the output"
    );
    assert!((4 << 20..25_000_000).contains(&behind.len()), "{}", behind.len());
    assert_eq!(inside.log("fast").len(), 25_000_000 + "\nend\n".len());
    write(&mut writing.streams.stdin, "more\n").await;
    assert_eq!(within(writing.end()).await, SessionEnd::Exited(0));
    inside.finish().await;
}
