//! Reads the images of CRIU (criu.org/Images): what a checkpoint contains, for errors that explain why it cannot be restored,
//! and its system call filters. The images are untrusted.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use prost::Message as _;

/// The first number of every image but the inventory (criu/include/magic.h, `IMG_COMMON_MAGIC`).
const COMMON: u32 = 0x5456_4319;
/// The only number of the inventory, which is read first.
pub(super) const INVENTORY: u32 = 0x5831_3116;
/// The second number of an image with mounts.
const MOUNTS: u32 = 0x5556_3928;
/// The second number of an image with system call filters.
const FILTERS: u32 = 0x6441_3049;
/// The largest image that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// A mount in a checkpoint (images/mnt.proto).
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointedMount {
    /// The mount point.
    #[prost(string, required, tag = "7")]
    pub mountpoint: String,
    /// Whether its name at the dump is its source.
    #[prost(bool, optional, tag = "13")]
    pub ext_mount: Option<bool>,
    /// The name of an external mount.
    #[prost(string, optional, tag = "18")]
    pub ext_key: Option<String>,
}

/// A system call filter in a checkpoint (images/seccomp.proto).
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointedFilter {
    /// An array of `struct sock_filter`.
    #[prost(bytes = "vec", required, tag = "1")]
    pub filter: Vec<u8>,
    /// The index of the filter that was loaded before it.
    #[prost(uint32, optional, tag = "2")]
    pub prev: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FilterImage {
    #[prost(message, repeated, tag = "1")]
    filters: Vec<CheckpointedFilter>,
}

/// Returns the names of the external mounts.
///
/// # Errors
/// An image cannot be read.
pub fn external_mounts(images: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("mountpoints-") {
            continue;
        }
        for record in records(&entry.path(), MOUNTS)? {
            let mount = CheckpointedMount::decode(&record[..]).map_err(invalid)?;
            names.extend(mount.ext_key.filter(|key| !key.is_empty()));
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Returns the system call filters.
///
/// # Errors
/// The image cannot be read.
pub fn filters(images: &Path) -> io::Result<Vec<CheckpointedFilter>> {
    let path = images.join("seccomp.img");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut filters = Vec::new();
    for record in records(&path, FILTERS)? {
        filters.extend(FilterImage::decode(&record[..]).map_err(invalid)?.filters);
    }
    Ok(filters)
}

/// Whether every chain of filters starts with this one, which was therefore loaded first.
#[must_use]
pub fn all_start_with(filters: &[CheckpointedFilter], first: &[u8]) -> bool {
    let starts = |filter: &CheckpointedFilter| {
        let mut filter = filter;
        // A chain is not longer than the list, else it is a ring.
        for _ in 0..filters.len() {
            let Some(before) = filter.prev else { return filter.filter == first };
            let Some(before) = usize::try_from(before).ok().and_then(|index| filters.get(index)) else {
                return false;
            };
            filter = before;
        }
        false
    };
    filters.iter().all(starts)
}

pub(super) fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Returns the records of an image: each is a length and a protobuf message.
pub(super) fn records(path: &Path, kind: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST) {
        return Err(invalid(format!("{} is larger than {LARGEST} bytes", path.display())));
    }
    parse(&bytes, kind).ok_or_else(|| invalid(format!("{} is not an image of CRIU", path.display())))
}

fn parse(bytes: &[u8], kind: u32) -> Option<Vec<Vec<u8>>> {
    let (first, mut rest) = number(bytes)?;
    if kind != INVENTORY {
        let (second, after) = number(rest)?;
        rest = after;
        if (first, second) != (COMMON, kind) {
            return None;
        }
    } else if first != INVENTORY {
        return None;
    }
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (length, after) = number(rest)?;
        let (record, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        records.push(record.to_vec());
        rest = after;
    }
    Some(records)
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(kind: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [COMMON.to_le_bytes(), kind.to_le_bytes()].concat();
        for record in records {
            bytes.extend(u32::try_from(record.len()).unwrap().to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    #[test]
    fn external_mounts_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let mount = |key: Option<&str>| {
            let ext_key = key.map(str::to_owned);
            CheckpointedMount { mountpoint: "/x".to_owned(), ext_mount: None, ext_key }.encode_to_vec()
        };
        let bytes = image(MOUNTS, &[mount(None), mount(Some("/data")), mount(Some("/data"))]);
        fs::write(folder.path().join("mountpoints-12.img"), bytes).unwrap();
        assert_eq!(external_mounts(folder.path()).unwrap(), ["/data"]);
        assert!(filters(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn damaged_images_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let good = image(FILTERS, &[FilterImage::default().encode_to_vec()]);
        let path = folder.path().join("seccomp.img");
        for bad in [&b""[..], &good[..7], &image(MOUNTS, &[])[..], &[&good[..], &[9, 0, 0, 0]].concat()[..]] {
            fs::write(&path, bad).unwrap();
            assert!(filters(folder.path()).is_err(), "{bad:?}");
        }
        fs::write(&path, good).unwrap();
        assert!(filters(folder.path()).is_ok());
    }

    #[test]
    fn the_first_filter_of_every_chain_counts() {
        let filter = |content: &[u8], prev| CheckpointedFilter { filter: content.to_vec(), prev };
        let ours = b"ours";
        assert!(all_start_with(&[filter(ours, None), filter(b"own", Some(0))], ours));
        assert!(!all_start_with(&[filter(ours, None), filter(b"other", None)], ours));
        assert!(!all_start_with(&[filter(ours, Some(1)), filter(ours, Some(0))], ours), "a ring");
        assert!(!all_start_with(&[filter(ours, Some(7))], ours), "a filter that does not exist");
    }
}
