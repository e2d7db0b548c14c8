//! The berth binary: the daemon and the commands around it.

use std::process::ExitCode;

use berth::cli::{Cli, cni, oci, run};
use clap::Parser;

fn main() -> ExitCode {
    if oci::is_program_name() {
        return berth_oci::run(std::env::args_os().skip(1));
    }
    // Another runtime starts this program under the name of a CNI plugin.
    match cni::plugin_from_program_name() {
        Some(plugin) => cni::run_as_plugin(Some(plugin)),
        None => run(Cli::parse()),
    }
}
