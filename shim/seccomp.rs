//! Seccomp profiles that are files of the host.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use berth_proto::v1::{ContainerConfig, PodSandboxConfig};
use berth_runtime::seccomp::Cache;
use oci_spec::runtime::LinuxSeccomp;

use crate::error::CriError;
use crate::spec::seccomp::{SeccompChoice, container_choice};
use crate::spec::{pause, security};

/// The longest profile that is read, in bytes: Docker's has some 20 KiB.
const LONGEST: u64 = 1 << 20;

/// The profile of the host that a container asks for, if it does.
///
/// # Errors
/// The file cannot be read or is no profile; its name is told.
pub fn wanted(config: &ContainerConfig) -> Result<Option<LinuxSeccomp>, CriError> {
    match container_choice(&security(config))? {
        SeccompChoice::Localhost(path) => read(&path).map(Some),
        SeccompChoice::Unconfined | SeccompChoice::RuntimeDefault => Ok(None),
    }
}

/// Checks the profile that a pod asks for: that it can be, and, where it is a file of the host, what is in it.
///
/// # Errors
/// As [`wanted`], or it cannot be compiled.
pub fn check_of_pod(config: &PodSandboxConfig, filters: &Cache) -> Result<(), CriError> {
    if let SeccompChoice::Localhost(path) = pause::seccomp_choice(config)? {
        filters.filter(&read(&path)?)?;
    }
    Ok(())
}

/// Reads a profile, as the OCI runtime spec has it in `linux.seccomp`.
///
/// # Errors
/// As [`wanted`].
pub fn read(path: &Path) -> Result<LinuxSeccomp, CriError> {
    let wrong = |why: String| CriError::invalid("seccomp", format!("profile {}: {why}", path.display()));
    // What is no regular file must not hold up the daemon: the open of a pipe would wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|error| wrong(error.to_string()))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(wrong("it is no file".to_owned()));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LONGEST {
        return Err(wrong(format!("it is longer than {LONGEST} bytes")));
    }
    berth_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_profile_is_told_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        for (text, why) in [("{", "EOF"), (r#"{"defaultAction": "SCMP_ACT_NO"}"#, "SCMP_ACT_NO")] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("profile.json") && error.contains(why), "{error}");
        }
        assert!(read(folder.path()).unwrap_err().to_string().contains("no file"));
        assert!(read(Path::new("/nonexistent.json")).unwrap_err().to_string().contains("/nonexistent.json"));
        std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_LOG"}"#).unwrap();
        assert!(read(&path).is_ok());
    }
}
