//! Access to the sockets and folders of the daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use berth_proto::v1::*;

use crate::attacks::lab::{Lab, SECRET};
use crate::support::{shell, sleeper, with_security};

fn in_hosts_network(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    config
}

/// A container in the host's network finds no abstract socket of the runtime.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_15257_there_are_no_abstract_sockets() {
    let mut lab = Lab::start().await;
    let config = in_hosts_network(lab.pod_config("pod"));
    let pod = lab.run_pod(config).await;
    let of_host = |config| {
        with_security(config, |security| {
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
        })
    };
    // With a second pod there are keepers with both kinds of network.
    let other = lab.pod("other").await;
    lab.run(&other, sleeper("c")).await;
    let script = "cat /proc/net/unix; readlink /proc/self/ns/net";
    let (_, output) = lab.run_to_end(&pod, of_host(shell("look", script))).await;
    let network = fs::read_link(format!("/proc/{}/ns/net", lab.host_process())).unwrap();
    assert!(
        output.contains(network.to_str().unwrap()),
        "the container must be in the host's network: {output}"
    );
    assert!(
        output.matches("/keeper.sock").count() >= 2,
        "the container must see the names of the keepers' sockets: {output}"
    );
    let abstract_ones: Vec<&str> = output.lines().filter(|line| line.contains(" @")).collect();
    assert!(abstract_ones.is_empty(), "{abstract_ones:?}");
    lab.finish().await;
}

/// Runs a script as an unprivileged user of the node and returns its output.
fn as_nobody(script: &str) -> String {
    let output =
        Command::new("/bin/busybox").args(["sh", "-c", script]).uid(65_534).gid(65_534).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Also CVE-2024-25621 (containerd) and CVE-2021-41091 (moby): users of the node can enter folders of the runtime.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_41103_users_cannot_enter_folders_of_the_runtime() {
    let mut lab = Lab::start().await;
    let pod = lab.pod("pod").await;
    let id =
        lab.run(&pod, shell("c", &format!("echo {SECRET} >/secret; chmod 644 /secret; sleep 1000"))).await;
    lab.sh(&id, "until [ -s /secret ]; do sleep 0.05; done").await;
    // The test folder is made accessible for everyone, as /var/lib and /run are on a node.
    let folder = lab.folder.path().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(
        as_nobody(&format!("ls {}", folder.display())).contains("root"),
        "the test folder must be accessible"
    );
    // Members of the socket's group must reach the socket: they can enter the state folder, but not list it.
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
    let output = as_nobody(&format!(
        "cat {upper}/*/secret {upper}/secret; find {} -name secret",
        folder.join("root").display()
    ));
    assert!(!output.contains(SECRET), "{output}");
    // The same holds for procfs: a keeper and the daemon belong to root.
    for pid in [lab.keeper(&pod), lab.pid().as_raw_nonzero().get()] {
        let output = as_nobody(&format!(
            "ls /proc/{pid}/fd; ls /proc/{pid}/root/; cat /proc/{pid}/environ /proc/{pid}/maps"
        ));
        assert_eq!(output, "", "{pid}");
    }
    let socket = folder.join("run/berth.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().mode() & 0o007,
        0,
        "the socket must not be accessible for other users"
    );
    lab.finish().await;
}
