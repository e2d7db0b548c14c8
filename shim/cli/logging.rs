//! Logs go to stderr, as the service manager and containers expect.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, LogFormat};

/// Libraries that log every frame and packet at debug. Who wants those names them.
const LOUD: &str = "h2=info,hyper=info,hyper_util=info,loona_hpack=info,rustls=info,tonic=info,tower=info";

/// What a setting means: a level alone is that of berth, and of libraries as far as they are of use.
fn directives(setting: &str) -> String {
    let quieter = setting.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO);
    if quieter { format!("{setting},{LOUD}") } else { setting.to_owned() }
}

/// Starts logging as configured. The level has been checked when the configuration was read.
pub(super) fn start(config: &Config) -> Result<(), String> {
    let filter =
        EnvFilter::builder().parse(directives(&config.log_level)).map_err(|error| error.to_string())?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is dropped. Telling so would go to stderr as well, and that panics where a disk is
        // full, which any container can bring about.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    started.map_err(|error| format!("start logging: {error}"))
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
