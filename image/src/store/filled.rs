//! Writable layers that are not empty at first: the changes of the root filesystem in a checkpoint.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Cursor, Read as _};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tar::{Builder, EntryType, Header};

use super::ImageStore;
use crate::digest::Algorithm;
use crate::error::{Error, blocking};
use crate::image::WritableLayer;
use crate::unpack::{self, Budget, TreePath};

/// The name of the archive in errors.
const WHAT: &str = "rootfs-diff.tar";

impl ImageStore {
    /// Returns the folders of an image's layers, the topmost first. The caller holds the image ([`Self::hold`]).
    #[must_use]
    pub fn layer_folders(&self, image: &crate::Image) -> Option<Vec<PathBuf>> {
        self.inner.lower(&self.inner.index(), &image.id).map(|(_, folders)| folders)
    }

    /// Fills a container's new writable layer: removes paths of the image, then unpacks an archive. The archive and the paths
    /// are untrusted; the limits are those of an image.
    ///
    /// # Errors
    /// The layer does not exist, the archive is damaged or exceeds the limits, or a name leads out of the layer.
    pub async fn fill_layer(
        &self,
        container_id: &str,
        removed: Vec<String>,
        archive: Option<File>,
    ) -> Result<(), Error> {
        let layer = self.layer(container_id);
        let layer = layer.ok_or_else(|| Error::not_found("the writable layer", "it has been removed"))?;
        let limits = self.inner.options.limits;
        blocking("fill a writable layer", move || fill(&layer, &removed, archive, limits)).await
    }
}

fn fill(
    layer: &WritableLayer,
    removed: &[String],
    archive: Option<File>,
    limits: unpack::Limits,
) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = &layer.upper;
    let root =
        rustix::fs::open(upper, flags, Mode::empty()).map_err(|error| Error::io("open", upper, error))?;
    let budget = Budget::new(limits);
    let whiteouts = Cursor::new(whiteouts(removed)?);
    let source: Box<dyn std::io::BufRead> = match archive {
        Some(archive) => Box::new(whiteouts.chain(BufReader::with_capacity(1 << 20, archive))),
        None => Box::new(whiteouts),
    };
    let outcome = unpack::extract(WHAT, source, root, Algorithm::Sha256, &budget, None)?;
    if let Some((link, target)) = outcome.links.first_key_value() {
        let why = format!("{link} is a link to {target}, which it does not contain");
        return Err(Error::unsupported(WHAT, why));
    }
    copy_owners(layer, &outcome.implicit)
}

/// Returns the start of an archive that hides paths of the layers below (OCI image spec, layer, "Whiteouts").
fn whiteouts(removed: &[String]) -> Result<Vec<u8>, Error> {
    let mut builder = Builder::new(Vec::new());
    for path in removed {
        let invalid = || {
            Error::corrupt("deleted.files", format!("the name {path:?} is invalid or leads out of the layer"))
        };
        let path = TreePath::parse(path.as_bytes()).ok_or_else(invalid)?;
        let (folder, name) = path.split().ok_or_else(invalid)?;
        let marker = folder.join(&[b".wh.", name].concat());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        let added = builder.append_data(&mut header, marker.as_path(), std::io::empty());
        added.map_err(|error| Error::io("list", "deleted.files", error))?;
    }
    // Without the end of an archive: another one follows.
    Ok(std::mem::take(builder.get_mut()))
}

/// Gives folders that the archive does not list the owner and mode that they have in the image.
fn copy_owners(layer: &WritableLayer, folders: &BTreeSet<TreePath>) -> Result<(), Error> {
    for path in folders {
        let failed =
            |error| Error::io("change the owner and mode of", layer.upper.join(path.as_path()), error);
        let found = layer.lower.iter().find_map(|lower| open_below(lower, path));
        let (Some(model), Some(folder)) = (found, open_below(&layer.upper, path)) else { continue };
        let stat = model.metadata().map_err(failed)?;
        let place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
        chown(place, Some(stat.uid()), Some(stat.gid())).map_err(failed)?;
        folder.set_permissions(stat.permissions()).map_err(failed)?;
    }
    Ok(())
}

/// Opens a folder of a layer. Links are not followed.
fn open_below(layer: &PathBuf, path: &TreePath) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(layer, flags, Mode::empty()).ok()?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root, path.as_path(), flags, Mode::empty(), resolve).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::Limits;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    use std::path::Path;
    use std::sync::Arc;

    fn layer(folder: &Path) -> WritableLayer {
        for name in ["upper", "work", "lower", "lower/srv"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        fs::set_permissions(folder.join("lower/srv"), fs::Permissions::from_mode(0o751)).unwrap();
        let digest = crate::Digest::of(Algorithm::Sha256, b"");
        WritableLayer {
            upper: folder.join("upper"),
            work: folder.join("work"),
            lower: vec![folder.join("lower")],
            image: Arc::new(crate::Image {
                id: digest,
                repo_tags: Vec::new(),
                repo_digests: Vec::new(),
                size: 0,
                config: crate::ImageConfig::default(),
                layers: Vec::new(),
                pinned: false,
                artifact: false,
                manifests: Vec::new(),
                checkpoint: false,
            }),
            volumes: Vec::new(),
        }
    }

    fn file_with(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    #[test]
    fn removed_paths_become_whiteouts_and_the_archive_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let layer = layer(folder.path());
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o640);
        builder.append_data(&mut header, "srv/new", &b"abc"[..]).unwrap();
        let archive = file_with(&builder.into_inner().unwrap());
        let long = format!("srv/{}", "n".repeat(200));
        fill(&layer, &["srv/old".to_owned(), long.clone()], Some(archive), Limits::default()).unwrap();
        let at = |name: &str| layer.upper.join(name);
        assert_eq!(fs::read(at("srv/new")).unwrap(), b"abc");
        for hidden in ["srv/old", &long] {
            let stat = fs::symlink_metadata(at(hidden)).unwrap();
            assert!(stat.file_type().is_char_device() && stat.rdev() == 0, "{hidden}");
        }
        assert_eq!(fs::metadata(at("srv")).unwrap().mode() & 0o7777, 0o751, "as in the image");
    }

    #[test]
    fn names_that_lead_out_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let layer = layer(folder.path());
        for bad in ["../x", "a/../../x", "", "/"] {
            assert!(fill(&layer, &[bad.to_owned()], None, Limits::default()).is_err(), "{bad:?}");
        }
        fill(&layer, &[], None, Limits::default()).unwrap();
        assert_eq!(fs::read_dir(&layer.upper).unwrap().count(), 0);
    }
}
