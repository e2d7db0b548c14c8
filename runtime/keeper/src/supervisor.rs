//! Sends the descriptor of a seccomp filter to the supervisor of its calls (OCI runtime spec, "Container Process
//! State").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_runtime::plan::SeccompListener;
use berth_runtime::sys::{self, process};
use berth_runtime::wire::{Failure, InitFailure, Step};

use crate::container::State;
use crate::keeper::Keeper;

/// The version of the OCI runtime spec that defines this message.
const OCI_VERSION: &str = "1.2.0";

impl Keeper {
    /// Sends the descriptor of the filter that a container's first process has loaded.
    pub(crate) fn supervise_container(&mut self, id: &str, descriptor: &OwnedFd) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let pid = container.child.pid;
        let filtered = FilteredProcess { container: id, bundle: &container.folder, init: pid, pid };
        let Some(listener) = &container.supervisor else { return };
        let Err(failure) = hand_over(listener, &filtered, descriptor) else { return };
        if let State::Starting(origin) = container.state {
            container.state = State::Failed(Some(failure.clone()));
            process::kill(container.child.pidfd.as_fd());
            self.answer(origin, Err(Failure::Init(failure)), Vec::new());
        }
    }

    /// Sends the descriptor of the filter that an exec has loaded.
    pub(crate) fn supervise_exec(&mut self, id: &str, descriptor: &OwnedFd) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let (Some(listener), Some(container)) = (&exec.supervisor, self.containers.get(&exec.container))
        else {
            return;
        };
        let filtered = FilteredProcess {
            container: &exec.container,
            bundle: &container.folder,
            init: container.child.pid,
            pid: exec.child.pid,
        };
        let Err(failure) = hand_over(listener, &filtered, descriptor) else { return };
        process::kill(exec.child.pidfd.as_fd());
        if let Some(origin) = exec.starting.take() {
            self.answer(origin, Err(Failure::Init(failure)), Vec::new());
        }
    }
}

/// The process with the filter.
#[derive(Debug)]
pub(crate) struct FilteredProcess<'a> {
    /// The id of its container.
    pub(crate) container: &'a str,
    /// The container's folder.
    pub(crate) bundle: &'a str,
    /// The container's first process.
    pub(crate) init: i32,
    /// The process itself.
    pub(crate) pid: i32,
}

/// Connects to the supervisor and sends it the descriptor.
///
/// # Errors
/// The supervisor cannot be reached. The process must not run then.
pub(crate) fn hand_over(
    listener: &SeccompListener,
    filtered: &FilteredProcess<'_>,
    descriptor: &OwnedFd,
) -> Result<(), InitFailure> {
    let text = state(listener, filtered).to_string();
    let send = || {
        let socket = sys::socket::connect_stream(Path::new(&listener.path))?;
        sys::socket::send(socket.as_fd(), text.as_bytes(), &[descriptor.as_fd()])
    };
    send().map_err(|error: sys::Error| InitFailure {
        step: Step::Seccomp,
        errno: error.raw(),
        index: None,
        detail: format!("{} {}", error.call, listener.path),
    })
}

fn state(listener: &SeccompListener, filtered: &FilteredProcess<'_>) -> serde_json::Value {
    let status = if filtered.pid == filtered.init { "creating" } else { "running" };
    serde_json::json!({
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": filtered.pid,
        "metadata": listener.metadata,
        "state": {
            "ociVersion": OCI_VERSION,
            "id": filtered.container,
            "status": status,
            "pid": filtered.init,
            "bundle": filtered.bundle,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listener(path: &Path) -> SeccompListener {
        SeccompListener { path: path.display().to_string(), metadata: "for the agent".to_owned() }
    }

    const FILTERED: FilteredProcess<'static> =
        FilteredProcess { container: "c1", bundle: "/b", init: 7, pid: 9 };

    #[test]
    fn a_supervisor_receives_the_state_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let agent = UnixListener::bind(&path).unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        hand_over(&listener(&path), &FILTERED, &null).unwrap();
        let mut text = String::new();
        agent.accept().unwrap().0.read_to_string(&mut text).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&state["pid"], &state["state"]["pid"]), (&9.into(), &7.into()));
        assert_eq!((&state["fds"][0], &state["metadata"]), (&"seccompFd".into(), &"for the agent".into()));
    }

    #[test]
    fn the_error_names_the_path_of_a_missing_supervisor() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let failure =
            hand_over(&listener(Path::new("/nonexistent/agent.sock")), &FILTERED, &null).unwrap_err();
        assert!(failure.detail.contains("/nonexistent/agent.sock"), "{failure}");
    }
}
