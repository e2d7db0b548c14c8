//! `berth check`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;

use crate::check::{host, namespaces, table};

/// Arguments of `berth check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
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
    let report = host();
    let text = match args.json {
        true => serde_json::to_string_pretty(report).map(|text| text + "\n"),
        false => Ok(table::render(report, std::io::stdout().is_terminal())),
    };
    match text.map(|text| super::print(&text)) {
        Ok(printed) if report.fit => printed,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => super::fail(&error),
    }
}
