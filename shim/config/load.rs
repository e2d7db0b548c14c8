//! Loads the configuration: first the main file, then `conf.d/*.toml` beside it in the order of their names, then the
//! flags. A later source overrides an earlier one. A broken main file stops the daemon, which would otherwise run
//! with unintended settings. A broken drop-in is skipped and reported: packages install drop-ins, and pods must keep
//! running.

use std::io;
use std::path::{Path, PathBuf};

use super::problem::{self, Problem};
use super::{BrokenDropIn, Config, DEFAULT_FILE, HandlerConfig, Layer};

/// The largest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The reason why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("failed to read {}: {error}", file.display())]
    Read {
        /// The file that was read.
        file: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// One of two keys that belong together is missing.
    #[error("invalid {is}: {is_not} is not set, and a certificate needs its key")]
    Half {
        /// The key that is set.
        is: &'static str,
        /// The key that is missing.
        is_not: &'static str,
    },
    /// A handler has no program.
    #[error("invalid handlers.{handler}.path: not set")]
    NoProgram {
        /// The name of the handler: `NAME` in `[handlers.NAME]`.
        handler: String,
    },
    /// The state of a handler's runtime is in a folder that the runtime does not see.
    #[error(
        "the state of handler {handler} is below root: set handlers.{handler}.root to a folder outside of it"
    )]
    HiddenState {
        /// The name of the handler: `NAME` in `[handlers.NAME]`.
        handler: String,
    },
    /// A file has a mistake.
    #[error("invalid {}:{problem}", file.display())]
    Wrong {
        /// The file with the mistake.
        file: PathBuf,
        /// The line, the key and the mistake.
        problem: Problem,
    },
}

/// Reads the configuration. The default file may be missing; a file that `file` names must exist.
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
            let message = format!("failed to read {}: {error}", folder.display());
            config.broken_drop_ins.push(BrokenDropIn { file: folder, message });
        }
    }
    config.apply(flags);
    check(&config)?;
    add_handlers(&mut config);
    Ok(config)
}

/// Reads the configuration. Returns all valid settings and the mistakes of all files.
#[must_use]
pub fn mistakes(file: Option<&Path>, flags: Layer) -> (Config, Vec<String>) {
    let (mut config, mut mistakes) = (Config::default(), Vec::new());
    let main = file.unwrap_or(Path::new(DEFAULT_FILE));
    let folder = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let mut files = vec![main.to_owned()];
    match drop_ins(&folder) {
        Ok(found) => files.extend(found),
        Err(error) => mistakes.push(format!("failed to read {}: {error}", folder.display())),
    }
    for path in files {
        match read_text(&path) {
            Ok(text) => {
                let (layer, problems) = problem::read_all(&text);
                config.apply(layer);
                mistakes.extend(problems.iter().map(|problem| format!("{}:{problem}", path.display())));
            }
            Err(ConfigError::Read { error, .. })
                if file.is_none() && path == main && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    config.apply(flags);
    mistakes.extend(check(&config).err().map(|error| error.to_string()));
    add_handlers(&mut config);
    (config, mistakes)
}

/// Adds the names of the handlers that are OCI runtimes to those that pods may name.
fn add_handlers(config: &mut Config) {
    for (name, _) in config.handlers.iter() {
        if !config.runtime_handlers.iter().any(|known| known == name) {
            config.runtime_handlers.push(name.to_owned());
        }
    }
}

/// Checks keys that must be set.
fn check(config: &Config) -> Result<(), ConfigError> {
    if let Some((name, _)) = config.handlers.iter().find(|(_, handler)| handler.path.is_none()) {
        return Err(ConfigError::NoProgram { handler: name.to_owned() });
    }
    let is_hidden = |(_, handler): &(&str, &HandlerConfig)| {
        handler.root.as_ref().unwrap_or(&config.state).starts_with(&config.root)
    };
    if let Some((name, _)) = config.handlers.iter().find(is_hidden) {
        return Err(ConfigError::HiddenState { handler: name.to_owned() });
    }
    match (&config.stream_certificate, &config.stream_key) {
        (Some(_), None) => Err(ConfigError::Half { is: "stream_certificate", is_not: "stream_key" }),
        (None, Some(_)) => Err(ConfigError::Half { is: "stream_key", is_not: "stream_certificate" }),
        _ => Ok(()),
    }
}

fn read_file(file: &Path) -> Result<Layer, ConfigError> {
    let text = read_text(file)?;
    problem::read(&text).map_err(|problem| ConfigError::Wrong { file: file.to_owned(), problem })
}

fn read_text(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::Read { file: file.to_owned(), error };
    // The file type is checked first: opening a FIFO waits for a writer.
    let metadata = std::fs::metadata(file).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let why = format!("is not a file of at most {MAX_FILE} bytes");
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

/// Returns the drop-ins in the order of their names, without hidden files, which editors and package managers leave
/// behind.
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
