//! The persistent record of an attachment. It is written before the attachment is created.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, blocking, remove_temporary_files};
use crate::result::CniResult;
use crate::runtime_config::RuntimeConfig;
use crate::{Attachment, Context, Result};

/// The record of an attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The interface in the pod.
    pub(crate) interface: String,
    /// The arguments that external plugins get in `CNI_ARGS`.
    pub(crate) args: String,
    /// The runtime's configuration. It is passed again when the pod is detached.
    #[serde(default)]
    pub(crate) runtime: RuntimeConfig,
    /// `None` until the network is attached. The attachment may be partial then.
    pub(crate) result: Option<CniResult>,
    /// The text of the configuration that the pod was attached with; it is detached with the same one. Older daemons
    /// recorded none for the built-in network.
    pub(crate) config: Option<String>,
    /// Whether `config` is the text of the built-in network.
    #[serde(default)]
    pub(crate) built_in: bool,
    /// The folder of allocated addresses, unless the configuration names another. Older daemons did not record it.
    #[serde(default)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The path at which the pod's namespace is pinned, if an external plugin was run.
    pub(crate) pinned: Option<PathBuf>,
    /// The path of the namespace in results.
    #[serde(default)]
    pub(crate) sandbox: String,
}

/// The configuration that an attachment was created with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MadeBy {
    /// The text of a configuration file.
    File(String),
    /// The text of the built-in network.
    BuiltIn(String),
    /// The built-in network as it is configured now; older daemons did not record its text.
    BuiltInOfOld,
}

impl Record {
    /// A record of no attachment, for calls that concern a network as a whole.
    pub(crate) fn of_none(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            args: String::new(),
            runtime: RuntimeConfig::default(),
            result: None,
            config: None,
            built_in: false,
            data_dir: None,
            pinned: None,
            sandbox: String::new(),
        }
    }

    pub(crate) fn made_by(&self) -> MadeBy {
        match (self.config.clone(), self.built_in) {
            (Some(text), true) => MadeBy::BuiltIn(text),
            (Some(text), false) => MadeBy::File(text),
            (None, _) => MadeBy::BuiltInOfOld,
        }
    }

    /// Returns the attachment if it is complete.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        let result = self.result.clone()?;
        let place =
            result.of_pod().find(|(_, interface)| interface.name == self.interface).map(|(place, _)| place);
        // Addresses of the pod's first interface come first: the first of them is the primary address of the pod.
        let (own, others): (Vec<_>, Vec<_>) =
            result.ips.iter().partition(|ip| ip.interface.is_none() || ip.interface == place);
        let ips = own.iter().chain(&others).map(|ip| ip.address.addr()).collect();
        Some(Attachment { ips, interface: self.interface.clone(), result })
    }
}

/// The folder of records. Its disk may hang: the threads that serve requests do not wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let folder = state_dir.join("pods");
        fs::create_dir_all(&folder).doing(format!("create {}", folder.display()))?;
        remove_temporary_files(&folder);
        Ok(Self { folder })
    }

    /// Returns the folder of records, which may be missing. Nothing is created.
    pub(crate) fn existing(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("pods") }
    }

    /// Returns the file of a pod's record.
    pub(crate) fn file(&self, pod: &str) -> PathBuf {
        self.folder.join(format!("{pod}.json"))
    }

    pub(crate) async fn write(&self, pod: &str, record: &Record) -> Result<()> {
        let file = self.file(pod);
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).doing("encode an attachment")?;
        blocking(move || files::replace(&file, &text).doing(format!("write {}", file.display()))).await
    }

    /// Reads the record of a pod. Returns `None` if the record does not exist or is damaged.
    ///
    /// # Errors
    /// The record cannot be read: it may exist.
    pub(crate) async fn read(&self, pod: &str) -> Result<Option<Record>> {
        let file = self.file(pod);
        blocking(move || Self::read_file(&file)).await
    }

    pub(crate) fn read_file(file: &Path) -> Result<Option<Record>> {
        match fs::read(file) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(format!("read {}", file.display())),
        }
    }

    pub(crate) async fn remove(&self, pod: &str) -> Result<()> {
        let (file, what) = (self.file(pod), format!("remove the record of {pod}"));
        blocking(move || match fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing(what),
        })
        .await
    }

    /// Returns the pods that have a record.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) async fn pods(&self) -> Result<Vec<String>> {
        let records = self.clone();
        blocking(move || records.names()).await
    }

    /// Returns the complete attachments. Called when the daemon starts.
    ///
    /// # Errors
    /// The folder or a record cannot be read.
    pub(crate) fn attachments(&self) -> Result<Vec<(String, Attachment)>> {
        let mut attachments = Vec::new();
        for pod in self.names()? {
            let attachment = Self::read_file(&self.file(&pod))?.and_then(|record| record.attachment());
            attachments.extend(attachment.map(|attachment| (pod, attachment)));
        }
        Ok(attachments)
    }

    /// Returns the pods that have a record, sorted. None if the folder is missing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn names_if_any(&self) -> Result<Vec<String>> {
        let mut names = if self.folder.is_dir() { self.names()? } else { Vec::new() };
        names.sort();
        Ok(names)
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = || format!("read {}", self.folder.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).doing(failed())? {
            let name = entry.doing(failed())?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".json").map(str::to_owned));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_removed_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let names = || -> Vec<String> {
            let entries = fs::read_dir(folder.path().join("pods")).unwrap().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        Records::open(folder.path()).unwrap();
        fs::write(folder.path().join("pods/a.tmp"), "{").unwrap();
        fs::write(folder.path().join("pods/b.json"), "{").unwrap();
        Records::open(folder.path()).unwrap();
        assert_eq!(names(), ["b.json"]);
        // A failed replacement leaves no temporary file.
        fs::create_dir_all(folder.path().join("pods/c.json/x")).unwrap();
        assert!(files::replace(&folder.path().join("pods/c.json"), b"{}").is_err());
        assert!(!names().contains(&"c.tmp".to_owned()));
    }
}
