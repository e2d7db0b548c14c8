//! A running plugin. It has its own process group, which is killed if the call fails or is given up.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// The longest result that is accepted. Those of the reference plugins have some hundred bytes.
const LONGEST: usize = 1 << 20;

/// How much is kept of what a plugin prints beside its result.
pub(super) const LONGEST_WORDS: usize = 4 << 10;

/// How long output is waited for after the plugin has ended: what it has left running may hold its streams open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a killed plugin may take to end.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A plugin. Dropped before its end, its group is killed.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// None once it has ended by itself.
    group: Option<Pid>,
}

/// What a plugin has said, and how it ended.
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

    /// Gives it its input and waits for its end. One that takes longer, or prints too much, is killed with all that it has
    /// started, and has ended when this answers.
    pub(super) async fn output(mut self, input: String, patience: Duration) -> Result<Output, String> {
        let answered = tokio::time::timeout(patience, self.talk(input)).await;
        let why = match answered {
            Ok(Ok(output)) => {
                // What a successful plugin leaves in the background on purpose goes on.
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
            Err(_) => Err(format!("{why}, and does not end when it is killed")),
        }
    }

    async fn talk(&mut self, input: String) -> Result<Output, String> {
        let failed = |error: std::io::Error| error.to_string();
        let (stdin, stdout, stderr) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that does not read its input says why in its answer.
                    drop(stdin.write_all(input.as_bytes()).await);
                }
            };
            let read = async {
                tokio::try_join!(
                    read(stdout, &mut out, LONGEST, true),
                    read(stderr, &mut err, LONGEST_WORDS, false)
                )
            };
            let talk = async { tokio::join!(write, read).1 };
            tokio::pin!(talk);
            tokio::select! {
                talked = &mut talk => {
                    talked?;
                    self.child.wait().await.map_err(failed)?
                }
                status = self.child.wait() => {
                    if let Ok(talked) = tokio::time::timeout(DRAIN, &mut talk).await {
                        talked?;
                    }
                    status.map_err(failed)?
                }
            }
        };
        Ok(Output { status, stdout: out, stderr: err })
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // It may have ended meanwhile.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads to the end and keeps at most so many bytes. More than that is an error where the `whole` output is needed.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    most: usize,
    whole: bool,
) -> Result<(), String> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = stream.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if length == 0 {
            return Ok(());
        }
        let room = most.saturating_sub(kept.len());
        if length > room && whole {
            return Err(format!("output exceeds {} KiB", most >> 10));
        }
        kept.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
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
    async fn what_a_plugin_leaves_in_the_background_is_not_waited_for() {
        let output = shell("cat; sleep 1000 & exit 3").output("in".to_owned(), LONG).await.unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"in"[..]));
        drop(std::process::Command::new("true").status());
    }

    #[tokio::test]
    async fn what_takes_too_long_or_prints_too_much_ends_with_all_that_it_has_started() {
        let script = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000";
        let running = shell(script);
        let group = running.group.unwrap();
        let error = running.output(String::new(), Duration::from_millis(500)).await.unwrap_err();
        assert!(error.contains("did not end"), "{error}");
        // The group is gone as soon as init has taken the orphan.
        let until = std::time::Instant::now() + LONG;
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(std::time::Instant::now() < until, "something of the group lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = shell("exec cat /dev/zero").output(String::new(), LONG).await.unwrap_err();
        assert!(error.contains("output exceeds"), "{error}");
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_leaves_nothing() {
        let running = shell("sleep 1000 & wait");
        let group = running.group.unwrap();
        drop(running);
        let until = std::time::Instant::now() + LONG;
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(std::time::Instant::now() < until, "something of the group lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
