//! The objects that a test's daemon has left on the host. Only objects count that this daemon can have created: other tests and
//! programs run at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth::inventory::{Object, ObjectKind, Scope, files, objects, processes};
use berth_runtime::cgroup::{CgroupPath, tree};
use berth_runtime::client::{FoundKeeper, find_keepers};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::PATIENCE;

/// The prefix of the names of test folders.
pub const FOLDER: &str = "berth-test-";

/// Returns what is left of pods and needs no file: keepers, cgroups, mounts, links, rules, pins. `host` is a process in the
/// network namespace of the daemon's host, `daemon` the daemon. Waits for a while, since the kernel removes some objects
/// in the background.
pub fn left_running(folder: &Path, cgroup_parent: &str, daemon: u32, host: u32) -> Vec<String> {
    let scope = scope_of(folder);
    let until = Instant::now() + PATIENCE;
    loop {
        let mut left = names(on_host(host, &scope), is_running);
        left.extend(cgroups_left(cgroup_parent));
        let children = processes::children(daemon).unwrap_or_default();
        left.extend(children.into_iter().map(|child| format!("process {child}")));
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the files of pods that are left: records, folders, addresses. See [`left_running`].
pub fn left_on_disk(folder: &Path, host: u32) -> Vec<String> {
    let scope = scope_of(folder);
    let until = Instant::now() + PATIENCE;
    loop {
        let mut left = names(on_host(host, &scope), |kind| !is_running(kind));
        // With folders that are not named by an id.
        left.extend(files::entries(&scope).unwrap().iter().map(|path| format!("file {}", path.display())));
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_running(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Keeper
            | ObjectKind::Cgroup
            | ObjectKind::Mount
            | ObjectKind::Link
            | ObjectKind::Rules
            | ObjectKind::Pin
    )
}

fn names(objects: Vec<Object>, is_wanted: impl Fn(ObjectKind) -> bool) -> Vec<String> {
    // A pin without a mark may be that of another test.
    let wanted = objects.iter().filter(|object| object.certain && is_wanted(object.kind));
    wanted.map(ToString::to_string).collect()
}

/// Returns what the daemon of a test can have created, by its configuration file.
fn scope_of(folder: &Path) -> Scope {
    let config =
        berth::config::load(Some(&folder.join("config.toml")), berth::config::Layer::default()).unwrap();
    Scope::of(&config)
}

/// Lists the objects in the network namespace of a process, on a thread that enters it and ends.
fn on_host(host: u32, scope: &Scope) -> Vec<Object> {
    let list = || {
        let netns = fs::File::open(format!("/proc/{host}/ns/net")).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network))
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(objects(scope)).unwrap()
    };
    std::thread::scope(|threads| threads.spawn(list).join().unwrap())
}

/// Returns the cgroups below `parent`. `parent` plays the role of the kubelet's cgroup: the test removes it itself.
fn cgroups_left(parent: &str) -> Vec<String> {
    let is_parent = |folder: &Path| folder.ends_with(parent.trim_start_matches('/'));
    let folders = cgroup_folders(parent);
    let left = folders.iter().filter(|folder| !is_parent(folder) || fs::remove_dir(folder).is_err());
    left.map(|folder| format!("cgroup {}", folder.display())).collect()
}

/// Returns the folders of a cgroup in every hierarchy, the deepest first.
pub fn cgroup_folders(path: &str) -> Vec<PathBuf> {
    tree::folders(&CgroupPath::from_recorded(path).unwrap()).unwrap()
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
