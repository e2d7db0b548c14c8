//! Hook folders (oci-hooks(5)): files in which the node's administrator describes hooks, and the containers that get
//! them. The folders are read when a container is created, so changes take effect without a restart.
//!
//! * this file: reads the folders, and adds the hooks of a container to its spec
//! * [`mod@file`]: the formats of a file
//! * [`when`]: the conditions of a hook
//! * [`mod@file`]: the formats of a hook file

mod file;
mod when;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::oci::hooks;
use file::HookFile;
use when::ContainerProperties;

/// Adds the matching hooks of all folders to a spec. A file that cannot be used is logged and skipped.
///
/// # Errors
/// The spec has no command that a condition can be compared with.
pub fn inject(
    spec: &mut Spec,
    annotations: &HashMap<String, String>,
    has_bind_mounts: bool,
    folders: &[PathBuf],
) -> Result<(), String> {
    for (path, read) in read_all(folders) {
        let file = match read {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "skipped an invalid hook file");
                continue;
            }
        };
        let command = spec.process().as_ref().and_then(|process| process.args().as_ref()?.first().cloned());
        let container = ContainerProperties { annotations, command: command.as_deref(), has_bind_mounts };
        if file.when.matches(&container).map_err(|why| format!("{}: {why}", path.display()))? {
            for kind in &file.stages {
                hooks::add(spec, *kind, file.hook.clone());
            }
        }
    }
    Ok(())
}

/// Returns the errors of all files that cannot be used.
#[must_use]
pub fn mistakes(folders: &[PathBuf]) -> Vec<String> {
    let files = read_all(folders).into_iter();
    files.filter_map(|(path, read)| Some(format!("{}: {}", path.display(), read.err()?))).collect()
}

/// Reads the files in the order of their names in lower case. A file of a later folder replaces the file with the same
/// name of an earlier one, even if it is invalid.
fn read_all(folders: &[PathBuf]) -> Vec<(PathBuf, Result<HookFile, String>)> {
    let mut paths: BTreeMap<(String, OsString), PathBuf> = BTreeMap::new();
    for folder in folders {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "json") {
                paths.insert((name.to_string_lossy().to_lowercase(), name), entry.path());
            }
        }
    }
    paths.into_values().map(|path| (path.clone(), file::read(&path))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const WHEN: &str = r#""when": {"always": true}, "stages": ["poststop"]"#;

    fn file(folder: &Path, name: &str, hook: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(
            folder.join(name),
            format!(r#"{{"version": "1.0.0", "hook": {{"path": "{hook}"}}, {WHEN}}}"#),
        )
        .unwrap();
    }

    #[test]
    fn files_are_sorted_and_a_later_folder_takes_precedence() {
        let place = tempfile::tempdir().unwrap();
        let (low, high) = (place.path().join("low"), place.path().join("high"));
        file(&low, "20-b.json", "/bin/sh");
        file(&low, "10-A.json", "/bin/true");
        file(&low, "30-c.json", "/bin/false");
        file(&low, "ignored.txt", "/bin/true");
        file(&high, "20-b.json", "/bin/cat");
        fs::write(high.join("30-c.json"), "{").unwrap();
        let folders = [low, place.path().join("absent"), high];
        let mut spec = Spec::default();
        inject(&mut spec, &HashMap::new(), false, &folders).unwrap();
        let hooks = spec.hooks().clone().unwrap().poststop().clone().unwrap();
        let paths: Vec<_> = hooks.iter().map(|hook| hook.path().display().to_string()).collect();
        assert_eq!(paths, ["/bin/true", "/bin/cat"]);
        assert_eq!(mistakes(&folders).len(), 1);
    }
}
