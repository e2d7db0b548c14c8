//! Logging to stderr, as service managers and containers expect it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, LogFormat};

/// Directives for libraries that log every frame and packet at debug. A setting that names them overrides this.
const QUIET_LIBRARIES: &str =
    "h2=info,hyper=info,hyper_util=info,loona_hpack=info,rustls=info,tonic=info,tower=info";

/// Returns the filter directives of a setting. A level alone applies to berth; libraries then stay at info.
fn directives(setting: &str) -> String {
    let is_verbose = setting.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO);
    if is_verbose { format!("{setting},{QUIET_LIBRARIES}") } else { setting.to_owned() }
}

/// Starts logging as configured. The level was checked when the configuration was read.
pub(super) fn start(config: &Config) -> Result<(), String> {
    let filter =
        EnvFilter::builder().parse(directives(&config.log_level)).map_err(|error| error.to_string())?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is dropped. Reporting the error would write to stderr too, and panics when a
        // disk is full, which any container can cause.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    started.map_err(|error| format!("failed to start logging: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_does_not_open_the_libraries() {
        assert_eq!(directives("info"), "info");
        assert_eq!(directives("error"), "error");
        assert!(directives("debug").starts_with("debug,h2=info"));
        assert_eq!(directives("info,h2=debug"), "info,h2=debug");
        EnvFilter::builder().parse(directives("trace")).unwrap();
    }
}
