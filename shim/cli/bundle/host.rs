//! Facts of the host: files of procfs, and the log of the systemd unit.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Files of the host without secrets. The command line of the kernel is left out, since it can have some.
const FILES: [&str; 14] = [
    "/proc/version",
    "/etc/os-release",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cgroups",
    "/proc/filesystems",
    "/proc/modules",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/fs/file-nr",
    "/sys/kernel/security/lsm",
];

/// The largest part of a file.
const MAX_FILE: u64 = 256 << 10;

/// The lines of the unit's log.
const JOURNAL_LINES: &str = "3000";

/// The time limit of journalctl.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the facts, a heading for each file. A file that this kernel does not have is left out.
pub(super) fn facts() -> String {
    let read = |path: &&str| {
        let mut text = String::new();
        File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        Some(format!("== {path}\n{}\n\n", text.trim_end()))
    };
    FILES.iter().filter_map(read).collect()
}

/// Returns the last lines of the unit's log.
///
/// # Errors
/// journalctl is not installed, fails, or takes too long.
pub(super) async fn journal(unit: &str) -> Result<String, String> {
    let mut command = Command::new("journalctl");
    command
        .args(["--unit", unit, "--lines", JOURNAL_LINES, "--no-pager", "--output", "short-iso-precise"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(|error| format!("failed to run journalctl: {error}"))?,
        Err(_) => return Err(format!("journalctl did not end within {} s", PATIENCE.as_secs())),
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("journalctl failed: {}: {}", output.status, stderr.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_among_the_facts() {
        let facts = facts();
        assert!(facts.starts_with("== /proc/version\nLinux version "), "{facts}");
        assert!(facts.contains("== /proc/meminfo\nMemTotal:"));
    }
}
