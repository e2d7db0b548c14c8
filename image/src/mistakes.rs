//! Finds all mistakes in the files that configure registries, credentials and the policy, before a pull needs
//! them.

use crate::auth_file;
use crate::error::{Error, blocking};
use crate::policy;
use crate::registry;
use crate::store::Options;

/// Checks each `hosts.toml` with its certificates, the registries.conf with its drop-ins, the files of
/// credentials, and the policy with its keys. Missing files are not mistakes.
pub async fn mistakes(options: &Options) -> Vec<String> {
    let (certs_dirs, conf) = (options.certs_dirs.clone(), options.registries_conf.clone());
    let read = blocking("read registry configuration", move || {
        let mut mistakes = registry::host_mistakes(&certs_dirs);
        mistakes.extend(conf.iter().flat_map(|conf| registry::conf_mistakes(conf)));
        Ok::<_, Error>(mistakes)
    });
    let mut mistakes = read.await.unwrap_or_else(|error| vec![error.to_string()]);
    for file in &options.auth_files {
        mistakes.extend(auth_file::check(file).await.err().map(|error| error.to_string()));
    }
    if let Some(file) = &options.policy {
        mistakes.extend(policy::mistakes(file).await);
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(folder: &Path, path: &str, text: &str) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[tokio::test]
    async fn every_mistake_of_every_file_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let options = Options {
            certs_dirs: vec![path("certs.d"), path("none.d")],
            registries_conf: Some(path("registries.conf")),
            auth_files: vec![path("auth.json"), path("none.json")],
            policy: Some(path("policy.json")),
            ..Options::default()
        };
        assert_eq!(mistakes(&options).await, Vec::<String>::new(), "nothing is there");
        write(folder.path(), "certs.d/fine_5000_/hosts.toml", "server = \"https://fine:5000\"\n");
        write(
            folder.path(),
            "certs.d/a.test/hosts.toml",
            "server = \"ftp://a.test\"\n[host.\"https://b.test\"]\nca = \"none.crt\"\n[host.\"https://c.test?x=1\"]\n",
        );
        write(
            folder.path(),
            "certs.d/d.test/ca.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        write(
            folder.path(),
            "registries.conf",
            "[[registry]]\nlocation = \"https://e.test\"\n[[registry]]\nprefix = \"f.test\"\n",
        );
        write(folder.path(), "registries.conf.d/1.conf", "registry = 7\n");
        write(folder.path(), "auth.json", "{");
        write(
            folder.path(),
            "policy.json",
            r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/no/such/key", "signedIdentity": null}],
                "transports": {"docker": {"g.test": [{"type": "sigstoreSigned", "keyPath": "/no/other/key"}]}}}"#,
        );
        let mistakes = mistakes(&options).await;
        for expected in [
            "a.test/hosts.toml: server:",
            "a.test/hosts.toml: host.\"https://b.test\"",
            "a.test/hosts.toml: host.\"https://c.test?x=1\"",
            "d.test",
            "registries.conf: registry \"https://e.test\"",
            "registries.conf: registry \"f.test\"",
            "registries.conf.d/1.conf",
            "auth.json",
            "/no/such/key",
            "/no/other/key",
        ] {
            assert!(
                mistakes.iter().any(|line| line.contains(expected)),
                "{expected} is not in {mistakes:#?}"
            );
        }
        assert!(!mistakes.iter().any(|line| line.contains("fine_5000_")), "{mistakes:#?}");
    }
}
