//! Reused pids: the kernel gives a new process the pid of one that has exited and was reaped.

use std::process::Command;

use crate::support::{Berth, Setup, shell, sleeper};
use crate::survival::answered;

/// Starts a daemon in a separate PID namespace, in which the test can choose the next pid.
async fn in_own_namespace() -> Berth {
    // The shell is the first process of the namespace and reaps orphans.
    let under =
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", r#""$@"; exit $?"#, "sh"];
    Berth::start_as(Setup { under: &under, ..Setup::default() }).await
}

/// Sets the pid after which the next processes of the daemon's namespace get their pids (proc(5),
/// `/proc/sys/kernel/ns_last_pid`).
fn set_last_pid(berth: &Berth, pid: i64) {
    let namespaces = ["--pid", "--mount"].map(|kind| kind.to_owned());
    let target = format!("--target={}", berth.pid().as_raw_nonzero());
    let script = format!("echo {pid} > /proc/sys/kernel/ns_last_pid");
    let status = Command::new("nsenter").arg(target).args(namespaces).args(["sh", "-c", &script]).status();
    assert!(status.unwrap().success(), "{script}");
}

async fn pid_of(berth: &mut Berth, container: &str) -> i64 {
    berth.info(container).await["pid"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_a_reused_pid_is_not_mistaken_for_a_container() {
    let mut berth = in_own_namespace().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut ended = Vec::new();
    for name in ["first", "second", "third"] {
        let id = berth.try_create(&pod, shell(name, "exit 3")).await.unwrap();
        ended.push(pid_of(&mut berth, &id).await);
        berth.try_start_container(&id).await.unwrap();
        assert_eq!(berth.wait_exited(&id).await.exit_code, 3);
    }
    let running = berth.run(&pod, sleeper("running")).await;
    for round in 0..60_i64 {
        let pid = ended[usize::try_from(round % 3).unwrap()];
        // Either the exec or the process that starts it gets the pid: the daemon can use one or two pids before.
        set_last_pid(&berth, pid - 1 - round / 3 % 3);
        let exec = berth.exec(&running, &["sh", "-c", "exit 7"], 0);
        assert_eq!(answered("ExecSync", exec).await.unwrap().exit_code, 7, "round {round}");
    }
    // A container with the pid of an exited container exits normally, too.
    for round in 0..30_i64 {
        let pid = ended[usize::try_from(round % 3).unwrap()];
        set_last_pid(&berth, pid - 1 - round / 3 % 3);
        let id = berth.try_create(&pod, shell(&format!("again-{round}"), "exit 5")).await.unwrap();
        ended[usize::try_from(round % 3).unwrap()] = pid_of(&mut berth, &id).await;
        answered("StartContainer", berth.try_start_container(&id)).await.unwrap();
        assert_eq!(berth.wait_exited(&id).await.exit_code, 5, "round {round}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
    berth.kill();
}
