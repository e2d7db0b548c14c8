//! Sets limits: writes the files of all limits, or none. [`controllers`](super::controllers) translates the resources
//! of the OCI spec to files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::change::Change;
use super::{CgroupError, Result};

/// The meaning of a file that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMissing {
    /// The limit cannot be set.
    Fail,
    /// The limit is omitted if its controller exists.
    OmitFile,
    /// The limit is omitted.
    Omit,
}

/// A file to write.
#[derive(Debug)]
pub(super) struct LimitWrite {
    /// The name of the limit in the OCI spec.
    pub(super) limit: &'static str,
    pub(super) controller: &'static str,
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    if_missing: IfMissing,
    /// A limit that is written later may have to be set first: a rejected write is repeated at the end.
    repeated: bool,
}

impl LimitWrite {
    pub(super) fn new(
        limit: &'static str,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> Self {
        let (file, value) = (file.into(), value.to_string());
        Self { limit, controller, file, value, if_missing: IfMissing::Fail, repeated: false }
    }

    pub(super) fn if_missing(self, if_missing: IfMissing) -> Self {
        Self { if_missing, ..self }
    }

    pub(super) fn repeated(self) -> Self {
        Self { repeated: true, ..self }
    }

    fn no_controller(&self) -> CgroupError {
        CgroupError::NoController { limit: self.limit, controller: self.controller }
    }
}

/// Returns a limit that is set: 0 means that it is unchanged (CRI `LinuxContainerResources`).
pub(super) fn given<T: Default + PartialEq>(limit: Option<T>) -> Option<T> {
    limit.filter(|limit| *limit != T::default())
}

/// Formats a limit of a file that accepts `max`, which a negative one becomes.
pub(super) fn max_or(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// An existing file of a cgroup, and the value to write.
#[derive(Debug)]
pub(super) struct LocatedWrite {
    path: PathBuf,
    value: String,
    repeated: bool,
}

impl LocatedWrite {
    fn put(&self, change: &mut Change) -> Result<()> {
        change.write(&self.path, &self.value).map_err(|source| match self.path.exists() {
            true => CgroupError::Refused { path: self.path.clone(), value: self.value.clone(), source },
            // The file existed before, so the cgroup has been removed in the meantime.
            false => CgroupError::Gone { path: self.path.clone() },
        })
    }
}

/// Finds the files. `folder` returns the cgroup's folder of a controller.
pub(super) fn locate<'f>(
    folder: impl Fn(&str) -> Option<&'f Path>,
    writes: Vec<LimitWrite>,
) -> Result<Vec<LocatedWrite>> {
    let mut located = Vec::new();
    for write in writes {
        match folder(write.controller) {
            Some(folder) => located.extend(locate_in(folder, write)?),
            None if write.if_missing == IfMissing::Omit => {}
            None => return Err(write.no_controller()),
        }
    }
    Ok(located)
}

/// Finds the file. Returns `None` if it does not exist and can be omitted.
fn locate_in(folder: &Path, write: LimitWrite) -> Result<Option<LocatedWrite>> {
    let path = folder.join(&*write.file);
    if path.exists() {
        return Ok(Some(LocatedWrite { path, value: write.value, repeated: write.repeated }));
    }
    if !folder.exists() {
        return Err(CgroupError::Gone { path: folder.to_owned() });
    }
    if write.if_missing == IfMissing::Fail { Err(write.no_controller()) } else { Ok(None) }
}

/// Finds the files of version 2 that the client names itself (OCI runtime spec, "Unified").
pub(super) fn locate_unified(folder: &Path, resources: &LinuxResources) -> Result<Vec<LocatedWrite>> {
    let unified = resources.unified().iter().flatten();
    unified.map(|(key, value)| locate_key(folder, key, value)).collect()
}

fn locate_key(folder: &Path, key: &str, value: &str) -> Result<LocatedWrite> {
    let invalid = |why| CgroupError::Value { key: key.to_owned(), value: value.to_owned(), why };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !key.contains('.') || !key.chars().all(valid) {
        return Err(invalid("it is not the name of a file of a cgroup"));
    }
    if value.contains('\0') {
        return Err(invalid("the value contains a NUL byte"));
    }
    let write = LimitWrite::new("unified", "unified", key.to_owned(), value).if_missing(IfMissing::OmitFile);
    locate_in(folder, write)?.ok_or_else(|| invalid("the cgroup has no such file"))
}

/// Writes all files, or undoes the writes.
pub(super) fn apply(located: Vec<LocatedWrite>) -> Result<Change> {
    let mut change = Change::default();
    match write_all(&mut change, located) {
        Ok(()) => Ok(change),
        Err(error) => {
            let undo_errors = change.undo();
            Err(if undo_errors.is_empty() {
                error
            } else {
                CgroupError::UndoFailed { error: Box::new(error), undo_errors }
            })
        }
    }
}

fn write_all(change: &mut Change, located: Vec<LocatedWrite>) -> Result<()> {
    let mut again = Vec::new();
    for write in located {
        match write.put(change) {
            Err(_) if write.repeated => again.push(write),
            done => done?,
        }
    }
    again.iter().try_for_each(|write| write.put(change))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::runtime::LinuxResourcesBuilder;

    use super::*;
    use crate::cgroup::files::folder_with;

    /// Writes these values to files of a folder.
    fn write(folder: &Path, values: &[(&'static str, &str)]) -> Result<Change> {
        let writes = values.iter().map(|(file, value)| LimitWrite::new(file, "any", *file, value));
        apply(locate(|_| Some(folder), writes.collect())?)
    }

    #[test]
    fn a_limit_that_cannot_be_set_changes_no_limit() {
        let folder = folder_with(&[("memory.max", "max"), ("cpu.weight", "100")]);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let limits = [("memory.max", "1000"), ("cpu.weight", "39"), ("cpu.max", "50000 100000")];
        let error = write(folder.path(), &limits).unwrap_err();
        assert!(matches!(error, CgroupError::NoController { limit: "cpu.max", .. }), "{error}");
        assert_eq!((read("memory.max"), read("cpu.weight")), ("max".to_owned(), "100".to_owned()));
        // The first error was found before the first write. This one comes after some writes: a folder rejects the
        // write.
        fs::create_dir(folder.path().join("cpu.max")).unwrap();
        let error = write(folder.path(), &limits).unwrap_err();
        assert!(matches!(&error, CgroupError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("cpu.max"), "{error}");
        assert_eq!((read("memory.max"), read("cpu.weight")), ("max".to_owned(), "100".to_owned()));
        fs::remove_dir(folder.path().join("cpu.max")).unwrap();
        fs::write(folder.path().join("cpu.max"), "max 100000").unwrap();
        let change = write(folder.path(), &limits).unwrap();
        assert_eq!((read("memory.max"), read("cpu.max")), ("1000".to_owned(), "50000 100000".to_owned()));
        assert_eq!(change.undo(), Vec::<String>::new());
        assert_eq!((read("memory.max"), read("cpu.max")), ("max".to_owned(), "max 100000".to_owned()));
    }

    #[test]
    fn a_missing_cgroup_is_not_reported_as_a_missing_controller() {
        let missing = Path::new("/nonexistent/cgroup");
        assert!(matches!(write(missing, &[("memory.max", "1")]), Err(CgroupError::Gone { .. })));
    }

    #[test]
    fn a_limit_may_be_omitted_without_its_file_or_controller() {
        let located = |folder: Option<&Path>, if_missing| {
            let write = LimitWrite::new("pids.limit", "pids", "pids.max", 1).if_missing(if_missing);
            locate(|_| folder, vec![write]).map(|located| located.len()).map_err(|error| error.to_string())
        };
        let empty = folder_with(&[]);
        let error = "failed to set pids.limit: cgroup controller \"pids\" not found on this host".to_owned();
        assert_eq!(located(Some(empty.path()), IfMissing::Fail), Err(error.clone()));
        assert_eq!(located(Some(empty.path()), IfMissing::OmitFile), Ok(0));
        assert_eq!(located(None, IfMissing::OmitFile), Err(error));
        assert_eq!(located(None, IfMissing::Omit), Ok(0));
    }

    #[test]
    fn unified_keys_must_name_existing_files() {
        let v2 = folder_with(&[("memory.high", "max")]);
        let set = |key: &str, value: &str| {
            let unified: std::collections::HashMap<String, String> =
                [(key.to_owned(), value.to_owned())].into();
            let resources = LinuxResourcesBuilder::default().unified(unified).build().unwrap();
            locate_unified(v2.path(), &resources).and_then(apply)
        };
        assert!(set("memory.high", "900").is_ok());
        for (key, value) in
            [("memory.low", "1"), ("../memory.high", "1"), ("memory", "1"), ("memory.high", "\0")]
        {
            let error = set(key, value).unwrap_err();
            assert!(matches!(error, CgroupError::Value { .. }), "{key}: {error}");
        }
    }
}
