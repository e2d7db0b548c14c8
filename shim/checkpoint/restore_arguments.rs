//! The command line of `criu restore`.

use std::ffi::OsString;
use std::path::Path;

use super::arguments::{EXTERNAL_NETWORK, EXTERNAL_PIDS};

/// CRIU's log of a restore.
pub const RESTORE_LOG: &str = "restore.log";
/// The program that checks the restored processes before they run.
pub const SCRIPT: &str = "confine";

/// The facts about a new container that a restore needs. Numbers are descriptors that CRIU inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreFacts {
    /// The network namespace of the pod.
    pub network: i32,
    /// The PID namespace of the pod, if the container shares it.
    pub shared_pids: Option<i32>,
    /// The standard streams that are pipes: their names at the time of the dump, and their new ends.
    pub streams: Vec<(String, i32)>,
    /// The mounts of the pod or the host: mount points, and what is mounted there.
    pub external_mounts: Vec<(String, String)>,
    /// The profile of the Linux security module.
    pub security: Option<String>,
}

/// Returns the arguments of `criu restore`.
#[must_use]
pub fn restore(facts: &RestoreFacts, root: &Path, images: &Path, work: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["restore".into()];
    let mut path = |option: &str, path: &Path| arguments.extend([option.into(), path.into()]);
    path("--images-dir", images);
    path("--work-dir", work);
    path("--root", root);
    path("--action-script", &work.join(SCRIPT));
    let fixed = [
        // The host's configuration is for its own dumps.
        "--log-file",
        RESTORE_LOG,
        "-v4",
        "--restore-detached",
        // The container has a new cgroup with its own limits, in which CRIU runs, too.
        "--manage-cgroups=ignore",
        // The address of the pod is new: connections to the former one cannot go on.
        "--tcp-close",
        "--file-locks",
        // The session and the process group of the first process may belong to processes outside.
        "--shell-job",
    ];
    arguments.extend(fixed.map(OsString::from));
    let mut inherit = |fd: i32, name: &str| {
        arguments.extend(["--inherit-fd".into(), format!("fd[{fd}]:{name}").into()]);
    };
    inherit(facts.network, EXTERNAL_NETWORK);
    if let Some(pids) = facts.shared_pids {
        inherit(pids, EXTERNAL_PIDS);
    }
    for (name, fd) in &facts.streams {
        inherit(*fd, name);
    }
    for (point, source) in &facts.external_mounts {
        arguments.extend(["--external".into(), format!("mnt[{point}]:{source}").into()]);
    }
    if let Some(security) = &facts.security {
        arguments.extend(["--lsm-profile".into(), security.into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_mounts_replace_those_of_the_dump() {
        let facts = RestoreFacts {
            network: 9,
            shared_pids: Some(8),
            streams: vec![("pipe:[11]".to_owned(), 5)],
            external_mounts: vec![("/data a".to_owned(), "/tmp/mounts/3".to_owned())],
            security: Some("apparmor:x".to_owned()),
        };
        let text: Vec<String> = restore(&facts, Path::new("/r"), Path::new("/w/checkpoint"), Path::new("/w"))
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect();
        let text = text.join("|");
        for part in [
            "restore|--images-dir|/w/checkpoint|--work-dir|/w|--root|/r|--action-script|/w/confine|",
            "|--inherit-fd|fd[9]:extRootNetNS|",
            "|--inherit-fd|fd[8]:extRootPidNS|",
            "|--inherit-fd|fd[5]:pipe:[11]|",
            "|--external|mnt[/data a]:/tmp/mounts/3|",
            "|--lsm-profile|apparmor:x",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
