//! Credentials that the node itself has: a file in the form of docker's config.json, which containers-auth.json(5)
//! widens by names of repositories, and credential helpers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::credentials::{Credentials, Known};
use crate::error::Error;

/// How docker calls its own registry in these files.
const HUB: &str = "docker.io";
const DOCKER_HUB: [&str; 3] = ["index.docker.io/v1", "index.docker.io", "registry-1.docker.io"];
/// What a helper answers as the user of a token (docker-credential-helpers, "identity token").
const TOKEN_USER: &str = "<token>";
/// How long a helper may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a helper writes on standard output where it knows of nothing.
const NOT_FOUND: &str = "credentials not found";

/// Files with credentials, which need not be there. They are read at each use: whoever changes one needs to tell nobody.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuthFiles {
    paths: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper answers (docker-credential-helpers, "get").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl AuthFiles {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }

    /// The credentials for a repository (`quay.io/team/app`): its own, those of a folder above it, of its registry; or what
    /// a helper has. The first file that has any counts.
    ///
    /// # Errors
    /// A file or an entry in it is broken, or a helper fails.
    pub(crate) async fn credentials(&self, name: &str) -> Result<Option<Known>, Error> {
        for path in &self.paths {
            if let Some(found) = credentials(path, name).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

async fn credentials(path: &Path, name: &str) -> Result<Option<Known>, Error> {
    let what = path.display().to_string();
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let content = parsed(path, &text)?;
    let names = names(name);
    // One without a name is none, as for docker.
    let helper = find(&content.cred_helpers, &names).filter(|(_, helper)| !helper.is_empty());
    if let Some((server, helper)) = helper {
        return ask(helper, server).await;
    }
    if let Some((server, entry)) = find(&content.auths, &names) {
        let found = Credentials::from_parts(
            &entry.username,
            &entry.password,
            &entry.auth,
            &entry.identitytoken,
            &entry.registrytoken,
        );
        let found = found.map_err(|error| Error::invalid(format!("{what}: {server}"), error))?;
        // An empty entry says that the store has the secret.
        if found.is_some() || content.creds_store.is_empty() {
            let known = |credentials| Known { credentials, source: format!("{what}: {server}") };
            return Ok(found.map(known));
        }
    }
    if content.creds_store.is_empty() {
        return Ok(None);
    }
    let server = match name.split('/').next().unwrap_or_default() {
        HUB => "https://index.docker.io/v1/",
        domain => domain,
    };
    ask(&content.creds_store, server).await
}

/// Whether a file is one of credentials; one that is missing says nothing.
///
/// # Errors
/// It cannot be read, or is broken.
pub(crate) async fn check(path: &Path) -> Result<(), Error> {
    match tokio::fs::read(path).await {
        Ok(text) => parsed(path, &text).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn parsed(path: &Path, text: &[u8]) -> Result<Content, Error> {
    berth_json::from_slice(text)
        .map_err(|error| Error::invalid(path.display().to_string(), format!("is no docker config: {error}")))
}

/// Parses such a file, for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(bytes: &[u8]) {
    if let Ok(content) = berth_json::from_slice::<Content>(bytes) {
        drop(find(&content.auths, &names("r.example/team/app")).map(|(key, _)| key.to_owned()));
    }
}

/// The names under which an image's credentials may be, the narrowest first.
fn names(name: &str) -> Vec<String> {
    let mut name = name.to_owned();
    let mut names = vec![name.clone()];
    while let Some((above, _)) = name.rsplit_once('/') {
        name = above.to_owned();
        names.push(name.clone());
    }
    if name == HUB {
        names.extend(DOCKER_HUB.map(str::to_owned));
    }
    names
}

/// The entry of the first name that has one, with its key as it is written.
fn find<'a, T>(entries: &'a BTreeMap<String, T>, names: &[String]) -> Option<(&'a str, &'a T)> {
    names.iter().find_map(|name| {
        let found = entries.iter().find(|(key, _)| plain(key) == name);
        found.map(|(key, entry)| (key.as_str(), entry))
    })
}

/// A key without what docker puts around a registry's name.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    // Only docker's own has a version that tells it from others.
    match key.strip_suffix("/v2").or_else(|| key.strip_suffix("/v1")) {
        Some(host) if !host.contains('/') && host != "index.docker.io" => host,
        _ => key,
    }
}

/// Asks a credential helper, a program `docker-credential-<name>` (docker's CLI reference, "Credential helper protocol").
async fn ask(helper: &str, server: &str) -> Result<Option<Known>, Error> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let program = format!("docker-credential-{helper}");
    if helper.is_empty() || !helper.bytes().all(named) {
        return Err(Error::invalid(format!("credential helper {helper:?}"), "is no name of one"));
    }
    let failed = |why: String| Error::unauthorized(format!("{program} for {server}"), why);
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::io("start", Path::new(&program), error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read says why in its answer.
            drop(stdin.write_all(server.as_bytes()).await);
        }
        child.wait_with_output().await.map_err(|error| Error::io("wait for", Path::new(&program), error))
    };
    let output = tokio::time::timeout(PATIENCE, run)
        .await
        .map_err(|_| failed(format!("no answer within {PATIENCE:?}")))??;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // What it says may have a secret in it only where it succeeds.
        let said = text.trim();
        return if said.contains(NOT_FOUND) { Ok(None) } else { Err(failed(said.to_owned())) };
    }
    let answer: Answer =
        berth_json::from_str(&text).map_err(|error| failed(format!("its answer is broken: {error}")))?;
    let credentials = match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    };
    Ok(Some(Known { credentials, source: format!("{program} for {server}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn credentials(content: &str, reference: &str) -> Result<Option<String>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let name = reference.parse::<crate::reference::Reference>().unwrap().name();
        let found = AuthFiles::new(vec![file.path().to_owned()]).credentials(&name).await?;
        Ok(found.map(|found| match found.credentials {
            Credentials::Basic { username, .. } => username,
            Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => token,
            Credentials::For { server, .. } => server,
        }))
    }

    #[tokio::test]
    async fn the_narrowest_name_wins() {
        // "hub:x", "all:x", "team:x", "one:x"
        let content = r#"{ "auths": {
            "https://index.docker.io/v1/": { "auth": "aHViOng=" },
            "quay.io": { "auth": "YWxsOng=" },
            "quay.io/team": { "auth": "dGVhbTp4" },
            "quay.io/team/one": { "auth": "b25lOng=" },
            "https://example.org:5000/v2/": { "username": "plain", "password": "x" },
            "token.example.org": { "identitytoken": "refresh" } } }"#;
        for (reference, user) in [
            ("busybox", Some("hub")),
            ("docker.io/team/app:1", Some("hub")),
            ("quay.io/other/app", Some("all")),
            ("quay.io/team/app", Some("team")),
            (
                "quay.io/team/one@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                Some("one"),
            ),
            ("quay.io/teamwork/app", Some("all")),
            ("example.org:5000/app", Some("plain")),
            ("token.example.org/app", Some("refresh")),
            ("example.org/app", None),
            ("notquay.io/app", None),
        ] {
            assert_eq!(credentials(content, reference).await.unwrap().as_deref(), user, "{reference}");
        }
    }

    #[tokio::test]
    async fn null_is_as_absent() {
        for (content, user) in [
            (r#"{ "auths": null, "credHelpers": null, "credsStore": null }"#, None),
            (r#"{ "auths": { "quay.io": null } }"#, None),
            (
                r#"{ "auths": { "quay.io": { "username": null, "password": null, "auth": "YWxsOng=",
                     "identitytoken": null, "email": null } }, "credHelpers": { "quay.io": null },
                     "HttpHeaders": null }"#,
                Some("all"),
            ),
        ] {
            assert_eq!(credentials(content, "quay.io/app").await.unwrap().as_deref(), user, "{content}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_has_none_and_a_broken_one_is_told() {
        let nowhere = AuthFiles::new(vec!["/nonexistent/auth.json".into()]);
        assert!(nowhere.credentials("docker.io/library/busybox").await.unwrap().is_none());
        for broken in ["", "{", "7", r#"{ "auths": { "docker.io": { "auth": "!" } } }"#] {
            assert!(credentials(broken, "busybox").await.is_err(), "{broken}");
        }
        let error = credentials(r#"{ "credsStore": "../../bin/sh" }"#, "busybox").await.unwrap_err();
        assert!(error.to_string().contains("is no name of one"), "{error}");
        let error = credentials(r#"{ "credsStore": "none-is-here" }"#, "busybox").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-none-is-here"), "{error}");
    }
}
