//! The folders of the store, and functions that create files in them.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layer_key::LayerKey;
use crate::digest::Digest;
use crate::error::Error;

/// The name of the recipe in a layer's folder.
pub(crate) const RECIPE: &str = "recipe.zst";

/// The name of the record in an image's folder.
pub(super) const RECORD: &str = "image.json";
/// The name of the config in an image's folder. For an artifact it is the manifest.
pub(super) const CONFIG: &str = "config.json";

/// The largest record, in bytes. That of a layer contains untrusted names, which are limited.
const MAX_RECORD: u64 = 256 << 20;
/// A longer record is parsed while it is read.
const LONG_RECORD: u64 = 1 << 20;

/// The store's folders.
#[derive(Debug)]
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// Creates missing folders. All are accessible only to root (CVE-2021-41103).
    pub(crate) fn create(root: &Path) -> Result<Self, Error> {
        let folders = Self { root: root.to_owned() };
        create_private(root)?;
        for folder in ["images", "layers", "containers", "tmp", "trash", "empty", "below"] {
            create_private(&root.join(folder))?;
        }
        Ok(folders)
    }

    /// Returns the folders, which may be missing. Nothing is created.
    pub(crate) fn existing(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, id: &Digest) -> PathBuf {
        self.images().join(id.file_name())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, key: &LayerKey) -> PathBuf {
        self.layers().join(key.file_name())
    }

    pub(crate) fn layer_fs(&self, key: &LayerKey) -> PathBuf {
        self.layer(key).join("fs")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub(crate) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// An empty folder below the layers of an image volume, see [`crate::ImageVolume::lower`].
    pub(crate) fn below(&self) -> PathBuf {
        self.root.join("below")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Returns a new path for a staging folder.
    pub(crate) fn new_tmp(&self) -> PathBuf {
        self.tmp().join(unique())
    }

    /// Moves a file or folder to the trash, so that it disappears immediately and is deleted later. `None` if
    /// it does not exist.
    pub(crate) fn discard(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let to = self.trash().join(unique());
        match fs::rename(path, &to) {
            Ok(()) => Ok(Some(to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("move", path, error)),
        }
    }

    /// Moves a name in an open folder to the trash.
    pub(crate) fn discard_at(&self, folder: BorrowedFd<'_>, name: &CStr) -> Result<PathBuf, Error> {
        let to = self.trash().join(unique());
        rustix::fs::renameat(folder, name, rustix::fs::CWD, &to)
            .map_err(|error| Error::io("move a file to", &to, error))?;
        Ok(to)
    }
}

/// Returns a random name, which has never been used.
fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Creates a folder that is accessible only to root, with its parents. If it exists, its mode is corrected.
pub(crate) fn create_private(path: &Path) -> Result<(), Error> {
    let create = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // On a read-only disk, chmod fails even if it changes nothing.
        match fs::metadata(path)?.permissions().mode() & 0o7777 {
            0o700 => Ok(()),
            _ => fs::set_permissions(path, fs::Permissions::from_mode(0o700)),
        }
    };
    create().map_err(|error| Error::io("create", path, error))
}

/// Lists the names in a folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |error| Error::io("list", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        // A name that is not UTF-8 was not created by the store. The cleanup at open removes it by its lossy
        // form or leaves it.
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Reads a record. A long record (a layer may have many folders) is not held as text in addition.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length > MAX_RECORD {
        let why = format!("{length} bytes, the limit is {MAX_RECORD}");
        return Err(Error::limit(path.display().to_string(), why));
    }
    let parsed = if length > LONG_RECORD {
        serde_json::from_reader(BufReader::new(file))
    } else {
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        serde_json::from_slice(&text)
    };
    parsed.map_err(|error| Error::corrupt(path.display().to_string(), error))
}

/// Writes a file of a folder that is not in use yet.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let file = File::create(path).map_err(|error| Error::io("write", path, error))?;
    encode(path, BufWriter::new(file), value).map(drop)
}

/// Writes a record into an open file.
pub(super) fn encode(path: &Path, mut out: BufWriter<File>, value: &impl Serialize) -> Result<File, Error> {
    serde_json::to_writer_pretty(&mut out, value).map_err(|error| match error.io_error_kind() {
        Some(_) => Error::io("write", path, error),
        None => Error::internal("encode a record", error),
    })?;
    out.into_inner().map_err(|error| Error::io("write", path, error.into_error()))
}
