//! Paths in a layer: bytes, relative to its root, without `.` and `..`.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A path in a layer. The root is empty.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct TreePath(Vec<u8>);

/// The prefix of a path that is stored in hex. A path never starts with a slash, so it is unambiguous.
const HEX: &str = "//hex:";

impl TreePath {
    /// Parses a name in an archive. `None` if it has `..`, or a NUL.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        let mut path = Self::default();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return None,
                part if part.contains(&0) => return None,
                part => path = path.join(part),
            }
        }
        Some(path)
    }

    /// Appends a name to this folder.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Splits the path into its folder and its name. `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => {
                let (folder, name) = self.0.split_at(slash);
                Some((Self(folder.to_vec()), name.get(1..).unwrap_or_default()))
            }
            None => Some((Self::default(), &self.0)),
        }
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    pub(crate) fn depth(&self) -> usize {
        self.parts().count()
    }

    #[cfg(test)]
    pub(crate) fn is_below(&self, folder: &Self) -> bool {
        folder.is_root()
            || self.0.strip_prefix(folder.0.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// Returns the range of the paths below this one, in the order of paths.
    pub(crate) fn range_below(&self) -> (Bound<Self>, Bound<Self>) {
        if self.is_root() {
            return (Bound::Excluded(Self::default()), Bound::Unbounded);
        }
        let with = |last: u8| Self([self.0.as_slice(), &[last]].concat());
        (Bound::Excluded(with(b'/')), Bound::Excluded(with(b'/' + 1)))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path for system calls relative to the root's descriptor.
    pub(crate) fn as_path(&self) -> &Path {
        if self.is_root() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<TreePath> for String {
    fn from(path: TreePath) -> Self {
        Self::from_utf8(path.0).unwrap_or_else(|bytes| format!("{HEX}{}", hex::encode(bytes.into_bytes())))
    }
}

impl From<String> for TreePath {
    fn from(text: String) -> Self {
        let decoded = text.strip_prefix(HEX).and_then(|digits| hex::decode(digits).ok());
        // This is read from the store's own files, but a corrupt file must not give a path that leads out.
        Self::parse(decoded.as_deref().unwrap_or(text.as_bytes())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_made_relative_or_rejected() {
        let parse = |name: &str| TreePath::parse(name.as_bytes()).map(String::from);
        assert_eq!(parse("./usr//bin/./sh/").as_deref(), Some("usr/bin/sh"));
        assert_eq!(parse("/etc/passwd").as_deref(), Some("etc/passwd"));
        assert_eq!(parse("./").as_deref(), Some(""));
        assert_eq!(parse("a..b/...").as_deref(), Some("a..b/..."));
        for bad in ["..", "a/../b", "../../etc", "/..", "a\0b"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn is_below_compares_whole_components() {
        let path = |name: &str| TreePath::parse(name.as_bytes()).unwrap();
        assert!(path("a/b").is_below(&path("a")) && path("a").is_below(&path("")));
        assert!(!path("ab").is_below(&path("a")) && !path("a").is_below(&path("a")));
        assert_eq!(path("a/b/c").split(), Some((path("a/b"), b"c".as_slice())));
    }

    proptest! {
        #[test]
        fn range_below_contains_all_paths_below(
            names in proptest::collection::btree_set("[a./0-]{0,5}", 0..30), folder in "[a./0-]{0,3}",
        ) {
            let parse = |name: &String| TreePath::parse(name.as_bytes());
            let paths: std::collections::BTreeSet<TreePath> = names.iter().filter_map(parse).collect();
            if let Some(folder) = parse(&folder) {
                let below: Vec<_> = paths.range(folder.range_below()).collect();
                let expected: Vec<_> =
                    paths.iter().filter(|path| **path != folder && path.is_below(&folder)).collect();
                prop_assert_eq!(below, expected);
            }
        }

        #[test]
        fn any_bytes_are_rejected_or_survive_the_record(name: Vec<u8>) {
            if let Some(path) = TreePath::parse(&name) {
                prop_assert!(!path.as_path().is_absolute());
                prop_assert!(path.parts().all(|part| part != b".." && part != b"." && !part.contains(&0)));
                prop_assert_eq!(TreePath::from(String::from(path.clone())), path);
            }
        }
    }
}
