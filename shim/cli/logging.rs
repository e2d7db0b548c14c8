//! Logs go to stderr, as the service manager and containers expect.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Starts logging as configured. The level has been checked when the configuration was read.
pub(super) fn start(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(&config.log_level).map_err(|error| error.to_string())?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    started.map_err(|error| format!("start logging: {error}"))
}
