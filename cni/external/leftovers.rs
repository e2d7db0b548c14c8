//! Plugins that a daemon has left running when it was killed in the middle of a call. They end before anything else is done
//! for their attachments: no two calls for one are ever made at once (CNI specification, "Lifecycle & Ordering").

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

/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// Ends the process groups of plugins that were started for attachments in this folder.
///
/// # Errors
/// The processes of this host cannot be listed, so that plugins among them would be missed.
pub(crate) fn end_leftovers(state_dir: &Path) -> Result<()> {
    let groups =
        groups_of(&format!("{OWNER}={}", state_dir.display())).doing("look for network plugins in /proc")?;
    for group in &groups {
        tracing::warn!(group = group.as_raw_nonzero().get(), "a network plugin of a former daemon is ended");
        if let Err(error) = kill_process_group(*group, Signal::KILL) {
            tracing::debug!(%error, "failed to kill a network plugin");
        }
    }
    let until = Instant::now() + PATIENCE;
    for group in &groups {
        while test_kill_process_group(*group).is_ok() {
            if Instant::now() > until {
                tracing::error!(group = group.as_raw_nonzero().get(), "a network plugin does not end");
                break;
            }
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// The groups whose leaders have this variable in their environment (proc_pid_environ(5)), in a session of somebody else.
/// What a plugin has put into the background on purpose has another leader, or none.
fn groups_of(variable: &str) -> io::Result<Vec<Pid>> {
    let mut groups = Vec::new();
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter_map(Pid::from_raw) {
        let environment = match fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) {
            Ok(environment) => environment,
            // Without a descriptor nothing can be said of it.
            Err(error) if lacks_descriptors(&error) => return Err(error),
            // It has ended, or is one of the kernel.
            Err(_) => continue,
        };
        let is_ours = environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes());
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
    fn only_the_plugins_of_this_folder_end() {
        let start = |folder: &str| {
            let mut command = Command::new("sleep");
            command.arg("1000").env(OWNER, folder).process_group(0).spawn().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let other = format!("{}x", folder.path().display());
        let (mut ours, mut others) = (start(&folder.path().display().to_string()), start(&other));
        // Whoever has started it has to wait for it: here that is this test.
        let waiting = std::thread::spawn(move || ours.wait().unwrap());
        end_leftovers(folder.path()).unwrap();
        assert!(!waiting.join().unwrap().success());
        assert!(others.try_wait().unwrap().is_none(), "that of another daemon goes on");
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
