//! A JSON file that is replaced atomically: a reader sees the old content or the new, whole.
//!
//! There is no fsync: the page cache outlives a kill of the daemon, and after a power cut a file that cannot be read
//! stands for an object that is gone (DESIGN "State"). Measured: 40 us against 720 us with fsync.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file of the store could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes `value` beside `path` and renames it there.
///
/// # Errors
/// Any of the calls failed; the old content stays.
pub fn replace<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let fail = |action| move |source| FileError { action, path: path.to_owned(), source };
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::from).map_err(fail("encode"))?;
    let beside = path.with_extension("json.tmp");
    fs::write(&beside, bytes).map_err(fail("write"))?;
    fs::rename(&beside, path).map_err(fail("replace"))
}

/// Reads what [`replace`] wrote.
///
/// # Errors
/// The file cannot be read or is not such a value.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let fail = |action| move |source| FileError { action, path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(fail("read"))?;
    serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(fail("decode"))
}

/// Removes a folder with all in it; one that is not there is removed already.
///
/// # Errors
/// The removal failed.
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Makes a folder that only root can look into, with its parents.
///
/// # Errors
/// It could not be made.
pub fn make_private_folder(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| FileError {
        action: "make folder",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod.json");
        replace(&path, &vec![1, 2]).unwrap();
        replace(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), [3]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_torn_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod.json");
        fs::write(&path, b"[1, ").unwrap();
        assert!(read::<Vec<u32>>(&path).unwrap_err().to_string().contains("pod.json"));
    }
}
