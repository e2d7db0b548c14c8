//! `berth check`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;

use berth_image::printable;

use super::ConfigSource;
use crate::check::{HostReport, host, namespaces, table};
use crate::config::mistakes;

/// The exit code of `--strict` if a setting can be fixed. 1 means that berth does not run here, 2 is a wrong argument.
const FIXABLE: u8 = 3;

/// Arguments of `berth check`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 if berth runs here, 1 if it does not, 3 with --strict if a setting can be fixed"
)]
pub struct CheckArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Show a command for each setting that can be fixed
    #[arg(long)]
    fix_hints: bool,
    /// Exit with code 3 if berth runs here but a setting can be fixed
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    source: ConfigSource,
    /// Try to create a user namespace in this process, and do nothing else
    #[arg(long, hide = true)]
    try_user_namespace: bool,
}

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    if args.try_user_namespace {
        return match namespaces::try_user_namespace() {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    // The valid settings are enough to check the folders that they name.
    let (file, layer) = args.source.clone().parts();
    let (config, mistakes) = mistakes(file.as_deref(), layer);
    for mistake in mistakes {
        eprintln!("berth: {}", printable(&mistake, usize::MAX));
    }
    let report = &host().clone().with_node(&config);
    let text = match args.json {
        true => serde_json::to_string_pretty(report).map(|text| text + "\n"),
        false => Ok(text(report, args.fix_hints)),
    };
    match text.map(|text| super::print(&text)) {
        Ok(_) if !report.fit => ExitCode::FAILURE,
        Ok(_) if args.strict && report.fixable().next().is_some() => ExitCode::from(FIXABLE),
        Ok(printed) => printed,
        Err(error) => super::fail(&error),
    }
}

fn text(report: &HostReport, fix_hints: bool) -> String {
    let table = table::render(report, std::io::stdout().is_terminal());
    table + &if fix_hints { table::hints(report) } else { table::summary_of_hints(report) }
}
