//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures a container runtime by its CRI socket. Needs root: it reads other processes' memory figures and the log files.
#[derive(Debug, Parser)]
#[command(name = "berth-bench", version)]
pub(crate) struct Options {
    /// The runtime's socket.
    #[arg(long, default_value = "/run/berth/berth.sock")]
    pub(crate) socket: PathBuf,

    /// An image with `sleep`, `true` and `cat` in its PATH; pulled if it is not there.
    #[arg(long, default_value = "registry.k8s.io/e2e-test-images/busybox:1.29-2")]
    pub(crate) image: String,

    /// How many pods each sequence of calls is repeated with.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,

    /// How many pods there are at most while the lists are measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pods: u32,

    /// How many pods are started at a time where they are started in parallel.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) parallel: u16,

    /// How much a container writes to its log, in 100-byte lines.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) log_mb: u32,

    /// An image to pull and remove again; may be given several times.
    #[arg(long = "pull", value_name = "REFERENCE")]
    pub(crate) pulls: Vec<String>,

    /// An image to pull at the same time as all others that this names.
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) together: Vec<String>,

    /// How often each of these is pulled.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) pull_count: u32,

    /// The program of tests/stand-ins/streamclient.sh, for sessions as kubectl has them.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) stream_client: Option<PathBuf>,

    /// The folder of the network's addresses, in the form of the CNI plugin host-local.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) addresses: Option<PathBuf>,

    /// Beside how many others pods are attached where the network is crowded.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    pub(crate) crowd: u32,

    /// What to measure; everything by default.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<Part>,

    /// The daemon's process, where it is not the one that listens on the socket (socket activation).
    #[arg(long)]
    pub(crate) daemon_pid: Option<u32>,

    /// Where logs are written; a folder of the run's own is made in it.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) folder: PathBuf,

    /// After how many seconds the run ends with what it has.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) max_seconds: u64,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Each call of a pod's life, with the pod network.
    Lifecycle,
    /// The same with the host's network.
    Hostnet,
    /// The same with a seccomp profile, and with users of the pod's own.
    Isolation,
    /// ExecSync in one container, again and again.
    Exec,
    /// Pods a second, several at a time.
    Parallel,
    /// Memory of the daemon, and of what runs beside a pod's containers.
    Memory,
    /// Lists and status with many pods.
    List,
    /// A container that writes as fast as it can.
    Log,
    /// Sessions as kubectl has them.
    Stream,
    /// Images from a registry.
    Pull,
    /// Pods with ports of the host, eight at a time.
    Ports,
    /// How soon an address is reached that was another pod's before.
    Returns,
    /// Pods beside thousands of others.
    Crowd,
}

impl Options {
    /// Whether to measure it. What `--only` does not name is left out; pulls need references, sessions a client, and what is
    /// about addresses their folder.
    pub(crate) fn wants(&self, part: Part) -> bool {
        (self.only.is_empty() || self.only.contains(&part))
            && (part != Part::Pull || !self.pulls.is_empty() || !self.together.is_empty())
            && (part != Part::Stream || self.stream_client.is_some())
            && (!matches!(part, Part::Returns | Part::Crowd) || self.addresses.is_some())
    }

    pub(crate) fn max_time(&self) -> Duration {
        Duration::from_secs(self.max_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_measured() {
        let all = Options::parse_from(["berth-bench", "--pull", "a"]);
        assert!(all.wants(Part::Exec) && all.wants(Part::Pull));
        let some = Options::parse_from(["berth-bench", "--only", "exec,log,pull"]);
        assert!(some.wants(Part::Exec) && some.wants(Part::Log));
        assert!(!some.wants(Part::Lifecycle) && !some.wants(Part::Pull), "pulls need a reference");
        assert!(Options::try_parse_from(["berth-bench", "--count", "0"]).is_err());
        assert!(Options::try_parse_from(["berth-bench", "--only", "nothing"]).is_err());
    }
}
