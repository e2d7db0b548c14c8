//! The command line of `criu dump`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The name under which runc and CRIU's other users record a network namespace that exists before a restore.
pub(super) const EXTERNAL_NETWORK: &str = "extRootNetNS";
/// The name of a PID namespace that exists before a restore.
pub(super) const EXTERNAL_PIDS: &str = "extRootPidNS";
/// The largest file that is open and has no name any more, such as a deleted log. The default of 1 MiB is too small for
/// many programs.
const LARGEST_DELETED_FILE: &str = "1G";

/// The facts about a container that a dump needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpFacts {
    /// The first process of the container.
    pub pid: i32,
    /// The folder of its cgroup by which it is frozen.
    pub freezer: PathBuf,
    /// The inode of its network namespace, unless that is the host's.
    pub network: Option<u64>,
    /// The inode of its PID namespace, if the namespace is the pod's.
    pub shared_pids: Option<u64>,
    /// The mount points of external mounts.
    pub external_mounts: Vec<String>,
    /// Whether it has a terminal, whose other end is held by the keeper.
    pub terminal: bool,
}

/// Returns the arguments of `criu dump`. Images are written to `images`, log and statistics to `work`.
#[must_use]
pub fn dump(facts: &DumpFacts, images: &Path, work: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["dump".into(), "--tree".into(), facts.pid.to_string().into()];
    let mut path = |option: &str, path: &Path| arguments.extend([option.into(), path.into()]);
    path("--images-dir", images);
    path("--work-dir", work);
    path("--freeze-cgroup", &facts.freezer);
    let fixed = [
        "--log-file",
        super::work::DUMP_LOG,
        "-v4",
        "--leave-running",
        // Connections are dumped with their state; a restore closes those that have lost their peer.
        "--tcp-established",
        "--file-locks",
        "--ghost-limit",
        LARGEST_DELETED_FILE,
        "--manage-cgroups=soft",
        // The other method leaves chains of iptables in the pod's network namespace.
        "--network-lock",
        "nftables",
    ];
    arguments.extend(fixed.map(OsString::from));
    let mut external = |what: String| arguments.extend(["--external".into(), what.into()]);
    if let Some(inode) = facts.network {
        external(format!("net[{inode}]:{EXTERNAL_NETWORK}"));
    }
    if let Some(inode) = facts.shared_pids {
        external(format!("pid[{inode}]:{EXTERNAL_PIDS}"));
    }
    for point in &facts.external_mounts {
        external(format!("mnt[{point}]:{point}"));
    }
    if facts.terminal {
        arguments.push("--shell-job".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_and_mounts_of_the_pod_are_external() {
        let facts = DumpFacts {
            pid: 7,
            freezer: "/sys/fs/cgroup/freezer/x".into(),
            network: Some(11),
            shared_pids: Some(12),
            external_mounts: vec!["/data a".to_owned()],
            terminal: true,
        };
        let text: Vec<String> = dump(&facts, Path::new("/w/checkpoint"), Path::new("/w"))
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect();
        let text = text.join("|");
        for part in [
            "dump|--tree|7|--images-dir|/w/checkpoint|--work-dir|/w|",
            "|--external|net[11]:extRootNetNS|",
            "|--external|pid[12]:extRootPidNS|",
            "|--external|mnt[/data a]:/data a|",
            "|--leave-running|",
            "|--shell-job",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = format!("{:?}", dump(&DumpFacts::default(), Path::new("/w"), Path::new("/w")));
        assert!(!text.contains("--external") && !text.contains("shell-job"), "{text}");
    }
}
