//! Sockets and folders of the daemon: who can reach them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use berth_proto::v1::*;

use crate::lab::{Lab, SECRET};
use crate::support::{secured, shell, sleeper};

fn in_hosts_network(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    config
}

/// A container in the host's network finds no socket of the runtime there.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_15257_abstract_sockets() {
    let mut lab = Lab::start().await;
    let config = in_hosts_network(lab.pod_config("pod"));
    let pod = lab.run_pod(config).await;
    let of_host = |config| {
        secured(config, |security| {
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
        })
    };
    // A pod beside it, so that there are keepers of both kinds, and sessions.
    let other = lab.pod("other").await;
    lab.run(&other, sleeper("c")).await;
    let script = "cat /proc/net/unix; readlink /proc/self/ns/net";
    let (_, said) = lab.run_to_end(&pod, of_host(shell("look", script))).await;
    let network = fs::read_link(format!("/proc/{}/ns/net", lab.host_process())).unwrap();
    assert!(said.contains(network.to_str().unwrap()), "it is in the host's network: {said}");
    assert!(said.matches("/keeper.sock").count() >= 2, "and sees the names of the keepers' sockets: {said}");
    let abstract_ones: Vec<&str> = said.lines().filter(|line| line.contains(" @")).collect();
    assert!(abstract_ones.is_empty(), "{abstract_ones:?}");
    lab.finish().await;
}

/// What an unprivileged user of the node can read of a script's output.
fn as_nobody(script: &str) -> String {
    let output =
        Command::new("/bin/busybox").args(["sh", "-c", script]).uid(65_534).gid(65_534).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Also CVE-2024-25621 (containerd) and CVE-2021-41091 (moby): folders of the runtime that users of the node can enter.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_41103_folders_of_the_runtime_are_entered() {
    let mut lab = Lab::start().await;
    let pod = lab.pod("pod").await;
    let id =
        lab.run(&pod, shell("c", &format!("echo {SECRET} >/secret; chmod 644 /secret; sleep 1000"))).await;
    lab.sh(&id, "until [ -s /secret ]; do sleep 0.05; done").await;
    // The folder of the test is its own; on a node it is /var/lib and /run, which everybody can enter.
    let folder = lab.folder.path().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(as_nobody(&format!("ls {}", folder.display())).contains("root"), "it can be entered");
    // Who is in the group of the socket has to find it: the folder of state can be entered, and nothing in it.
    assert_eq!(as_nobody(&format!("ls {} && echo listed", folder.join("run").display())), "");
    let pod_state = format!("run/pods/{pod}");
    for name in ["root", "run/pods", &pod_state, "root/image", "root/pods"] {
        let path = folder.join(name);
        assert!(path.exists(), "{name}");
        let script = format!(
            "ls {0} && echo listed; cd {0} && echo entered; cat {0}/hosts {0}/pod.json",
            path.display()
        );
        assert_eq!(as_nobody(&script), "", "{name}");
    }
    assert_eq!(fs::metadata(folder.join("root")).unwrap().mode() & 0o077, 0);
    let upper = format!("{}/root/image/containers/{id}", folder.display());
    assert!(Path::new(&upper).exists(), "{upper}");
    let said = as_nobody(&format!(
        "cat {upper}/*/secret {upper}/secret; find {} -name secret",
        folder.join("root").display()
    ));
    assert!(!said.contains(SECRET), "{said}");
    // By procfs as well: a keeper and the daemon are root's.
    for pid in [lab.keeper(&pod), lab.pid().as_raw_nonzero().get()] {
        let said = as_nobody(&format!(
            "ls /proc/{pid}/fd; ls /proc/{pid}/root/; cat /proc/{pid}/environ /proc/{pid}/maps"
        ));
        assert_eq!(said, "", "{pid}");
    }
    let socket = folder.join("run/berth.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o007, 0, "the socket");
    lab.finish().await;
}
