//! The berth binary: the daemon and the commands around it.

use std::process::ExitCode;

use berth::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    run(Cli::parse())
}
