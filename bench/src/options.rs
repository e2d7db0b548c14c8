//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measure a container runtime through its CRI socket. Needs root: it reads other processes' memory figures and the
/// log files.
#[derive(Debug, Parser)]
#[command(name = "berth-bench", version)]
pub(crate) struct Options {
    /// Connect to this socket of the runtime.
    #[arg(long, default_value = "/run/berth/berth.sock")]
    pub(crate) socket: PathBuf,

    /// Use this image, which needs `sleep`, `true` and `cat` in its PATH; it is pulled if it does not exist.
    #[arg(long, default_value = "registry.k8s.io/e2e-test-images/busybox:1.29-2")]
    pub(crate) image: String,

    /// Repeat each sequence of calls with this number of pods.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,

    /// Measure the lists with this number of pods.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pods: u32,

    /// Start this number of pods at a time in parallel measurements.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) parallel: u16,

    /// Write this number of megabytes to the log, in 100-byte lines.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) log_mb: u32,

    /// Pull and remove this image; may be given several times.
    #[arg(long = "pull", value_name = "REFERENCE")]
    pub(crate) pulls: Vec<String>,

    /// Pull this image at the same time as all others with this option.
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) together: Vec<String>,

    /// Pull each of these images this number of times.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) pull_count: u32,

    /// Run this program of tests/stand-ins/streamclient.sh for the streaming measurements.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) stream_client: Option<PathBuf>,

    /// Use this folder with the network's addresses, in the form of the CNI plugin host-local.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) addresses: Option<PathBuf>,

    /// Attach pods beside this number of others in the measurement of a crowded network.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    pub(crate) crowd: u32,

    /// Measure only these parts; everything by default.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<Part>,

    /// Set the daemon's pid, if it is not the process that listens on the socket (socket activation).
    #[arg(long)]
    pub(crate) daemon_pid: Option<u32>,

    /// Write logs to a new folder in this folder.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) folder: PathBuf,

    /// Stop the run after this number of seconds and report the results so far.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) max_seconds: u64,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A measurement that `--only` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Each call of a pod's life, with the pod network.
    Lifecycle,
    /// Each call of a pod's life, with the host's network.
    Hostnet,
    /// Each call of a pod's life, with a seccomp profile and with a user namespace.
    Isolation,
    /// ExecSync in one container, repeatedly.
    Exec,
    /// Pods per second, several at a time.
    Parallel,
    /// Memory of the daemon and of the processes beside a pod's containers.
    Memory,
    /// Lists and status with many pods.
    List,
    /// A container that writes as fast as it can.
    Log,
    /// Sessions like those of kubectl.
    Stream,
    /// Images from a registry.
    Pull,
    /// Pods with host ports, eight at a time.
    Ports,
    /// The time until a reused address is reachable.
    Returns,
    /// Pods beside thousands of others.
    Crowd,
}

impl Options {
    /// Returns whether a part is selected. `--only` excludes the other parts. Pulls need references, sessions a
    /// client, `returns` and `crowd` the option `--addresses`.
    pub(crate) fn selects(&self, part: Part) -> bool {
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
    fn only_selected_parts_are_measured() {
        let all = Options::parse_from(["berth-bench", "--pull", "a"]);
        assert!(all.selects(Part::Exec) && all.selects(Part::Pull));
        let some = Options::parse_from(["berth-bench", "--only", "exec,log,pull"]);
        assert!(some.selects(Part::Exec) && some.selects(Part::Log));
        assert!(!some.selects(Part::Lifecycle) && !some.selects(Part::Pull), "pulls need a reference");
        assert!(Options::try_parse_from(["berth-bench", "--count", "0"]).is_err());
        assert!(Options::try_parse_from(["berth-bench", "--only", "nothing"]).is_err());
    }
}
