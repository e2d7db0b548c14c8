//! `berth oci`: the command line of an OCI runtime. Under the name `berth-oci` (a link) the program is that runtime, without
//! a command.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

/// The name under which the program is an OCI runtime.
const NAME: &str = "berth-oci";

/// Arguments of `berth oci`.
#[derive(Debug, Args)]
pub struct OciArgs {
    /// The flags and the command; see `berth oci --help`
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns whether the program has the name of the OCI runtime.
#[must_use]
pub fn is_program_name() -> bool {
    let program = std::env::args_os().next();
    program.is_some_and(|program| Path::new(&program).file_name().is_some_and(|name| name == NAME))
}

/// Runs the command.
#[must_use]
pub fn run(args: OciArgs) -> ExitCode {
    berth_oci::run(args.arguments.into_iter())
}
