//! OCI artifacts: manifests that are not images. Their blobs become files of one folder, each named by its
//! title. The folder is mounted as a volume and never run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::descriptor::Descriptor;
use crate::error::Error;
use crate::manifest::ArtifactManifest;
use crate::store::{Inner, LayerRecord, StagingFolder};
use crate::unpack::{Budget, TreePath};

/// The longest path that the kernel accepts (PATH_MAX).
const MAX_TITLE: usize = 4095;
const COPY: usize = 256 << 10;

/// Returns the path for each blob: its title, or its digest if it has no title.
///
/// # Errors
/// A title is not a path below the folder, two titles are equal, or one is a parent folder of another. A
/// limit is exceeded.
pub(crate) fn file_names(
    what: &str,
    manifest: &ArtifactManifest,
    budget: &Budget,
) -> Result<Vec<TreePath>, Error> {
    let mut paths = BTreeSet::new();
    let mut names = Vec::new();
    for blob in &manifest.blobs {
        budget.take_entry(what)?;
        let title = blob.annotations.title.as_deref().filter(|title| !title.is_empty());
        let title = title.unwrap_or_else(|| blob.digest.hex());
        let invalid = |why: &str| Error::corrupt(what, format!("invalid title {title:?}: {why}"));
        if title.len() > MAX_TITLE {
            let why = format!("a title of {} bytes, the limit is {MAX_TITLE}", title.len());
            return Err(Error::limit(what, why));
        }
        // The parser would accept an absolute name as a relative one.
        let path =
            TreePath::parse(title.as_bytes()).filter(|path| !path.is_root() && !title.starts_with('/'));
        let path = path.ok_or_else(|| invalid("not a relative path of a file"))?;
        if path.depth() > budget.limits.depth {
            return Err(Error::limit(
                what,
                format!("title {title:?} is deeper than {}", budget.limits.depth),
            ));
        }
        if !paths.insert(path.clone()) {
            return Err(invalid("duplicate"));
        }
        names.push(path);
    }
    for name in &names {
        let mut folder = name.split().map(|(folder, _)| folder);
        while let Some(above) = folder {
            if paths.contains(&above) {
                return Err(Error::corrupt(what, format!("{above} is both a file and a folder")));
            }
            folder = above.split().map(|(folder, _)| folder);
        }
    }
    Ok(names)
}

/// The folder of an artifact while its files are written.
#[derive(Debug)]
pub(crate) struct ArtifactFolder {
    staging: Arc<StagingFolder>,
    root: OwnedFd,
}

impl ArtifactFolder {
    pub(crate) fn new(inner: &Arc<Inner>) -> Result<Self, Error> {
        let staging = StagingFolder::new(inner)?;
        staging.create_fs()?;
        let fs = staging.fs();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(&fs, flags, Mode::empty()).map_err(|error| Error::io("open", &fs, error))?;
        Ok(Self { staging: Arc::new(staging), root })
    }

    /// Writes one blob into its file. The reader checks the digest.
    pub(crate) fn write(
        &self,
        what: &str,
        name: &TreePath,
        content: &mut impl Read,
        budget: &Budget,
    ) -> Result<(), Error> {
        let mut file = fs::File::from(self.create(name)?);
        let mut buffer = vec![0_u8; COPY];
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cause(what, error)),
            };
            budget.take_bytes(what, u64::try_from(read).unwrap_or(u64::MAX))?;
            let piece = buffer.get(..read).unwrap_or_default();
            file.write_all(piece).map_err(|error| Error::io("write", name.as_path(), error))?;
        }
    }

    pub(crate) fn finish(self) -> (Arc<StagingFolder>, LayerRecord) {
        (self.staging, LayerRecord::default())
    }

    fn create(&self, name: &TreePath) -> Result<OwnedFd, Error> {
        let failed = |error: Errno| Error::io("create", name.as_path(), error);
        let mut path = TreePath::default();
        let mut parts = name.parts().peekable();
        while let Some(part) = parts.next() {
            path = path.join(part);
            if parts.peek().is_some() {
                match rustix::fs::mkdirat(&self.root, path.as_path(), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        create_beneath(self.root.as_fd(), name).map_err(failed)
    }
}

/// Creates the file by descriptor: no name can lead out of the folder.
fn create_beneath(root: BorrowedFd<'_>, name: &TreePath) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, name.as_path(), flags, Mode::from_raw_mode(0o644), resolve)
}

/// Returns the error of a transfer that its reader reports, or an I/O error.
fn cause(what: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(error) => Error::io("read", what, error),
    }
}

/// Returns the total size of an artifact's blobs.
pub(crate) fn content_size(blobs: &[Descriptor]) -> u64 {
    blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Annotations;
    use crate::digest::{Algorithm, Digest};
    use crate::unpack::Limits;

    fn names(titles: &[&str]) -> Result<Vec<String>, Error> {
        let blobs = titles.iter().map(|title| Descriptor {
            media_type: String::new(),
            digest: Digest::of(Algorithm::Sha256, b""),
            size: 0,
            platform: None,
            urls: Default::default(),
            annotations: Box::new(Annotations { title: Some((*title).to_owned()), ..Annotations::default() }),
        });
        let manifest = ArtifactManifest { blobs: blobs.collect() };
        let limits = Limits { depth: 3, ..Limits::default() };
        Ok(file_names("test", &manifest, &Budget::new(limits))?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn blobs_are_named_by_their_titles() {
        assert_eq!(names(&["model.bin", "a/./b"]).unwrap(), ["/model.bin", "/a/b"]);
        let empty = names(&[""]).unwrap();
        assert!(empty[0].starts_with("/e3b0c442"), "{empty:?}");
        for bad in [
            &["../x"][..],
            &["a/../../x"],
            &["/etc/passwd"],
            &["."],
            &["a\0b"],
            &["a", "./a"],
            &["a", "a/b"],
            &["a/b", "a"],
            &["a/b/c/d"],
            &["x".repeat(5000).as_str()],
        ] {
            assert!(names(bad).is_err(), "{bad:?}");
        }
    }
}
