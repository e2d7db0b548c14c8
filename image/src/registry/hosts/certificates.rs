//! The certificates in the folder of a host: files that `hosts.toml` names, or Docker's layout without it.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::{folders, is_absent};
use crate::error::Error;
use crate::registry::tls::Tls;

/// The largest file of certificates, in bytes. A file with all public authorities has a quarter of this.
const MAX_PEM: u64 = 1 << 20;

/// Returns the certificates in the folder of a host without a `hosts.toml`, as Docker and CRI-O keep them.
/// The first folder that has any is used.
pub(crate) fn certificates(certs_dirs: &[PathBuf], authority: &str) -> Result<Tls, Error> {
    let domains = match authority {
        "registry-1.docker.io" => vec![authority, "docker.io"],
        _ => vec![authority],
    };
    for folder in folders(certs_dirs, &domains) {
        let tls = docker_certificates(&folder)?;
        if tls != Tls::default() {
            return Ok(tls);
        }
    }
    Ok(Tls::default())
}

/// Reads a certificate or a key. A file that is too large is an error.
pub(super) fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_PEM + 1).read_to_end(&mut content)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_PEM {
        return Err(io::Error::other(format!("more than {MAX_PEM} bytes")));
    }
    Ok(content)
}

/// Reads certificates in Docker's layout: `*.crt` are authorities, `x.cert` with `x.key` are client
/// certificates.
pub(super) fn docker_certificates(folder: &Path) -> Result<Tls, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Tls::default()),
        Err(error) => return Err(Error::io("read", folder, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|error| Error::io("read", folder, error))?.path());
    }
    paths.sort();
    let read = |path: &Path| read_pem(path).map_err(|error| Error::io("read", path, error));
    let mut tls = Tls::default();
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(read(path)?),
            Some("cert") => {
                // Without `x.key`, the key is in the file of the certificate.
                let key = path.with_extension("key");
                let key = if key.exists() { read(&key)? } else { read(path)? };
                tls.client.push((read(path)?, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}
