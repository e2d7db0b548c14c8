//! The config of an image. The document may have megabytes; only what a container needs is kept. Labels,
//! history and other members are skipped, so nothing can act on them.

use serde::Deserialize;

use crate::bounded::{Bounded, BoundedKeys, is_object};
use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;

/// The largest config, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// The most layers of an image: overlayfs stacks at most 500 lower folders.
pub(crate) const MAX_LAYERS: usize = 500;
/// The most variables, arguments, or volumes. It is more than any image has.
const MAX_LIST: usize = 4096;
/// The most bytes that are kept of one config. This is twice the limit of the kernel for one argument
/// (execve(2), MAX_ARG_STRLEN).
const MAX_KEPT: usize = 256 << 10;

/// The settings of an image for its containers (OCI image config, `config`). Missing members are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user` or `user:group`, each by name or number.
    pub user: String,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// The command to which `cmd` or the caller's arguments are appended.
    pub entrypoint: Vec<String>,
    /// The arguments, or the command of an image without an entrypoint.
    pub cmd: Vec<String>,
    /// The working directory of the command.
    pub working_dir: String,
    /// Paths that are volumes.
    pub volumes: Vec<String>,
    /// The signal that stops a container.
    pub stop_signal: String,
}

/// The kept parts of a config: the container's settings, and the digests of the unpacked layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
    /// None if the config does not specify it.
    platform: Option<Platform>,
}

impl ParsedConfig {
    /// Checks that the image runs on a platform. Not for an image whose index specifies the platform: its
    /// config may differ, or have a builder's default (containerd does the same).
    pub(crate) fn check_platform(&self, what: &str, platform: &Platform) -> Result<(), Error> {
        match &self.platform {
            Some(offered) if platform.rank(offered).is_none() => {
                Err(Error::unsupported(what, format!("image is for {offered}, this node is {platform}")))
            }
            _ => Ok(()),
        }
    }
}

/// The document. Builders omit required members, and Docker writes `null` into others.
#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    config: Section,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Bounded<Digest, MAX_LAYERS>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Section {
    user: String,
    env: Bounded<String, MAX_LIST>,
    entrypoint: Bounded<String, MAX_LIST>,
    cmd: Bounded<String, MAX_LIST>,
    working_dir: String,
    volumes: BoundedKeys<MAX_LIST>,
    stop_signal: String,
}

/// Parses a config.
pub(crate) fn parse_config(what: &str, bytes: &[u8]) -> Result<ParsedConfig, Error> {
    if !is_object(bytes) {
        return Err(Error::corrupt(what, "not a JSON object"));
    }
    let document: ConfigDocument =
        berth_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))?;
    let ConfigDocument { os, architecture, variant, config, rootfs } = document;
    let offered = Platform { os, architecture, variant: Some(variant).filter(|variant| !variant.is_empty()) };
    Ok(ParsedConfig {
        config: config.checked(what)?,
        diff_ids: rootfs.diff_ids.all(what, "layers")?,
        platform: Some(offered).filter(Platform::is_specified),
    })
}

impl Section {
    fn checked(self, what: &str) -> Result<ImageConfig, Error> {
        let config = ImageConfig {
            user: self.user,
            env: self.env.all(what, "environment variables")?,
            entrypoint: self.entrypoint.all(what, "parts of an entrypoint")?,
            cmd: self.cmd.all(what, "parts of a command")?,
            working_dir: self.working_dir,
            volumes: self.volumes.all(what, "volumes")?,
            stop_signal: self.stop_signal,
        };
        let size = config.size();
        if size > MAX_KEPT {
            let why = format!(
                "user, environment, command, working directory and volumes have {size} bytes, the limit is {MAX_KEPT}"
            );
            return Err(Error::limit(what, why));
        }
        Ok(config)
    }
}

impl ImageConfig {
    fn size(&self) -> usize {
        let lists = [&self.env, &self.entrypoint, &self.cmd, &self.volumes];
        let single = [&self.user, &self.working_dir, &self.stop_signal];
        lists.into_iter().flatten().chain(single).map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::error::ErrorKind;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn host() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    fn parse(value: &Value) -> Result<ParsedConfig, Error> {
        let parsed = parse_config("test", value.to_string().as_bytes())?;
        parsed.check_platform("test", &host()).map(|()| parsed)
    }

    fn with(section: &Value) -> Value {
        json!({ "config": section, "rootfs": { "type": "layers", "diff_ids": [] } })
    }

    #[test]
    fn configs_of_docker_are_read() {
        let layer = Digest::of(Algorithm::Sha256, b"l");
        let config = json!({
            "architecture": "amd64", "os": "linux", "container": "abc", "docker_version": "20.10", "history": null,
            "container_config": { "Cmd": null },
            "config": { "Hostname": "", "Domainname": "", "User": "1000", "AttachStdin": false, "Tty": false, "Env": null,
                "Cmd": ["sh"], "Image": "sha256:1", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null,
                "Labels": null, "ExposedPorts": null, "ArgsEscaped": true,
                "Healthcheck": { "Test": ["CMD", "x"], "Interval": 1 } },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let parsed = parse(&config).unwrap();
        assert_eq!(parsed.diff_ids, [layer]);
        let expected = ImageConfig { user: "1000".into(), cmd: vec!["sh".into()], ..ImageConfig::default() };
        assert_eq!(parsed.config, expected);
        let whole = with(&json!({
            "User": "web:logs", "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": ["c", "d"], "WorkingDir": "/srv",
            "Volumes": { "/v": {}, "/w": {} }, "StopSignal": "SIGQUIT",
        }));
        let expected = ImageConfig {
            user: "web:logs".into(),
            env: vec!["A=b".into()],
            entrypoint: vec!["/e".into()],
            cmd: vec!["c".into(), "d".into()],
            working_dir: "/srv".into(),
            volumes: vec!["/v".into(), "/w".into()],
            stop_signal: "SIGQUIT".into(),
        };
        assert_eq!(parse(&whole).unwrap().config, expected);
        assert!(parse(&json!({ "os": null, "config": null, "rootfs": { "diff_ids": [] } })).is_ok());
        for member in [
            "User",
            "Env",
            "Entrypoint",
            "Cmd",
            "WorkingDir",
            "Volumes",
            "StopSignal",
            "Labels",
            "ExposedPorts",
        ] {
            assert_eq!(
                parse(&with(&json!({ member: null }))).unwrap().config,
                ImageConfig::default(),
                "{member}"
            );
        }
        let other = json!({ "os": "Linux", "architecture": "x86_64", "variant": null, "rootfs": { "type": null, "diff_ids": null } });
        assert!(parse(&other).unwrap().diff_ids.is_empty());
    }

    #[test]
    fn configs_that_do_not_fit_are_rejected() {
        let arm =
            json!({ "os": "linux", "architecture": "arm64", "rootfs": { "type": "layers", "diff_ids": [] } });
        let error = parse(&arm).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
        for bad in [
            json!({ "rootfs": { "type": "layers", "diff_ids": ["../../etc"] } }),
            json!({ "os": "linux" }),
            json!([{ "rootfs": { "diff_ids": [] } }]),
            with(&json!({ "Env": "A=b" })),
            with(&json!({ "Volumes": ["/v"] })),
        ] {
            assert_eq!(parse(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
        }
    }

    #[test]
    fn kept_members_have_limits() {
        let many = vec!["x"; 5000];
        let volumes: serde_json::Map<_, _> =
            (0..5000).map(|number| (format!("/{number}"), json!({}))).collect();
        let digests = vec![Digest::of(Algorithm::Sha256, b""); 501];
        for (config, figures) in [
            (with(&json!({ "Env": many })), "5000 environment variables, the limit is 4096"),
            (with(&json!({ "Entrypoint": many })), "5000 parts of an entrypoint, the limit is 4096"),
            (with(&json!({ "Cmd": many })), "5000 parts of a command, the limit is 4096"),
            (with(&json!({ "Volumes": volumes })), "5000 volumes, the limit is 4096"),
            (with(&json!({ "User": "u".repeat(300_000) })), "300000 bytes, the limit is 262144"),
            (json!({ "rootfs": { "diff_ids": digests } }), "501 layers, the limit is 500"),
        ] {
            let error = parse(&config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
            assert!(error.to_string().contains(figures), "{error}");
        }
    }

    #[test]
    fn unused_members_may_be_long_and_are_not_kept() {
        let history = vec![json!({}); 100_000];
        let labels: serde_json::Map<_, _> =
            (0..10_000).map(|number| (number.to_string(), json!("x"))).collect();
        let config = json!({
            "history": history, "author": "x".repeat(1 << 20), "config": { "Labels": labels, "User": "7" },
            "rootfs": { "diff_ids": [] },
        });
        let expected = ImageConfig { user: "7".into(), ..ImageConfig::default() };
        assert_eq!(parse(&config).unwrap().config, expected);
    }

    proptest! {
        #[test]
        fn broken_configs_never_panic(at in 0usize..300, byte: u8) {
            let value = with(&json!({ "User": "1", "Env": ["A=b"], "Volumes": { "/v": {} } }));
            let mut bytes = value.to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            drop(parse_config("test", &bytes));
            drop(parse_config("test", &bytes[..at]));
        }
    }
}
