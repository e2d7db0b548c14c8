//! The description of a pod's checkpoint: `pod.json` in its folder. In a restore, it is untrusted.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use berth_proto::v1::ContainerConfig;
use serde::{Deserialize, Serialize};

use super::shared_restore::open_regular;
use super::shared_state::SharedState;
use crate::error::CriError;

/// The name of the file. It is the last one that is written: a folder without it has no complete checkpoint.
pub const MANIFEST: &str = "pod.json";
/// The format of this daemon.
pub const VERSION: u32 = 1;
/// The largest file that is read, in bytes. Messages of queues are in it.
const LARGEST: u64 = 64 << 20;
/// The most containers of a pod.
const MOST_CONTAINERS: usize = 1000;

/// A checkpoint of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodManifest {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// The containers. The archive of each is named by its position in this list.
    pub containers: Vec<ManifestContainer>,
    /// Their shared state.
    pub shared: SharedState,
}

/// A container of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestContainer {
    /// Its name in the pod.
    pub name: String,
    /// The command of the request.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory.
    pub working_dir: String,
    /// Whether it shares the PID namespace of the pod.
    pub shared_pids: bool,
}

/// Returns the name of the archive of a container.
#[must_use]
pub fn container_file(index: usize) -> String {
    format!("container-{index}.tar")
}

impl PodManifest {
    /// Reads the description in a folder.
    ///
    /// # Errors
    /// `NotFound`: the folder has no description. It is damaged, exceeds the limits, or has another format.
    pub fn read(folder: &Path) -> Result<Self, CriError> {
        let what = format!("read the checkpoint {}", folder.display());
        if !folder.join(MANIFEST).exists() {
            return Err(CriError::not_found("checkpoint", folder.display().to_string()));
        }
        let mut text = Vec::new();
        let read =
            open_regular(folder, MANIFEST).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
        read.map_err(|error| CriError::failed(&what, error))?;
        if u64::try_from(text.len()).is_ok_and(|length| length > LARGEST) {
            return Err(CriError::failed(what, format!("{MANIFEST} has more than {LARGEST} bytes")));
        }
        let read: Self = serde_json::from_slice(&text)
            .map_err(|error| CriError::failed(&what, format!("{MANIFEST}: {error}")))?;
        read.check().map_err(|why| CriError::failed(what, format!("{MANIFEST}: {why}")))?;
        Ok(read)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("format {} is unknown", self.version));
        }
        if self.containers.is_empty() || self.containers.len() > MOST_CONTAINERS {
            return Err(format!("it has {} containers", self.containers.len()));
        }
        let names: BTreeSet<&str> = self.containers.iter().map(|container| container.name.as_str()).collect();
        if names.len() < self.containers.len() || names.contains("") {
            return Err("two containers have the same name, or one has none".to_owned());
        }
        self.shared.check()
    }

    /// Returns the position of each requested container, by its name. The names must be those of the checkpoint.
    ///
    /// # Errors
    /// `InvalidArgument`: a name is missing, used twice, or not in the checkpoint, or the other way round.
    pub fn positions(&self, configs: &[ContainerConfig]) -> Result<Vec<usize>, CriError> {
        let invalid = |why: String| Err(CriError::invalid("container_configs", why));
        let mut seen = BTreeSet::new();
        let mut positions = Vec::new();
        for config in configs {
            let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
            if !seen.insert(name) {
                return invalid(format!("two containers have the name {name:?}"));
            }
            match self.containers.iter().position(|container| container.name == name) {
                Some(position) => positions.push(position),
                None => return invalid(format!("the checkpoint has no container {name:?}")),
            }
        }
        match self.containers.iter().find(|container| !seen.contains(container.name.as_str())) {
            Some(missing) => {
                invalid(format!("the container {:?} of the checkpoint is missing", missing.name))
            }
            None => Ok(positions),
        }
    }
}

impl ManifestContainer {
    /// Describes a container.
    #[must_use]
    pub fn of(config: &ContainerConfig, shared_pids: bool) -> Self {
        Self {
            name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            command: config.command.clone(),
            args: config.args.clone(),
            working_dir: config.working_dir.clone(),
            shared_pids,
        }
    }

    /// Compares the container with the one that is to be restored. A difference shows that the request is for other
    /// processes.
    ///
    /// # Errors
    /// `FailedPrecondition` with the first difference.
    pub fn check(&self, requested: &Self) -> Result<(), CriError> {
        let different = [
            ("command", self.command != requested.command),
            ("args", self.args != requested.args),
            ("working_dir", self.working_dir != requested.working_dir),
            ("PID namespace", self.shared_pids != requested.shared_pids),
        ];
        match different.iter().find(|(_, differs)| *differs) {
            Some((what, _)) => Err(CriError::precondition(
                format!("container {}", self.name),
                format!("its {what} is not that of the checkpoint"),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1::ContainerMetadata;
    use std::fs;
    use tonic::Code;

    fn config(name: &str) -> ContainerConfig {
        let metadata = Some(ContainerMetadata { name: name.to_owned(), attempt: 0 });
        ContainerConfig { metadata, command: vec!["run".to_owned()], ..ContainerConfig::default() }
    }

    fn manifest(names: &[&str]) -> PodManifest {
        let containers = names.iter().map(|name| ManifestContainer::of(&config(name), true)).collect();
        PodManifest { version: VERSION, containers, shared: SharedState::default() }
    }

    #[test]
    fn names_are_matched_exactly() {
        let two = manifest(&["a", "b"]);
        assert_eq!(two.positions(&[config("b"), config("a")]).unwrap(), [1, 0]);
        for bad in [&["a"][..], &["a", "a"], &["a", "b", "c"], &["a", ""], &[]] {
            let configs: Vec<_> = bad.iter().map(|name| config(name)).collect();
            assert_eq!(two.positions(&configs).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn another_command_or_pid_namespace_is_refused() {
        let checkpointed = ManifestContainer::of(&config("a"), true);
        assert!(checkpointed.check(&checkpointed).is_ok());
        let other = ManifestContainer { command: Vec::new(), ..checkpointed.clone() };
        assert_eq!(checkpointed.check(&other).unwrap_err().code(), Code::FailedPrecondition);
        let private = ManifestContainer { shared_pids: false, ..checkpointed.clone() };
        assert!(checkpointed.check(&private).unwrap_err().to_string().contains("PID namespace"));
    }

    #[test]
    fn only_a_sound_description_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MANIFEST);
        assert_eq!(PodManifest::read(folder.path()).unwrap_err().code(), Code::NotFound);
        let good = manifest(&["a"]);
        fs::write(&path, serde_json::to_vec(&good).unwrap()).unwrap();
        assert_eq!(PodManifest::read(folder.path()).unwrap(), good);
        let old = PodManifest { version: 2, ..good.clone() };
        let pid = SharedState { last_pid: Some(0), ..SharedState::default() };
        let pids = PodManifest { shared: pid, ..good };
        for bad in [manifest(&["a", "a"]), manifest(&[""]), manifest(&[]), old, pids] {
            fs::write(&path, serde_json::to_vec(&bad).unwrap()).unwrap();
            assert!(PodManifest::read(folder.path()).is_err(), "{bad:?}");
        }
        fs::write(&path, "{").unwrap();
        assert!(PodManifest::read(folder.path()).is_err());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/version", &path).unwrap();
        assert!(PodManifest::read(folder.path()).is_err());
    }
}
