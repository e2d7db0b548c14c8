//! Texts of a request: names, paths, labels and annotations.

use crate::oci::{Result, error};

/// The longest name, label or annotation key in bytes.
pub(super) const NAME: usize = 1024;

/// The longest text in bytes.
pub(super) const TEXT: usize = 1 << 20;

/// The longest hostname in bytes (gethostname(2), HOST_NAME_MAX).
pub(super) const HOSTNAME: usize = 64;

/// The longest path in bytes (PATH_MAX).
pub(super) const PATH: usize = 4096;

pub(super) fn text(field: &str, value: &str, longest: usize) -> Result<()> {
    if value.len() > longest {
        return Err(error(field, format!("has {} bytes, the limit is {longest}", value.len())));
    }
    if value.contains('\0') {
        return Err(error(field, "contains a NUL byte"));
    }
    Ok(())
}

/// Checks a text that becomes part of a file of lines or of a name: it has no control characters.
pub(super) fn plain(field: &str, value: &str, longest: usize) -> Result<()> {
    text(field, value, longest)?;
    if value.chars().any(char::is_control) {
        return Err(error(field, format!("{value:?} contains control characters")));
    }
    Ok(())
}

pub(super) fn required(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(error(field, "is empty"));
    }
    plain(field, value, NAME)
}

/// Checks a name that becomes a value in the arguments of CNI plugins, `KEY=value;KEY=value` (CNI specification,
/// `CNI_ARGS`): a semicolon in it would start another argument, such as `IP`.
pub(super) fn argument(field: &str, value: &str) -> Result<()> {
    required(field, value)?;
    if value.contains(';') {
        return Err(error(field, format!("{value:?} contains a semicolon")));
    }
    Ok(())
}

pub(super) fn path_text(field: &str, value: &str) -> Result<()> {
    text(field, value, PATH)
}

pub(super) fn absolute(field: &str, value: &str) -> Result<()> {
    path_text(field, value)?;
    if !value.starts_with('/') {
        return Err(error(field, format!("{value:?} is not an absolute path")));
    }
    Ok(())
}

pub(super) fn absolute_or_empty(field: &str, value: &str) -> Result<()> {
    if value.is_empty() { Ok(()) } else { absolute(field, value) }
}

/// Checks that a log path is relative and stays in the pod's log folder (CRI `ContainerConfig.log_path`).
pub(super) fn log_path(value: &str) -> Result<()> {
    path_text("log_path", value)?;
    if value.starts_with('/') || value.split('/').any(|part| part == "..") || value.ends_with('/') {
        return Err(error("log_path", format!("{value:?} is not a path below the pod's log folder")));
    }
    Ok(())
}

pub(super) fn hostname(value: &str) -> Result<()> {
    plain("hostname", value, HOSTNAME)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !value.chars().all(is_allowed) {
        return Err(error("hostname", format!("{value:?} is not a hostname")));
    }
    Ok(())
}

pub(super) type Map = std::collections::HashMap<String, String>;

pub(super) fn maps(labels: &Map, annotations: &Map) -> Result<()> {
    map("labels", labels)?;
    self::annotations(annotations)
}

/// Checks annotations: data of the client in any form, with limited length.
///
/// # Errors
/// The first invalid annotation.
pub fn annotations(annotations: &Map) -> Result<()> {
    map("annotations", annotations)
}

pub(super) fn map(field: &str, map: &Map) -> Result<()> {
    for (key, value) in map {
        text(field, key, NAME)?;
        text(&format!("{field}[{key}]"), value, TEXT)?;
    }
    Ok(())
}
