//! The command line: one file per command. Output for programs goes to stdout, everything else to stderr.

pub mod check;
pub mod cni;
pub mod config;
pub mod image;
pub mod load;
pub mod logging;
pub mod oci;
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
    /// Run the daemon
    Serve(serve::ServeArgs),
    /// Check what this host supports, and show what does not work
    Check(check::CheckArgs),
    /// Load images from a file: an OCI layout, an OCI archive or a docker-archive
    Load(load::LoadArgs),
    /// List, pull, load, save, verify and remove images
    Image(image::ImageArgs),
    /// Run a demo pod on this machine, show each step, and remove everything afterwards
    Demo(crate::demo::Options),
    /// Run a built-in CNI plugin for another runtime
    Cni(cni::CniArgs),
    /// Run containers of bundles, as an OCI runtime for containerd, podman and CRI-O
    #[command(disable_help_flag = true)]
    Oci(oci::OciArgs),
    /// Show or check the configuration
    Config(config::ConfigArgs),
    /// Show the version
    Version,
}

/// The source of the configuration.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// Read this configuration file, and drop-ins from conf.d beside it [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// Flags that override the configuration files.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Serve clients on this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<value::SocketPath>,
    /// Keep persistent state in this folder
    #[arg(long, value_name = "FOLDER")]
    root: Option<value::AbsolutePath>,
    /// Keep volatile state in this folder
    #[arg(long, value_name = "FOLDER")]
    state: Option<value::AbsolutePath>,
    /// Read CNI configuration from this folder
    #[arg(long, value_name = "FOLDER")]
    cni_conf_dir: Option<value::AbsolutePath>,
    /// Serve exec, attach and port-forward sessions on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    stream_address: Option<std::net::SocketAddr>,
    /// Serve metrics on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_address: Option<std::net::SocketAddr>,
    /// Set the log level: off, error, warn, info, debug or trace; or by module
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<value::LogFilter>,
    /// Set the format of log lines
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Set the cgroup driver
    #[arg(long, value_name = "DRIVER")]
    cgroup_driver: Option<value::CgroupDriver>,
}

impl Source {
    fn load(self) -> Result<Config, ConfigError> {
        let (file, layer) = self.parts();
        load_config(file.as_deref(), layer)
    }

    /// Returns the main file, if one is named, and the settings of the flags.
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
        Command::Oci(args) => oci::run(args),
        Command::Config(args) => config::run(args),
        Command::Version => version::run(),
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
