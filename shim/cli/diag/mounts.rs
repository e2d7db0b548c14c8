//! The mounts of a container that do not answer: a server of NFS or a FUSE program that has stopped hangs every process that
//! touches them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::section::{Section, gather};

/// The time limit of a mount. A filesystem that answers does so in microseconds.
const LIMIT: Duration = Duration::from_secs(1);

/// The most filesystems of a container that are asked.
const MAX_FILESYSTEMS: usize = 64;

/// Filesystems of the kernel, which have nothing to wait for.
const ALWAYS_ANSWER: [&str; 8] =
    ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "tmpfs", "devtmpfs"];

/// A mount of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FilesystemMount {
    /// The number of the filesystem, such as `0:52`. Mounts with the same number are one filesystem.
    device: String,
    point: String,
    kind: String,
    source: String,
}

/// Asks the filesystems of a process's mounts (statfs(2)), all at the same time. Returns a description of each one that does
/// not answer. A process in the caller's mount namespace has none: the mounts are those of the host.
pub(super) fn unresponsive(pid: i32) -> Vec<String> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let Some(joined) = namespace(&pid.to_string()) else { return Vec::new() };
    if namespace("self").is_some_and(|own| own == joined) {
        return Vec::new();
    }
    let Ok(mountinfo) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { return Vec::new() };
    let asked: Vec<_> = filesystems(&mountinfo)
        .into_iter()
        .map(|mount| {
            let point = mount.point.clone();
            (mount, gather(LIMIT, move || ask(pid, &point)))
        })
        .collect();
    let hang = |answer: Section<()>| matches!(answer, Section::Unknown { .. });
    asked.into_iter().filter_map(|(mount, asked)| hang(asked.wait()).then(|| describe(&mount))).collect()
}

/// Waits for the filesystem at a path of a process. Errors are answers, too.
fn ask(pid: i32, point: &str) -> Result<(), String> {
    let (read, no_mode) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let Ok(root) = rustix::fs::open(format!("/proc/{pid}/root"), read | OFlags::DIRECTORY, no_mode) else {
        return Ok(());
    };
    // A container may have a link in the place of a folder. It must not lead to a path of the host.
    let inside = Path::new(point).strip_prefix("/").unwrap_or(Path::new(point));
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if let Ok(found) = rustix::fs::openat2(&root, inside, read, no_mode, resolve) {
        let _any_answer = rustix::fs::fstatfs(found);
    }
    Ok(())
}

/// Parses mountinfo (proc_pid_mountinfo(5)): one mount of each filesystem that may hang.
fn filesystems(mountinfo: &str) -> Vec<FilesystemMount> {
    let mut known = BTreeSet::new();
    let mounts = mountinfo.lines().filter_map(filesystem_mount);
    let may_hang = mounts.filter(|mount| !ALWAYS_ANSWER.contains(&mount.kind.as_str()));
    may_hang.filter(|mount| known.insert(mount.device.clone())).take(MAX_FILESYSTEMS).collect()
}

fn filesystem_mount(line: &str) -> Option<FilesystemMount> {
    let (first, second) = line.split_once(" - ")?;
    let mut fields = first.split(' ').skip(2);
    let (device, _root, point) = (fields.next()?, fields.next()?, fields.next()?);
    let mut of_filesystem = second.split(' ');
    let (kind, source) = (of_filesystem.next()?, of_filesystem.next()?);
    let [device, kind, source] = [device, kind, source].map(str::to_owned);
    Some(FilesystemMount { device, point: unescape(point), kind, source })
}

/// Decodes the characters that the kernel writes as octal numbers: space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

fn describe(mount: &FilesystemMount) -> String {
    let FilesystemMount { point, kind, source, .. } = mount;
    berth_image::printable(&format!("{point} ({kind} of {source})"), 300)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
600 500 0:50 / / rw - overlay overlay rw,lowerdir=/a\n\
601 600 0:51 / /proc rw - proc proc rw\n\
602 600 0:52 / /data\\040sets rw shared:1 - nfs4 server:/export rw,addr=10.0.0.9\n\
603 600 0:52 /sub /other rw - nfs4 server:/export rw\n\
604 600 0:53 / /dev rw - tmpfs tmpfs rw\n\
broken\n";

    #[test]
    fn each_filesystem_that_may_hang_is_asked_once() {
        let found = filesystems(MOUNTINFO);
        let points: Vec<_> = found.iter().map(|mount| mount.point.as_str()).collect();
        assert_eq!(points, ["/", "/data sets"]);
        assert_eq!(describe(&found[1]), "/data sets (nfs4 of server:/export)");
    }

    #[test]
    fn the_mounts_of_the_host_are_not_asked() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(unresponsive(own).is_empty());
        assert!(ask(own, "/").is_ok() && ask(own, "/proc").is_ok());
    }
}
