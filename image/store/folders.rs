//! Where everything is, and how files come into being there.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::index::LayerKey;
use crate::digest::Digest;
use crate::error::Error;

/// The recipe of a layer's archive, in its folder.
pub(crate) const RECIPE: &str = "recipe.zst";

/// The record of an image, in its folder.
pub(super) const RECORD: &str = "image.json";
/// Its configuration, or the manifest of an artifact.
pub(super) const CONFIG: &str = "config.json";

/// A record may not be longer: of a layer it has names that a stranger has chosen, for which there are limits.
const MAX_RECORD: u64 = 256 << 20;
/// What is longer is parsed while it is read.
const LONG_RECORD: u64 = 1 << 20;

/// The store's folders.
#[derive(Debug)]
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// Makes what is missing. All are for root alone (CVE-2021-41103).
    pub(crate) fn make(root: &Path) -> Result<Self, Error> {
        let folders = Self { root: root.to_owned() };
        make_private(root)?;
        for folder in ["images", "layers", "containers", "tmp", "trash", "empty", "below"] {
            make_private(&root.join(folder))?;
        }
        Ok(folders)
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

    /// A name in the folder of half-made things.
    pub(crate) fn new_tmp(&self) -> PathBuf {
        self.tmp().join(unique())
    }

    /// Moves something out of sight, so that it is gone at once and can be deleted at leisure. `None` if it is not there.
    pub(crate) fn discard(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let to = self.trash().join(unique());
        match fs::rename(path, &to) {
            Ok(()) => Ok(Some(to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("move away", path, error)),
        }
    }

    /// The same for a name in an open folder.
    pub(crate) fn discard_at(&self, folder: BorrowedFd<'_>, name: &CStr) -> Result<PathBuf, Error> {
        let to = self.trash().join(unique());
        rustix::fs::renameat(folder, name, rustix::fs::CWD, &to)
            .map_err(|error| Error::io("move to", &to, error))?;
        Ok(to)
    }
}

/// A name that nothing has had, in this run or an earlier one.
fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Makes a folder for root alone, with its parents. One that is there stays, with its mode set right.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // A disk that has become read-only refuses even what changes nothing.
        match fs::metadata(path)?.permissions().mode() & 0o7777 {
            0o700 => Ok(()),
            _ => fs::set_permissions(path, fs::Permissions::from_mode(0o700)),
        }
    };
    make().map_err(|error| Error::io("make", path, error))
}

/// The names in a folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |error| Error::io("list", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        // A name that is not UTF-8 is none of ours; the sweep at open takes it away by its lossy form or leaves it.
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Reads a record of ours. One that is long, since a layer has many folders, is not held as text as well.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length > MAX_RECORD {
        let why = format!("has {length} bytes, the limit is {MAX_RECORD}");
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

/// Writes a file of a folder that nobody sees yet.
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
