//! Plugins that were left running when a daemon was killed during a call. They are killed before anything else is done
//! for their attachments: two calls for one attachment must never run concurrently (CNI specification, "Lifecycle &
//! Ordering").

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use super::OWNER;
use crate::{Context, Result};

/// How long killed plugins may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The polling interval.
const POLL: Duration = Duration::from_millis(5);

/// Kills the process groups of plugins that were started by the daemon of this state folder.
///
/// # Errors
/// The processes of this host cannot be listed: plugins could be missed.
pub(crate) fn end_leftovers(state_dir: &Path) -> Result<()> {
    let groups = groups_of(&format!("{OWNER}={}", state_dir.display()))
        .doing("search for network plugins in /proc")?;
    for group in &groups {
        tracing::warn!(group = group.as_raw_nonzero().get(), "killing a network plugin of a previous daemon");
        if let Err(error) = kill_process_group(*group, Signal::KILL) {
            tracing::debug!(%error, "failed to kill a network plugin");
        }
    }
    let until = Instant::now() + PATIENCE;
    for group in &groups {
        while test_kill_process_group(*group).is_ok() {
            if Instant::now() > until {
                tracing::error!(group = group.as_raw_nonzero().get(), "network plugin did not end");
                break;
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Returns the groups whose leaders have this variable in their environment (proc_pid_environ(5)) and do not lead a
/// session. A process that a plugin has deliberately put into the background has another leader, or none.
fn groups_of(variable: &str) -> io::Result<Vec<Pid>> {
    let mut groups = Vec::new();
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter_map(Pid::from_raw) {
        let environment = match fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) {
            Ok(environment) => environment,
            // Without descriptors, the result would be incomplete.
            Err(error) if lacks_descriptors(&error) => return Err(error),
            // The process has ended, or is a kernel thread.
            Err(_) => continue,
        };
        let is_ours = environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
        // Not with rustix: its getpgid and getsid panic for 0, the number of a group or session whose leader is outside
        // of this pid namespace (pid_namespaces(7)).
        let number = unistd::Pid::from_raw(pid.as_raw_nonzero().get());
        let leads_group = unistd::getpgid(Some(number)) == Ok(number);
        let leads_session = unistd::getsid(Some(number)) == Ok(number);
        if is_ours && leads_group && !leads_session {
            groups.push(pid);
        }
    }
    Ok(groups)
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_plugins_of_this_folder_are_killed() {
        let start = |folder: &str| {
            let mut command = Command::new("sleep");
            command.arg("1000").env(OWNER, folder).process_group(0).spawn().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let other = format!("{}x", folder.path().display());
        let (mut ours, mut others) = (start(&folder.path().display().to_string()), start(&other));
        // The parent must wait for the process: in this case the test.
        let waiting = std::thread::spawn(move || ours.wait().unwrap());
        end_leftovers(folder.path()).unwrap();
        assert!(!waiting.join().unwrap().success());
        assert!(others.try_wait().unwrap().is_none(), "the plugin of another daemon keeps running");
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
