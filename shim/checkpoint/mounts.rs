//! Reads the mounts of a container and selects those that belong to the pod or the host. CRIU does not dump them: it
//! records their names, and a restore puts the mounts of the new pod in their places.

use std::collections::BTreeSet;

/// Filesystems that a container mounts for itself. CRIU mounts them again; of a tmpfs, it dumps the content.
const OWN: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerMount {
    /// The mount point, as seen in the container.
    pub point: String,
    /// The folder of the filesystem that is mounted.
    root: String,
    /// The device of the filesystem.
    device: String,
    /// The type of the filesystem.
    kind: String,
}

/// Reads the mounts of a process.
#[must_use]
pub fn parse(mountinfo: &str) -> Vec<ContainerMount> {
    mountinfo.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<ContainerMount> {
    let (fields, filesystem) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(2);
    Some(ContainerMount {
        device: fields.next()?.to_owned(),
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
        kind: filesystem.split(' ').next()?.to_owned(),
    })
}

/// Replaces the octal escapes of space, tab, newline and backslash.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let octal = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (octal, after.get(3..)) {
            (Some(byte), Some(tail)) => {
                out.push(char::from(byte));
                rest = tail;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// Returns the mount points of mounts that come from outside of the container: volumes, files of the pod, devices of the
/// host. `bound` are the destinations of the spec's bind mounts.
#[must_use]
pub fn external(mounts: &[ContainerMount], bound: &[String]) -> Vec<String> {
    let whole: BTreeSet<&str> =
        mounts.iter().filter(|mount| mount.root == "/").map(|mount| mount.device.as_str()).collect();
    let is_external = |mount: &&ContainerMount| {
        let own = OWN.contains(&mount.kind.as_str());
        // The cgroup namespace of the container hides the folders above its own.
        let is_cgroup = mount.kind.starts_with("cgroup");
        // /dev/console: the other end of the terminal belongs to the keeper.
        let is_terminal = mount.kind == "devpts" && mount.root != "/" && mount.root != "/ptmx";
        let is_part_of_other =
            mount.root != "/" && !is_cgroup && (is_terminal || !whole.contains(mount.device.as_str()));
        mount.point != "/"
            && (!own || is_part_of_other || bound.iter().any(|place| is_at(&mount.point, place)))
    };
    mounts.iter().filter(is_external).map(|mount| mount.point.clone()).collect()
}

/// Whether a mount point is this place or below it.
fn is_at(point: &str, place: &str) -> bool {
    let place = place.trim_end_matches('/');
    point.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
47 54 0:44 / / rw,relatime - overlay berth rw,lowerdir+=/proc/self/fd/29
48 78 0:42 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k
49 47 0:41 /hostname /etc/hostname rw - tmpfs none rw,mode=755
52 47 0:43 / /proc rw - proc none rw
53 47 254:0 /var/lib/kubelet/a\\040b /data\\040a rw - ext4 /dev/vda rw
54 53 0:99 / /data\\040a/below rw - tmpfs none rw
78 47 0:46 / /dev rw,nosuid - tmpfs tmpfs rw
79 47 0:47 / /sys ro - sysfs sysfs rw
81 78 0:48 / /dev/pts rw - devpts devpts rw
82 78 0:48 /0 /dev/console rw - devpts devpts rw
83 79 0:29 /pod/container /sys/fs/cgroup/cpu ro - cgroup none rw,cpu
84 52 0:46 /null /proc/kcore rw - tmpfs tmpfs rw
85 52 0:43 /sys /proc/sys ro - proc none rw
98 78 0:6 /null /dev/null rw - devtmpfs devtmpfs rw";

    #[test]
    fn volumes_pod_files_and_devices_of_the_host_are_external() {
        let mounts = parse(MOUNTINFO);
        assert_eq!(mounts.len(), 14);
        let bound = ["/dev/shm".to_owned(), "/data a".to_owned(), "/etc/hostname".to_owned()];
        assert_eq!(
            external(&mounts, &bound),
            ["/dev/shm", "/etc/hostname", "/data a", "/data a/below", "/dev/console", "/dev/null"]
        );
    }

    #[test]
    fn a_similar_name_is_not_below() {
        assert!(is_at("/data/x", "/data/") && is_at("/data", "/data") && !is_at("/database", "/data"));
    }

    #[test]
    fn escapes_are_replaced_and_broken_lines_skipped() {
        assert_eq!(unescape("a\\040b\\134c\\"), "a b\\c\\");
        assert!(parse("1 2 3\nbroken - \n").is_empty());
    }
}
