//! The OCI runtime as a separate program. `berth oci` is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_oci::run(std::env::args_os().skip(1))
}
