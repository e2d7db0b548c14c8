//! The cgroups of execs: below that of their container, or beside it while the container is frozen.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::folder::Folder;
use super::interface::Interface;
use super::{Cgroup, CgroupError, Result, folder};

/// The separator between a cgroup's name and the suffix of a sibling's name.
const SIBLING_SEPARATOR: &str = ".";

impl Cgroup {
    /// The prefix of the names of execs' cgroups.
    pub const EXEC: &str = "exec-";

    /// Creates a cgroup below this one for an exec. Everything that the exec starts can be killed by it, and the
    /// limits of this cgroup apply. On v1 it exists only in the freezer; in the other hierarchies the exec is in
    /// the container's cgroup.
    ///
    /// # Errors
    /// The cgroup cannot be created.
    pub fn child(&self, name: &str) -> Result<Self> {
        let child = self.existing_child(name);
        folder::make(&child.process_folder)?;
        Ok(child)
    }

    /// Returns the cgroup below this one. It need not exist.
    #[must_use]
    pub fn existing_child(&self, name: &str) -> Self {
        let process_folder = self.process_folder.join(name);
        let folders = self.folders.iter().map(|folder| {
            let mut folder = folder.clone();
            if folder.path == self.process_folder {
                folder.path.clone_from(&process_folder);
            }
            folder
        });
        Self { process_folder: process_folder.clone(), folders: folders.collect(), interface: self.interface }
    }

    /// Returns a cgroup below this one, which must exist, by a path without `..`. With a controller, a process that joins it is
    /// only in its hierarchy below this one (v1).
    ///
    /// # Errors
    /// The cgroup or the controller does not exist.
    pub fn below(&self, controller: Option<&str>, path: &Path) -> Result<Self> {
        let (mut folders, mut process_folder) = (self.folders.clone(), self.process_folder.clone());
        let of_controller = |folder: &Folder| match (self.interface, controller) {
            (Interface::V1, Some(controller)) => folder.hierarchy.has(controller),
            _ => true,
        };
        let missing = |path: PathBuf| CgroupError::File {
            action: "find",
            path,
            source: std::io::ErrorKind::NotFound.into(),
        };
        let mut found = false;
        for folder in folders.iter_mut().filter(|folder| of_controller(folder)) {
            let below = folder.path.join(path);
            if !below.is_dir() {
                return Err(missing(below));
            }
            if folder.path == process_folder {
                process_folder.clone_from(&below);
            }
            folder.path = below;
            found = true;
        }
        match found {
            true => Ok(Self { process_folder, folders, interface: self.interface }),
            false => Err(missing(PathBuf::from(controller.unwrap_or_default()))),
        }
    }

    /// Creates a sibling of this cgroup for an exec while this one is frozen, because a cgroup below it would be
    /// frozen as well. On v2 it gets the same limits. On v1 only the freezer's cgroup differs.
    ///
    /// # Errors
    /// The cgroup cannot be created, or a limit is rejected.
    pub fn sibling(&self, name: &str, resources: &LinuxResources) -> Result<Self> {
        let other = self.existing_sibling(name);
        folder::make(&other.process_folder)?;
        if self.interface == Interface::V2 {
            drop(other.update(resources)?);
        }
        Ok(other)
    }

    /// Returns the sibling with this name. It need not exist.
    #[must_use]
    pub fn existing_sibling(&self, name: &str) -> Self {
        let mut leaf = self.process_folder.file_name().unwrap_or_default().to_owned();
        leaf.push(format!("{SIBLING_SEPARATOR}{name}"));
        let process_folder = self.process_folder.with_file_name(leaf);
        let mut folders = self.folders.clone();
        for folder in folders.iter_mut().filter(|folder| folder.path == self.process_folder) {
            folder.path.clone_from(&process_folder);
        }
        Self { process_folder, folders, interface: self.interface }
    }

    /// Returns the existing siblings, for example those that an earlier daemon left behind, with their names.
    pub(super) fn siblings(&self) -> Vec<(Self, String)> {
        let entries =
            self.process_folder.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten();
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let leaf = self.process_folder.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!("{leaf}{SIBLING_SEPARATOR}");
        let sibling = |name: String| {
            let name = name.strip_prefix(&prefix)?;
            Some((self.existing_sibling(name), name.to_owned()))
        };
        names.filter_map(sibling).collect()
    }

    /// Returns the processes of each exec in this cgroup, by the exec's name: child cgroups, and the sibling cgroups of execs that were
    /// started while it was frozen.
    ///
    /// # Errors
    /// A cgroup cannot be read.
    pub fn exec_processes(&self) -> Result<Vec<(String, Vec<i32>)>> {
        let entries = fs::read_dir(&self.process_folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = names.map(|name| (self.existing_child(&name), name));
        let execs = below.chain(self.siblings()).filter(|(_, name)| name.starts_with(Self::EXEC));
        execs.map(|(exec, name)| Ok((name, exec.processes()?))).collect()
    }

    /// Removes an exec's cgroup unless processes still run in it. Returns whether it is removed.
    ///
    /// # Errors
    /// A folder cannot be removed for another reason.
    pub fn remove_if_empty(&self) -> Result<bool> {
        if !self.processes()?.is_empty() {
            return Ok(false);
        }
        folder::remove(&self.process_folder).map(|()| true)
    }

    /// Kills the execs with the names in `running`, and removes the cgroups of all execs that are empty. Returns
    /// the names of those that still have processes.
    ///
    /// # Errors
    /// A process is still running after the time limit, or a folder cannot be removed.
    pub fn end_execs(&self, running: &[String]) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.process_folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = names.filter(|name| is_exec(name)).map(|name| (self.existing_child(&name), name));
        let mut left = Vec::new();
        for (exec, name) in below.chain(self.siblings()) {
            if running.contains(&name) {
                exec.kill()?;
            }
            if !exec.remove_if_empty()? {
                left.push(name);
            }
        }
        Ok(left)
    }
}

/// Returns whether a name is that of an exec's cgroup (`exec-DAEMON-NUMBER`). Processes of the container may
/// create cgroups with other names.
fn is_exec(name: &str) -> bool {
    let parts = name.strip_prefix(Cgroup::EXEC).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(daemon, number)| {
        !daemon.is_empty()
            && daemon.bytes().all(|byte| byte.is_ascii_hexdigit())
            && number.parse::<u64>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_execs() {
        assert!(is_exec("exec-0a1f-7"));
        for name in ["exec-", "exec-7", "exec--7", "exec-0g-7", "exec-0a-x", "init.scope"] {
            assert!(!is_exec(name), "{name}");
        }
    }
}
