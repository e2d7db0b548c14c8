//! Execs, attach and terminals of containers of an OCI runtime.

use std::time::Instant;

use berth_proto::v1::*;
use tonic::Code;

use super::{RUNTIMES, run_pod, start};
use crate::support::streams::{Client, Streams, exec, finished, output_of};
use crate::support::{PATIENCE, code, is_v2, shell, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_returns_its_output_and_exit_code() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let id = berth.run(&pod, sleeper("c")).await;
        let answer = berth.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"], 20).await.unwrap();
        assert_eq!(
            (answer.exit_code, answer.stdout, answer.stderr),
            (5, b"out\n".to_vec(), b"err\n".to_vec())
        );
        // A command that ends before the runtime has reported it.
        for _ in 0..10 {
            assert_eq!(berth.exec(&id, &["false"], 20).await.unwrap().exit_code, 1, "{handler}");
        }
        let own = berth.sh(&id, "readlink /proc/self/ns/pid").await;
        assert_eq!(berth.sh(&id, "readlink /proc/1/ns/pid").await, own);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_kills_everything_that_a_command_has_started() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let id = berth.run(&pod, sleeper("c")).await;
        let script = "sleep 4815 & setsid sleep 4815 & wait";
        let late = berth.exec(&id, &["sh", "-c", script], 1).await;
        assert_eq!(code(late), Code::DeadlineExceeded);
        if handler == "crun" && !is_v2() {
            // It cannot start a process in a single hierarchy, so children of the command can stay.
            continue;
        }
        let until = Instant::now() + PATIENCE;
        while berth.sh(&id, "ps | grep -c '[s]leep 4815'").await != "0" {
            assert!(Instant::now() < until, "{handler}: processes of the command still run");
        }
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_streams_and_a_terminal() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let id = berth.run(&pod, sleeper("c")).await;
        let url = berth.exec_url(exec(&id, &["sh", "-c", "cat; echo error >&2; exit 3"], Streams::ALL)).await;
        let mut client = Client::run(&berth, &[], Streams::ALL, &url);
        client.send(b"some input");
        let (code, stdout, stderr) = finished(client);
        assert_eq!((code, stdout.as_str()), (Some(3), "some input"), "{handler}: {stderr}");
        assert_eq!(stderr, "error\n", "{handler}");

        // The size may arrive after the start of the command.
        let script = "until [ \"$(stty size)\" = '40 100' ]; do sleep 0.1; done; stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all";
        let url = berth.exec_url(exec(&id, &["sh", "-c", script], Streams::TERMINAL)).await;
        let client = Client::run(&berth, &["-size", "100x40"], Streams::TERMINAL, &url);
        let (code, stdout, stderr) = output_of(client);
        assert_eq!(code, Some(0), "{handler}: {stderr}");
        assert!(stdout.contains("40 100") && stdout.contains("/dev/pts/"), "{handler}: {stdout:?}");
        assert!(stdout.ends_with("all\r\n"), "{handler}: {stdout:?}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_attaches_to_a_container_with_a_terminal() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let config = ContainerConfig {
            tty: true,
            stdin: true,
            ..shell(
                "terminal",
                "tty; while read line; do echo \"got $line\"; [ \"$line\" = end ] && exit 6; done",
            )
        };
        let id = berth.run(&pod, config).await;
        let url = berth.attach_url(&id, Streams::TERMINAL).await;
        let mut client = Client::run(&berth, &["-size", "90x30"], Streams::TERMINAL, &url);
        client.send(b"hello\n");
        client.until("got hello");
        client.send(b"end\n");
        client.until("got end");
        assert_eq!(berth.wait_exited(&id).await.exit_code, 6, "{handler}");
        drop(output_of(client));
        let log = std::fs::read_to_string(berth.status(&id).await.log_path).unwrap();
        assert!(log.contains("/dev/") && log.contains("got hello"), "{handler}: {log}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
