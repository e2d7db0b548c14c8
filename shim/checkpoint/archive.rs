//! The archive of a checkpoint. It appears under its name when it is complete: until then it is a file without a name,
//! which the kernel removes if the daemon ends.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};

use super::folder::IMAGES;
use super::metadata::{CONFIG_DUMP, SPEC_DUMP, STATUS, STATUS_DUMP};
use super::work::{CheckpointWork, DELETED_FILES, DUMP_LOG, DUMP_STATISTICS, ROOTFS_DIFF};
use crate::error::CriError;

/// The files of an archive. Tools read the small ones first.
const FILES: [&str; 8] =
    [CONFIG_DUMP, SPEC_DUMP, STATUS_DUMP, STATUS, DELETED_FILES, DUMP_LOG, DUMP_STATISTICS, ROOTFS_DIFF];

/// The path of an archive that a client requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveLocation(PathBuf);

impl ArchiveLocation {
    /// Checks the location in a request.
    ///
    /// # Errors
    /// `InvalidArgument`: it is not the absolute path of a file.
    pub fn new(location: &str) -> Result<Self, CriError> {
        if location.ends_with('/') {
            let why = format!("{location:?} is not the absolute path of a file");
            return Err(CriError::invalid("location", why));
        }
        plain_path("location", location).map(Self)
    }

    /// The place of a file in a folder.
    #[must_use]
    pub fn in_folder(folder: &Path, name: &str) -> Self {
        Self(folder.join(name))
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Checks that a field of a request is an absolute path without `..`, and not that of the root.
///
/// # Errors
/// `InvalidArgument`.
pub fn plain_path(field: &str, text: &str) -> Result<PathBuf, CriError> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() {
        return Err(CriError::invalid(field, format!("{text:?} is not the absolute path of a file")));
    }
    if text.contains('\0') {
        return Err(CriError::invalid(field, "contains a zero byte"));
    }
    Ok(path)
}

/// An archive that has no name yet.
#[derive(Debug)]
pub struct UnnamedArchive<'a> {
    file: File,
    location: &'a ArchiveLocation,
}

impl<'a> UnnamedArchive<'a> {
    /// Writes the content of a work folder to a file beside the location.
    ///
    /// # Errors
    /// The folder of the location does not exist or cannot be written to, or its disk is full.
    pub fn write(work: &CheckpointWork, location: &'a ArchiveLocation) -> Result<Self, CriError> {
        Self::fill(location, |file| fill(file, work))
    }

    /// Writes one file of a checkpoint that is not an archive.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn copy(source: &mut impl io::Read, location: &'a ArchiveLocation) -> Result<Self, CriError> {
        Self::fill(location, |mut file| {
            io::copy(source, &mut file)?;
            file.sync_data()
        })
    }

    fn fill(
        location: &'a ArchiveLocation,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<Self, CriError> {
        let failed = |error: io::Error| write_failed(location, &error);
        // Memory of the container may contain secrets: only the owner reads the archive.
        let mode = Mode::RUSR | Mode::WUSR;
        let parent = location.0.parent().unwrap_or(Path::new("/"));
        let file = openat(CWD, parent, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        fill(&file).map_err(failed)?;
        Ok(Self { file, location })
    }

    /// Gives the archive its name.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a file with the name.
    pub fn publish(self) -> Result<(), CriError> {
        // linkat(2) describes this way to name a file that was opened with O_TMPFILE.
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match linkat(CWD, unnamed, CWD, &self.location.0, AtFlags::SYMLINK_FOLLOW) {
            Err(rustix::io::Errno::EXIST) => {
                Err(CriError::already_exists("the file at location", self.location.0.display().to_string()))
            }
            linked => linked.map_err(|errno| write_failed(self.location, &errno.into())),
        }
    }
}

fn write_failed(location: &ArchiveLocation, error: &io::Error) -> CriError {
    let operation = format!("write the archive {}", location.0.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CriError::exhausted(operation, error),
        _ => CriError::failed(operation, error),
    }
}

fn fill(file: &File, work: &CheckpointWork) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    // The name of a container's file never becomes a link to follow.
    archive.follow_symlinks(false);
    for name in FILES {
        let path = work.file(name);
        if path.is_file() {
            archive.append_path_with_name(path, name)?;
        }
    }
    archive.append_dir_all(IMAGES, work.file(IMAGES))?;
    archive.into_inner()?.flush()?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_location_is_the_absolute_path_of_a_file() {
        for bad in ["", "x.tar", "/", "/a/", "/a/../b", "/a/..", "a\0"] {
            assert!(ArchiveLocation::new(bad).is_err(), "{bad:?}");
        }
        assert!(ArchiveLocation::new("/var/lib/kubelet/checkpoints/checkpoint-a.tar").is_ok());
    }

    #[test]
    fn an_archive_appears_complete_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let work = CheckpointWork::of_container(folder.path());
        work.create().unwrap();
        fs::write(work.file(CONFIG_DUMP), "{}").unwrap();
        fs::write(work.file(IMAGES).join("pages-1.img"), "memory").unwrap();
        let path = folder.path().join("out.tar");
        let location = ArchiveLocation::new(path.to_str().unwrap()).unwrap();
        let archive = UnnamedArchive::write(&work, &location).unwrap();
        assert!(!path.exists());
        archive.publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let names: Vec<String> = tar::Archive::new(File::open(&path).unwrap())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["config.dump", "checkpoint/", "checkpoint/pages-1.img"]);
        let again = UnnamedArchive::write(&work, &location).unwrap().publish().unwrap_err();
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        let missing = ArchiveLocation::new("/nonexistent/x.tar").unwrap();
        assert!(UnnamedArchive::write(&work, &missing).is_err());
    }
}
