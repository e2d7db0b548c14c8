//! `berth cni`: acts as one of the plugins of the network that are built in, for any other runtime. Under the name of a
//! plugin (a link in `/opt/cni/bin`) the program is that plugin without a command.

use std::io::Read;
use std::process::ExitCode;

use berth_cni::program::{Failure, Invocation, SERVED_IPAM, run as run_plugin};
use clap::Args;

/// What `berth cni` takes.
#[derive(Debug, Args)]
pub struct CniArgs {
    /// The plugin; without it, the configuration on standard input says which
    #[arg(value_name = "PLUGIN")]
    kind: Option<String>,
}

/// The plugin that the program is by its name.
#[must_use]
pub fn named() -> Option<String> {
    let program = std::env::args_os().next()?;
    let name = std::path::Path::new(&program).file_name()?.to_str()?.to_owned();
    let known = berth_cni::BUILT_IN.contains(&name.as_str()) || SERVED_IPAM.contains(&name.as_str());
    known.then_some(name)
}

/// Runs the command.
pub fn run(args: CniArgs) -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        let plugins = berth_cni::BUILT_IN.join(", ");
        let message =
            format!("CNI_COMMAND is not set: a container runtime runs this. Built in are {plugins}");
        return super::fail(&message);
    }
    as_plugin(args.kind)
}

/// Answers one call of a runtime.
#[must_use]
pub fn as_plugin(kind: Option<String>) -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut config = Vec::new();
    let command = variable("CNI_COMMAND");
    // A configuration is small; VERSION may come without any.
    const MOST: u64 = 16 << 20;
    if let Err(error) = std::io::stdin().lock().take(MOST).read_to_end(&mut config) {
        return super::fail(&format!("read the configuration: {error}"));
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
    // One thread: this process lives for some milliseconds.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::from(berth_cni::Error::Io { action: "start".to_owned(), source: error }))?;
    runtime.block_on(run_plugin(invocation))
}
