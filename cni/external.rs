//! Plugins that are programs, by the CNI specification ("Section 3: Execution of Network Configurations"): parameters in
//! the environment, the configuration on standard input, the result on standard output.
//!
//! A program is bounded in its time and in what it prints, and has a process group of its own: with a call that is given up
//! everything that it has started ends, and a daemon that starts ends what the calls of a former one have left ([`leftovers`]).

mod leftovers;
mod running;

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::call::Call;
use crate::{Error, Result};
pub(crate) use leftovers::end_leftovers;
use running::Running;

/// Says to whom a plugin's process belongs: the folder in which the daemon keeps its attachments.
const OWNER: &str = "BERTH_NETWORK";

/// A program by the specification.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

impl Program {
    /// An error of this plugin.
    pub(crate) fn failed(&self, message: impl Into<String>) -> Error {
        Error::Plugin { plugin: self.kind.clone(), message: message.into() }
    }

    /// Runs it: its result, `Null` where it has none.
    pub(crate) async fn run(
        &self,
        call: &Call<'_>,
        command: &str,
        config: &Value,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let input = request(call, config, previous).to_string();
        let patience = call.host.patience();
        let ran = Running::start(self.command(call, command)).map_err(|why| self.failed(why))?;
        let output =
            ran.output(input, patience).await.map_err(|why| self.failed(format!("{command}: {why}")))?;
        let stdout = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            let words = format!("{command}: {}: {stdout} {stderr}", output.status);
            return Err(self.failed(words.trim()));
        }
        if !stderr.is_empty() {
            tracing::debug!(plugin = self.kind, command, stderr, "what a plugin said beside its result");
        }
        if stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout)
            .map_err(|error| self.failed(format!("{command} answered no result: {error}")))
    }

    fn command(&self, call: &Call<'_>, command: &str) -> Command {
        let netns = if call.netns.is_some() { call.sandbox } else { "" };
        let mut program = Command::new(&self.path);
        program
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env(OWNER, call.host.state_dir())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", call.args_text)
            .env("CNI_PATH", call.bin_path);
        program
    }
}

/// The plugin's configuration as it is given to it ("Deriving request configuration").
fn request(call: &Call<'_>, config: &Value, previous: Option<&Value>) -> Value {
    let mut request = config.as_object().cloned().unwrap_or_default();
    request.insert("name".to_owned(), json!(call.network));
    request.insert("cniVersion".to_owned(), json!(call.version.text()));
    request.remove("capabilities");
    let runtime = json!(call.runtime);
    if runtime.as_object().is_some_and(|runtime| !runtime.is_empty()) {
        request.insert("runtimeConfig".to_owned(), runtime);
    }
    match previous.filter(|previous| !previous.is_null()) {
        Some(previous) => request.insert("prevResult".to_owned(), previous.clone()),
        None => request.remove("prevResult"),
    };
    Value::Object(request)
}
