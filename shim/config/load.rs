//! Which files are read, in which order: the main file, then `conf.d/*.toml` beside it by name, then the flags; what
//! comes later wins. A broken main file stops the daemon: it would run with settings that nobody chose. A broken drop-in
//! is skipped and shown, since some package put it there and pods must go on.

use std::io;
use std::path::{Path, PathBuf};

use super::problem::{self, Problem};
use super::{Config, DEFAULT_FILE, Layer};

/// The most that a configuration file may have.
const MAX_FILE: u64 = 1 << 20;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("read {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Two keys belong together.
    #[error("{is} is set and {is_not} is not: a certificate and its key belong together")]
    Half {
        /// The one that is there.
        is: &'static str,
        /// The one that is not.
        is_not: &'static str,
    },
    /// A file has a mistake.
    #[error("{}:{problem}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// Line, key and what is wrong.
        problem: Problem,
    },
}

/// A drop-in that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenDropIn {
    /// The file.
    pub file: PathBuf,
    /// What is wrong, with file, line and key.
    pub message: String,
}

/// Reads the configuration. Without `file` the usual one is read if it is there; a file that was named must be.
///
/// # Errors
/// The main file cannot be read or has a mistake.
pub fn load(file: Option<&Path>, flags: Layer) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let main = file.unwrap_or(Path::new(DEFAULT_FILE));
    match read_file(main) {
        Ok(layer) => config.apply(layer),
        Err(ConfigError::Read { error, .. }) if file.is_none() && error.kind() == io::ErrorKind::NotFound => {
        }
        Err(error) => return Err(error),
    }
    let folder = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    match drop_ins(&folder) {
        Ok(files) => files.into_iter().for_each(|file| match read_file(&file) {
            Ok(layer) => config.apply(layer),
            Err(error) => config.broken_drop_ins.push(BrokenDropIn { file, message: error.to_string() }),
        }),
        Err(error) => {
            let message = format!("read {}: {error}", folder.display());
            config.broken_drop_ins.push(BrokenDropIn { file: folder, message });
        }
    }
    config.apply(flags);
    match (&config.stream_certificate, &config.stream_key) {
        (Some(_), None) => Err(ConfigError::Half { is: "stream_certificate", is_not: "stream_key" }),
        (None, Some(_)) => Err(ConfigError::Half { is: "stream_key", is_not: "stream_certificate" }),
        _ => Ok(config),
    }
}

fn read_file(file: &Path) -> Result<Layer, ConfigError> {
    let unreadable = |error| ConfigError::Read { file: file.to_owned(), error };
    // Asked first: opening a fifo would wait for a writer.
    let metadata = std::fs::metadata(file).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let why = format!("is not a file of at most {MAX_FILE} bytes");
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    problem::read(&text).map_err(|problem| ConfigError::Wrong { file: file.to_owned(), problem })
}

/// The drop-ins by name. Hidden files are left over by editors and package managers.
fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
