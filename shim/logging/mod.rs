//! The daemon's log: text or JSON on standard error, as service managers and containers expect it, or entries with fields for
//! the journal of systemd.
//!
//! * [`level`]: the level, which can be changed while the daemon runs
//! * [`repeats`]: holds back a warning that is repeated again and again
//! * [`journal`]: entries for journald
//! * this file: the choice of the format

mod journal;
mod level;
mod repeats;

use std::io::IsTerminal;

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};
use crate::traces::export::TracesLayer;

pub use level::{LogLevel, follow_signals};

use journal::Journal;
use repeats::Repeats;

/// Starts logging as configured, and returns the control of its level. `traces` gets the spans, too.
///
/// # Errors
/// The journal cannot be reached although it is configured, or logging was started before.
pub fn start(config: &Config, traces: Option<TracesLayer>) -> Result<LogLevel, String> {
    let (filter, level) = level::filter(&config.log_level)?;
    let output = output(config.log_format)?.with_filter(filter);
    let started =
        Registry::default().with(vec![output.boxed()].into_iter().chain(traces).collect::<Vec<_>>());
    started.try_init().map_err(|error| format!("failed to start logging: {error}")).map(|()| level)
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn output(format: LogFormat) -> Result<BoxedLayer, String> {
    match format {
        LogFormat::Journald => {
            let journal =
                Journal::connect().map_err(|error| format!("failed to connect to journald: {error}"))?;
            Ok(Repeats::of(journal).boxed())
        }
        LogFormat::Auto if journal::receives_stderr() => match Journal::connect() {
            Ok(journal) => Ok(Repeats::of(journal).boxed()),
            // journald reads standard error in any case.
            Err(_) => Ok(lines(false)),
        },
        LogFormat::Auto | LogFormat::Text => Ok(lines(false)),
        LogFormat::Json => Ok(lines(true)),
    }
}

fn lines(json: bool) -> BoxedLayer {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A line that cannot be written is dropped. Reporting the error would write to stderr too, and panics when a
        // disk is full, which any container can cause.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match json {
        true => Repeats::of(lines.json()).boxed(),
        false => Repeats::of(lines).boxed(),
    }
}
