//! A running plugin. It has its own process group, which is killed if the call fails or is cancelled.

use std::process::{ExitStatus, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::ongoing::Stderr;

/// The longest accepted result. Results of the reference plugins have some hundred bytes.
const MAX_OUTPUT: usize = 1 << 20;

/// How many bytes of a plugin's standard error are kept.
pub(super) const MAX_MESSAGE: usize = 4 << 10;

/// How long output is read after the plugin has ended: a process that it left running may hold the streams open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a killed plugin may take to end.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A running plugin. Its group is killed if it is dropped before its end.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// `None` once the plugin has succeeded.
    group: Option<Pid>,
}

/// The output and the exit status of a plugin.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Running {
    /// Starts a command.
    pub(super) fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let child = child.map_err(|error| format!("failed to start the plugin: {error}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Returns the pid of the plugin, unless it has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Writes the input and waits for the end of the plugin. If the plugin takes too long or prints too much, it is
    /// killed with all of its children. It has ended when this function returns. While it runs, `errors` contains its
    /// standard error so far.
    pub(super) async fn output(
        mut self,
        input: String,
        patience: Duration,
        errors: &Stderr,
    ) -> Result<Output, String> {
        let result = tokio::time::timeout(patience, self.communicate(input, errors)).await;
        let why = match result {
            Ok(Ok(output)) => {
                // Processes that a successful plugin has put into the background keep running.
                if output.status.success() {
                    self.group = None;
                }
                return Ok(output);
            }
            Ok(Err(why)) => why,
            Err(_) => format!("did not end within {} s", patience.as_secs()),
        };
        self.kill();
        match tokio::time::timeout(AFTER_KILL, self.child.wait()).await {
            Ok(_) => Err(why),
            Err(_) => Err(format!("{why}, and did not end after it was killed")),
        }
    }

    async fn communicate(&mut self, input: String, errors: &Stderr) -> Result<Output, String> {
        let failed = |error: std::io::Error| error.to_string();
        let (stdin, stdout, stderr) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let mut out = Vec::new();
        let status = {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that does not read its input reports the reason in its output.
                    drop(stdin.write_all(input.as_bytes()).await);
                }
            };
            let read = async {
                let mut kept_errors = |piece: &[u8]| {
                    let mut kept = errors.lock().unwrap_or_else(PoisonError::into_inner);
                    keep(&mut kept, piece, MAX_MESSAGE);
                    Ok(())
                };
                let mut whole_output = |piece: &[u8]| match keep(&mut out, piece, MAX_OUTPUT) {
                    true => Ok(()),
                    false => Err(format!("output exceeds {} KiB", MAX_OUTPUT >> 10)),
                };
                tokio::try_join!(read(stdout, &mut whole_output), read(stderr, &mut kept_errors))
            };
            let streams = async { tokio::join!(write, read).1 };
            tokio::pin!(streams);
            tokio::select! {
                result = &mut streams => {
                    result?;
                    self.child.wait().await.map_err(failed)?
                }
                status = self.child.wait() => {
                    if let Ok(result) = tokio::time::timeout(DRAIN, &mut streams).await {
                        result?;
                    }
                    status.map_err(failed)?
                }
            }
        };
        let stderr = errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Output { status, stdout: out, stderr })
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // The group may have ended meanwhile.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Appends as much of a piece as fits within `limit` bytes. Returns whether all of it fits.
fn keep(kept: &mut Vec<u8>, piece: &[u8], limit: usize) -> bool {
    let room = limit.saturating_sub(kept.len());
    kept.extend_from_slice(piece.get(..piece.len().min(room)).unwrap_or_default());
    piece.len() <= room
}

/// Reads to the end and passes each piece on.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    take: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = stream.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if length == 0 {
            return Ok(());
        }
        take(buffer.get(..length).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command).unwrap()
    }

    const LONG: Duration = Duration::from_secs(120);

    #[tokio::test]
    async fn background_processes_of_a_plugin_do_not_delay_the_call() {
        let output = shell("cat; sleep 1000 & exit 3")
            .output("in".to_owned(), LONG, &Stderr::default())
            .await
            .unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"in"[..]));
        drop(std::process::Command::new("true").status());
    }

    #[tokio::test]
    async fn a_plugin_that_exceeds_a_limit_is_killed_with_its_children() {
        let script = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000";
        let running = shell(script);
        let group = running.group.unwrap();
        let error =
            running.output(String::new(), Duration::from_millis(500), &Stderr::default()).await.unwrap_err();
        assert!(error.contains("did not end"), "{error}");
        // The group is gone once init has reaped the orphan.
        let until = std::time::Instant::now() + LONG;
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(std::time::Instant::now() < until, "a process of the group is still alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error =
            shell("exec cat /dev/zero").output(String::new(), LONG, &Stderr::default()).await.unwrap_err();
        assert!(error.contains("output exceeds"), "{error}");
    }

    #[tokio::test]
    async fn a_cancelled_call_leaves_no_process() {
        let running = shell("sleep 1000 & wait");
        let group = running.group.unwrap();
        drop(running);
        let until = std::time::Instant::now() + LONG;
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(std::time::Instant::now() < until, "a process of the group is still alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
