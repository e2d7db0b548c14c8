//! The servers of a registry: `<certs_dir>/<host>/hosts.toml`, as containerd defines it, or the certificates
//! that Docker keeps in such a folder. The files are read for each pull, so a change needs no restart.

mod certificates;
mod mistakes;
#[cfg(test)]
mod tests;

pub(crate) use certificates::certificates;
pub(crate) use mistakes::mistakes;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use self::certificates::read_pem;
use super::endpoint::{Endpoint, origin};
use super::tls::Tls;
use crate::error::Error;
use crate::reference::Reference;

/// The keys of `hosts.toml` that matter for pulls. Unknown keys are ignored, as in containerd.
#[derive(Deserialize)]
struct HostsFile {
    #[serde(default)]
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostKeys>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct HostKeys {
    capabilities: Option<Vec<String>>,
    ca: OneOrMany,
    client: ClientCertificates,
    skip_verify: Option<bool>,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
    dial_timeout: String,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum ClientCertificates {
    One(String),
    Each(Vec<ClientEntry>),
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum ClientEntry {
    Both(String),
    Pair(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Default for ClientCertificates {
    fn default() -> Self {
        Self::Each(Vec::new())
    }
}

impl OneOrMany {
    fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::Many(many) => many.iter(),
        }
    }
}

/// Returns the servers for an image by the `hosts.toml` of its registry, in order. None without such a
/// file. Reads files.
pub(crate) fn endpoints(
    certs_dirs: &[PathBuf],
    reference: &Reference,
) -> Result<Option<Vec<Endpoint>>, Error> {
    for folder in folders(certs_dirs, &[reference.domain()]) {
        let file = folder.join("hosts.toml");
        match fs::read_to_string(&file) {
            // An empty file is ignored.
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => {
                return parse(&text, &folder, reference)
                    .map(Some)
                    .map_err(|why| Error::invalid(file.display().to_string(), why));
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(Error::io("read", &file, error)),
        }
    }
    Ok(None)
}

/// Returns the folders of a registry, one in each directory: the first of its names that exists. If it has
/// none in any directory, `_default` is used. A folder that only has certificates counts as well.
fn folders(certs_dirs: &[PathBuf], domains: &[&str]) -> Vec<PathBuf> {
    let names: Vec<String> = domains.iter().flat_map(|domain| folder_names(domain)).collect();
    let own = |place: &PathBuf| names.iter().map(|name| place.join(name)).find(|folder| folder.is_dir());
    let existing: Vec<PathBuf> = certs_dirs.iter().filter_map(own).collect();
    if existing.is_empty() {
        certs_dirs.iter().map(|place| place.join("_default")).collect()
    } else {
        existing
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the names of a registry's folder. containerd tries `host_port_` first, which is valid on all
/// filesystems.
fn folder_names(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names
}

/// Parses a `hosts.toml` in `folder`.
pub(super) fn parse(text: &str, folder: &Path, reference: &Reference) -> Result<Vec<Endpoint>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|error| error.to_string())?;
    // Parsed separately: a flattened field would lose the positions by which the hosts are sorted.
    let server_keys: HostKeys = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    hosts.sort_by_key(|(_, keys)| keys.span().start);
    let mut endpoints = Vec::new();
    for (url, keys) in hosts {
        let servers =
            servers(&url, keys.get_ref(), folder, reference).map_err(|why| format!("host.{url:?}: {why}"))?;
        endpoints.extend(servers);
    }
    // The registry itself comes last. Its keys are at the top of the file.
    let server = match file.server.as_deref().filter(|server| !server.is_empty()) {
        Some(server) => servers(server, &server_keys, folder, reference),
        None => {
            let origin = origin(reference.domain(), reference.path());
            let url = format!("{}://{}", origin.scheme, origin.authority);
            let keys = HostKeys { override_path: false, ..server_keys };
            servers(&url, &keys, folder, reference)
        }
    };
    for server in server.map_err(|why| format!("server: {why}"))? {
        // A second request to the same server, without the TLS settings of its host, would hide the answer of the first one.
        if !endpoints.iter().any(|host| replaces(host, &server)) {
            endpoints.push(server);
        }
    }
    Ok(endpoints)
}

/// Whether a host is the registry's server itself, and may do everything.
fn replaces(host: &Endpoint, server: &Endpoint) -> bool {
    let address = |one: &Endpoint| (one.scheme.clone(), one.authority.clone(), one.path.clone());
    address(host) == address(server) && host.pull && host.resolve
}

/// Returns the endpoints of one server. If its URL is `http` but it has TLS settings, TLS is tried first, as
/// in containerd. Port 80 is always plain.
fn servers(
    url: &str,
    keys: &HostKeys,
    folder: &Path,
    reference: &Reference,
) -> Result<Vec<Endpoint>, String> {
    let plain = endpoint(url, keys, folder, reference)?;
    let Tls { ca, client, .. } = &plain.tls;
    let has_tls_settings = !ca.is_empty() || !client.is_empty() || keys.skip_verify.is_some();
    if plain.scheme != Scheme::HTTP || !has_tls_settings || plain.authority.ends_with(":80") {
        return Ok(vec![plain]);
    }
    Ok(vec![Endpoint { scheme: Scheme::HTTPS, retried: false, ..plain.clone() }, plain])
}

fn endpoint(url: &str, keys: &HostKeys, folder: &Path, reference: &Reference) -> Result<Endpoint, String> {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: Uri = url.parse().map_err(|error| format!("invalid URL {url:?}: {error}"))?;
    let scheme = uri.scheme().cloned().filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
    let scheme = scheme.ok_or_else(|| format!("invalid URL {url:?}: neither http nor https"))?;
    let authority = uri.authority().map(|authority| authority.as_str().to_owned());
    let authority = authority.filter(|authority| !authority.contains('@'));
    let authority = authority.ok_or_else(|| format!("invalid URL {url:?}: no host, or a user in it"))?;
    if uri.path_and_query().is_some_and(|path: &PathAndQuery| path.query().is_some()) {
        return Err(format!("invalid URL {url:?}: it has a query"));
    }
    let path = api_path(uri.path(), keys.override_path);
    let (pull, resolve) = capabilities(keys.capabilities.as_deref().unwrap_or_default())?;
    let mut headers = Vec::new();
    for (name, values) in &keys.header {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|error| format!("invalid header {name:?}: {error}"))?;
        for value in values.iter() {
            // The error does not contain the value, which may be a secret.
            let value =
                HeaderValue::from_str(value).map_err(|error| format!("invalid header {name:?}: {error}"))?;
            headers.push((header.clone(), value));
        }
    }
    let own = origin(reference.domain(), reference.path());
    let mirror = authority != own.authority;
    let namespace = mirror.then(|| reference.domain().to_owned());
    let tls = tls(keys, folder)?;
    Ok(Endpoint { scheme, authority, path, pull, resolve, tls, headers, namespace, mirror, ..own })
}

/// Returns the path of the API below a server's URL. `/v2` is appended unless the path ends with it, or is
/// complete.
fn api_path(path: &str, is_whole: bool) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    let path: String = parts.flat_map(|part| ["/", part]).collect();
    if is_whole || path.ends_with("/v2") { path } else { format!("{path}/v2") }
}

/// Returns whether a server may be pulled from, and whether it resolves tags. An empty list permits both.
fn capabilities(list: &[String]) -> Result<(bool, bool), String> {
    let names: Vec<String> = list.iter().map(|name| name.to_ascii_lowercase()).collect();
    if let Some(unknown) =
        names.iter().find(|name| !["pull", "resolve", "push", "referrers"].contains(&name.as_str()))
    {
        return Err(format!("unknown capability {unknown:?}"));
    }
    let has = |capability: &str| names.is_empty() || names.iter().any(|name| name == capability);
    Ok((has("pull"), has("resolve")))
}

fn tls(keys: &HostKeys, folder: &Path) -> Result<Tls, String> {
    let read = |path: &str| {
        let path = folder.join(path);
        read_pem(&path).map_err(|error| format!("failed to read {}: {error}", path.display()))
    };
    let ca = keys.ca.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let entries = match &keys.client {
        ClientCertificates::One(both) => vec![ClientEntry::Both(both.clone())],
        ClientCertificates::Each(entries) => entries.clone(),
    };
    let mut client = Vec::new();
    for entry in entries {
        match entry {
            ClientEntry::Both(path) => client.push((read(&path)?, read(&path)?)),
            ClientEntry::Pair(paths) => match paths.as_slice() {
                [both] => client.push((read(both)?, read(both)?)),
                // If the path of the key is empty, the key is in the file of the certificate.
                [both, key] if key.is_empty() => client.push((read(both)?, read(both)?)),
                [certificate, key] => client.push((read(certificate)?, read(key)?)),
                _ => return Err("client: an entry must be a certificate and its key".to_owned()),
            },
        }
    }
    let dial_timeout = match keys.dial_timeout.as_str() {
        "" => None,
        text => Some(duration(text).ok_or_else(|| format!("dial_timeout: invalid duration {text:?}"))?),
    };
    Ok(Tls { ca, client, skip_verify: keys.skip_verify.unwrap_or_default(), dial_timeout })
}

/// Parses a duration in the format of Go (time.ParseDuration): `1m30s`, `1.5s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) =
            rest.split_at(rest.find(|letter: char| letter.is_ascii_alphabetic() || letter == 'µ')?);
        let end = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}
