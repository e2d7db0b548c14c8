//! Checks whether mounts can propagate between a container and a folder of the host. They can only if the folder's
//! mount is shared (mount_namespaces(7), "Shared subtrees").

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::plan::Propagation;
use crate::sys::{self, Context, mount};
use crate::wire::{InitFailure, Step};

/// Rejects a propagation that would have no effect.
///
/// # Errors
/// The path's mount is not shared and, where that would be enough, not a slave either.
pub(super) fn check(source: &str, propagation: Propagation, index: usize) -> Result<(), InitFailure> {
    let (tags, required): (&[&str], _) = match propagation {
        Propagation::Shared => (&["shared:"], "a shared mount"),
        Propagation::Slave => (&["shared:", "master:"], "a shared or slave mount"),
        Propagation::Unchanged | Propagation::Private | Propagation::Unbindable => return Ok(()),
    };
    let fail =
        |errno, detail| InitFailure { step: Step::Peers, errno, index: u32::try_from(index).ok(), detail };
    let mounted =
        mount_of(source).map_err(|error| fail(error.raw(), format!("{} {}", error.call, error.object)))?;
    if tags.iter().any(|tag| mounted.tags.split(' ').any(|field| field.starts_with(tag))) {
        return Ok(());
    }
    Err(fail(0, format!("path {source:?} is mounted on {:?} but it is not {required}", mounted.point)))
}

/// A mount in mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq)]
struct Mounted {
    point: String,
    /// The optional fields.
    tags: String,
}

fn mount_of(path: &str) -> sys::Result<Mounted> {
    let place = mount::place(path)?;
    let stat = rustix::fs::statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).on("statx", path)?;
    let text = std::fs::read_to_string("/proc/self/mountinfo");
    let text = text.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    find(&text.on("read", "/proc/self/mountinfo")?, stat.stx_mnt_id)
        .ok_or(Errno::NOENT)
        .on("find", format_args!("the mount of {path}"))
}

fn find(mountinfo: &str, id: u64) -> Option<Mounted> {
    let line = mountinfo.lines().find(|line| line.split(' ').next() == Some(&id.to_string()))?;
    let mut fields = line.split(' ');
    let point = fields.nth(4)?.to_owned();
    let tags: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
    Some(Mounted { point, tags: tags.join(" ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 0:21 / /proc rw,relatime - proc proc rw
35 1 8:1 / / rw,noatime shared:1 master:7 - ext4 /dev/sda1 rw
36 35 8:2 /a /data rw master:3 propagate_from:2 - ext4 /dev/sda2 rw
";

    #[test]
    fn mountinfo_tags_are_parsed() {
        let of = |id| find(MOUNTS, id).map(|mounted| (mounted.point, mounted.tags));
        assert_eq!(of(22), Some(("/proc".to_owned(), String::new())));
        assert_eq!(of(35), Some(("/".to_owned(), "shared:1 master:7".to_owned())));
        assert_eq!(of(36), Some(("/data".to_owned(), "master:3 propagate_from:2".to_owned())));
        assert_eq!(of(3), None);
    }

    #[test]
    fn private_mounts_are_not_checked() {
        assert_eq!(check("/nonexistent", Propagation::Private, 0), Ok(()));
        assert!(check("/nonexistent", Propagation::Shared, 0).is_err());
    }
}
