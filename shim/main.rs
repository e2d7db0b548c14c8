//! The berth binary: the daemon and the commands around it.

use std::process::ExitCode;

use berth::cli::{Cli, cni, run};
use clap::Parser;

fn main() -> ExitCode {
    // Another runtime runs a plugin of the network that is this program under that name.
    match cni::named() {
        Some(plugin) => cni::as_plugin(Some(plugin)),
        None => run(Cli::parse()),
    }
}
