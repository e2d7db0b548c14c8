//! The active configuration: the first file of the folder, or the built-in network. Also keeps the pod subnets that the
//! kubelet sets (CRI `UpdateRuntimeConfig`).

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::conflist::{self, ConfigError, Conflist};
use crate::external::Search;
use crate::record::MadeBy;
use crate::watch::FolderWatch;
use crate::{Context, Error, Options, Result, template};

/// The file that a rendered template is written to.
const FROM_TEMPLATE: &str = "10-berth-net.conflist";

/// The configuration. It is read again when its folder has changed.
#[derive(Debug)]
pub(crate) struct Configuration {
    options: Options,
    loaded: Mutex<LoadedConflist>,
}

#[derive(Debug)]
struct LoadedConflist {
    watch: FolderWatch,
    config: std::result::Result<Arc<Conflist>, ConfigError>,
    pod_cidr: Vec<IpNet>,
}

impl Configuration {
    pub(crate) fn new(options: &Options) -> Self {
        let pod_cidr = fs::read_to_string(options.state_dir.join("pod-cidr")).unwrap_or_default();
        let loaded = LoadedConflist {
            watch: FolderWatch::new(&options.conf_dir),
            config: Err(ConfigError { file: options.conf_dir.clone(), why: "not read yet".to_owned() }),
            pod_cidr: parse_cidrs(&pod_cidr).unwrap_or_default(),
        };
        Self { options: options.clone(), loaded: Mutex::new(loaded) }
    }

    fn lock(&self) -> MutexGuard<'_, LoadedConflist> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn search(&self) -> Search {
        Search {
            bin_dirs: self.options.bin_dirs.clone(),
            external: self.options.external.clone(),
            daemon: true,
        }
    }

    /// Returns the configuration that is on disk.
    pub(crate) fn current(&self) -> std::result::Result<Arc<Conflist>, ConfigError> {
        let mut loaded = self.lock();
        // A plugin program that is installed later can make an invalid configuration valid.
        if loaded.watch.has_changed() || loaded.config.is_err() {
            loaded.config = self.read(&loaded.pod_cidr).map(Arc::new);
        }
        loaded.config.clone()
    }

    fn read(&self, pod_cidr: &[IpNet]) -> std::result::Result<Conflist, ConfigError> {
        let folder = &self.options.conf_dir;
        let file = conflist::first_file(folder)
            .map_err(|error| ConfigError { file: folder.clone(), why: error.to_string() })?;
        match file {
            Some(file) => conflist::load(&file, &self.search()),
            None => {
                self.builtin(pod_cidr).map_err(|why| ConfigError { file: PathBuf::from("[network]"), why })
            }
        }
    }

    fn builtin(&self, pod_cidr: &[IpNet]) -> std::result::Result<Conflist, String> {
        let mut builtin = self.options.builtin.clone();
        if !pod_cidr.is_empty() {
            builtin.subnets = pod_cidr.to_vec();
        }
        Conflist::builtin(&builtin)
    }

    /// Returns the configuration that an attachment was created with, whatever the active configuration is.
    pub(crate) fn recorded(&self, by: &MadeBy) -> Result<Conflist> {
        let conflist = match by {
            MadeBy::File(text) => conflist::parse_recorded(text, &self.search()),
            MadeBy::BuiltIn(text) => conflist::parse_built_in(text),
            MadeBy::BuiltInOfOld => self.builtin(&self.lock().pod_cidr),
        };
        conflist.map_err(|why| Error::Invalid(format!("invalid recorded configuration: {why}")))
    }

    /// The pod subnets that the kubelet has set.
    pub(crate) fn pod_cidr(&self) -> Vec<IpNet> {
        self.lock().pod_cidr.clone()
    }

    /// Sets the pod subnets from the kubelet: IPv4, IPv6 or both, separated by a comma. They apply to the built-in
    /// network, to plugins with the capability `ipRanges`, and to the template, which is written if there is no other
    /// configuration file.
    ///
    /// # Errors
    /// The text contains no valid subnets, or it or the template cannot be written.
    pub(crate) fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let subnets = parse_cidrs(cidr)?;
        let file = self.options.state_dir.join("pod-cidr");
        let temporary = file.with_extension("tmp");
        fs::write(&temporary, cidr)
            .and_then(|()| fs::rename(&temporary, &file))
            .doing(format!("write {}", file.display()))?;
        {
            let mut loaded = self.lock();
            loaded.pod_cidr.clone_from(&subnets);
            loaded.config = self.read(&subnets).map(Arc::new);
        }
        self.write_template(&subnets)
    }

    fn write_template(&self, subnets: &[IpNet]) -> Result<()> {
        let (Some(template), folder) = (&self.options.template, &self.options.conf_dir) else {
            return Ok(());
        };
        let target = folder.join(FROM_TEMPLATE);
        let first = conflist::first_file(folder).doing(format!("read {}", folder.display()))?;
        // A file that somebody else has put there takes precedence.
        if first.is_some_and(|first| first != target) {
            return Ok(());
        }
        let text = fs::read_to_string(template).doing(format!("read {}", template.display()))?;
        let text = template::render(&text, subnets)
            .map_err(|why| Error::Invalid(format!("invalid {}: {why}", template.display())))?;
        fs::create_dir_all(folder).doing(format!("create {}", folder.display()))?;
        // The folder's reader ignores files with this extension.
        let temporary = target.with_extension("tmp");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &target))
            .doing(format!("write {}", target.display()))
    }
}

fn parse_cidrs(text: &str) -> Result<Vec<IpNet>> {
    let parse =
        |part: &str| {
            let subnet = part.trim().parse::<IpNet>();
            subnet.map_err(|_| Error::Invalid(format!("invalid subnet {part:?}"))).and_then(|subnet| {
                match subnet.prefix_len() + 2 <= subnet.max_prefix_len() {
                    true => Ok(subnet.trunc()),
                    false => Err(Error::Invalid(format!("invalid subnet {subnet}: no room for pods"))),
                }
            })
        };
    text.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
}
