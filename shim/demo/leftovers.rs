//! Compares this machine before and after the demo: processes, mounts, interfaces, cgroups, files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::DemoError;
use super::daemon::PrivateDaemon;
use super::machine::{cgroup_mounts, interfaces, mounts};
use super::print::Printer;

/// The time limit for the kernel to clean up a namespace after its last process.
const PATIENCE: Duration = Duration::from_secs(30);

/// The interval of comparisons.
const INTERVAL: Duration = Duration::from_millis(20);

/// The mounts and interfaces of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

impl Snapshot {
    /// Takes a snapshot of this machine.
    ///
    /// # Errors
    /// procfs cannot be read.
    pub fn take() -> Result<Self, DemoError> {
        Ok(Self { mounts: mounts()?, interfaces: interfaces()? })
    }
}

/// Waits until nothing is left that did not exist before.
///
/// # Errors
/// The objects that are left at the time limit.
pub async fn prove_nothing_left(
    before: &Snapshot,
    daemon: &PrivateDaemon,
    printer: &Printer,
) -> Result<(), DemoError> {
    let start = Instant::now();
    loop {
        let left = left(before, daemon)?;
        if left.is_empty() {
            printer.absent("no process, mount, interface, cgroup or file")?;
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(DemoError::Left(left.join(", ")));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn left(before: &Snapshot, daemon: &PrivateDaemon) -> Result<Vec<String>, DemoError> {
    let now = Snapshot::take()?;
    let mut left = Vec::new();
    left.extend(processes()?.into_iter().map(|process| format!("process {process}")));
    left.extend(now.mounts.difference(&before.mounts).map(|mount| format!("mount {mount}")));
    left.extend(now.interfaces.difference(&before.interfaces).map(|name| format!("interface {name}")));
    let name = daemon.cgroup_parent().trim_start_matches('/');
    for mount in cgroup_mounts()? {
        let cgroups = cgroups_named(&mount, name).map_err(DemoError::file("search", &mount))?;
        left.extend(cgroups.into_iter().map(|path| format!("cgroup {}", path.display())));
    }
    for folder in daemon.state_folders() {
        let files = objects(folder).map_err(DemoError::file("search", folder))?;
        left.extend(files.into_iter().map(|path| format!("file {}", path.display())));
    }
    Ok(left)
}

/// Returns the living children of this process: those that it started and orphans that it inherited. Reaps ended
/// children first, as an init does.
fn processes() -> Result<Vec<String>, DemoError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(DemoError::Host(format!("failed to wait for processes: {error}"))),
        }
    }
    children()
}

/// Returns the children of all threads of this process (proc(5), `/proc/pid/task/tid/children`).
fn children() -> Result<Vec<String>, DemoError> {
    let path = Path::new("/proc/self/task");
    let threads = fs::read_dir(path).map_err(DemoError::file("read", path))?;
    let mut found = Vec::new();
    for thread in threads {
        let children = thread.map_err(DemoError::file("read", path))?.path().join("children");
        // A thread may end between the two reads. Its children then belong to another thread of this process.
        let pids = fs::read_to_string(&children).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(DemoError::file("read", &children)(error)),
        })?;
        found.extend(pids.split_whitespace().map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} ({})", name.trim())
        }));
    }
    Ok(found)
}

/// Returns the cgroups below `folder` with `name` in their path.
fn cgroups_named(folder: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // Other programs remove cgroups at the same time. Reading a cgroup that is being removed fails with
            // ENODEV.
            Err(error)
                if matches!(
                    Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                    Errno::ENOENT | Errno::ENODEV
                ) =>
            {
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.path().to_string_lossy().contains(name) {
                found.push(entry.path());
            }
            folders.push(entry.path());
        }
    }
    Ok(found)
}

/// Returns the files and folders of pods, containers, images and keepers. The folders that contain them, locks and
/// the last assigned address belong to the daemon and are removed with the demo's folder.
fn objects(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_object_name(&name) {
                found.push(entry.path());
            } else if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Whether a name is that of an object: 64 hexadecimal digits for pods, containers, layers and blobs, an address for
/// leases.
fn is_object_name(name: &str) -> bool {
    let digits = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split(['.', '-', ':', '_']).any(digits) || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_distinguished_from_the_daemons_own_files() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            id.clone(),
            format!("{id}.json"),
            format!("sha256:{id}"),
            format!("sha256-{id}"),
            "10.99.0.2".to_owned(),
        ] {
            assert!(is_object_name(&name), "{name}");
        }
        for name in ["lock", "pods", "last_reserved_ip.0", "berth.sock", "sha256", &id[..63]] {
            assert!(!is_object_name(name), "{name}");
        }
    }

    #[test]
    fn a_process_that_lost_its_parent_is_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("{} (sleep)", child.id());
        let found = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            children().unwrap().contains(&name)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }

    #[test]
    fn a_cgroup_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/berth-demo-1/pod");
        fs::create_dir_all(&inner).unwrap();
        let found = cgroups_named(folder.path(), "berth-demo-1").unwrap();
        assert_eq!(found, [folder.path().join("a/berth-demo-1"), inner]);
        assert!(cgroups_named(folder.path(), "berth-demo-2").unwrap().is_empty());
    }

    #[test]
    fn a_snapshot_has_what_every_machine_has() {
        let snapshot = Snapshot::take().unwrap();
        assert!(snapshot.interfaces.contains("lo"), "{snapshot:?}");
        assert!(snapshot.mounts.contains("proc on /proc"), "{snapshot:?}");
    }
}
