//! Paths: absolute ones, and those of sockets.

use std::path::{Component, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::{Described, InvalidValue, invalid};

checked_text! {
    /// An absolute path without `..`.
    AbsolutePath => PathBuf, absolute,
        "an absolute path without `..`"
}

checked_text! {
    /// A path that fits in the address of a unix socket (unix(7): 108 bytes including the terminating zero).
    SocketPath => PathBuf, socket_path,
        "an absolute path without `..` of at most 107 bytes, also as `unix:///run/...`"
}

checked! {
    /// One path or a list of paths.
    PathList, "toml::Value", toml::Value => Vec<PathBuf>, paths,
        "an absolute path without `..`, or a list of them"
}

fn absolute(text: String) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(&text);
    if text.contains('\0') || !path.is_absolute() {
        return invalid(format!("{text:?} is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return invalid(format!("{text:?} contains .."));
    }
    Ok(path)
}

fn socket_path(text: String) -> Result<PathBuf, InvalidValue> {
    // crictl and the kubelet write the socket as a URL.
    let path = absolute(text.strip_prefix("unix://").unwrap_or(&text).to_owned())?;
    let length = path.as_os_str().len();
    if length > 107 {
        return invalid(format!("{text:?} has {length} bytes; the path of a socket has at most 107"));
    }
    Ok(path)
}

fn paths(value: toml::Value) -> Result<Vec<PathBuf>, InvalidValue> {
    let one = |value: toml::Value| match value {
        toml::Value::String(text) => absolute(text),
        other => invalid(format!("{other} is not a path")),
    };
    match value {
        toml::Value::Array(values) => values.into_iter().map(one).collect(),
        value => one(value).map(|path| vec![path]),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_break_a_rule_are_refused() {
        assert!("relative".parse::<AbsolutePath>().is_err());
        assert!("/a/../b".parse::<AbsolutePath>().is_err());
        assert!(format!("/{}", "a".repeat(107)).parse::<SocketPath>().is_err());
        assert_eq!(
            PathBuf::from("unix:///run/b.sock".parse::<SocketPath>().unwrap()),
            Path::new("/run/b.sock")
        );
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in ".*") {
            drop(text.parse::<SocketPath>());
        }
    }
}
