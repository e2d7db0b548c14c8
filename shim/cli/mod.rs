//! The command line: one file per command. Output for programs goes to stdout, everything else to stderr.
//!
//! * [`bundle`]: an archive for a defect report, without secrets
//! * [`check`]: `berth check`
//! * [`checkpoint_dump`]: the helper processes of a checkpoint
//! * [`checkpoint_restore`]: the helper processes of a restore
//! * [`cni`]: runs one of the built-in CNI plugins for another runtime
//! * [`config`]: `berth config`
//! * [`diag`]: one page about a pod or a container
//! * [`events`]: shows what happens on the node, as it happens, and recent events
//! * [`mod@format`]: times, sizes and tables in the output for people
//! * [`fsck`]: asks the daemon to check its host, or checks it by itself if no daemon runs
//! * [`generate`]: `berth man` and `berth completions`
//! * [`image`]: manages the images of the running daemon over its socket
//! * [`load`]: sends the path of a file to the daemon, which reads it into its store
//! * [`log_level`]: shows or changes the log level of the running daemon
//! * [`logs`]: prints the log of a container, from the file that the keeper writes
//! * [`node`]: the client side of commands that show pods and containers
//! * [`oci`]: the command line of an OCI runtime
//! * [`ps`]: lists pods and containers
//! * [`serve`]: runs the daemon
//! * [`top`]: the usage of processors and memory by pods and containers, as a live table
//! * [`version`]: `berth version`

pub mod bundle;
pub mod check;
mod checkpoint_dump;
mod checkpoint_restore;
pub mod cni;
pub mod config;
pub mod diag;
pub mod events;
mod format;
pub mod fsck;
pub mod generate;
pub mod image;
pub mod load;
pub mod log_level;
pub mod logs;
mod node;
pub mod oci;
pub mod ps;
pub mod serve;
pub mod top;
pub mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Flags, Layer, load as load_config};

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "berth", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::ServeArgs),
    /// Check this host, and show which features are missing
    Check(check::CheckArgs),
    /// List pods and containers
    Ps(ps::PsArgs),
    /// Show the usage of processors and memory by pods and containers
    Top(top::TopArgs),
    /// Print the log of a container
    Logs(logs::LogsArgs),
    /// Show starts, exits, OOM kills, image pulls and network errors, as they happen
    Events(events::EventsArgs),
    /// Show all about a pod or a container on one page: state, operation, processes, network, what blocks
    Diag(diag::DiagArgs),
    /// Write an archive for a defect report, without secrets
    Bundle(bundle::BundleArgs),
    /// Load images from a file: an OCI layout, an OCI archive or a docker-archive
    Load(load::LoadArgs),
    /// List, pull, load, save, verify and remove images
    Image(image::ImageArgs),
    /// Run a demo pod on this machine, show each step, and remove everything afterwards
    Demo(crate::demo::DemoArgs),
    /// Run a built-in CNI plugin for another runtime
    Cni(cni::CniArgs),
    /// Find leftovers of pods, containers and images on this host; remove them with --repair
    Fsck(fsck::FsckArgs),
    /// Run containers of bundles, as an OCI runtime for containerd, podman and CRI-O
    #[command(disable_help_flag = true)]
    Oci(oci::OciArgs),
    /// Show or check the configuration
    Config(config::ConfigArgs),
    /// Show or change the log level of the running daemon
    LogLevel(log_level::LogLevelArgs),
    /// Show the version
    Version,
    /// Dump a container, for the daemon
    #[command(hide = true)]
    CheckpointDump,
    /// Restore what the containers of a pod share, for the daemon
    #[command(hide = true)]
    CheckpointShare,
    /// Set the last pid of a PID namespace, for a helper
    #[command(hide = true)]
    CheckpointLastPid(checkpoint_dump::LastPidArgs),
    /// Restore a container, for the keeper
    #[command(hide = true)]
    CheckpointRestore,
    /// Check restored processes, for CRIU
    #[command(hide = true)]
    CheckpointConfine(checkpoint_restore::ConfineArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(generate::CompletionsArgs),
}

/// The source of the configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigSource {
    /// Read this configuration file, and drop-ins from conf.d beside it [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

impl ConfigSource {
    fn load(self) -> Result<Config, ConfigError> {
        let (file, layer) = self.parts();
        load_config(file.as_deref(), layer)
    }

    /// Returns the main file, if one is named, and the settings of the flags.
    fn parts(self) -> (Option<PathBuf>, Layer) {
        (self.config, self.flags.into())
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(&args),
        Command::Ps(args) => ps::run(args),
        Command::Top(args) => top::run(args),
        Command::Logs(args) => logs::run(args),
        Command::Events(args) => events::run(args),
        Command::Diag(args) => diag::run(args),
        Command::Bundle(args) => bundle::run(args),
        Command::Load(args) => load::run(args),
        Command::Image(args) => image::run(args),
        Command::Demo(options) => crate::demo::run(options),
        Command::Cni(args) => cni::run(args),
        Command::Fsck(args) => fsck::run(args),
        Command::Oci(args) => oci::run(args),
        Command::Config(args) => config::run(args),
        Command::LogLevel(args) => log_level::run(args),
        Command::Version => version::run(),
        Command::CheckpointDump => checkpoint_dump::run(),
        Command::CheckpointShare => checkpoint_dump::share(),
        Command::CheckpointLastPid(args) => checkpoint_dump::set_last_pid(&args),
        Command::CheckpointRestore => checkpoint_restore::run(),
        Command::CheckpointConfine(_) => checkpoint_restore::check(),
        Command::Man(args) => generate::man(&args),
        Command::Completions(args) => generate::completions(&args),
    }
}

/// Prints the reason why a command failed.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("berth: {error}");
    ExitCode::FAILURE
}

/// Prints the result of a command. A reader that closes the pipe (`| head`) is not an error.
fn print(text: &str) -> ExitCode {
    use std::io::{ErrorKind, Write};
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(&format!("failed to write to stdout: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}
