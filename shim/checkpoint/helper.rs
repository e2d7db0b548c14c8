//! Helper processes of the daemon: this program with a hidden command. The order comes by standard input, the answer by
//! standard output. A helper goes on if the daemon is killed.

use std::io::{self, Read as _, Write as _};
use std::process::{ExitCode, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

/// The helper's answer. An empty text is a success.
#[derive(Debug, Serialize, Deserialize)]
struct HelperAnswer {
    why: String,
}

/// Runs a helper and waits for its end. The helper goes on when the caller gives up.
///
/// # Errors
/// The reason that the helper gives.
pub async fn run(command: &str, order: &impl Serialize) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to run the helper: {error}");
    // The path of the program may belong to another version meanwhile.
    let mut helper = tokio::process::Command::new("/proc/self/exe")
        .arg(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A signal to the daemon's group, such as Ctrl-C, does not reach the helper.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let text = serde_json::to_vec(order).map_err(|error| error.to_string())?;
    if let Some(mut input) = helper.stdin.take() {
        input.write_all(&text).await.map_err(failed)?;
    }
    let output = helper.wait_with_output().await.map_err(failed)?;
    match serde_json::from_slice::<HelperAnswer>(&output.stdout) {
        Ok(answer) if answer.why.is_empty() => Ok(()),
        Ok(answer) => Err(answer.why),
        Err(_) => Err(format!("the helper ended without an answer ({})", output.status)),
    }
}

/// The helper process: reads its order, works, and answers.
#[must_use]
pub fn serve<T: DeserializeOwned>(work: impl FnOnce(T) -> Result<(), String>) -> ExitCode {
    let done = read_order().and_then(work);
    let code = if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let answer = HelperAnswer { why: done.err().unwrap_or_default() };
    if let Ok(text) = serde_json::to_vec(&answer) {
        // The daemon may have been killed.
        drop(io::stdout().write_all(&text));
    }
    code
}

fn read_order<T: DeserializeOwned>() -> Result<T, String> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}
