//! Credentials that are configured on the node: credential helpers, and files in the format of docker's
//! config.json. containers-auth.json(5) extends the format with names of repositories.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::credentials::{Credentials, SourcedCredentials};
use crate::error::Error;

/// The name of Docker Hub in image references.
const HUB: &str = "docker.io";
const DOCKER_HUB: [&str; 3] = ["index.docker.io/v1", "index.docker.io", "registry-1.docker.io"];
/// The user name of a helper's answer if its secret is a token (docker-credential-helpers, "identity token").
const TOKEN_USER: &str = "<token>";
/// The time limit for a helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// The text that a helper writes to standard output if it has no credentials.
const NOT_FOUND: &str = "credentials not found";

/// Paths of files with credentials. The files may be missing. They are read at each use, so changes take
/// effect immediately.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuthFiles {
    paths: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, AuthEntry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// A helper's answer (docker-credential-helpers, "get").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl AuthFiles {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }

    /// Returns the credentials for a repository (`quay.io/team/app`): those of the repository, of a path
    /// above it, or of its registry, from an entry or a helper. The first file that has any is used.
    ///
    /// # Errors
    /// A file or an entry in it is invalid, or a helper fails.
    pub(crate) async fn credentials(&self, name: &str) -> Result<Option<SourcedCredentials>, Error> {
        for path in &self.paths {
            if let Some(matching) = credentials(path, name).await? {
                return Ok(Some(matching));
            }
        }
        Ok(None)
    }
}

async fn credentials(path: &Path, name: &str) -> Result<Option<SourcedCredentials>, Error> {
    let what = path.display().to_string();
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let content = parsed(path, &text)?;
    let names = names(name);
    // An empty name disables the helper, as in docker.
    let helper = find(&content.cred_helpers, &names).filter(|(_, helper)| !helper.is_empty());
    if let Some((server, helper)) = helper {
        return run_helper(helper, server).await;
    }
    if let Some((server, entry)) = find(&content.auths, &names) {
        let credentials = Credentials::from_parts(
            &entry.username,
            &entry.password,
            &entry.auth,
            &entry.identitytoken,
            &entry.registrytoken,
        );
        let credentials = credentials.map_err(|error| Error::invalid(format!("{what}: {server}"), error))?;
        // An empty entry means that the credential store has the secret.
        if credentials.is_some() || content.creds_store.is_empty() {
            let sourced =
                |credentials| SourcedCredentials { credentials, source: format!("{what}: {server}") };
            return Ok(credentials.map(sourced));
        }
    }
    if content.creds_store.is_empty() {
        return Ok(None);
    }
    let server = match name.split('/').next().unwrap_or_default() {
        HUB => "https://index.docker.io/v1/",
        domain => domain,
    };
    run_helper(&content.creds_store, server).await
}

/// Checks a file with credentials. A missing file is valid.
///
/// # Errors
/// The file cannot be read or is invalid.
pub(crate) async fn check(path: &Path) -> Result<(), Error> {
    match tokio::fs::read(path).await {
        Ok(text) => parsed(path, &text).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn parsed(path: &Path, text: &[u8]) -> Result<AuthFile, Error> {
    berth_json::from_slice(text)
        .map_err(|error| Error::invalid(path.display().to_string(), format!("not a docker config: {error}")))
}

/// Parses a file with credentials, for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(bytes: &[u8]) {
    if let Ok(content) = berth_json::from_slice::<AuthFile>(bytes) {
        drop(find(&content.auths, &names("r.example/team/app")).map(|(key, _)| key.to_owned()));
    }
}

/// Returns the keys that may hold the credentials of a repository, the most specific first.
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

/// Returns the entry of the first name that has one, with its key as written in the file.
fn find<'a, T>(entries: &'a BTreeMap<String, T>, names: &[String]) -> Option<(&'a str, &'a T)> {
    names.iter().find_map(|name| {
        let matching = entries.iter().find(|(key, _)| plain(key) == name);
        matching.map(|(key, entry)| (key.as_str(), entry))
    })
}

/// Returns a key without the scheme and version that docker adds to a registry's name.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    // Only the key of Docker Hub keeps its version: it is part of the name.
    match key.strip_suffix("/v2").or_else(|| key.strip_suffix("/v1")) {
        Some(host) if !host.contains('/') && host != "index.docker.io" => host,
        _ => key,
    }
}

/// Runs a credential helper, a program `docker-credential-<name>` (docker's CLI reference, "Credential helper
/// protocol").
async fn run_helper(helper: &str, server: &str) -> Result<Option<SourcedCredentials>, Error> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let program = format!("docker-credential-{helper}");
    if helper.is_empty() || !helper.bytes().all(named) {
        return Err(Error::invalid(format!("credential helper {helper:?}"), "not a name of a helper"));
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
            // A helper that does not read its input reports the reason in its answer.
            drop(stdin.write_all(server.as_bytes()).await);
        }
        child.wait_with_output().await.map_err(|error| Error::io("wait for", Path::new(&program), error))
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| failed(format!("no answer within {HELPER_TIMEOUT:?}")))??;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The output of a helper that failed does not contain a secret.
        let reason = text.trim();
        return if reason.contains(NOT_FOUND) { Ok(None) } else { Err(failed(reason.to_owned())) };
    }
    let answer: HelperAnswer =
        berth_json::from_str(&text).map_err(|error| failed(format!("invalid answer: {error}")))?;
    let credentials = match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    };
    Ok(Some(SourcedCredentials { credentials, source: format!("{program} for {server}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn credentials(content: &str, reference: &str) -> Result<Option<String>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let name = reference.parse::<crate::reference::Reference>().unwrap().name();
        let matching = AuthFiles::new(vec![file.path().to_owned()]).credentials(&name).await?;
        Ok(matching.map(|matching| match matching.credentials {
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
    async fn a_missing_file_has_no_credentials_and_a_broken_one_is_reported() {
        let nowhere = AuthFiles::new(vec!["/nonexistent/auth.json".into()]);
        assert!(nowhere.credentials("docker.io/library/busybox").await.unwrap().is_none());
        for broken in ["", "{", "7", r#"{ "auths": { "docker.io": { "auth": "!" } } }"#] {
            assert!(credentials(broken, "busybox").await.is_err(), "{broken}");
        }
        let error = credentials(r#"{ "credsStore": "../../bin/sh" }"#, "busybox").await.unwrap_err();
        assert!(error.to_string().contains("not a name of a helper"), "{error}");
        let error = credentials(r#"{ "credsStore": "none-is-here" }"#, "busybox").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-none-is-here"), "{error}");
    }
}
