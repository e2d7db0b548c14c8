//! Plugins that are programs (CNI specification, "Section 3: Execution of Network Configurations"): parameters in the
//! environment, the configuration on standard input, the result on standard output.
//!
//! A program has a time limit and an output limit, and runs in its own process group ([`running`]). If a call fails or
//! is cancelled, the group is killed. When the daemon starts, it kills the groups that a previous daemon has left
//! ([`leftovers`]).

mod leftovers;
mod running;
mod search;

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::call::Call;
use crate::{Error, Result};
pub(crate) use leftovers::end_leftovers;
use running::{MAX_MESSAGE, Running};
pub(crate) use search::{Search, find};

/// The environment variable that identifies the daemon that a plugin's process belongs to, by the daemon's state
/// folder.
const OWNER: &str = "BERTH_NETWORK";

/// A plugin that is a program.
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

    /// Runs the program and returns its result, which only `ADD` has.
    pub(crate) async fn run(
        &self,
        call: &Call<'_>,
        command: &str,
        config: &Value,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let input = request(call, config, previous).to_string();
        let patience = call.host.patience();
        let running = Running::start(self.command(call, command)).map_err(|why| self.failed(why))?;
        let ongoing = call.host.ongoing.begin(&self.kind, command, call.container, running.pid());
        let output = running.output(input, patience, ongoing.stderr()).await;
        drop(ongoing);
        let output = output.map_err(|why| self.failed(format!("{command} {why}")))?;
        let stderr = text_of(&output.stderr);
        if !output.status.success() {
            let message = [error_of(&output.stdout), stderr].join(" ");
            return Err(self.failed(format!("{command}: {}: {}", output.status, message.trim()).trim()));
        }
        if !stderr.is_empty() {
            tracing::debug!(plugin = self.kind, command, stderr, "plugin wrote to standard error");
        }
        // The other commands have no result. Their output is ignored.
        if command != "ADD" {
            return Ok(Value::Null);
        }
        match serde_json::from_slice(&output.stdout) {
            Ok(result @ Value::Object(_)) => Ok(result),
            Ok(_) => Err(self.failed(format!("{command}: no result: output is not a JSON object"))),
            Err(_) if output.stdout.trim_ascii().is_empty() => {
                Err(self.failed(format!("{command}: no result: exit status 0 with empty output")))
            }
            Err(error) => Err(self.failed(format!("{command}: no result: {error}"))),
        }
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

/// Returns the start of a program's output as text.
fn text_of(bytes: &[u8]) -> String {
    let start = bytes.get(..MAX_MESSAGE).unwrap_or(bytes);
    String::from_utf8_lossy(start).trim().to_owned()
}

/// Returns why a program failed: the error of the specification ("Section 5: Result Types"), otherwise its output.
fn error_of(stdout: &[u8]) -> String {
    let error: Value = serde_json::from_slice(stdout).unwrap_or_default();
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    match (text("msg"), text("details"), error.get("code").and_then(Value::as_u64)) {
        ("", ..) => text_of(stdout),
        (message, "", Some(code)) => text_of(format!("{message} (code {code})").as_bytes()),
        (message, "", None) => text_of(message.as_bytes()),
        (message, details, Some(code)) => text_of(format!("{message}: {details} (code {code})").as_bytes()),
        (message, details, None) => text_of(format!("{message}: {details}").as_bytes()),
    }
}

/// Derives the configuration that the program receives ("Deriving request configuration").
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, Instant};

    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

    use super::*;
    use crate::host::{Host, Places};
    use crate::runtime_config::RuntimeConfig;
    use crate::version::Version;

    /// A plugin that is a shell script, and its time limit.
    struct Plugin {
        folder: tempfile::TempDir,
        patience: Duration,
    }

    impl Plugin {
        fn of(script: &str, patience: Duration) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("plugin");
            std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            Self { folder, patience }
        }

        async fn run(&self, command: &str) -> std::result::Result<Value, String> {
            let folder = self.folder.path();
            let places =
                Places { state_dir: folder.to_owned(), data_dir: folder.to_owned(), patience: self.patience };
            let host = Host::open(places).unwrap();
            let call = Call {
                network: "net",
                version: Version::V1_1_0,
                container: "c",
                interface: "eth0",
                netns: None,
                sandbox: "",
                namespace_ends: true,
                knows_all: false,
                runtime: &RuntimeConfig::default(),
                args: &std::collections::BTreeMap::new(),
                args_text: "",
                bin_path: "",
                data_dir: folder,
                host: &host,
            };
            let program = Program { kind: "plugin".to_owned(), path: folder.join("plugin") };
            program.run(&call, command, &json!({}), None).await.map_err(|error| error.to_string())
        }
    }

    const LONG: Duration = Duration::from_secs(600);
    const COMMANDS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

    #[tokio::test]
    async fn exit_status_0_without_a_result_is_a_failure() {
        for script in ["exit 0", "echo", "echo null", "echo '[]'", "echo garbage", "echo '{'", "exec >&-"] {
            let plugin = Plugin::of(script, LONG);
            let error = plugin.run("ADD").await.unwrap_err();
            assert!(error.contains("plugin plugin: ADD: no result"), "{script}: {error}");
            // The other commands have no result: their output is ignored.
            for command in ["DEL", "CHECK", "GC", "STATUS"] {
                assert_eq!(plugin.run(command).await, Ok(Value::Null), "{script}");
            }
        }
        assert_eq!(Plugin::of("echo '{}'", LONG).run("ADD").await, Ok(json!({})));
    }

    #[tokio::test]
    async fn endless_output_is_limited() {
        for command in COMMANDS {
            let started = Instant::now();
            let error = Plugin::of("cat /dev/zero", LONG).run(command).await.unwrap_err();
            assert!(error.contains("exceeds 1024 KiB") && started.elapsed() < LONG, "{error}");
        }
        let error = Plugin::of("head -c 9000000 /dev/zero | tr '\\0' x >&2; exit 3", LONG).run("ADD").await;
        let error = error.unwrap_err();
        assert!(error.contains("exit status: 3") && error.len() < 2 * MAX_MESSAGE, "{}", error.len());
    }

    fn is_alive(file: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(file).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // A zombie has ended, too.
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[tokio::test]
    async fn a_program_that_times_out_is_killed_with_its_children() {
        let script = "trap '' TERM HUP INT; sleep 600 & echo $! > ${0%/*}/child; wait";
        for command in COMMANDS {
            let plugin = Plugin::of(script, Duration::from_secs(1));
            let error = plugin.run(command).await.unwrap_err();
            assert!(error.contains(&format!("{command} did not end within 1 s")), "{error}");
            let until = Instant::now() + Duration::from_secs(60);
            let child = plugin.folder.path().join("child");
            assert!(child.exists());
            while is_alive(&child) {
                assert!(Instant::now() < until, "the child is still alive");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_does_not_delay_the_call() {
        let plugin = Plugin::of("sleep 600 & echo $! > ${0%/*}/child; echo '{}'", LONG);
        let started = Instant::now();
        assert_eq!(plugin.run("ADD").await, Ok(json!({})));
        assert!(started.elapsed() < LONG);
        let child = std::fs::read_to_string(plugin.folder.path().join("child")).unwrap();
        let child = Pid::from_raw(child.trim().parse().unwrap());
        // The child may be a service of the plugin: it is not killed.
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn an_error_of_the_specification_is_reported_verbatim() {
        let script =
            r#"cat > /dev/null; echo '{"code": 11, "msg": "not today", "details": "no room"}'; exit 1"#;
        let error = Plugin::of(script, LONG).run("ADD").await.unwrap_err();
        assert_eq!(error, "plugin plugin: ADD: exit status: 1: not today: no room (code 11)");
    }
}
