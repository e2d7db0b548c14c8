//! What is on disk of an attachment: that it may have been made is written before it is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::call::RuntimeConfig;
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

/// The folder of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let folder = state_dir.join("pods");
        fs::create_dir_all(&folder).doing(format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn file(&self, pod: &str) -> PathBuf {
        self.folder.join(format!("{pod}.json"))
    }

    pub(crate) fn write(&self, pod: &str, record: &Record) -> Result<()> {
        let file = self.file(pod);
        let beside = file.with_extension("tmp");
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).doing("encode an attachment")?;
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, &file))
            .doing(format!("write {}", file.display()))
    }

    /// `None` where there is none, or none that can be read: that pod has nothing that is known.
    pub(crate) fn read(&self, pod: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.file(pod)).ok()?).ok()
    }

    pub(crate) fn remove(&self, pod: &str) -> Result<()> {
        match fs::remove_file(self.file(pod)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing(format!("remove the record of {pod}")),
        }
    }

    /// The pods that have a record.
    pub(crate) fn pods(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect()
    }
}
