//! Calls the command line of an OCI runtime, with a time limit. The runtime's error is in its log, as JSON, or in its
//! output.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;

use crate::sys;
use crate::time_limit::{Output, wait};

/// The folders in which a runtime finds its helper programs. It gets no other variable: those of systemd would have it notify
/// the daemon's service manager.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The number of bytes of a runtime's messages that are kept.
const MESSAGE_LIMIT: usize = 2048;

/// The number of bytes of the result of a call.
const RESULT_LIMIT: usize = 64 << 10;

/// The number of bytes of a log that are read.
const LOG_LIMIT: usize = 256 << 10;

/// A call of an OCI runtime has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {why}")]
pub struct RuntimeCallError {
    /// The name of the program and its command.
    pub call: String,
    /// The message of the runtime, or the reason why there is none.
    pub why: String,
    /// Whether the program cannot be executed.
    pub missing: bool,
}

/// A call of an OCI runtime.
#[derive(Debug)]
pub struct RuntimeCall {
    command: Command,
    name: String,
    log: Option<PathBuf>,
    input: Option<OwnedFd>,
    allowed: Duration,
}

impl RuntimeCall {
    /// A call without a state folder: `features` and the like.
    #[must_use]
    pub fn of_program(program: &Path, arguments: &[&str], allowed: Duration) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::with(command, program, arguments.first().copied().unwrap_or_default(), None, allowed)
    }

    /// A call about a container. The log is a new file for its messages.
    #[must_use]
    pub fn about_container(
        program: &Path,
        root: &Path,
        name: &str,
        log: Option<&Path>,
        allowed: Duration,
    ) -> Self {
        let mut command = Command::new(program);
        command.arg("--root").arg(root);
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        command.arg(name);
        Self::with(command, program, name, log, allowed)
    }

    fn with(mut command: Command, program: &Path, name: &str, log: Option<&Path>, allowed: Duration) -> Self {
        command.env_clear().env("PATH", PATH).process_group(0).current_dir("/");
        let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        Self {
            command,
            name: format!("{program} {name}"),
            log: log.map(Path::to_owned),
            input: None,
            allowed,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets the folder in which the program runs.
    #[must_use]
    pub fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Sets the text of standard input.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn input(mut self, text: &str) -> sys::Result<Self> {
        use sys::Context;
        let file = sys::fs::sealed("input", text.as_bytes(), false)?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).on("lseek", "input")?;
        self.input = Some(file);
        Ok(self)
    }

    /// Runs the program with these standard streams, which the container inherits.
    ///
    /// # Errors
    /// The call fails, exceeds its time or is cancelled: `cancel` is closed by its other end.
    pub fn run_with(
        mut self,
        [stdin, stdout, stderr]: [Stdio; 3],
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<(), RuntimeCallError> {
        self.command.stdin(stdin).stdout(stdout).stderr(stderr);
        self.finish(Output::new(None, 0), cancel).map(drop)
    }

    /// Runs the program, and keeps its messages for the error.
    ///
    /// # Errors
    /// As [`Self::run_with`].
    pub fn run(mut self, cancel: Option<BorrowedFd<'_>>) -> Result<(), RuntimeCallError> {
        let output = self.capture(MESSAGE_LIMIT, true)?;
        self.finish(output, cancel).map(drop)
    }

    /// Runs the program and returns its standard output.
    ///
    /// # Errors
    /// As [`Self::run_with`].
    pub fn result(mut self) -> Result<String, RuntimeCallError> {
        let output = self.capture(RESULT_LIMIT, false)?;
        self.finish(output, None)
    }

    fn capture(&mut self, limit: usize, errors: bool) -> Result<Output, RuntimeCallError> {
        let pipe = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (output, writer) = pipe.map_err(|error| self.failed(&error))?;
        let stderr = match errors {
            true => Stdio::from(writer.try_clone().map_err(|error| self.failed(&error))?),
            false => Stdio::null(),
        };
        let stdin = self.input.take().map_or_else(Stdio::null, Stdio::from);
        self.command.stdin(stdin).stdout(Stdio::from(writer)).stderr(stderr);
        Ok(Output::new(Some(output), limit))
    }

    fn finish(
        mut self,
        mut output: Output,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<String, RuntimeCallError> {
        let spawned = self.command.spawn();
        let mut child: Child = spawned.map_err(|error| self.failed(&error))?;
        // The command holds the other ends of the pipes.
        self.command = Command::new("");
        let ended = wait(&mut child, &mut output, self.allowed, cancel);
        match ended.map_err(|error| self.failed(&error))? {
            Some(status) if status.success() => Ok(output.text()),
            Some(status) => Err(self.error(&status, &output.text())),
            None => {
                let why = format!("it did not end within {} s{}", self.allowed.as_secs(), output.message());
                Err(RuntimeCallError { call: self.name, why, missing: false })
            }
        }
    }

    fn failed(&self, error: &io::Error) -> RuntimeCallError {
        let missing = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
        );
        RuntimeCallError { call: self.name.clone(), why: error.to_string(), missing }
    }

    fn error(self, status: &ExitStatus, output: &str) -> RuntimeCallError {
        let logged = self.log.as_ref().and_then(|log| error_in(&read_start(log)));
        let why = logged.unwrap_or_else(|| match output {
            "" => status.to_string(),
            output => output.to_owned(),
        });
        // The messages of runc start with the name of the call.
        let call = format!("{} failed: ", self.name);
        let why = why.strip_prefix(&call).unwrap_or(&why).chars().take(MESSAGE_LIMIT).collect();
        RuntimeCallError { call: self.name, why, missing: false }
    }
}

fn read_start(log: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let limit = u64::try_from(LOG_LIMIT).unwrap_or(u64::MAX);
    // Without a log, the exit code is the error.
    let _read = std::fs::File::open(log).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the last error in a log of JSON lines, as runc, crun, youki and runsc write them.
fn error_in(log: &str) -> Option<String> {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_error = |line: &Value| {
        let level = line.get("level").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        ["error", "fatal", "panic"].contains(&level.as_str())
    };
    let mut errors = lines.filter(is_error);
    errors.find_map(|line| {
        let fields = line.get("fields");
        let texts = [line.get("msg"), line.get("message"), fields.and_then(|fields| fields.get("message"))];
        texts.into_iter().flatten().find_map(Value::as_str).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str, allowed: Duration) -> RuntimeCall {
        RuntimeCall::of_program(Path::new("/bin/sh"), &["-c", script], allowed)
    }

    #[test]
    fn the_last_error_of_a_log_is_found() {
        let runc = r#"{"level":"warning","msg":"old"}
{"level":"error","msg":"first"}
{"level":"error","msg":"exec: \"nope\": not found","time":"now"}
{"level":"info","msg":"late"}
{"broken"#;
        assert_eq!(error_in(runc).as_deref(), Some("exec: \"nope\": not found"));
        let youki = r#"{"timestamp":"now","level":"ERROR","fields":{"message":"no bundle"}}"#;
        assert_eq!(error_in(youki).as_deref(), Some("no bundle"));
        assert_eq!(error_in("plain text\n"), None);
    }

    #[test]
    fn an_error_has_the_log_or_the_output_or_the_status() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = folder.path().join("runtime");
        let write = |text: &str| {
            std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        };
        let call = || {
            let call = RuntimeCall::about_container(&script, Path::new("/state"), "create", Some(&log), LONG);
            call.args(["c1"]).run(None).unwrap_err().to_string()
        };
        write(r#"echo '{"level":"error","msg":"from the log"}' >$4; echo noise; exit 1"#);
        assert_eq!(call(), "runtime create failed: from the log");
        std::fs::remove_file(&log).unwrap();
        write(r#"echo "$@" >&2; exit 1"#);
        let arguments = format!("--root /state --log {} --log-format json create c1", log.display());
        assert_eq!(call(), format!("runtime create failed: {arguments}"));
        write("echo runtime create failed: once; exit 1");
        assert_eq!(call(), "runtime create failed: once");
        write("exit 3");
        assert_eq!(call(), "runtime create failed: exit status: 3");
    }

    #[test]
    fn a_call_that_hangs_is_killed() {
        let error = shell("echo waits; sleep 60", Duration::from_secs(1)).run(None).unwrap_err();
        assert_eq!(error.why, "it did not end within 1 s: waits");
    }

    #[test]
    fn a_result_is_the_standard_output_and_input_is_passed_on() {
        let call = shell("cat; echo error >&2", LONG).input("text").unwrap();
        assert_eq!(call.result().unwrap(), "text");
    }

    #[test]
    fn a_missing_program_is_recognized() {
        let missing = RuntimeCall::of_program(Path::new("/no/runtime"), &["features"], LONG);
        let error = missing.result().unwrap_err();
        assert!(error.missing && error.to_string().starts_with("runtime features failed: No such file"));
    }
}
