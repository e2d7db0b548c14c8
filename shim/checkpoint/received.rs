//! A checkpoint that is restored. Its files come from outside and are untrusted: only the files that a restore needs are
//! copied, with fixed names, to a private folder of the new container. Sizes and numbers are limited as for images.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_image::{Limits, copy_files};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::folder::{CheckpointFolder, IMAGES};
use super::metadata::CONFIG_DUMP;
use super::work::{DELETED_FILES, ROOTFS_DIFF};
use crate::error::CriError;
use crate::store::file;

/// The folder of a restore in the folder of its container.
const FOLDER: &str = "restore";
/// The names of the standard streams at the time of the dump, in the format of runc.
const DESCRIPTORS: &str = "descriptors.json";
/// The largest of the small files, in bytes.
const LARGEST_TEXT: u64 = 16 << 20;
/// The most of CRIU's images: a few per process, and some per pod.
const MOST_IMAGES: usize = 100_000;

/// The folder with a checkpoint that is being restored. Only root can enter it: it contains the memory of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedCheckpoint {
    folder: CheckpointFolder,
}

/// The parts of `config.dump` that a restore uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointedImage {
    /// The name of the image.
    pub rootfs_image_name: String,
    /// Its name with a digest, or its id.
    pub rootfs_image_ref: String,
}

impl Deref for ReceivedCheckpoint {
    type Target = CheckpointFolder;

    fn deref(&self) -> &CheckpointFolder {
        &self.folder
    }
}

impl ReceivedCheckpoint {
    /// The checkpoint in the folder of a container. It need not exist.
    #[must_use]
    pub fn of_container(folder: &Path) -> Self {
        Self::at(folder.join(FOLDER))
    }

    /// The checkpoint in a folder.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self { folder: CheckpointFolder::new(folder) }
    }

    /// Copies the files of an archive.
    ///
    /// # Errors
    /// The archive cannot be read, is damaged, exceeds the limits, or lacks a file.
    pub fn copy_archive(&self, archive: &Path) -> Result<(), CriError> {
        self.create()?;
        let what = format!("checkpoint {}", archive.display());
        let source = open_archive(archive)?;
        let mut images = 0;
        copy_files(&what, BufReader::with_capacity(1 << 20, source), Limits::default(), |name| {
            let Some(place) = place_of(name) else { return Ok(None) };
            images += usize::from(place.starts_with(IMAGES));
            if images > MOST_IMAGES {
                return Err(io::Error::other(format!("more than {MOST_IMAGES} images")));
            }
            self.new_file(&place).map(Some)
        })?;
        self.check(&what)
    }

    /// Copies the files of unpacked layers of an image, the topmost first.
    ///
    /// # Errors
    /// A file cannot be copied, or one is missing.
    pub fn copy_layers(&self, image: &str, layers: &[PathBuf]) -> Result<(), CriError> {
        self.create()?;
        let what = format!("checkpoint image {image}");
        for layer in layers {
            self.copy_layer(layer).map_err(|error| CriError::failed(format!("read {what}"), error))?;
        }
        self.check(&what)
    }

    fn copy_layer(&self, layer: &Path) -> io::Result<()> {
        let mut images = 0;
        for folder in [Path::new(""), Path::new(IMAGES)] {
            let path = layer.join(folder);
            // The content of a layer is untrusted: a link is not followed.
            match fs::symlink_metadata(&path) {
                Ok(stat) if stat.is_dir() => {}
                _ => continue,
            }
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let name = folder.join(entry.file_name());
                let Some(place) = name.to_str().and_then(place_of) else { continue };
                images += 1;
                if !entry.file_type()?.is_file() || images > MOST_IMAGES || self.path().join(&place).exists()
                {
                    continue;
                }
                io::copy(&mut File::open(entry.path())?, &mut self.new_file(&place)?)?;
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<(), CriError> {
        self.remove()?;
        Ok(file::make_private_folder(&self.images())?)
    }

    fn new_file(&self, place: &Path) -> io::Result<File> {
        File::options().write(true).create_new(true).mode(0o600).open(self.path().join(place))
    }

    fn check(&self, what: &str) -> Result<(), CriError> {
        for name in [CONFIG_DUMP, "checkpoint/inventory.img", "checkpoint/pstree.img"] {
            if !self.file(name).is_file() {
                return Err(CriError::failed(format!("restore {what}"), format!("it has no {name}")));
            }
        }
        Ok(())
    }

    /// Returns the image of the container.
    ///
    /// # Errors
    /// `config.dump` cannot be read.
    pub fn image(&self) -> Result<CheckpointedImage, CriError> {
        let image: CheckpointedImage = self.read(CONFIG_DUMP)?.unwrap_or_default();
        if image.rootfs_image_name.is_empty() && image.rootfs_image_ref.is_empty() {
            return Err(CriError::failed("restore a checkpoint", format!("{CONFIG_DUMP} names no image")));
        }
        Ok(image)
    }

    /// Returns the paths that the container had removed.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn removed(&self) -> Result<Vec<String>, CriError> {
        Ok(self.read(DELETED_FILES)?.unwrap_or_default())
    }

    /// Returns the archive with the changes of the root filesystem, if there is one.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn changes(&self) -> Result<Option<File>, CriError> {
        match File::open(self.file(ROOTFS_DIFF)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CriError::internal(format!("open {ROOTFS_DIFF}"), error)),
        }
    }

    /// Returns the names of the standard streams at the time of the dump.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn streams(&self) -> Result<Vec<String>, CriError> {
        Ok(self.read(&format!("{IMAGES}/{DESCRIPTORS}"))?.unwrap_or_default())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, CriError> {
        let failed = |why: String| CriError::failed(format!("read {name} of a checkpoint"), why);
        let file = match File::open(self.file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| failed(error.to_string()))?,
        };
        let mut text = Vec::new();
        file.take(LARGEST_TEXT + 1).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
        if u64::try_from(text.len()).is_ok_and(|length| length > LARGEST_TEXT) {
            return Err(failed(format!("it has more than {LARGEST_TEXT} bytes")));
        }
        // `null` is an empty list in files that Go wrote.
        serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
    }
}

/// Opens an archive. Another kind of file, such as a pipe, would block.
fn open_archive(path: &Path) -> Result<File, CriError> {
    let what = || format!("checkpoint {}", path.display());
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CriError::not_found("image", path.display().to_string()));
        }
        opened => opened.map_err(|error| CriError::precondition(what(), error))?,
    };
    match file.metadata() {
        Ok(stat) if stat.is_file() => Ok(file),
        Ok(_) => Err(CriError::precondition(what(), "it is not a regular file")),
        Err(error) => Err(CriError::precondition(what(), error)),
    }
}

/// Returns the place in the folder of a file of an archive, or none if a restore does not need it.
fn place_of(name: &str) -> Option<PathBuf> {
    if [CONFIG_DUMP, DELETED_FILES, ROOTFS_DIFF].contains(&name) {
        return Some(name.into());
    }
    let image = name.strip_prefix(IMAGES)?.strip_prefix('/')?;
    let fine = image.ends_with(".img") || image == DESCRIPTORS;
    (fine && !image.contains('/') && !image.starts_with('.')).then(|| Path::new(IMAGES).join(image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn archive(path: &Path, entries: &[(&str, &str)]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(content.len()).unwrap());
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap();
    }

    const COMPLETE: [(&str, &str); 5] = [
        ("config.dump", r#"{"id":"x","rootfsImageName":"busybox:1","rootfsImageRef":"sha256:2"}"#),
        ("checkpoint/inventory.img", "i"),
        ("checkpoint/pstree.img", "p"),
        ("deleted.files", r#"["a"]"#),
        ("spec.dump", "{}"),
    ];

    #[test]
    fn only_the_needed_files_are_copied_to_a_private_folder() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x.tar");
        let more = [
            ("checkpoint/sub/x.img", ""),
            ("checkpoint/run.sh", ""),
            ("checkpoint/.x.img", ""),
            ("other", ""),
        ];
        archive(&path, &[&COMPLETE[..], &more[..]].concat());
        let received = ReceivedCheckpoint::of_container(parent.path());
        received.copy_archive(&path).unwrap();
        assert_eq!(fs::metadata(received.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(received.path()).unwrap().count(), 3);
        assert_eq!(fs::read_dir(received.images()).unwrap().count(), 2);
        assert_eq!(received.image().unwrap().rootfs_image_name, "busybox:1");
        assert_eq!(received.removed().unwrap(), ["a"]);
        assert!(received.changes().unwrap().is_none() && received.streams().unwrap().is_empty());
    }

    #[test]
    fn an_archive_without_a_needed_file_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x.tar");
        let received = ReceivedCheckpoint::of_container(parent.path());
        for left_out in 0..3 {
            let mut entries = COMPLETE.to_vec();
            let (name, _) = entries.remove(left_out);
            archive(&path, &entries);
            let error = received.copy_archive(&path).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let missing = received.copy_archive(&parent.path().join("missing")).unwrap_err();
        assert_eq!(missing.code(), tonic::Code::NotFound);
        let folder = received.copy_archive(parent.path()).unwrap_err();
        assert_eq!(folder.code(), tonic::Code::FailedPrecondition);
    }

    #[test]
    fn links_in_a_layer_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let layer = parent.path().join("layer");
        fs::create_dir_all(layer.join("checkpoint")).unwrap();
        for (name, content) in COMPLETE {
            fs::write(layer.join(name), content).unwrap();
        }
        fs::write(parent.path().join("secret"), "secret").unwrap();
        symlink(parent.path().join("secret"), layer.join("rootfs-diff.tar")).unwrap();
        symlink(parent.path().join("secret"), layer.join("checkpoint/core-1.img")).unwrap();
        let received = ReceivedCheckpoint::of_container(parent.path());
        received.copy_layers("x", std::slice::from_ref(&layer)).unwrap();
        assert!(received.changes().unwrap().is_none());
        assert_eq!(fs::read_dir(received.images()).unwrap().count(), 2);
        fs::remove_dir_all(layer.join("checkpoint")).unwrap();
        symlink(parent.path(), layer.join("checkpoint")).unwrap();
        assert!(received.copy_layers("x", &[layer]).is_err());
    }
}
