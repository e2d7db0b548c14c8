//! Plugins that are programs, by the CNI specification ("Section 3: Execution of Network Configurations"): parameters in
//! the environment, the configuration on standard input, the result on standard output.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::conflist::External;
use crate::{Context, Error, PortMapping, Result};

/// How long a plugin may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What all plugins of one attachment are told.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    pub(crate) network: String,
    pub(crate) version: String,
    pub(crate) pod: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) interface: String,
    /// `K8S_POD_NAMESPACE=...;K8S_POD_NAME=...`, for plugins that ask the API server.
    pub(crate) args: String,
    pub(crate) bin_path: String,
    pub(crate) port_mappings: Vec<PortMapping>,
}

impl Invocation {
    /// Runs a plugin: its result, `Null` where it has none.
    pub(crate) async fn run(
        &self,
        command: &str,
        plugin: &External,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let fail = |message: String| Error::Plugin { plugin: plugin.kind.clone(), message };
        let input = self.config(plugin, previous).to_string();
        let netns = self.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let mut child = Command::new(&plugin.program)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.pod)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", &self.bin_path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .doing(format!("start plugin {}", plugin.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its input says why in its answer.
            drop(stdin.write_all(input.as_bytes()).await);
        }
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .map_err(|_| fail(format!("{command} did not end within {} s", PATIENCE.as_secs())))?
            .doing(format!("wait for plugin {}", plugin.kind))?;
        let stdout = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(fail(format!("{command}: {}: {stdout} {stderr}", output.status).trim().to_owned()));
        }
        if stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout).map_err(|error| fail(format!("{command} answered no result: {error}")))
    }

    /// The plugin's configuration as it is given to it ("Deriving request configuration").
    fn config(&self, plugin: &External, previous: Option<&Value>) -> Value {
        let mut config = plugin.config.as_object().cloned().unwrap_or_default();
        config.insert("name".to_owned(), json!(self.network));
        config.insert("cniVersion".to_owned(), json!(self.version));
        let capabilities = config.remove("capabilities");
        let wants = |name: &str| capabilities.as_ref().and_then(|c| c.get(name)) == Some(&Value::Bool(true));
        if wants("portMappings") && !self.port_mappings.is_empty() {
            let mappings: Vec<Value> = self.port_mappings.iter().map(port_mapping).collect();
            let mut runtime = Map::new();
            runtime.insert("portMappings".to_owned(), Value::Array(mappings));
            config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        if let Some(previous) = previous.filter(|previous| !previous.is_null()) {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(config)
    }
}

fn port_mapping(mapping: &PortMapping) -> Value {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.name(),
        "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}
