//! The level of the log. `berth log-level` and signals change it while the daemon runs; a restart returns to the configured
//! one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

/// Directives for libraries that log every frame and packet at debug. A setting that names them overrides this.
const QUIET_LIBRARIES: &str =
    "h2=info,hyper=info,hyper_util=info,loona_hpack=info,rustls=info,tonic=info,tower=info";

/// The filter of the log.
pub(super) type Filter = reload::Layer<EnvFilter, Registry>;

/// The control of the log's level. Clones share it.
#[derive(Clone, Debug)]
pub struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
    configured: Arc<str>,
    current: Arc<Mutex<String>>,
}

/// Returns a filter with a setting, and its control.
pub(super) fn filter(configured: &str) -> Result<(Filter, LogLevel), String> {
    let (layer, filter) = reload::Layer::new(parse(configured)?);
    let current = Arc::new(Mutex::new(configured.to_owned()));
    Ok((layer, LogLevel { filter, configured: configured.into(), current }))
}

/// Parses a setting: a level, or levels by module. A level alone applies to berth; libraries then stay at info.
fn parse(setting: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(directives(setting)).map_err(|error| error.to_string())
}

fn directives(setting: &str) -> String {
    let is_verbose = setting.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO);
    if is_verbose { format!("{setting},{QUIET_LIBRARIES}") } else { setting.to_owned() }
}

impl LogLevel {
    /// Returns the setting in effect.
    #[must_use]
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the setting of the configuration.
    #[must_use]
    pub fn configured(&self) -> &str {
        &self.configured
    }

    /// Changes the setting until the next change or restart. `by` is the cause, for the log.
    ///
    /// # Errors
    /// The setting is invalid.
    pub fn set(&self, setting: &str, by: &str) -> Result<(), String> {
        let filter = parse(setting)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // The change is logged once, under the old or the new level.
        let was_visible = tracing::enabled!(tracing::Level::INFO);
        let log = |from: &str| tracing::info!(from, to = setting, by, "changing the log level");
        if was_visible {
            log(&current);
        }
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        if !was_visible {
            log(&current);
        }
        setting.clone_into(&mut current);
        Ok(())
    }

    /// Returns to the setting of the configuration.
    ///
    /// # Errors
    /// The setting cannot be changed.
    pub fn reset(&self, by: &str) -> Result<(), String> {
        self.set(&self.configured.clone(), by)
    }
}

/// Changes the level on signals: SIGUSR1 sets `debug`, SIGUSR2 returns to the configured level. They work when the socket
/// does not. Needs a tokio runtime.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn follow_signals(level: LogLevel) -> std::io::Result<()> {
    let (mut verbose, mut configured) =
        (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                _ = verbose.recv() => level.set("debug", "SIGUSR1"),
                _ = configured.recv() => level.reset("SIGUSR2"),
            };
            if let Err(error) = changed {
                tracing::error!(error, "failed to change the log level");
            }
        }
    });
    Ok(())
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
        parse("trace").unwrap();
    }
}
