//! SELinux: the labels of a container's processes and files. Each pod has separate categories, which keep its
//! processes from the files of other pods (Multi-Category Security, as in podman, CRI-O and containerd).

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use berth_proto::v1::SeLinuxOption;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::CriError;

const FIELD: &str = "selinux_options";

/// The number of categories (`c0.c1023`).
const CATEGORIES: u32 = 1024;

/// The default labels, for a policy that does not define any.
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";

/// Folders of the host with labels of the system. Relabelling one of them would lock out all users.
const NEVER_RELABELLED: [&str; 13] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/root", "/run", "/tmp", "/usr", "/var",
];

/// A label: user, role, type and level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { user, role, kind, level: parts.next().unwrap_or_default() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

/// The labels of a pod or container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// The label of processes.
    pub process: String,
    /// The label of files.
    pub mount: String,
}

/// The state of SELinux on a host.
#[derive(Clone, Debug)]
pub struct SeLinux {
    enabled: bool,
    process: Label,
    file: Label,
}

impl SeLinux {
    /// Detects SELinux on a host with its files below `root`.
    #[must_use]
    pub fn detect(root: &Path) -> Self {
        let contexts = contexts(root);
        let of = |key: &str, default: &str| {
            let text = contexts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
            text.and_then(Label::parse).or_else(|| Label::parse(default)).unwrap_or_default()
        };
        Self {
            enabled: root.join("sys/fs/selinux/enforce").exists(),
            process: of("process", PROCESS),
            file: of("file", FILE),
        }
    }

    /// Returns the labels of a pod: the requested ones, with categories that no other pod has. Returns none if the
    /// host has no SELinux: the options are ignored then, as in other runtimes.
    ///
    /// # Errors
    /// An option is not a valid part of a label.
    pub fn of_pod(
        &self,
        requested: Option<&SeLinuxOption>,
        used: &HashSet<String>,
    ) -> Result<Option<Labels>, CriError> {
        check(requested)?;
        if !self.enabled {
            warn_ignored(requested);
            return Ok(None);
        }
        let level = requested.map(|requested| requested.level.clone()).filter(|level| !level.is_empty());
        let level = level.unwrap_or_else(|| unused_level(used));
        Ok(Some(self.labels(requested, level)))
    }

    /// Returns the labels of a container: the pod's, or the ones that the container requests.
    ///
    /// # Errors
    /// As [`Self::of_pod`].
    pub fn of_container(
        &self,
        requested: Option<&SeLinuxOption>,
        pod: Option<&Labels>,
    ) -> Result<Option<Labels>, CriError> {
        check(requested)?;
        let (true, Some(pod)) = (self.enabled, pod) else {
            warn_ignored(requested);
            return Ok(None);
        };
        match requested.filter(|requested| **requested != SeLinuxOption::default()) {
            None => Ok(Some(pod.clone())),
            Some(requested) => {
                let pod_level = Label::parse(&pod.process).map(|label| label.level).unwrap_or_default();
                let level = if requested.level.is_empty() { pod_level } else { requested.level.clone() };
                Ok(Some(self.labels(Some(requested), level)))
            }
        }
    }

    fn labels(&self, requested: Option<&SeLinuxOption>, level: String) -> Labels {
        let (mut process, mut file) = (self.process.clone(), self.file.clone());
        if let Some(requested) = requested {
            for (part, value) in [
                (&mut process.user, &requested.user),
                (&mut process.role, &requested.role),
                (&mut process.kind, &requested.r#type),
            ] {
                if !value.is_empty() {
                    part.clone_from(value);
                }
            }
        }
        process.level.clone_from(&level);
        file.level = level;
        Labels { process: process.to_string(), mount: file.to_string() }
    }
}

/// Logs that the options are ignored. On nodes without SELinux, Kubernetes ignores the options ("Configure a Security
/// Context for a Pod or Container"): pods with options run on any node.
fn warn_ignored(requested: Option<&SeLinuxOption>) {
    if let Some(requested) = requested.filter(|requested| **requested != SeLinuxOption::default()) {
        tracing::warn!(?requested, "SELinux options are ignored: this host has no SELinux");
    }
}

/// Returns the level of labels, which separates pods from each other.
#[must_use]
pub fn level_of(labels: &Labels) -> Option<String> {
    Label::parse(&labels.process).map(|label| label.level)
}

/// Relabels a volume and everything in it for a container (CRI `Mount.selinux_relabel`).
///
/// # Errors
/// The volume is a system folder, or a label cannot be set.
pub fn relabel(path: &Path, label: &str) -> Result<(), CriError> {
    let fail = |path: &Path, why: &dyn fmt::Display| {
        CriError::failed(format!("relabel {} as {label}", path.display()), why.to_string())
    };
    let real = fs::canonicalize(path).map_err(|error| fail(path, &error))?;
    if NEVER_RELABELLED.iter().any(|never| real == Path::new(never)) {
        return Err(fail(path, &"it is a system folder"));
    }
    let mut folders: Vec<PathBuf> = vec![real];
    while let Some(path) = folders.pop() {
        let set = rustix::fs::lsetxattr(
            &path,
            "security.selinux",
            label.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        );
        match set {
            // A filesystem without labels needs none.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(fail(&path, &errno)),
        }
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let entries = fs::read_dir(&path).map_err(|error| fail(&path, &error))?;
            folders.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

/// Reads the policy's settings for containers (`lxc_contexts`) as key and value.
fn contexts(root: &Path) -> Vec<(String, String)> {
    let config = fs::read_to_string(root.join("etc/selinux/config")).unwrap_or_default();
    let policy =
        config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted");
    let path = root.join("etc/selinux").join(policy.trim()).join("contexts/lxc_contexts");
    let text = fs::read_to_string(path).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((key.trim().to_owned(), value.trim().trim_matches('"').to_owned()))
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(pair).collect()
}

/// Returns two categories that no other pod has together.
fn unused_level(used: &HashSet<String>) -> String {
    let mut random = rand::rng();
    loop {
        let (a, b) = (random.random_range(0..CATEGORIES), random.random_range(0..CATEGORIES));
        let level = format!("s0:c{},c{}", a.min(b), a.max(b));
        if a != b && !used.contains(&level) {
            return level;
        }
    }
}

/// Checks the parts of a label: user, role and type are words; a level is `s0` to `s15` or a range, with categories.
fn check(requested: Option<&SeLinuxOption>) -> Result<(), CriError> {
    let Some(requested) = requested else { return Ok(()) };
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    for (name, value) in [("user", &requested.user), ("role", &requested.role), ("type", &requested.r#type)] {
        if !value.chars().all(is_word) {
            return Err(CriError::invalid(
                format!("{FIELD}.{name}"),
                format!("{value:?} is not a valid part of a label"),
            ));
        }
    }
    let is_allowed = |c: char| c.is_ascii_digit() || matches!(c, 's' | 'c' | ',' | '.' | ':' | '-');
    let level = requested.level.as_str();
    if !(level.is_empty() || level.starts_with('s') && level.chars().all(is_allowed)) {
        return Err(CriError::invalid(format!("{FIELD}.level"), format!("{level:?} is not a level")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, SeLinux) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let selinux = SeLinux::detect(folder.path());
        (folder, selinux)
    }

    fn enabled() -> (tempfile::TempDir, SeLinux) {
        host(&[
            ("sys/fs/selinux/enforce", "1"),
            ("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=strict\n"),
            (
                "etc/selinux/strict/contexts/lxc_contexts",
                "# containers\nprocess = \"system_u:system_r:svirt_t:s0\"\nfile = \"system_u:object_r:svirt_file_t:s0\"\n",
            ),
        ])
    }

    fn requesting(kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..Default::default() }
    }

    #[test]
    fn without_selinux_options_are_ignored_but_checked() {
        let (_folder, none) = host(&[]);
        assert_eq!(none.of_pod(Some(&requesting("spc_t", "s0")), &HashSet::new()).unwrap(), None);
        for wrong in [requesting("a b", ""), requesting("", "x"), requesting("", "s0\n")] {
            assert!(none.of_pod(Some(&wrong), &HashSet::new()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_pod_has_separate_categories_and_its_containers_share_them() {
        let (_folder, selinux) = enabled();
        let pod = selinux.of_pod(None, &HashSet::new()).unwrap().unwrap();
        assert!(pod.process.starts_with("system_u:system_r:svirt_t:s0:c"), "{pod:?}");
        assert!(pod.mount.starts_with("system_u:object_r:svirt_file_t:s0:c"), "{pod:?}");
        let level = level_of(&pod).unwrap();
        assert!(pod.mount.ends_with(&level));
        let used: HashSet<String> = [level.clone()].into();
        assert_ne!(level_of(&selinux.of_pod(None, &used).unwrap().unwrap()), Some(level.clone()));
        assert_eq!(selinux.of_container(None, Some(&pod)).unwrap().as_ref(), Some(&pod));
        let own = selinux.of_container(Some(&requesting("spc_t", "")), Some(&pod)).unwrap().unwrap();
        assert_eq!(own.process, format!("system_u:system_r:spc_t:{level}"));
        let fixed = selinux.of_pod(Some(&requesting("", "s0:c1,c2")), &HashSet::new()).unwrap().unwrap();
        assert!(fixed.process.ends_with(":s0:c1,c2"));
    }

    #[test]
    fn system_folders_keep_their_labels() {
        for path in ["/etc", "/usr/../etc/", "/"] {
            let error = relabel(Path::new(path), FILE).unwrap_err().to_string();
            assert!(error.contains("system folder"), "{error}");
        }
    }
}
