//! `berth man` and `berth completions`: files for packages, made from the definitions of the commands and keys.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::config::document;

/// Arguments of `berth man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Write the manual pages to this folder
    folder: PathBuf,
}

/// Arguments of `berth completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// Print the completions for this shell
    shell: Shell,
}

pub(super) fn man(args: &ManArgs) -> ExitCode {
    match write_pages(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::fail(&format!("failed to write manual pages to {}: {error}", args.folder.display()))
        }
    }
}

/// Writes a page for each command (section 1) and one for the configuration file (section 5).
fn write_pages(args: &ManArgs) -> io::Result<()> {
    fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder)?;
    let page = document::manual_page().map_err(io::Error::other)?;
    fs::write(args.folder.join("berth-config.toml.5"), page)
}

pub(super) fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "berth", &mut text);
    super::print(&String::from_utf8_lossy(&text))
}
