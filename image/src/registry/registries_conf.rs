//! The servers that CRI-O and podman use: containers-registries.conf(5), version 2, with its drop-ins. The
//! files are read for each pull.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use http::uri::Scheme;
use serde::Deserialize;

use super::endpoint::{Endpoint, origin};
use super::tls::Tls;
use crate::error::Error;
use crate::reference::{Reference, is_hex_id};

/// The main file, merged with the drop-ins.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct RegistriesConf {
    unqualified_search_registries: Option<Vec<String>>,
    registry: Vec<RegistryEntry>,
    aliases: BTreeMap<String, String>,
    /// The tables of version 1: `[registries.search]` and others.
    registries: Option<toml::Table>,
}

/// The settings for the images below one prefix.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct RegistryEntry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: PullFromMirror,
}

/// The pulls that use a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

impl RegistriesConf {
    /// Reads the main file and `<file>.d/*.conf` in the order of their names. Missing files are ignored.
    pub(crate) fn read(file: &Path) -> Result<Self, Error> {
        let mut conf = Self::default();
        for path in files(file)? {
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let layer =
                        Self::parse(&text).map_err(|why| Error::invalid(path.display().to_string(), why))?;
                    conf.merge(layer);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &path, error)),
            }
        }
        Ok(conf)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut conf: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if conf.registries.is_some() {
            return Err("unsupported version 1 ([registries.search] and similar tables)".to_owned());
        }
        for registry in &mut conf.registry {
            registry.trim();
            registry.check()?;
        }
        Ok(conf)
    }

    /// Merges a later file into this one. Its lists replace earlier lists, its registries replace those of
    /// the same name.
    fn merge(&mut self, layer: Self) {
        if layer.unqualified_search_registries.is_some() {
            self.unqualified_search_registries = layer.unqualified_search_registries;
        }
        self.aliases.extend(layer.aliases);
        let names: Vec<String> = layer.registry.iter().map(|one| one.name().to_owned()).collect();
        self.registry.retain(|registry| !names.iter().any(|name| name == registry.name()));
        self.registry.extend(layer.registry);
    }

    /// Returns the references that a name without a registry may resolve to, in the order in which they are
    /// tried. Empty if only the default `docker.io` applies.
    pub(crate) fn candidates(&self, text: &str) -> Vec<Reference> {
        let Some((name, rest)) = short_name(text) else { return Vec::new() };
        if let Some(full) = self.aliases.get(name).filter(|full| !full.is_empty()) {
            return format!("{full}{rest}").parse().into_iter().collect();
        }
        let registries = self.unqualified_search_registries.iter().flatten();
        registries.filter_map(|registry| format!("{registry}/{name}{rest}").parse().ok()).collect()
    }

    /// Returns the servers for an image, in order. `None` without settings for its name.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Option<Vec<Endpoint>>, Error> {
        let name = reference.name();
        // A prefix may be a single image.
        let whole = reference.to_string();
        let single = self.registry.iter().find(|one| one.is_single() && one.name() == whole);
        let matching = single.map(|one| (name.len(), one)).or_else(|| self.find(&name));
        let Some((length, registry)) = matching else { return Ok(None) };
        let rest = name.get(length..).unwrap_or_default();
        let by_digest = reference.digest().is_some();
        let mut endpoints = Vec::new();
        let mut blocked = None;
        // Locations are blocked, not names: the mirrors of a blocked registry are used.
        let mut add = |location: &str, insecure: bool, mirror: bool| match self.blocking(location) {
            Some(blocking) => blocked = blocked.take().or(Some(blocking.name().to_owned())),
            None => {
                // The settings of the location itself apply as well.
                let insecure = insecure || self.find(location).is_some_and(|(_, own)| own.insecure);
                endpoints.extend(servers(location, insecure, mirror));
            }
        };
        for mirror in &registry.mirror {
            let applies = match mirror.pull_from_mirror {
                PullFromMirror::All => by_digest || !registry.mirror_by_digest_only,
                PullFromMirror::DigestOnly => by_digest,
                PullFromMirror::TagOnly => !by_digest,
            };
            if applies {
                add(&format!("{}{rest}", mirror.location), mirror.insecure, true);
            }
        }
        let own =
            if registry.location.is_empty() { name.clone() } else { format!("{}{rest}", registry.location) };
        if registry.blocked {
            // Blocked by its own name, at any location.
            blocked = blocked.or(Some(registry.name().to_owned()));
        } else {
            add(&own, registry.insecure, false);
        }
        match blocked {
            Some(name) if endpoints.is_empty() => {
                let why =
                    format!("registries.conf blocks {name:?} and has no mirror for it that is not blocked");
                Err(Error::invalid(reference.to_string(), why))
            }
            _ => Ok(Some(endpoints)),
        }
    }

    /// Finds the settings with the longest prefix of a name. A wildcard is less specific than any prefix
    /// without one.
    fn find(&self, name: &str) -> Option<(usize, &RegistryEntry)> {
        let fitting = self.registry.iter().filter_map(|one| Some((one.matched(name)?, one)));
        fitting.max_by_key(|(_, one)| (!one.is_wildcard(), one.name().len()))
    }

    /// Returns the settings that block a location.
    fn blocking(&self, location: &str) -> Option<&RegistryEntry> {
        self.find(location).map(|(_, registry)| registry).filter(|registry| registry.blocked)
    }
}

impl RegistryEntry {
    fn name(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }

    /// Returns whether the prefix is one image, with its tag or digest.
    fn is_single(&self) -> bool {
        let last = self.prefix.rsplit('/').next().unwrap_or_default();
        self.prefix.contains('@') || (self.prefix.contains('/') && last.contains(':'))
    }

    fn is_wildcard(&self) -> bool {
        self.name().starts_with("*.")
    }

    /// Removes slashes at the end of names.
    fn trim(&mut self) {
        let mirrors = self.mirror.iter_mut().map(|mirror| &mut mirror.location);
        for text in mirrors.chain([&mut self.prefix, &mut self.location]) {
            text.truncate(text.trim_end_matches('/').len());
        }
    }

    fn check(&self) -> Result<(), String> {
        let name = self.name();
        if name.is_empty() {
            return Err("a [[registry]] has neither prefix nor location".to_owned());
        }
        if !self.is_wildcard() && self.location.is_empty() && !self.prefix.is_empty() {
            return Err(format!("registry {name:?}: missing location"));
        }
        for location in self.mirror.iter().map(|mirror| &mirror.location).chain([&self.location]) {
            if location.contains("://") {
                return Err(format!(
                    "registry {name:?}: invalid location {location:?}: a URL instead of a name"
                ));
            }
        }
        if self.mirror.iter().any(|mirror| mirror.location.is_empty()) {
            return Err(format!("registry {name:?}: a mirror has no location"));
        }
        let chosen = self.mirror.iter().any(|mirror| mirror.pull_from_mirror != PullFromMirror::All);
        if self.mirror_by_digest_only && chosen {
            return Err(format!(
                "registry {name:?}: mirror-by-digest-only and pull-from-mirror are mutually exclusive"
            ));
        }
        Ok(())
    }

    /// Returns the length of the part of a name that the prefix matches.
    fn matched(&self, name: &str) -> Option<usize> {
        let host = name.split('/').next().unwrap_or_default();
        match self.name().strip_prefix('*') {
            // The port is not matched: it remains when the name is rewritten.
            Some(domain) if self.is_wildcard() => {
                let domain_name = host.split(':').next()?;
                domain_name.strip_suffix(domain).map(|_| domain_name.len())
            }
            _ => {
                let rest = name.strip_prefix(self.name())?;
                let port = rest.starts_with(':') && !self.name().contains('/');
                ((rest.is_empty() || rest.starts_with('/')) && !port).then_some(self.name().len())
            }
        }
    }
}

/// Returns whether a text is a name without a registry. An image id is not.
pub(crate) fn is_short(text: &str) -> bool {
    short_name(text).is_some_and(|(name, _)| name != "sha256" && !is_hex_id(name))
}

/// Splits a name without a registry from the rest (containers-registries.conf(5), "short names"). None if it
/// has a registry.
fn short_name(text: &str) -> Option<(&str, &str)> {
    let end = text.find('@').unwrap_or(text.len());
    let slash = text.get(..end)?.rfind('/').map_or(0, |slash| slash + 1);
    let end = text.get(slash..end)?.find(':').map_or(end, |colon| slash + colon);
    let (name, rest) = text.split_at_checked(end)?;
    let first = name.split('/').next()?;
    let registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    (!registry && !name.is_empty()).then_some((name, rest))
}

/// Returns the endpoints of a server. If it is insecure, TLS without verification is tried first, then plain
/// HTTP.
fn servers(name: &str, insecure: bool, mirror: bool) -> Vec<Endpoint> {
    let (domain, repository) = name.split_once('/').unwrap_or((name, ""));
    let mut endpoint = origin(domain, repository);
    endpoint.mirror = mirror;
    endpoint.own_credentials = mirror;
    endpoint.scheme = Scheme::HTTPS;
    if !insecure {
        return vec![endpoint];
    }
    endpoint.tls = Tls { skip_verify: true, ..Tls::default() };
    let plain = Endpoint { scheme: Scheme::HTTP, ..endpoint.clone() };
    vec![Endpoint { retried: false, ..endpoint }, plain]
}

/// Returns all mistakes in the main file and the drop-ins.
pub(crate) fn mistakes(file: &Path) -> Vec<String> {
    let files = match files(file) {
        Ok(files) => files,
        Err(error) => return vec![error.to_string()],
    };
    let mut mistakes = Vec::new();
    for path in files {
        let reasons = match fs::read_to_string(&path) {
            Ok(text) => match toml::from_str::<RegistriesConf>(&text) {
                Ok(conf) if conf.registries.is_some() => {
                    RegistriesConf::parse(&text).err().into_iter().collect()
                }
                Ok(conf) => conf.registry.iter().filter_map(|registry| registry.check().err()).collect(),
                Err(error) => vec![error.to_string()],
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => vec![error.to_string()],
        };
        mistakes.extend(reasons.into_iter().map(|why| format!("{}: {why}", path.display())));
    }
    mistakes
}

fn files(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let mut files = Vec::new();
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|error| Error::io("read", &folder, error))?.path();
                if path.extension().is_some_and(|extension| extension == "conf") {
                    files.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &folder, error)),
    }
    files.sort();
    files.insert(0, file.to_owned());
    Ok(files)
}

#[cfg(test)]
mod tests;
