//! OCI artifacts: manifests that are no images. Their blobs become files of one folder, each under the title that it has,
//! which is mounted as a volume and never run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::manifest::{ArtifactManifest, Descriptor};
use crate::store::{HalfMade, Inner, LayerRecord};
use crate::unpack::{Budget, TreePath};

/// The longest name that the kernel takes (PATH_MAX).
const MAX_TITLE: usize = 4095;
const COPY: usize = 256 << 10;

/// Where each blob goes: its title, or its digest where it has none.
///
/// # Errors
/// A title leaves the folder, two are the same, or one is a folder of another.
pub(crate) fn file_names(
    what: &str,
    manifest: &ArtifactManifest,
    budget: &Budget,
) -> Result<Vec<TreePath>, Error> {
    let mut known = BTreeSet::new();
    let mut names = Vec::new();
    for blob in &manifest.blobs {
        budget.take_entry(what)?;
        let title = blob.annotations.title.as_deref().filter(|title| !title.is_empty());
        let title = title.unwrap_or_else(|| blob.digest.hex());
        let invalid = |why: &str| Error::corrupt(what, format!("the title {title:?} {why}"));
        if title.len() > MAX_TITLE {
            let why = format!("a title of {} bytes, the limit is {MAX_TITLE}", title.len());
            return Err(Error::limit(what, why));
        }
        // An absolute name would be taken for a relative one by the parser: nobody means that.
        let path =
            TreePath::parse(title.as_bytes()).filter(|path| !path.is_root() && !title.starts_with('/'));
        let path = path.ok_or_else(|| invalid("is no name of a file below"))?;
        if path.depth() > budget.limits.depth {
            return Err(Error::limit(
                what,
                format!("the title {title:?} is deeper than {}", budget.limits.depth),
            ));
        }
        if !known.insert(path.clone()) {
            return Err(invalid("is that of another blob, too"));
        }
        names.push(path);
    }
    for name in &names {
        let mut folder = name.split().map(|(folder, _)| folder);
        while let Some(above) = folder {
            if known.contains(&above) {
                return Err(Error::corrupt(what, format!("{above} is a file and a folder")));
            }
            folder = above.split().map(|(folder, _)| folder);
        }
    }
    Ok(names)
}

/// The folder of an artifact, while it is being made.
#[derive(Debug)]
pub(crate) struct ArtifactFolder {
    made: Arc<HalfMade>,
    root: OwnedFd,
}

impl ArtifactFolder {
    pub(crate) fn new(inner: &Arc<Inner>) -> Result<Self, Error> {
        let made = HalfMade::new(inner)?;
        made.make_fs()?;
        let fs = made.fs();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(&fs, flags, Mode::empty()).map_err(|error| Error::io("open", &fs, error))?;
        Ok(Self { made: Arc::new(made), root })
    }

    /// Writes one blob into its file; the reader checks the digest.
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

    pub(crate) fn finish(self) -> (Arc<HalfMade>, LayerRecord) {
        (self.made, LayerRecord::default())
    }

    fn create(&self, name: &TreePath) -> Result<OwnedFd, Error> {
        let failed = |error: Errno| Error::io("make", name.as_path(), error);
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

/// By descriptor: whatever a name looks like, it stays in the folder.
fn create_beneath(root: BorrowedFd<'_>, name: &TreePath) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, name.as_path(), flags, Mode::from_raw_mode(0o644), resolve)
}

/// What the reader of a transfer says is the transfer's error, not the disk's.
fn cause(what: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(error) => Error::io("read", what, error),
    }
}

/// All bytes that an artifact's blobs have together.
pub(crate) fn content_size(blobs: &[Descriptor]) -> u64 {
    blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::manifest::Annotations;
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
    fn blobs_are_called_by_their_titles() {
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
