//! The command line: the commands and flags of runc.

use std::path::PathBuf;

use berth_runtime::sys::process::close_on_exec_from;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Result};

/// The first descriptor after the standard streams.
const FIRST_DESCRIPTOR: u32 = 3;

/// The version of the OCI runtime specification. podman reads it from the output of `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: ", "1.2.0");

/// An OCI runtime.
#[derive(Debug, Parser)]
#[command(name = "berth-oci", version = VERSION, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The flags before the command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Keep the state of containers in this folder
    #[arg(long, value_name = "FOLDER", default_value = "/run/berth-oci")]
    pub(crate) root: PathBuf,
    /// Add errors to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Set the format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log more: accepted, and without effect
    #[arg(long)]
    pub(crate) debug: bool,
    /// Let systemd create cgroups: not supported
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Run without root: not supported
    #[arg(long, value_name = "BOOLEAN")]
    pub(crate) rootless: Option<String>,
}

impl Global {
    /// Rejects flags that are not supported, and users other than root.
    pub(crate) fn check(&self) -> Result<()> {
        if self.systemd_cgroup {
            return Err(Error::Unsupported("--systemd-cgroup".to_owned()));
        }
        if self.rootless.as_deref() == Some("true") || !rustix::process::geteuid().is_root() {
            return Err(Error::Unsupported("a user other than root".to_owned()));
        }
        Ok(())
    }
}

/// The format of the log file.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container, without running its command
    Create(Create),
    /// Run the command of a created container
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a container that has ended
    Delete(Delete),
    /// Run a command in a running container
    Exec(Box<Exec>),
    /// Create and start a container
    Run(Run),
    /// List containers
    List(List),
    /// List the processes in a container
    Ps(Ps),
    /// Freeze the processes in a container
    Pause(Id),
    /// Continue the processes in a container
    Resume(Id),
    /// Change the limits of a container
    Update(Update),
    /// Print the resource usage of a container, again and again
    Events(Events),
    /// Print the features of this runtime
    Features,
    /// Write a spec to config.json
    Spec(Spec),
}

impl Command {
    /// Sets the close-on-exec flag of all descriptors of the caller, so that hooks get none. The first process clears it for
    /// those that the container gets.
    pub(crate) fn protect_descriptors(&self) -> Result<()> {
        let handover = match self {
            Self::Create(create) => Some(&create.handover),
            Self::Run(run) => Some(&run.create.handover),
            Self::Exec(exec) => Some(&exec.handover),
            _ => None,
        };
        handover.map_or(Ok(()), Handover::check_descriptors)?;
        Ok(close_on_exec_from(FIRST_DESCRIPTOR)?)
    }
}

/// The id of a container.
#[derive(Debug, Args)]
pub(crate) struct Id {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// The terminal and the pid that the caller receives of a new process, and the descriptors that it passes to it.
#[derive(Debug, Args)]
pub(crate) struct Handover {
    /// Send the terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Write the pid of the process to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Pass this number of descriptors after the standard streams
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

impl Handover {
    /// Checks that the descriptors are open. In place of one that is not, the container would get one of this process.
    fn check_descriptors(&self) -> Result<()> {
        let is_open = |number: u32| {
            let path = format!("/proc/self/fd/{number}");
            std::fs::symlink_metadata(path).is_ok()
        };
        let end = FIRST_DESCRIPTOR.saturating_add(self.preserve_fds);
        match (FIRST_DESCRIPTOR..end).find(|number| !is_open(*number)) {
            Some(number) => {
                let why = format!("descriptor {number} is not open");
                Err(Error::Invalid { field: "--preserve-fds", why })
            }
            None => Ok(()),
        }
    }
}

/// The arguments of `create`; `run` has them as well.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Read the bundle in this folder
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Do not call pivot_root: not supported
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring: not supported
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return when the command runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container after its end
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// The signal's name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// Send the signal to all processes in the container
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Kill a running container first; succeed if there is none
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Read the process from this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    pub(crate) process: Option<PathBuf>,
    /// Run in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set an environment variable: NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,
    /// Create a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Run as this user: UID or UID:GID
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Add a supplementary group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Add a capability
    #[arg(short, long = "cap", value_name = "CAPABILITY")]
    pub(crate) capabilities: Vec<String>,
    /// Forbid to gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Return when the command runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) handover: Handover,
    /// Run in an existing cgroup below the container's; CONTROLLER:CGROUP selects one hierarchy of version 1
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup: Vec<String>,
    /// Allow an exec in a paused container, where it waits
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// The command
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Set the format
    #[arg(short, long, default_value = "table")]
    pub(crate) format: Format,
    /// Print only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Set the format
    #[arg(short, long, default_value = "table")]
    pub(crate) format: Format,
    /// Options of ps(1)
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Read the limits from this file; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Memory limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Soft memory limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Limit of memory and swap in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Relative share of CPU time
    #[arg(long, visible_alias = "cpu-share", value_name = "SHARES")]
    pub(crate) cpu_shares: Option<u64>,
    /// CPU time in a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Length of a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,
    /// CPUs
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Number of processes
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Print the usage once
    #[arg(long)]
    pub(crate) stats: bool,
    /// Time between two lines, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) interval: String,
}

#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Write to this folder
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    pub(crate) bundle: PathBuf,
}
