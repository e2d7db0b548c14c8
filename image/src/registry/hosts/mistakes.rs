//! The mistakes in the folders of hosts, for `berth check`.

use std::fs;
use std::path::{Path, PathBuf};

use super::certificates::docker_certificates;
use super::{HostKeys, HostsFile, endpoint, is_absent};
use crate::reference::Reference;

/// Returns all mistakes in the folders of hosts: in each `hosts.toml`, and in certificates.
pub(crate) fn mistakes(certs_dirs: &[PathBuf]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for folder in certs_dirs.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let folder = folder.path();
        let file = folder.join("hosts.toml");
        let reasons = match fs::read_to_string(&file) {
            Ok(text) => mistakes_of(&text, &folder),
            Err(error) if is_absent(&error) => {
                mistakes.extend(
                    docker_certificates(&folder)
                        .and_then(|tls| tls.check(&folder))
                        .err()
                        .map(|e| e.to_string()),
                );
                continue;
            }
            Err(error) => vec![error.to_string()],
        };
        mistakes.extend(reasons.into_iter().map(|why| format!("{}: {why}", file.display())));
    }
    mistakes.sort();
    mistakes
}

/// Returns all mistakes in one `hosts.toml`.
fn mistakes_of(text: &str, folder: &Path) -> Vec<String> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // The folder of a host with a port may be called `host_port_`. `_default` is not a host.
    let domain = match name.strip_suffix('_').and_then(|name| name.rsplit_once('_')) {
        Some((host, port)) => format!("{host}:{port}"),
        None => name.into_owned(),
    };
    let named = |domain: &str| format!("{domain}/name").parse::<Reference>();
    let reference = match named(&domain).or_else(|_| named("host.example")) {
        Ok(reference) => reference,
        Err(error) => return vec![error.to_string()],
    };
    let (file, server_keys) = match (toml::from_str::<HostsFile>(text), toml::from_str::<HostKeys>(text)) {
        (Ok(file), Ok(server_keys)) => (file, server_keys),
        (Err(error), _) | (_, Err(error)) => return vec![error.to_string()],
    };
    let hosts = file.host.iter().map(|(url, keys)| (format!("host.{url:?}"), url.as_str(), keys.get_ref()));
    let server = file.server.as_deref().filter(|url| !url.is_empty());
    let server = server.map(|url| ("server".to_owned(), url, &server_keys));
    let check = |(key, url, keys): (String, &str, &HostKeys)| {
        let endpoint = endpoint(url, keys, folder, &reference).map_err(|why| format!("{key}: {why}"));
        endpoint
            .and_then(|endpoint| endpoint.tls.check(folder).map_err(|error| format!("{key}: {error}")))
            .err()
    };
    hosts.chain(server).filter_map(check).collect()
}
