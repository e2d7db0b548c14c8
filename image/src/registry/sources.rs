//! The servers for an image: containerd's `hosts.toml` first, then `registries.conf`, then the registry
//! itself, with certificates and credentials for each.

use std::path::PathBuf;

use super::endpoint::{Endpoint, origin};
use super::hosts;
use super::registries_conf::{RegistriesConf, is_short};
use super::tls::Tls;
use crate::auth_file::AuthFiles;
use crate::credentials::{Credentials, SourcedCredentials};
use crate::error::{Error, blocking};
use crate::reference::Reference;

/// The configuration files and folders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) certs_dirs: Vec<PathBuf>,
    pub(crate) registries_conf: Option<PathBuf>,
    pub(crate) auth_files: AuthFiles,
}

impl Sources {
    /// Returns the servers for an image, in order, each with its credentials.
    pub(crate) async fn endpoints(
        &self,
        reference: &Reference,
        given: Option<Credentials>,
    ) -> Result<Vec<Endpoint>, Error> {
        let (sources, requested) = (self.clone(), reference.clone());
        let mut endpoints = blocking("read registry configuration", move || sources.find(&requested)).await?;
        let given =
            given.map(|credentials| SourcedCredentials { credentials, source: "the request".to_owned() });
        let mut own = None;
        for endpoint in &mut endpoints {
            let at_mirror =
                if endpoint.mirror { self.auth_files.credentials(&endpoint.name()).await? } else { None };
            let given = given.as_ref().and_then(|given| {
                let credentials = given.credentials.shown_to(&endpoint.authority, &endpoint.scheme)?;
                Some(SourcedCredentials { credentials: credentials.clone(), source: given.source.clone() })
            });
            endpoint.credentials = match (at_mirror, &given) {
                // Credentials for the registry are not sent to another server, unless a hosts.toml configures
                // it.
                (sourced, _) if endpoint.own_credentials => sourced,
                (Some(sourced), _) => Some(sourced),
                (None, Some(given)) => Some(given.clone()),
                (None, None) => match &own {
                    Some(sourced) => Option::clone(sourced),
                    None => own.insert(self.auth_files.credentials(&reference.name()).await?).clone(),
                },
            };
        }
        Ok(endpoints)
    }

    /// Returns the references that a name may resolve to: see [`RegistriesConf::candidates`].
    pub(crate) fn candidates(&self, text: &str) -> Result<Vec<Reference>, Error> {
        match &self.registries_conf {
            Some(file) if is_short(text) => Ok(RegistriesConf::read(file)?.candidates(text)),
            _ => Ok(Vec::new()),
        }
    }

    fn find(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        if let Some(endpoints) = hosts::endpoints(&self.certs_dirs, reference)? {
            return Ok(endpoints);
        }
        let configured = match &self.registries_conf {
            Some(file) => RegistriesConf::read(file)?.endpoints(reference)?,
            None => None,
        };
        let mut endpoints = configured.unwrap_or_else(|| vec![origin(reference.domain(), reference.path())]);
        for endpoint in &mut endpoints {
            let tls = hosts::certificates(&self.certs_dirs, &endpoint.authority)?;
            if tls == Tls::default() {
                continue;
            }
            // A loopback registry with certificates uses TLS.
            if endpoint.tls == Tls::default() {
                endpoint.scheme = http::uri::Scheme::HTTPS;
            }
            endpoint.tls = Tls { skip_verify: endpoint.tls.skip_verify, ..tls };
        }
        Ok(endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn write(folder: &Path, path: &str, text: &str) -> PathBuf {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    async fn endpoints_with_credentials(
        sources: &Sources,
        reference: &str,
        given: Option<&str>,
    ) -> Vec<String> {
        let given = given.map(|token| Credentials::RegistryToken(token.to_owned()));
        let endpoints = sources.endpoints(&reference.parse().unwrap(), given).await.unwrap();
        let line = |one: Endpoint| {
            let source = one.credentials.map(|sourced| sourced.source).unwrap_or_default();
            format!("{}://{} {source}", one.scheme, one.authority).trim_end().to_owned()
        };
        endpoints.into_iter().map(line).collect()
    }

    #[tokio::test]
    async fn all_configurations_are_read_and_secrets_are_sent_to_their_servers_only() {
        let folder = tempfile::tempdir().unwrap();
        let conf =
            "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example/x\"\n";
        let auth = r#"{ "auths": { "m.example": { "auth": "bTpt" }, "r.example": { "auth": "cjpy" } } }"#;
        let auth = write(folder.path(), "auth.json", auth);
        let sources = Sources {
            certs_dirs: vec![folder.path().join("certs.d")],
            registries_conf: Some(write(folder.path(), "registries.conf", conf)),
            auth_files: AuthFiles::new(vec![folder.path().join("none.json"), auth.clone()]),
        };
        let file = auth.display();
        assert_eq!(
            endpoints_with_credentials(&sources, "r.example/a", None).await,
            [format!("https://m.example {file}: m.example"), format!("https://r.example {file}: r.example")]
        );
        assert_eq!(
            endpoints_with_credentials(&sources, "r.example/a", Some("secret")).await,
            [format!("https://m.example {file}: m.example"), "https://r.example the request".to_owned()]
        );
        // Credentials for another server are not sent. Then those of the node are used.
        let elsewhere = Credentials::RegistryToken("secret".to_owned()).only_for("other.example").unwrap();
        let requested = "r.example/a".parse().unwrap();
        let endpoints = sources.endpoints(&requested, Some(elsewhere)).await.unwrap();
        assert!(
            endpoints.iter().all(|one| one
                .credentials
                .as_ref()
                .unwrap()
                .source
                .starts_with(&file.to_string()))
        );
        let own = Credentials::RegistryToken("secret".to_owned()).only_for("https://r.example/v1/").unwrap();
        let endpoints = sources.endpoints(&requested, Some(own)).await.unwrap();
        assert_eq!(endpoints[1].credentials.as_ref().unwrap().source, "the request");
        write(folder.path(), "certs.d/localhost:5000/ca.crt", "authority");
        assert_eq!(
            endpoints_with_credentials(&sources, "localhost:5000/a", None).await,
            ["https://localhost:5000"]
        );
        write(folder.path(), "certs.d/r.example/hosts.toml", "[host.\"https://n.example\"]\n");
        assert_eq!(
            endpoints_with_credentials(&sources, "r.example/a", Some("secret")).await,
            ["https://n.example the request", "https://r.example the request"]
        );
    }
}
