//! Facts of the host: files of procfs, and the log of the systemd unit.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
pub(super) fn journal(unit: &str, folder: &Path) -> Result<String, String> {
    // A file instead of a pipe: the process never waits for a reader.
    let path = folder.join("journal");
    let failed = |error: std::io::Error| format!("failed to run journalctl: {error}");
    let output = File::create(&path).map_err(failed)?;
    let mut child = Command::new("journalctl")
        .args(["--unit", unit, "--lines", JOURNAL_LINES, "--no-pager", "--output", "short-iso-precise"])
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= until {
            // It has not ended, so its pid is its own.
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            return Err(format!("journalctl did not end within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        return Err(format!("journalctl failed: {status}"));
    }
    fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
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
