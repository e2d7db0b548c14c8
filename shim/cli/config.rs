//! `berth config`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Source;
use crate::config::commented_default;
use crate::stream::tls;

/// Arguments of `berth config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Print the configuration in effect: files, drop-ins and flags together
    Dump(Source),
    /// Look for mistakes in the configuration; exit code 1 if there are any
    Check(Source),
    /// Print the defaults, with a comment for each key
    Default,
}

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    match args.action {
        Action::Dump(source) => dump(source),
        Action::Check(source) => check(source),
        Action::Default => match commented_default() {
            Ok(text) => super::print(&text),
            Err(error) => super::fail(&error),
        },
    }
}

fn dump(source: Source) -> ExitCode {
    let config = match source.load() {
        Ok(config) => config,
        Err(error) => return super::fail(&error),
    };
    for broken in &config.broken_drop_ins {
        eprintln!("berth: skipped {}", broken.message);
    }
    match config.to_toml() {
        Ok(text) => super::print(&text),
        Err(error) => super::fail(&error),
    }
}

/// Here a broken drop-in is a mistake as any other: the daemon skips it, and someone should know before that.
fn check(source: Source) -> ExitCode {
    match source.load() {
        Err(error) => super::fail(&error),
        Ok(config) if config.broken_drop_ins.is_empty() => match tls::configured(&config) {
            Ok(_) => super::print("the configuration is right\n"),
            Err(error) => super::fail(&error),
        },
        Ok(config) => {
            for broken in &config.broken_drop_ins {
                eprintln!("berth: {}", broken.message);
            }
            ExitCode::FAILURE
        }
    }
}
