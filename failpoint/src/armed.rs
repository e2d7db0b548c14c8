//! The folder with one file per armed step.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{self, Command};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// The environment variable with the folder. `packaging/build` checks that no release has this text.
const VARIABLE: &str = "BERTH_FAILPOINTS";

/// A test looks at this interval whether a process has arrived, and so does the process whether it may continue.
const INTERVAL: Duration = Duration::from_millis(1);

static FOLDER: OnceLock<Option<OsString>> = OnceLock::new();

fn folder() -> Option<&'static OsString> {
    FOLDER.get_or_init(|| env::var_os(VARIABLE)).as_ref()
}

pub(crate) fn reach(operation: &str, step: &str) {
    if let Some(folder) = folder() {
        wait(Path::new(folder), operation, step);
    }
}

pub(crate) fn pass_on(command: &mut Command) {
    if let Some(folder) = folder() {
        command.env(VARIABLE, folder);
    }
}

/// Renames the file of the step to one with the pid of this process, if it exists, and waits until it is removed. The rename
/// lets only one process through, once.
fn wait(folder: &Path, operation: &str, step: &str) {
    let armed = folder.join(format!("{operation}.{step}"));
    let reached = folder.join(format!("{operation}.{step}.{}", process::id()));
    if fs::rename(armed, &reached).is_ok() {
        while reached.exists() {
            thread::sleep(INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    #[test]
    fn a_process_stops_once_at_the_armed_step_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        wait(folder.path(), "StopPodSandbox", "Release");
        fs::write(folder.path().join("StopPodSandbox.Release"), "").unwrap();
        let path = folder.path().to_owned();
        wait(&path, "StopPodSandbox", "Containers");
        let stopped = thread::spawn(move || wait(&path, "StopPodSandbox", "Release"));
        let reached = folder.path().join(format!("StopPodSandbox.Release.{}", process::id()));
        while !reached.exists() {
            thread::sleep(INTERVAL);
        }
        assert!(!stopped.is_finished());
        wait(folder.path(), "StopPodSandbox", "Release");
        fs::remove_file(reached).unwrap();
        stopped.join().unwrap();
    }
}
