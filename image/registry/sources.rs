//! Which servers are asked for an image, from all that the node has been told: containerd's `hosts.toml` first, then
//! `registries.conf`, then the registry itself; with the certificates and credentials for each.

use std::path::PathBuf;

use super::hosts::{self, Endpoint, Tls};
use super::registries_conf::{RegistriesConf, is_short};
use crate::auth_file::AuthFiles;
use crate::credentials::{Credentials, Known};
use crate::error::{Error, blocking};
use crate::reference::Reference;

/// The files and folders that say it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) certs_dirs: Vec<PathBuf>,
    pub(crate) registries_conf: Option<PathBuf>,
    pub(crate) auth_files: AuthFiles,
}

impl Sources {
    /// The servers for an image, in order, each with the credentials that it is shown.
    pub(crate) async fn endpoints(
        &self,
        reference: &Reference,
        given: Option<Credentials>,
    ) -> Result<Vec<Endpoint>, Error> {
        let (sources, wanted) = (self.clone(), reference.clone());
        let mut endpoints = blocking("read the registry's hosts", move || sources.find(&wanted)).await?;
        let given = given.map(|credentials| Known { credentials, source: "the request".to_owned() });
        let mut own = None;
        for endpoint in &mut endpoints {
            let at_mirror =
                if endpoint.mirror { self.auth_files.credentials(&endpoint.name()).await? } else { None };
            let given = given.as_ref().and_then(|given| {
                let credentials = given.credentials.shown_to(&endpoint.authority, &endpoint.scheme)?;
                Some(Known { credentials: credentials.clone(), source: given.source.clone() })
            });
            endpoint.credentials = match (at_mirror, &given) {
                // What is for the registry is not shown to another server, unless a hosts.toml says so.
                (found, _) if endpoint.own_credentials => found,
                (Some(found), _) => Some(found),
                (None, Some(given)) => Some(given.clone()),
                (None, None) => match &own {
                    Some(known) => Option::clone(known),
                    None => own.insert(self.auth_files.credentials(&reference.name()).await?).clone(),
                },
            };
        }
        Ok(endpoints)
    }

    /// What a name may stand for; see [`RegistriesConf::candidates`].
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
        let told = match &self.registries_conf {
            Some(file) => RegistriesConf::read(file)?.endpoints(reference)?,
            None => None,
        };
        let mut endpoints = told.unwrap_or_else(|| vec![hosts::origin(reference.domain(), reference.path())]);
        for endpoint in &mut endpoints {
            let found = hosts::certificates(&self.certs_dirs, &endpoint.authority)?;
            if found == Tls::default() {
                continue;
            }
            // Who keeps certificates for a loopback registry speaks TLS to it.
            if endpoint.tls == Tls::default() {
                endpoint.scheme = http::uri::Scheme::HTTPS;
            }
            endpoint.tls = Tls { skip_verify: endpoint.tls.skip_verify, ..found };
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

    async fn asked(sources: &Sources, reference: &str, given: Option<&str>) -> Vec<String> {
        let given = given.map(|token| Credentials::RegistryToken(token.to_owned()));
        let endpoints = sources.endpoints(&reference.parse().unwrap(), given).await.unwrap();
        let line = |one: Endpoint| {
            let source = one.credentials.map(|known| known.source).unwrap_or_default();
            format!("{}://{} {source}", one.scheme, one.authority).trim_end().to_owned()
        };
        endpoints.into_iter().map(line).collect()
    }

    #[tokio::test]
    async fn both_worlds_are_read_and_secrets_stay_with_their_servers() {
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
            asked(&sources, "r.example/a", None).await,
            [format!("https://m.example {file}: m.example"), format!("https://r.example {file}: r.example")]
        );
        assert_eq!(
            asked(&sources, "r.example/a", Some("secret")).await,
            [format!("https://m.example {file}: m.example"), "https://r.example the request".to_owned()]
        );
        // What is said to be for another server is shown to none; then the node's own count.
        let elsewhere = Credentials::RegistryToken("secret".to_owned()).only_for("other.example").unwrap();
        let wanted = "r.example/a".parse().unwrap();
        let endpoints = sources.endpoints(&wanted, Some(elsewhere)).await.unwrap();
        assert!(
            endpoints.iter().all(|one| one
                .credentials
                .as_ref()
                .unwrap()
                .source
                .starts_with(&file.to_string()))
        );
        let own = Credentials::RegistryToken("secret".to_owned()).only_for("https://r.example/v1/").unwrap();
        let endpoints = sources.endpoints(&wanted, Some(own)).await.unwrap();
        assert_eq!(endpoints[1].credentials.as_ref().unwrap().source, "the request");
        write(folder.path(), "certs.d/localhost:5000/ca.crt", "authority");
        assert_eq!(asked(&sources, "localhost:5000/a", None).await, ["https://localhost:5000"]);
        write(folder.path(), "certs.d/r.example/hosts.toml", "[host.\"https://n.example\"]\n");
        assert_eq!(
            asked(&sources, "r.example/a", Some("secret")).await,
            ["https://n.example the request", "https://r.example the request"]
        );
    }
}
