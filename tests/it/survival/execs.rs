//! Execs over a restart of the daemon.

use std::collections::BTreeSet;

use crate::support::leftovers::cgroup_folders;
use crate::support::{Berth, sleeper};
use crate::survival::{answered, until};

/// Returns the names of the cgroups of a container's execs.
fn exec_cgroups(cgroup: &str) -> BTreeSet<String> {
    let folders = cgroup_folders(cgroup);
    let names = folders.iter().filter_map(|folder| folder.file_name()?.to_str().map(str::to_owned));
    names.filter(|name| name.starts_with("exec-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn background_processes_of_a_finished_exec_survive_the_daemon() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let cgroup = berth.info(&id).await["cgroup"].as_str().unwrap().to_owned();
    for script in ["setsid sleep 4711 > /dev/null 2>&1 &", "sleep 4712 > /dev/null 2>&1 &"] {
        assert_eq!(berth.exec(&id, &["sh", "-c", script], 0).await.unwrap().exit_code, 0);
    }
    // The session of this exec ends with its daemon.
    let mut client = berth.runtime.clone();
    let request = berth_proto::v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "sleep 4713 & wait"].map(str::to_owned).to_vec(),
        timeout: 0,
    };
    let session = tokio::spawn(async move { client.exec_sync(request).await });
    assert_eq!(
        berth.sh(&id, "until ps | grep -q '[s]leep 4713'; do sleep 0.05; done; echo runs").await,
        "runs"
    );
    let before = exec_cgroups(&cgroup);
    assert!(before.len() >= 3, "{before:?}");
    berth.restart().await;
    assert!(answered("the session", session).await.unwrap().is_err());
    assert_eq!(
        berth.sh(&id, "while ps | grep -q '[s]leep 4713'; do sleep 0.05; done; echo gone").await,
        "gone"
    );
    let processes = berth.sh(&id, "ps").await;
    assert!(processes.contains("sleep 4711") && processes.contains("sleep 4712"), "{processes}");
    // The execs of the new daemon do not reuse ids of the previous one.
    for number in 0..8 {
        let script = format!("sleep {} > /dev/null 2>&1 &", 4720 + number);
        assert_eq!(berth.exec(&id, &["sh", "-c", &script], 0).await.unwrap().exit_code, 0);
    }
    let after = exec_cgroups(&cgroup);
    let new: BTreeSet<_> = after.difference(&before).collect();
    assert_eq!(new.len(), 8, "{before:?} {after:?}");
    assert!(after.intersection(&before).count() >= 2, "{before:?} {after:?}");
    // The processes in the old cgroups are gone, so the next execs remove the cgroups.
    assert_eq!(berth.sh(&id, "killall sleep; true").await, "");
    for _ in 0..8 {
        berth.sh(&id, "true").await;
    }
    until("cgroups of ended execs are left", || exec_cgroups(&cgroup).len() <= 1).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
