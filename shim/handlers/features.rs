//! The features of an OCI runtime: the result of `RUNTIME features` (OCI runtime specification, "Features"), and of its help.
//! A program is asked again when its file has changed.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use berth_runtime::runtime_call::{RuntimeCall, RuntimeCallError};
use serde::Deserialize;

use super::programs;
use crate::blocking::blocking;
use crate::config::HandlersConfig;
use crate::error::CriError;

/// The time limit of a question.
const LIMIT: Duration = Duration::from_secs(5);

/// The features of a runtime. One without the command `features` has none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSupport {
    /// Mounts that are read-only with everything below them.
    pub recursive_read_only_mounts: bool,
    /// User namespaces.
    pub user_namespaces: bool,
    /// Further processes in a cgroup below the container's.
    pub exec_cgroup: ExecCgroup,
}

/// Whether a runtime starts further processes in a cgroup below the container's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecCgroup {
    /// It does not.
    #[default]
    No,
    /// In all hierarchies at once.
    Whole,
    /// Also in single controllers of cgroup v1.
    ByController,
}

impl ExecCgroup {
    fn parse(help: &str) -> Self {
        match (help.contains("--cgroup"), help.contains("<controller>:")) {
            (false, _) => Self::No,
            (true, false) => Self::Whole,
            (true, true) => Self::ByController,
        }
    }

    /// Returns the option's value for an exec's cgroup, which exists only in the freezer on v1.
    #[must_use]
    pub fn value(self, name: &str, is_v2: bool) -> Option<String> {
        match (self, is_v2) {
            (Self::No, _) | (Self::Whole, false) => None,
            (_, true) => Some(name.to_owned()),
            (Self::ByController, false) => Some(format!("freezer:{name}")),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FeatureReport {
    mount_options: Option<Vec<String>>,
    linux: Option<LinuxFeatures>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LinuxFeatures {
    namespaces: Option<Vec<String>>,
}

impl RuntimeSupport {
    fn parse(features: &str, help: &str) -> Self {
        let report: FeatureReport = serde_json::from_str(features).unwrap_or_default();
        let has = |list: &Option<Vec<String>>, name: &str| list.iter().flatten().any(|entry| entry == name);
        Self {
            recursive_read_only_mounts: has(&report.mount_options, "rro"),
            user_namespaces: report.linux.is_some_and(|linux| has(&linux.namespaces, "user")),
            exec_cgroup: ExecCgroup::parse(help),
        }
    }
}

/// The identity of a program's file.
type Stamp = (u64, u64, i64, i64);

/// Returns what a program supports. Blocks if the program was not asked before.
#[must_use]
pub fn of_program(program: &Path) -> RuntimeSupport {
    static KNOWN: OnceLock<Mutex<HashMap<PathBuf, (Stamp, RuntimeSupport)>>> = OnceLock::new();
    let known = || KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let Some(stamp) = stamp(program) else { return RuntimeSupport::default() };
    if let Some((of, support)) = known().get(program)
        && *of == stamp
    {
        return *support;
    }
    let ask = |arguments: &[&str]| RuntimeCall::of_program(program, arguments, LIMIT).result();
    let support = RuntimeSupport::parse(
        &ask(&["features"]).unwrap_or_default(),
        &ask(&["exec", "--help"]).unwrap_or_default(),
    );
    known().insert(program.to_owned(), (stamp, support));
    support
}

fn stamp(program: &Path) -> Option<Stamp> {
    let stat = std::fs::metadata(program).ok()?;
    Some((stat.dev(), stat.ino(), stat.size().try_into().ok()?, stat.mtime()))
}

/// Returns what the runtimes of all handlers support, by handler.
///
/// # Errors
/// `Internal`: a question panicked.
pub async fn of_handlers(handlers: &HandlersConfig) -> Result<BTreeMap<String, RuntimeSupport>, CriError> {
    let programs: Vec<_> =
        programs(handlers).map(|(name, program)| (name.to_owned(), program.to_owned())).collect();
    if programs.is_empty() {
        return Ok(BTreeMap::new());
    }
    blocking(move || {
        let support = programs.into_iter().map(|(name, program)| (name, of_program(&program)));
        Ok::<_, CriError>(support.collect())
    })
    .await
}

/// Returns the first line of a program's version.
///
/// # Errors
/// The program does not exist or does not run.
pub fn version(program: &Path) -> Result<String, RuntimeCallError> {
    let text = RuntimeCall::of_program(program, &["--version"], LIMIT).result()?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_specification() {
        let runc = r#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"],
            "linux":{"namespaces":["cgroup","user"],"capabilities":["CAP_CHOWN"]}}"#;
        let all = RuntimeSupport {
            recursive_read_only_mounts: true,
            user_namespaces: true,
            exec_cgroup: ExecCgroup::ByController,
        };
        let help = "--cgroup value  run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.";
        assert_eq!(RuntimeSupport::parse(runc, help), all);
        assert_eq!(ExecCgroup::parse("--cgroup=PATH  sub-cgroup in the container"), ExecCgroup::Whole);
        for nothing in ["", "unknown command features", "{}", r#"{"mountOptions":null,"linux":{}}"#] {
            assert_eq!(RuntimeSupport::parse(nothing, ""), RuntimeSupport::default(), "{nothing}");
        }
    }

    #[test]
    fn the_cgroup_of_an_exec_is_in_the_freezer_on_v1() {
        let value = |kind: ExecCgroup, is_v2| kind.value("exec-1", is_v2);
        assert_eq!(value(ExecCgroup::ByController, false).as_deref(), Some("freezer:exec-1"));
        assert_eq!(value(ExecCgroup::ByController, true).as_deref(), Some("exec-1"));
        assert_eq!(value(ExecCgroup::Whole, true).as_deref(), Some("exec-1"));
        assert_eq!((value(ExecCgroup::Whole, false), value(ExecCgroup::No, true)), (None, None));
    }

    #[test]
    fn a_program_that_does_not_exist_supports_nothing() {
        let missing = Path::new("/no/such/runtime");
        assert_eq!(of_program(missing), RuntimeSupport::default());
        assert!(version(missing).unwrap_err().missing);
    }
}
