//! The command line. Each command is one file; all that they print for programs goes to stdout, all else to stderr.

pub mod check;
pub mod cni;
pub mod config;
pub mod image;
pub mod load;
pub mod logging;
pub mod serve;
pub mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Layer, LogFormat, load as load_config, value};

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "berth", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve(serve::ServeArgs),
    /// Show what this host offers and what berth does without it.
    Check(check::CheckArgs),
    /// Bring the images of a file into the store: an OCI layout, an OCI archive or a docker-archive.
    Load(load::LoadArgs),
    /// List, pull, load and remove images.
    Image(image::ImageArgs),
    /// Run a pod from nothing on this machine, show each step, and leave nothing behind.
    Demo(crate::demo::Options),
    /// Act as a plugin of the network (CNI) for another runtime.
    Cni(cni::CniArgs),
    /// Show the configuration.
    Config(config::ConfigArgs),
    /// Show the version.
    Version,
}

/// Where the configuration is read from.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// The main configuration file; drop-ins are read from conf.d beside it [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Flags that override the files.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// The socket that clients connect to
    #[arg(long, value_name = "PATH")]
    socket: Option<value::SocketPath>,
    /// Persistent state
    #[arg(long, value_name = "FOLDER")]
    root: Option<value::AbsolutePath>,
    /// Volatile state
    #[arg(long, value_name = "FOLDER")]
    state: Option<value::AbsolutePath>,
    /// Where CNI configuration is looked for
    #[arg(long, value_name = "FOLDER")]
    cni_conf_dir: Option<value::AbsolutePath>,
    /// Where exec, attach and port-forward sessions connect to
    #[arg(long, value_name = "ADDRESS:PORT")]
    stream_address: Option<std::net::SocketAddr>,
    /// Where metrics are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_address: Option<std::net::SocketAddr>,
    /// off, error, warn, info, debug or trace; or by module
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<value::LogFilter>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Who makes pods' parent cgroups
    #[arg(long, value_name = "DRIVER")]
    cgroup_driver: Option<value::CgroupDriver>,
}

impl Source {
    fn load(self) -> Result<Config, ConfigError> {
        let (file, layer) = self.parts();
        load_config(file.as_deref(), layer)
    }

    /// The main file, where one is named, and what the flags say.
    fn parts(self) -> (Option<PathBuf>, Layer) {
        let flags = self.flags;
        let layer = Layer {
            socket: flags.socket,
            root: flags.root,
            state: flags.state,
            cni_conf_dir: flags.cni_conf_dir,
            stream_address: flags.stream_address,
            metrics_address: flags.metrics_address,
            log_level: flags.log_level,
            log_format: flags.log_format,
            cgroup_driver: flags.cgroup_driver,
            ..Layer::default()
        };
        (self.config, layer)
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(&args),
        Command::Load(args) => load::run(args),
        Command::Image(args) => image::run(args),
        Command::Demo(options) => crate::demo::run(options),
        Command::Cni(args) => cni::run(args),
        Command::Config(args) => config::run(args),
        Command::Version => version::run(),
    }
}

/// Says why a command failed.
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("berth: {error}");
    ExitCode::FAILURE
}

/// Prints what a command was asked for. A reader that has had enough (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    use std::io::{ErrorKind, Write};
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(&format!("write to stdout: {error}")),
        _ => ExitCode::SUCCESS,
    }
}
