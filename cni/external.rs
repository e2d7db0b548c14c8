//! Plugins that are programs, by the CNI specification ("Section 3: Execution of Network Configurations"): parameters in
//! the environment, the configuration on standard input, the result on standard output.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use crate::call::Call;
use crate::{Context, Error, Result};

/// The longest result that is taken. Those of the reference plugins have some hundred bytes.
const LONGEST: usize = 1 << 20;

/// How much is kept of what a program says beside its result.
const LONGEST_WORDS: usize = 4 << 10;

/// How long a program's children may keep its output open when it has ended.
const GRACE: Duration = Duration::from_secs(2);

/// A program by the specification.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

/// What a program has said, and how it ended.
#[derive(Debug)]
struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A program with all that it has started and that has not left its process group: it ends with this value.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// What is left of it may stay: it keeps nobody waiting.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // Nobody may be left in it.
            let _gone = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Program {
    /// An error of this plugin.
    pub(crate) fn failed(&self, message: impl Into<String>) -> Error {
        Error::Plugin { plugin: self.kind.clone(), message: message.into() }
    }

    /// Runs it: its result, which only `ADD` has.
    pub(crate) async fn run(
        &self,
        call: &Call<'_>,
        command: &str,
        config: &Value,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let input = request(call, config, previous).to_string();
        let patience = call.host.patience();
        let mut child = self.spawn(call, command)?;
        let group = Group::of(&child);
        let output = tokio::time::timeout(patience, output_of(&mut child, input.as_bytes()))
            .await
            .map_err(|_| self.failed(format!("{command} did not end within {} s", patience.as_secs())))?;
        let output = match output {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let why = format!("{command}: output exceeds {} KiB", LONGEST >> 10);
                return Err(self.failed(why));
            }
            output => output.doing(format!("wait for plugin {}", self.kind))?,
        };
        let stderr = words(&output.stderr);
        if !output.status.success() {
            let said = [complaint(&output.stdout), stderr].join(" ");
            return Err(self.failed(format!("{command}: {}: {}", output.status, said.trim()).trim()));
        }
        if !stderr.is_empty() {
            tracing::debug!(plugin = self.kind, command, stderr, "what a plugin said beside its result");
        }
        group.let_go();
        // The others succeed without a word; whatever they say is nothing to anybody.
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

    fn spawn(&self, call: &Call<'_>, command: &str) -> Result<Child> {
        let netns = if call.netns.is_some() { call.sandbox } else { "" };
        Command::new(&self.path)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", call.args_text)
            .env("CNI_PATH", call.bin_path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .doing(format!("start plugin {}", self.path.display()))
    }
}

/// Runs a program to its end. A child of it that keeps the output open is not waited for.
///
/// # Errors
/// `FileTooLarge`: it says more than is taken.
async fn output_of(child: &mut Child, input: &[u8]) -> io::Result<Output> {
    let feed = feed(child.stdin.take(), input);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut result, mut said) = (Vec::new(), Vec::new());
    let status = {
        let read = async {
            let whole = read_bounded(stdout, &mut result, LONGEST, true);
            tokio::try_join!(whole, read_bounded(stderr, &mut said, LONGEST_WORDS, false)).map(drop)
        };
        tokio::pin!(feed, read);
        let (mut is_fed, mut is_read) = (false, false);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                () = &mut feed, if !is_fed => is_fed = true,
                done = &mut read, if !is_read => {
                    done?;
                    is_read = true;
                }
            }
        };
        if !is_read && let Ok(done) = tokio::time::timeout(GRACE, &mut read).await {
            done?;
        }
        status
    };
    Ok(Output { status, stdout: result, stderr: said })
}

/// A plugin that does not read its input says why in its answer.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        drop(stdin.write_all(input).await);
    }
}

/// Reads to the end and keeps so much. More than that is an error where the `whole` matters.
async fn read_bounded(
    from: Option<impl AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    most: usize,
    whole: bool,
) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let room = most.saturating_sub(kept.len());
        if length > room && whole {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        kept.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
    }
}

/// What a program said, to be shown.
fn words(bytes: &[u8]) -> String {
    let start = bytes.get(..LONGEST_WORDS).unwrap_or(bytes);
    String::from_utf8_lossy(start).trim().to_owned()
}

/// Why a program has failed: the error of the specification ("Section 5: Result Types"), else what it said.
fn complaint(stdout: &[u8]) -> String {
    let error: Value = serde_json::from_slice(stdout).unwrap_or_default();
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    match (text("msg"), text("details"), error.get("code").and_then(Value::as_u64)) {
        ("", ..) => words(stdout),
        (message, "", Some(code)) => words(format!("{message} (code {code})").as_bytes()),
        (message, "", None) => words(message.as_bytes()),
        (message, details, Some(code)) => words(format!("{message}: {details} (code {code})").as_bytes()),
        (message, details, None) => words(format!("{message}: {details}").as_bytes()),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;
    use crate::call::RuntimeConfig;
    use crate::conflist::Version;
    use crate::host::{Host, Places};

    /// A shell script that is a plugin; how long it may take.
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
    async fn a_success_without_a_result_is_none() {
        for script in ["exit 0", "echo", "echo null", "echo '[]'", "echo garbage", "echo '{'", "exec >&-"] {
            let plugin = Plugin::of(script, LONG);
            let error = plugin.run("ADD").await.unwrap_err();
            assert!(error.contains("plugin plugin: ADD: no result"), "{script}: {error}");
            // The others have no result: nothing that they say is one.
            for command in ["DEL", "CHECK", "GC", "STATUS"] {
                assert_eq!(plugin.run(command).await, Ok(Value::Null), "{script}");
            }
        }
        assert_eq!(Plugin::of("echo '{}'", LONG).run("ADD").await, Ok(json!({})));
    }

    #[tokio::test]
    async fn output_without_an_end_is_cut_off() {
        for command in COMMANDS {
            let started = Instant::now();
            let error = Plugin::of("cat /dev/zero", LONG).run(command).await.unwrap_err();
            assert!(error.contains("exceeds 1024 KiB") && started.elapsed() < LONG, "{error}");
        }
        let error = Plugin::of("head -c 9000000 /dev/zero | tr '\\0' x >&2; exit 3", LONG).run("ADD").await;
        let error = error.unwrap_err();
        assert!(error.contains("exit status: 3") && error.len() < 2 * LONGEST_WORDS, "{}", error.len());
    }

    fn is_alive(file: &std::path::Path) -> bool {
        let pid = std::fs::read_to_string(file).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // A process that nobody has waited for yet has ended, too.
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[tokio::test]
    async fn whoever_takes_too_long_ends_with_all_that_it_has_started() {
        let script = "trap '' TERM HUP INT; sleep 600 & echo $! > ${0%/*}/child; wait";
        for command in COMMANDS {
            let plugin = Plugin::of(script, Duration::from_secs(1));
            let error = plugin.run(command).await.unwrap_err();
            assert!(error.contains(&format!("{command} did not end within 1 s")), "{error}");
            let until = Instant::now() + Duration::from_secs(60);
            let child = plugin.folder.path().join("child");
            assert!(child.exists());
            while is_alive(&child) {
                assert!(Instant::now() < until, "the child lives");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_keeps_nobody_waiting() {
        let plugin = Plugin::of("sleep 600 & echo $! > ${0%/*}/child; echo '{}'", LONG);
        let started = Instant::now();
        assert_eq!(plugin.run("ADD").await, Ok(json!({})));
        assert!(started.elapsed() < LONG);
        let child = std::fs::read_to_string(plugin.folder.path().join("child")).unwrap();
        let child = Pid::from_raw(child.trim().parse().unwrap());
        // It may be a service of the plugin's: it lives on.
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn an_error_of_the_specification_is_told_in_its_words() {
        let script =
            r#"cat > /dev/null; echo '{"code": 11, "msg": "not today", "details": "no room"}'; exit 1"#;
        let error = Plugin::of(script, LONG).run("ADD").await.unwrap_err();
        assert_eq!(error, "plugin plugin: ADD: exit status: 1: not today: no room (code 11)");
    }
}
