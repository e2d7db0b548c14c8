//! What is on disk of an attachment: that it may have been made is written before it is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::call::RuntimeConfig;
use crate::ipam::blocking;
use crate::result::CniResult;
use crate::{Attachment, Context, Result};

/// An attachment on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The interface in the pod.
    pub(crate) interface: String,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// What the runtime said beyond the configuration: it says it again when the pod is detached.
    #[serde(default)]
    pub(crate) runtime: RuntimeConfig,
    /// `None` until the network is attached: it may be in part.
    pub(crate) result: Option<CniResult>,
    /// The text of the configuration it was attached by: it is detached by the same. An older daemon has written none of the
    /// built-in network.
    pub(crate) config: Option<String>,
    /// That is the text of the built-in network.
    #[serde(default)]
    pub(crate) built_in: bool,
    /// Where its addresses are, unless the configuration says so; an older daemon has not said it.
    #[serde(default)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The pod's namespace is pinned at a path, since an external plugin was run.
    pub(crate) pinned: Option<PathBuf>,
    /// The path by which results name the namespace.
    #[serde(default)]
    pub(crate) sandbox: String,
}

/// What an attachment was made by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MadeBy {
    /// The text of a file.
    File(String),
    /// The network that was built in, as a text.
    BuiltIn(String),
    /// The network that is built in; an older daemon has not said more.
    BuiltInOfOld,
}

impl Record {
    /// Of no attachment: for what is asked of a network as a whole.
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

    /// The attachment, if it is whole.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        let result = self.result.clone()?;
        let place = result.of_pod().find(|(_, found)| found.name == self.interface).map(|(place, _)| place);
        // The addresses of the pod's first interface come first: the first of them is the pod's own.
        let (own, others): (Vec<_>, Vec<_>) =
            result.ips.iter().partition(|ip| ip.interface.is_none() || ip.interface == place);
        let ips = own.iter().chain(&others).map(|ip| ip.address.addr()).collect();
        Some(Attachment { ips, interface: self.interface.clone(), result })
    }
}

/// How the names of files end that are not in their place yet.
const UNFINISHED: &str = "tmp";

/// Replaces a file whole or not at all. A full disk leaves nothing beside it.
pub(crate) fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let beside = file.with_extension(UNFINISHED);
    let replaced = fs::write(&beside, text).and_then(|()| fs::rename(&beside, file));
    replaced.inspect_err(|_| {
        // The error that is told is that of the write.
        let _removed = fs::remove_file(&beside);
    })
}

/// Removes what a process that was killed between the two steps of [`replace`] has left in a folder of records.
pub(crate) fn remove_unfinished(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for beside in entries.filter(|path| path.extension().is_some_and(|extension| extension == UNFINISHED)) {
        if let Err(error) = fs::remove_file(&beside) {
            tracing::warn!(%error, path = %beside.display(), "failed to remove an unfinished record");
        }
    }
}

/// The folder of records. Its disk may hang: no thread that answers requests waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let folder = state_dir.join("pods");
        fs::create_dir_all(&folder).doing(format!("make {}", folder.display()))?;
        remove_unfinished(&folder);
        Ok(Self { folder })
    }

    fn file(&self, pod: &str) -> PathBuf {
        self.folder.join(format!("{pod}.json"))
    }

    pub(crate) async fn write(&self, pod: &str, record: &Record) -> Result<()> {
        let file = self.file(pod);
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).doing("encode an attachment")?;
        blocking(move || replace(&file, &text).doing(format!("write {}", file.display()))).await
    }

    /// `None` where there is none, or a torn one: that pod has nothing that is known.
    ///
    /// # Errors
    /// It cannot be read, which says nothing about the pod.
    pub(crate) async fn read(&self, pod: &str) -> Result<Option<Record>> {
        let file = self.file(pod);
        blocking(move || Self::read_file(&file)).await
    }

    fn read_file(file: &Path) -> Result<Option<Record>> {
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

    /// The pods that have a record.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) async fn pods(&self) -> Result<Vec<String>> {
        let records = self.clone();
        blocking(move || records.names()).await
    }

    /// The attachments that are whole, for a daemon that starts.
    ///
    /// # Errors
    /// The folder or a record cannot be read.
    pub(crate) fn attachments(&self) -> Result<Vec<(String, Attachment)>> {
        let mut found = Vec::new();
        for pod in self.names()? {
            let attachment = Self::read_file(&self.file(&pod))?.and_then(|record| record.attachment());
            found.extend(attachment.map(|attachment| (pod, attachment)));
        }
        Ok(found)
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
    fn an_unfinished_record_goes_with_the_next_start() {
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
        // What cannot be put in its place is not left beside it.
        fs::create_dir_all(folder.path().join("pods/c.json/x")).unwrap();
        assert!(replace(&folder.path().join("pods/c.json"), b"{}").is_err());
        assert!(!names().contains(&"c.tmp".to_owned()));
    }
}
