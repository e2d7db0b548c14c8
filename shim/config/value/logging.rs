//! The levels and the format of the log.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Described, InvalidValue, invalid};

checked_text! {
    /// A level such as `info`, or levels by module such as `info,berth_image=debug`.
    LogFilter => String, log_filter,
        "a level, or levels by module: `\"info,berth_image=debug\"`"
}

fn log_filter(text: String) -> Result<String, InvalidValue> {
    // This is stricter than the filter's parser, which panics at some letters beyond ASCII.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_:=,-".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return invalid(format!(
            "{text:?} is not a log level, nor a list such as \"info,berth_image=debug\""
        ));
    }
    // That parser treats a word that is not a level as a module with every level.
    let level =
        |part: &str| !part.is_empty() && part.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    if let Some(part) = text.split(',').find(|part| !part.contains('=') && !level(part)) {
        return invalid(format!("{part:?} is not a log level: off, error, warn, info, debug and trace are"));
    }
    match tracing_subscriber::EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => invalid(format!("{text:?} is not a log level: {error}")),
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Entries for journald if it receives standard error, else text.
    #[default]
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Entries with fields for journald.
    Journald,
}

impl Described for LogFormat {
    const VALUES: &'static str = "`\"auto\"`, `\"text\"`, `\"json\"` or `\"journald\"`";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels() {
        for filter in ["", "loud", "berth=loud", "info,", "\t㐀="] {
            assert!(filter.parse::<LogFilter>().is_err(), "{filter}");
        }
        assert!("info,berth_image=debug".parse::<LogFilter>().is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in ".*") {
            drop(text.parse::<LogFilter>());
        }

        #[test]
        fn no_filter_breaks_the_filters_parser(text in "[a-z0-9_:=,-]{1,24}") {
            drop(text.parse::<LogFilter>());
        }
    }
}
