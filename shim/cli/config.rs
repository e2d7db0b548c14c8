//! `berth config`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use berth_image::printable;

use super::ConfigSource;
use crate::cdi;
use crate::config::{document, mistakes};
use crate::hook_folders;
use crate::images;
use crate::stream::tls;

/// Arguments of `berth config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Print the effective configuration: files, drop-ins and flags together
    Dump(ConfigSource),
    /// Check the configuration and the files that it names (hosts.toml, registries.conf, credentials, signature
    /// policy, CNI, CDI); exit with code 1 if there are mistakes
    Check(ConfigSource),
    /// Print the default configuration, with a comment for each key
    Default,
    /// Print a Markdown table of all keys, with their values and flags
    Keys,
}

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    match args.action {
        Action::Dump(source) => dump(source),
        Action::Check(source) => check(source),
        Action::Default => match document::commented_default() {
            Ok(text) => super::print(&text),
            Err(error) => super::fail(&error),
        },
        Action::Keys => super::print(&document::table()),
    }
}

fn dump(source: ConfigSource) -> ExitCode {
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

/// Prints all mistakes. A broken drop-in counts as a mistake here, since the daemon skips it. The files that the
/// configuration names are checked too: the daemon would report most of their mistakes only when it needs them.
fn check(source: ConfigSource) -> ExitCode {
    let (file, layer) = source.parts();
    let (config, mut mistakes) = mistakes(file.as_deref(), layer);
    mistakes.extend(tls::configured(&config).err().map(|error| error.to_string()));
    mistakes.extend(berth_cni::mistakes(
        &config.cni_conf_dir,
        &config.cni_bin_dirs,
        &config.cni_external_plugins,
    ));
    mistakes.extend(cdi::mistakes(&config.cdi_spec_dirs));
    mistakes.extend(hook_folders::mistakes(&config.hooks_dirs));
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => mistakes.extend(runtime.block_on(berth_image::mistakes(&images::options(&config)))),
        Err(error) => mistakes.push(format!("failed to start a runtime: {error}")),
    }
    for mistake in &mistakes {
        eprintln!("berth: {}", printable(mistake, usize::MAX));
    }
    if mistakes.is_empty() { super::print("the configuration is valid\n") } else { ExitCode::FAILURE }
}
