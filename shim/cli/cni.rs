//! `berth cni`: runs one of the built-in CNI plugins for another runtime. Under the name of a plugin (a link in
//! `/opt/cni/bin`) the program is that plugin, without a command.

use std::io::Read;
use std::process::ExitCode;

use berth_cni::program::{Failure, Invocation, SERVED_IPAM, run as run_plugin};
use clap::Args;

/// Arguments of `berth cni`.
#[derive(Debug, Args)]
pub struct CniArgs {
    /// Run this plugin [default: the type in the configuration on standard input]
    #[arg(value_name = "PLUGIN")]
    kind: Option<String>,
}

/// Returns the plugin that the program's name selects.
#[must_use]
pub fn plugin_from_program_name() -> Option<String> {
    let program = std::env::args_os().next()?;
    let name = std::path::Path::new(&program).file_name()?.to_str()?.to_owned();
    let is_plugin = berth_cni::BUILT_IN.contains(&name.as_str()) || SERVED_IPAM.contains(&name.as_str());
    is_plugin.then_some(name)
}

/// Runs the command.
pub fn run(args: CniArgs) -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        let plugins = berth_cni::BUILT_IN.join(", ");
        let message =
            format!("CNI_COMMAND is not set: a container runtime sets it. Built-in plugins: {plugins}");
        return super::fail(&message);
    }
    run_as_plugin(args.kind)
}

/// Answers one CNI call of a runtime.
#[must_use]
pub fn run_as_plugin(kind: Option<String>) -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut config = Vec::new();
    let command = variable("CNI_COMMAND");
    // A configuration is small. VERSION may have none.
    const MAX_CONFIG: u64 = 16 << 20;
    if let Err(error) = std::io::stdin().lock().take(MAX_CONFIG).read_to_end(&mut config) {
        return super::fail(&format!("failed to read the configuration: {error}"));
    }
    let invocation = Invocation {
        kind,
        command,
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
        path: variable("CNI_PATH"),
        config,
    };
    match answer(invocation) {
        Ok(Some(answer)) => super::print(&format!("{answer}\n")),
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            super::print(&format!("{}\n", failure.to_json()));
            ExitCode::FAILURE
        }
    }
}

fn answer(invocation: Invocation) -> Result<Option<String>, Failure> {
    // One thread is enough: this process lives for some milliseconds.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::from(berth_cni::Error::Io { action: "start".to_owned(), source: error }))?;
    runtime.block_on(run_plugin(invocation))
}
