//! Seccomp profiles in files of the host.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use berth_proto::v1::{ContainerConfig, PodSandboxConfig};
use berth_runtime::seccomp::Cache;
use oci_spec::runtime::LinuxSeccomp;

use crate::error::CriError;
use crate::oci::seccomp::{SeccompChoice, container_choice};
use crate::oci::{pause, security};

/// The longest profile in bytes. Docker's has about 20 KiB.
const LONGEST: u64 = 1 << 20;

/// Returns the host profile that a container requests, if it requests one.
///
/// # Errors
/// The file cannot be read or is not a profile; the error contains its path.
pub fn requested(config: &ContainerConfig) -> Result<Option<LinuxSeccomp>, CriError> {
    match container_choice(&security(config))? {
        SeccompChoice::Localhost(path) => read(&path).map(Some),
        SeccompChoice::Unconfined | SeccompChoice::RuntimeDefault => Ok(None),
    }
}

/// Checks the profile that a pod requests: its name and, if it is a file of the host, its content.
///
/// # Errors
/// As [`requested`], or the profile cannot be compiled.
pub fn check_pod(config: &PodSandboxConfig, filters: &Cache) -> Result<(), CriError> {
    if let SeccompChoice::Localhost(path) = pause::seccomp_choice(config)? {
        filters.filter(&read(&path)?)?;
    }
    Ok(())
}

/// Reads a profile in the format of `linux.seccomp` in the OCI runtime spec.
///
/// # Errors
/// As [`requested`].
pub fn read(path: &Path) -> Result<LinuxSeccomp, CriError> {
    let invalid = |why: String| CriError::invalid("seccomp", format!("profile {}: {why}", path.display()));
    // Opening a FIFO without O_NONBLOCK waits for a writer, and would block the daemon.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|error| invalid(error.to_string()))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(invalid("not a regular file".to_owned()));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| invalid(error.to_string()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LONGEST {
        return Err(invalid(format!("longer than {LONGEST} bytes")));
    }
    berth_json::from_str(&text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_profile_is_reported_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        for (text, why) in [("{", "EOF"), (r#"{"defaultAction": "SCMP_ACT_NO"}"#, "SCMP_ACT_NO")] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("profile.json") && error.contains(why), "{error}");
        }
        assert!(read(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        assert!(read(Path::new("/nonexistent.json")).unwrap_err().to_string().contains("/nonexistent.json"));
        std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_LOG"}"#).unwrap();
        assert!(read(&path).is_ok());
    }
}
