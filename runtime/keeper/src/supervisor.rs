//! Sends the descriptor of a seccomp filter to the supervisor of its calls (OCI runtime spec, "Container Process
//! State").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use berth_runtime::plan::{ProcessPlan, SeccompListener};
use berth_runtime::sys;
use berth_runtime::wire::{InitFailure, Step};

/// The version of the OCI runtime spec that defines this message.
const OCI_VERSION: &str = "1.2.0";

/// The supervisor of the system calls of a process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    listener: SeccompListener,
    /// The id of the process's container.
    container: Rc<str>,
    /// The container's folder.
    bundle: String,
}

impl Supervisor {
    /// The supervisor of a process, if its filter has one.
    pub(crate) fn of(process: &ProcessPlan, container: &Rc<str>, bundle: &str) -> Option<Self> {
        let listener = process.seccomp.as_ref().and_then(|seccomp| seccomp.listener.clone())?;
        Some(Self { listener, container: container.clone(), bundle: bundle.to_owned() })
    }

    /// Connects to the supervisor and sends it the descriptor of a filter. `init` is the container's first process,
    /// `pid` the process with the filter.
    ///
    /// # Errors
    /// The supervisor cannot be reached. The process must not run then.
    pub(crate) fn hand_over(&self, init: i32, pid: i32, descriptor: &OwnedFd) -> Result<(), InitFailure> {
        let text = self.state(init, pid).to_string();
        let send = || {
            let socket = sys::socket::connect_stream(Path::new(&self.listener.path))?;
            sys::socket::send(socket.as_fd(), text.as_bytes(), &[descriptor.as_fd()])
        };
        send().map_err(|error: sys::Error| InitFailure {
            step: Step::Seccomp,
            errno: error.raw(),
            index: None,
            detail: format!("{} {}", error.call, self.listener.path),
        })
    }

    fn state(&self, init: i32, pid: i32) -> serde_json::Value {
        let status = if pid == init { "creating" } else { "running" };
        serde_json::json!({
            "ociVersion": OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.listener.metadata,
            "state": {
                "ociVersion": OCI_VERSION,
                "id": &*self.container,
                "status": status,
                "pid": init,
                "bundle": self.bundle,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn supervisor(path: &Path) -> Supervisor {
        let listener =
            SeccompListener { path: path.display().to_string(), metadata: "for the agent".to_owned() };
        Supervisor { listener, container: "c1".into(), bundle: "/b".to_owned() }
    }

    fn null() -> OwnedFd {
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap())
    }

    #[test]
    fn a_supervisor_receives_the_state_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let agent = UnixListener::bind(&path).unwrap();
        supervisor(&path).hand_over(7, 9, &null()).unwrap();
        let mut text = String::new();
        agent.accept().unwrap().0.read_to_string(&mut text).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&state["pid"], &state["state"]["pid"]), (&9.into(), &7.into()));
        assert_eq!((&state["fds"][0], &state["metadata"]), (&"seccompFd".into(), &"for the agent".into()));
    }

    #[test]
    fn the_error_names_the_path_of_a_missing_supervisor() {
        let failure = supervisor(Path::new("/nonexistent/agent.sock")).hand_over(7, 9, &null()).unwrap_err();
        assert!(failure.detail.contains("/nonexistent/agent.sock"), "{failure}");
    }
}
