//! The path of a cgroup below the root of a hierarchy.

use std::fmt;
use std::path::PathBuf;

/// An invalid cgroup path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cgroup path {path:?}: {why}")]
pub struct CgroupPathError {
    path: String,
    why: &'static str,
}

/// An absolute path without `.` and `..`. It cannot lead out of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPath {
    parts: Vec<String>,
}

impl CgroupPath {
    /// Returns the path of the cgroup `leaf` below a parent of the CRI. The parent is a path, or the name of a
    /// systemd slice, which is expanded to a path of slices (`a-b.slice` is `a.slice/a-b.slice`:
    /// systemd.slice(5)).
    ///
    /// # Errors
    /// The parent or the leaf is invalid.
    pub fn new(parent: &str, leaf: &str) -> Result<Self, CgroupPathError> {
        let mut path = match parent.trim_matches('/').strip_suffix(".slice") {
            Some(slice) if !slice.contains('/') => Self { parts: slices(slice, parent)? },
            _ => Self::from_recorded(parent)?,
        };
        path.parts.push(part(leaf, leaf)?);
        Ok(path)
    }

    /// Parses a path that [`fmt::Display`] has written.
    ///
    /// # Errors
    /// The path is invalid.
    pub fn from_recorded(path: &str) -> Result<Self, CgroupPathError> {
        if path.len() > 3000 {
            return Err(error(path.get(..60).unwrap_or_default(), "it is too long"));
        }
        let parts = path.split('/').filter(|text| !text.is_empty());
        Ok(Self { parts: parts.map(|text| part(text, path)).collect::<Result<_, _>>()? })
    }

    /// Returns the path of the cgroup above.
    #[must_use]
    pub fn parent(&self) -> Self {
        let mut parts = self.parts.clone();
        parts.pop();
        Self { parts }
    }

    /// Returns its last component, or `None` for the root.
    #[must_use]
    pub fn leaf(&self) -> Option<&str> {
        self.parts.last().map(String::as_str)
    }

    /// Returns the path relative to the root of a hierarchy.
    pub(super) fn relative(&self) -> PathBuf {
        self.parts.iter().collect()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.parts.join("/"))
    }
}

fn error(path: &str, why: &'static str) -> CgroupPathError {
    CgroupPathError { path: path.to_owned(), why }
}

fn part(text: &str, path: &str) -> Result<String, CgroupPathError> {
    if text == "." || text == ".." {
        return Err(error(path, "it contains \".\" or \"..\""));
    }
    if text.is_empty() || text.len() > 255 {
        return Err(error(path, "a component is empty or too long"));
    }
    if text.bytes().any(|byte| byte == b'/' || byte.is_ascii_control()) {
        return Err(error(path, "a component contains a slash or control characters"));
    }
    Ok(text.to_owned())
}

fn slices(slice: &str, path: &str) -> Result<Vec<String>, CgroupPathError> {
    // "-.slice" is the root of all slices.
    if slice == "-" {
        return Ok(Vec::new());
    }
    let mut parts = Vec::new();
    let mut name = String::new();
    for text in slice.split('-') {
        if text.is_empty() {
            return Err(error(path, "it is not a valid slice name"));
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(text);
        parts.push(part(&format!("{name}.slice"), path)?);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new(parent: &str) -> String {
        CgroupPath::new(parent, "leaf").unwrap().to_string()
    }

    #[test]
    fn parents_are_paths_or_slices() {
        assert_eq!(new("/kubepods/burstable/pod1"), "/kubepods/burstable/pod1/leaf");
        assert_eq!(new("kubepods"), "/kubepods/leaf");
        assert_eq!(new("/"), "/leaf");
        assert_eq!(
            new("kubepods-besteffort-podx_y.slice"),
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx_y.slice/leaf"
        );
        assert_eq!(new("-.slice"), "/leaf");
        assert_eq!(new("/a.slice/a-b.slice"), "/a.slice/a-b.slice/leaf", "a path is not expanded");
    }

    #[test]
    fn no_path_leads_out_of_a_hierarchy() {
        for parent in ["..", "/a/../b", "a/./b", "a--b.slice", "a\nb", "/a\0"] {
            assert!(CgroupPath::new(parent, "leaf").is_err(), "{parent:?}");
        }
        for leaf in ["", "..", "a/b", "."] {
            assert!(CgroupPath::new("/a", leaf).is_err(), "{leaf:?}");
        }
    }

    proptest! {
        #[test]
        fn formatted_paths_are_parsed_again(parent in "\\PC{0,60}") {
            if let Ok(path) = CgroupPath::new(&parent, "leaf") {
                let relative = path.relative();
                prop_assert!(relative.is_relative() && relative.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert_eq!(CgroupPath::from_recorded(&path.to_string()).unwrap(), path);
            }
        }
    }
}
