//! Starts the plugins of the plugin folder. The connection is descriptor 3 of the plugin.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::plugin::{LaunchedPlugin, PluginName};

/// A plugin in the plugin folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPlugin {
    /// Its program.
    pub program: PathBuf,
    /// Its name and configuration.
    pub plugin: LaunchedPlugin,
}

/// Finds the programs of a folder, sorted by name. Programs with invalid names and unreadable configurations are logged.
#[must_use]
pub fn find(folder: &Path, config_folder: &Path) -> Vec<FoundPlugin> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(folder = %folder.display(), %error, "failed to read the NRI plugins");
            return Vec::new();
        }
    };
    let mut programs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_program(path)).collect();
    programs.sort();
    let found = programs.into_iter().filter_map(|program| {
        let plugin = describe(&program, config_folder)
            .inspect_err(|error| {
                tracing::error!(program = %program.display(), error, "skipped an NRI plugin");
            })
            .ok()?;
        Some(FoundPlugin { program, plugin })
    });
    found.collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn describe(program: &Path, config_folder: &Path) -> Result<LaunchedPlugin, String> {
    let file = program.file_name().and_then(|name| name.to_str()).ok_or("the name is not UTF-8")?;
    let name = PluginName::of_file(file)?;
    for candidate in [format!("{name}.conf"), format!("{}.conf", name.name)] {
        let path = config_folder.join(candidate);
        match fs::read_to_string(&path) {
            Ok(config) => return Ok(LaunchedPlugin { name, config }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("failed to read {}: {error}", path.display())),
        }
    }
    Ok(LaunchedPlugin { name, config: String::new() })
}

/// Moves standard input to descriptor 3, and becomes the plugin.
const SCRIPT: &str = "exec 3<&0 </dev/null && exec \"$0\"";

/// Starts a plugin. Returns its process and the daemon's end of its connection.
///
/// # Errors
/// The program cannot be run.
pub fn start(found: &FoundPlugin) -> io::Result<(tokio::process::Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let PluginName { index, name } = &found.plugin.name;
    // A spawn without a fork cannot pass other descriptors than the standard streams.
    let child = tokio::process::Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .arg(&found.program)
        .env_clear()
        .env("NRI_PLUGIN_NAME", &**name)
        .env("NRI_PLUGIN_IDX", &**index)
        .env("NRI_PLUGIN_SOCKET", "3")
        .stdin(OwnedFd::from(theirs))
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_with_their_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let (programs, configs) = (folder.path().join("plugins"), folder.path().join("conf.d"));
        assert!(find(&programs, &configs).is_empty(), "a missing folder");
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&configs).unwrap();
        for (name, mode) in
            [("20-b", 0o755), ("10-a", 0o755), ("bad", 0o755), ("30-data", 0o644), ("40-c", 0o700)]
        {
            fs::write(programs.join(name), "").unwrap();
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(configs.join("a.conf"), "of a").unwrap();
        fs::write(configs.join("20-b.conf"), "of 20-b").unwrap();
        fs::write(configs.join("b.conf"), "of b").unwrap();
        let found = find(&programs, &configs);
        let shown: Vec<_> =
            found.iter().map(|found| (found.plugin.name.to_string(), found.plugin.config.as_str())).collect();
        let expected = [("10-a", "of a"), ("20-b", "of 20-b"), ("40-c", "")];
        assert_eq!(shown, expected.map(|(name, config)| (name.to_owned(), config)));
    }
}
