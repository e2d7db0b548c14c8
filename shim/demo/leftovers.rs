//! What was on this machine before the demo and what is there afterwards: processes, mounts, interfaces, cgroups, files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::DemoError;
use super::daemon::PrivateDaemon;
use super::print::Printer;

/// How long the kernel may take to clean up behind a namespace whose last process has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What lies between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What could be left behind on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    mounts: BTreeSet<String>,
    interfaces: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at this machine.
    ///
    /// # Errors
    /// procfs cannot be read.
    pub fn take() -> Result<Self, DemoError> {
        Ok(Self { mounts: mounts()?, interfaces: interfaces()? })
    }
}

/// Looks until nothing is there that was not there before, for a while.
///
/// # Errors
/// What is left.
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
        tokio::time::sleep(LOOK).await;
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
        let cgroups = cgroups_named(&mount, name).map_err(DemoError::file("look through", &mount))?;
        left.extend(cgroups.into_iter().map(|path| format!("cgroup {}", path.display())));
    }
    for folder in daemon.state_folders() {
        let files = objects(folder).map_err(DemoError::file("look through", folder))?;
        left.extend(files.into_iter().map(|path| format!("file {}", path.display())));
    }
    Ok(left)
}

/// Everything that this process started or that was handed to it when it lost its parent. What has ended is waited for
/// first, as init would.
fn processes() -> Result<Vec<String>, DemoError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(DemoError::Host(format!("wait for processes: {error}"))),
        }
    }
    children()
}

/// The children of all threads of this process (proc(5), `/proc/pid/task/tid/children`).
fn children() -> Result<Vec<String>, DemoError> {
    let path = Path::new("/proc/self/task");
    let threads = fs::read_dir(path).map_err(DemoError::file("read", path))?;
    let mut found = Vec::new();
    for thread in threads {
        let children = thread.map_err(DemoError::file("read", path))?.path().join("children");
        // A thread may end between the two reads; its children are then another's of this process.
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

/// Where something is mounted, and what: the parts of a line of `/proc/self/mountinfo` that stay the same while it is.
fn mounts() -> Result<BTreeSet<String>, DemoError> {
    Ok(mountinfo()?.iter().map(|mount| format!("{} on {}", mount.kind, mount.point.display())).collect())
}

/// Where cgroups are mounted.
///
/// # Errors
/// procfs cannot be read.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>, DemoError> {
    let mounts = mountinfo()?.into_iter();
    Ok(mounts.filter(|mount| mount.kind.starts_with("cgroup")).map(|mount| mount.point).collect())
}

struct Mount {
    point: PathBuf,
    kind: String,
}

/// proc(5), `/proc/pid/mountinfo`: the fifth word is the mount point, the first after the dash the filesystem.
fn mountinfo() -> Result<Vec<Mount>, DemoError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(DemoError::file("read", path))?;
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?.to_owned();
        Some(Mount { point: left.split(' ').nth(4)?.into(), kind })
    };
    Ok(text.lines().filter_map(mount).collect())
}

/// The interfaces of this network namespace. Not from /sys/class/net, which shows those of the namespace in which sysfs
/// was mounted.
///
/// # Errors
/// procfs cannot be read.
pub fn interfaces() -> Result<BTreeSet<String>, DemoError> {
    let path = Path::new("/proc/self/net/dev");
    let text = fs::read_to_string(path).map_err(DemoError::file("read", path))?;
    // Two lines of heading.
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
}

/// The cgroups below `folder` with this name and, within them, all.
fn cgroups_named(folder: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // Other programs remove cgroups meanwhile: ENODEV is what a cgroup that is going answers.
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

/// What belongs to one pod, container, image or keeper. The folders that hold such, locks and the last address that was
/// given are the daemon's, and go with the demo's folder.
fn objects(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if names_an_object(&name) {
                found.push(entry.path());
            } else if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Pods, containers, layers and blobs are named by 64 hexadecimal digits, reservations by the address.
fn names_an_object(name: &str) -> bool {
    let digits = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split(['.', '-', ':', '_']).any(digits) || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_from_the_daemons_own_files() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            id.clone(),
            format!("{id}.json"),
            format!("sha256:{id}"),
            format!("sha256-{id}"),
            "10.99.0.2".to_owned(),
        ] {
            assert!(names_an_object(&name), "{name}");
        }
        for name in ["lock", "pods", "last_reserved_ip.0", "berth.sock", "sha256", &id[..63]] {
            assert!(!names_an_object(name), "{name}");
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
