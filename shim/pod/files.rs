//! The files of a pod that its containers see as /etc/hostname, /etc/hosts and /etc/resolv.conf.

use berth_proto::v1::PodSandboxConfig;
use berth_runtime::plan::PodFile;

use crate::error::CriError;
use crate::host_files;
use crate::oci::{POD_FILES, has_own_uts, node_name, resolv_conf};

/// Returns the initial content of the pod's files.
///
/// # Errors
/// A file of the host cannot be read, or is too long.
pub fn of_pod(config: &PodSandboxConfig) -> Result<Vec<PodFile>, CriError> {
    let hostname = match has_own_uts(config) {
        false => host_files::read("/etc/hostname")?.trim().to_owned(),
        true if config.hostname.is_empty() => node_name(),
        true => config.hostname.clone(),
    };
    let resolv = resolv_conf(config.dns_config.as_ref(), &host_files::read("/etc/resolv.conf")?);
    let contents = [format!("{hostname}\n"), host_files::read("/etc/hosts")?, resolv];
    Ok(POD_FILES
        .iter()
        .zip(contents)
        .map(|(name, content)| PodFile { name: (*name).to_owned(), content })
        .collect())
}
