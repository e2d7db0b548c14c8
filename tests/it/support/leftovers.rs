//! The state of the host, which has to be the same before and after a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_runtime::client::{FoundKeeper, find_keepers};

use super::PATIENCE;

/// The prefix of the names of test folders.
pub const FOLDER: &str = "berth-test-";

/// The mounts and network links of the host.
pub struct Host {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Host {
    pub fn snapshot() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // The first fields of a line are ids, which differ between equal mounts.
        let mounts = mounts.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned());
        let links = fs::read_dir("/sys/class/net").unwrap().flatten();
        Self {
            mounts: mounts.collect(),
            links: links.map(|link| link.file_name().to_string_lossy().into_owned()).collect(),
        }
    }

    /// Returns the mounts, links, cgroups and processes that exist and did not exist before. Mounts in the folders of
    /// other tests are ignored. Everything else is checked again for a while, because it can belong to another test.
    pub fn left_after(&self, folder: &Path, cgroup_parent: &str, daemon: u32) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = Self::snapshot();
            let new = now.mounts.difference(&self.mounts);
            // The options of the test's disk can have changed.
            let own = format!(" {}/{} ", folder.display(), super::disk::FOLDER);
            let mut left: Vec<String> =
                new.filter(|mount| !is_of_another(mount, folder) && !mount.contains(&own)).cloned().collect();
            left.extend(now.links.difference(&self.links).cloned());
            left.extend(cgroups_left(cgroup_parent));
            left.extend(children_of(daemon));
            if left.is_empty() || Instant::now() > until {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns the cgroups below `parent`. `parent` plays the role of the kubelet's cgroup: the test removes it itself.
fn cgroups_left(parent: &str) -> Vec<String> {
    let is_parent = |folder: &Path| folder.ends_with(parent.trim_start_matches('/'));
    let folders = cgroup_folders(parent);
    let left = folders.iter().filter(|folder| !is_parent(folder) || fs::remove_dir(folder).is_err());
    left.map(|folder| folder.display().to_string()).collect()
}

fn is_of_another(mount: &str, folder: &Path) -> bool {
    mount.contains(FOLDER) && !mount.contains(&folder.display().to_string())
}

/// Returns the folders of a cgroup in every hierarchy, the deepest first.
pub fn cgroup_folders(path: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let folder = root.join(path.trim_start_matches('/'));
        if folder.is_dir() {
            collect(&folder, &mut found);
        }
    }
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
    found.push(folder.to_owned());
}

/// Returns the processes whose parent is the daemon: keepers that have not ended, and zombies.
fn children_of(parent: u32) -> Vec<String> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((start, rest)) = stat.rsplit_once(')') else { continue };
        if rest.split_whitespace().nth(1) == Some(parent.to_string().as_str()) {
            children.push(format!("process {start})"));
        }
    }
    children
}

/// Kills what a daemon has left behind: its keepers and all processes in the cgroups of its pods. Removes the
/// cgroups.
pub fn kill_all(folder: &Path, cgroup_parent: &str) {
    kill_keepers(folder);
    let until = Instant::now() + PATIENCE;
    loop {
        let folders = cgroup_folders(cgroup_parent);
        if folders.is_empty() || Instant::now() > until {
            return;
        }
        for folder in folders {
            // A frozen process does not die.
            drop(fs::write(folder.join("freezer.state"), "THAWED"));
            drop(fs::write(folder.join("cgroup.freeze"), "0"));
            let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            drop(fs::remove_dir(folder));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills the keepers of a daemon with everything in their pods, also the keepers whose folder is removed.
pub fn kill_keepers(folder: &Path) {
    let ours = |keeper: &FoundKeeper| keeper.folder().is_some_and(|of_keeper| of_keeper.starts_with(folder));
    for keeper in find_keepers(ours).unwrap() {
        if let Err(error) = keeper.end() {
            eprintln!("{error}");
        }
    }
}

/// Kills the keeper of a pod.
pub fn kill_keeper_of(pod: &str) {
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let pid = process.file_name().to_string_lossy().parse::<i32>().ok();
        if let (true, Some(pid)) = (command.contains("berth-keeper") && command.contains(pod), pid)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
