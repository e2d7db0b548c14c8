//! RuntimeClass handlers that are OCI runtimes: runc and crun of this machine. Runs as root.
//!
//! * [`lifecycle`]: creation, exit, logs, stop, failures; [`sessions`]: execs, attach, terminals
//! * [`survival`]: restarts of the daemon, dead keepers, runtimes that hang
//! * [`settings`]: the configuration, features, annotations, limits
//! * this file: a daemon with these handlers

mod lifecycle;
mod sessions;
mod settings;
mod survival;

use std::path::{Path, PathBuf};

use berth_proto::v1::*;

use crate::support::{Berth, Setup};

/// The handlers of these tests, by their programs in Debian's packages of the same names.
const RUNTIMES: [(&str, &str); 2] = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")];

/// Starts a program in a mount namespace without the cgroup v2 of a hybrid host, on which crun 1.8 does not run.
const WITHOUT_HYBRID: [&str; 9] = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    "mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified; exec \"$@\"",
    "sh",
    "env",
];

/// Returns the configuration of all handlers.
fn handlers() -> String {
    let table = |(name, path): (&str, &str)| format!("[handlers.{name}]\npath = \"{path}\"\n");
    RUNTIMES.into_iter().map(table).collect()
}

/// Starts a daemon with the handlers and an image.
async fn start() -> Berth {
    for (_, program) in RUNTIMES {
        assert!(Path::new(program).exists(), "{program} is missing: apt-get install runc crun");
    }
    start_with(&handlers()).await
}

async fn start_with(more: &str) -> Berth {
    Berth::start_as(Setup { more, under: &WITHOUT_HYBRID, ..Setup::default() }).await
}

/// Runs a pod with a handler.
async fn run_pod(berth: &mut Berth, name: &str, handler: &str) -> String {
    let config = berth.pod_config(name);
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
    berth.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
}

/// Returns the state folder of a container of a handler.
fn state(berth: &Berth, handler: &str, container: &str) -> PathBuf {
    berth.path("run/handlers").join(handler).join(container)
}
