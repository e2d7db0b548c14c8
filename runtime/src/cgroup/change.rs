//! A change of several files of a cgroup, as a transaction (CRI `UpdateContainerResources`). The former value of
//! each file is kept. If a later write is rejected, the former values are restored.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The value of `io.max` for a device without a limit (cgroup-v2.rst, "IO Interface Files").
const NO_IO_LIMIT: &str = "rbps=max wbps=max riops=max wiops=max";

/// The former values of the files that were written.
#[derive(Debug, Default)]
#[must_use = "only this value can undo the writes"]
pub struct Change {
    former: Vec<Former>,
}

/// The former state of a file. A file that cannot be read contains no setting.
#[derive(Debug)]
struct Former {
    path: PathBuf,
    text: Option<String>,
}

impl Change {
    /// Writes one file and keeps its former value.
    pub(super) fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        let text = fs::read_to_string(path).ok();
        fs::write(path, value)?;
        self.former.push(Former { path: path.to_owned(), text });
        Ok(())
    }

    /// Restores the former values, the last one first, because one limit may bound another. Continues after an
    /// error. Returns the errors, which name their files.
    #[must_use]
    pub fn undo(self) -> Vec<String> {
        let mut errors = Vec::new();
        for former in self.former.into_iter().rev() {
            if let Err(error) = former.restore() {
                errors.push(format!("failed to restore {}: {error}", former.path.display()));
            }
        }
        errors
    }
}

impl Former {
    fn restore(&self) -> io::Result<()> {
        let Some(text) = &self.text else { return Ok(()) };
        if self.path.file_name().is_some_and(|name| name == "io.max") {
            for device in added(text, &fs::read_to_string(&self.path)?) {
                fs::write(&self.path, format!("{device} {NO_IO_LIMIT}"))?;
            }
        }
        // A file accepts one of its lines at a time. An empty list is written as an empty line.
        let mut lines = text.lines().peekable();
        if lines.peek().is_none() {
            return fs::write(&self.path, "\n");
        }
        lines.try_for_each(|line| fs::write(&self.path, line))
    }
}

/// Returns the keys of lines that were not there before.
fn added<'t>(before: &str, now: &'t str) -> Vec<&'t str> {
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let former: Vec<String> = before.lines().map(key).collect();
    let keys = now.lines().filter_map(|line| line.split(' ').next());
    keys.filter(|device| !device.is_empty() && !former.iter().any(|former| former == device)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undo_restores_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("memory.max"), "max\n").unwrap();
        fs::write(path("cpuset.cpus"), "\n").unwrap();
        let mut change = Change::default();
        change.write(&path("memory.max"), "1000").unwrap();
        change.write(&path("memory.max"), "2000").unwrap();
        change.write(&path("cpuset.cpus"), "0").unwrap();
        assert!(change.write(&path("none/here"), "0").is_err());
        assert_eq!(fs::read_to_string(path("memory.max")).unwrap(), "2000");
        assert_eq!(change.undo(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(path("memory.max")).unwrap(), "max");
        assert_eq!(fs::read_to_string(path("cpuset.cpus")).unwrap().trim(), "");
    }

    #[test]
    fn devices_without_a_former_limit_are_found() {
        assert_eq!(added("8:0 rbps=1\n", "8:0 rbps=2\n8:16 rbps=3\n"), ["8:16"]);
        assert!(added("8:0 rbps=1\n", "").is_empty());
    }
}
