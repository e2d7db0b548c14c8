//! The berth binary: the daemon and the commands around it.

use std::process::ExitCode;

use berth::cli::{Cli, cni, run};
use clap::Parser;

fn main() -> ExitCode {
    // Another runtime starts this program under the name of a CNI plugin.
    match cni::plugin_from_program_name() {
        Some(plugin) => cni::run_as_plugin(Some(plugin)),
        None => run(Cli::parse()),
    }
}
