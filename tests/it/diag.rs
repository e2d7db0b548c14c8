//! `berth diag` of containers that hang, and of their execs. Runs as root. The pages of other pods are tested with the other
//! commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use berth_proto::v1::{ExecSyncRequest, Mount};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::commands::{json, output, until};
use crate::support::{Berth, sleeper};

/// A mount whose filesystem is a program. It is unmounted when it is dropped.
struct FolderServer {
    program: Child,
    folder: PathBuf,
}

impl FolderServer {
    async fn start(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/folder_server.py");
        let program = Command::new("python3").arg(script).arg(&folder).spawn().unwrap();
        let server = Self { program, folder };
        until("the folder is not mounted", || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.contains(&format!(" {} fuse", server.folder.display()))
        })
        .await;
        server
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.program), signal).unwrap();
    }
}

impl Drop for FolderServer {
    fn drop(&mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
        let _unmounted_already = rustix::mount::unmount(&self.folder, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_does_not_answer_is_named() {
    let mut berth = Berth::start().await;
    let server = FolderServer::start(berth.path("share")).await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let mut main = sleeper("main");
    main.mounts = vec![Mount {
        host_path: server.folder.display().to_string(),
        container_path: "/data".to_owned(),
        ..Mount::default()
    }];
    let id = berth.run(&pod, main).await;
    assert!(!output(&berth, "diag", &["web/main"]).contains("BLOCKED"));

    server.signal(Signal::STOP);
    let (of_container, of_pod) = (output(&berth, "diag", &["web/main"]), output(&berth, "diag", &["web"]));
    server.signal(Signal::CONT);
    for page in [of_container, of_pod] {
        let expected = "the mount /data (fuse of folder-server) of main does not answer";
        assert!(page.contains(expected), "{page}");
    }
    assert!(!output(&berth, "diag", &[&id]).contains("BLOCKED"));
    berth.remove_container(&id).await;
    drop(server);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The processes of execs on the page of a container.
fn rows_of_execs(berth: &Berth, id: &str) -> Vec<Value> {
    let page = json(berth, "diag", &[id]);
    let rows = page["processes"].as_array().unwrap().iter();
    rows.filter(|row| row["exec"].as_str().is_some_and(|exec| !exec.is_empty())).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_an_exec_are_listed_with_its_id() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("web")).await;
    let id = berth.run(&pod, sleeper("main")).await;
    let mut client = berth.runtime.clone();
    let cmd = ["sh", "-c", "sleep 777; true"].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
    let exec = tokio::spawn(async move { client.exec_sync(request).await });
    until("the exec's processes are not listed", || rows_of_execs(&berth, &id).len() == 2).await;
    let rows = rows_of_execs(&berth, &id);
    let commands: Vec<_> = rows.iter().map(|row| row["command"].as_str().unwrap()).collect();
    assert!(commands.contains(&"sleep 777"), "{commands:?}");
    assert!(rows.iter().all(|row| row["of"] == "main"));
    berth.stop_container(&id, 0).await;
    let _ended = exec.await.unwrap();
    assert_eq!(rows_of_execs(&berth, &id).len(), 0, "the exec has ended");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
