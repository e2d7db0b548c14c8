//! AppArmor: selects the profile of a container (apparmor(7)) by the same rules as containerd.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::{LinuxContainerSecurityContext, LinuxSandboxSecurityContext, SecurityProfile};

use crate::error::CriError;

const FIELD: &str = "apparmor";

/// The name of berth's default profile.
const DEFAULT: &str = "berth-default";

/// The prefix of a loaded profile in the deprecated field.
const LOCALHOST: &str = "localhost/";
/// The names of the default profile in the deprecated field.
const DEFAULTS: [&str; 2] = ["runtime/default", "docker/default"];
/// The name for no profile in the deprecated field.
const UNCONFINED: &str = "unconfined";

/// The text of berth's default profile. It denies access beyond the container, also to the container's root.
const PROFILE: &str = include_str!("berth-default.apparmor");

/// The state of AppArmor on a host.
#[derive(Clone, Debug)]
pub struct AppArmor {
    enabled: bool,
    profiles: PathBuf,
    parser: PathBuf,
}

/// The requested profile.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Unset,
    Unconfined,
    RuntimeDefault,
    Loaded(String),
}

impl AppArmor {
    /// Detects AppArmor on a host with its files below `root`.
    #[must_use]
    pub fn detect(root: &Path) -> Self {
        let text = fs::read_to_string(root.join("sys/module/apparmor/parameters/enabled"));
        let profiles = root.join("sys/kernel/security/apparmor/profiles");
        let parsers = ["usr/sbin/apparmor_parser", "sbin/apparmor_parser"].map(|path| root.join(path));
        let [first, second] = parsers;
        Self {
            enabled: text.is_ok_and(|text| text.starts_with('Y')) && profiles.exists(),
            profiles,
            parser: if first.exists() { first } else { second },
        }
    }

    /// Returns the profile of a container; none if it is unconfined. Loads berth's default profile if it is needed.
    ///
    /// # Errors
    /// The requested profile is not loaded, or a profile is requested and the host has no AppArmor.
    pub fn profile(&self, security: &LinuxContainerSecurityContext) -> Result<Option<String>, CriError> {
        let choice = choice(security)?;
        if !self.enabled {
            return match choice {
                Choice::Unset | Choice::Unconfined => Ok(None),
                Choice::RuntimeDefault | Choice::Loaded(_) => Err(CriError::precondition(
                    FIELD.to_owned(),
                    "a profile is requested and this host has no AppArmor",
                )),
            };
        }
        match choice {
            Choice::Unconfined => Ok(None),
            Choice::Unset | Choice::RuntimeDefault if security.privileged => Ok(None),
            Choice::Unset | Choice::RuntimeDefault => self.load_default().map(Some),
            Choice::Loaded(name) if self.is_loaded(&name)? => Ok(Some(name)),
            Choice::Loaded(name) => {
                Err(CriError::invalid(FIELD, format!("profile {name:?} is not loaded on this host")))
            }
        }
    }

    /// Returns the profile of a pod's pause: only one that is requested.
    ///
    /// # Errors
    /// As [`Self::profile`].
    pub fn of_pause(&self, security: &LinuxSandboxSecurityContext) -> Result<Option<String>, CriError> {
        if security.apparmor.is_none() {
            return Ok(None);
        }
        self.profile(&LinuxContainerSecurityContext {
            apparmor: security.apparmor.clone(),
            privileged: security.privileged,
            ..LinuxContainerSecurityContext::default()
        })
    }

    /// Whether a profile is loaded. The kernel lists profiles as `name (mode)`.
    fn is_loaded(&self, name: &str) -> Result<bool, CriError> {
        let profiles = fs::read_to_string(&self.profiles)
            .map_err(|error| CriError::internal(format!("read {}", self.profiles.display()), error))?;
        Ok(profiles.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(" ("))))
    }

    fn load_default(&self) -> Result<String, CriError> {
        if self.is_loaded(DEFAULT)? {
            return Ok(DEFAULT.to_owned());
        }
        let failed = |why: String| CriError::failed(format!("load the AppArmor profile {DEFAULT}"), why);
        let cannot_run = |error: std::io::Error| failed(format!("run {}: {error}", self.parser.display()));
        // -K: ignore the distribution's cache; -r: replace an older version.
        let mut command = Command::new(&self.parser);
        command.arg("-Kr").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut parser = command.spawn().map_err(cannot_run)?;
        if let Some(mut stdin) = parser.stdin.take() {
            // A parser that exits early reports the reason on stderr.
            drop(stdin.write_all(PROFILE.as_bytes()));
        }
        let output = parser.wait_with_output().map_err(cannot_run)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(format!("{} exited with {}: {stderr}", self.parser.display(), output.status)));
        }
        Ok(DEFAULT.to_owned())
    }
}

fn choice(security: &LinuxContainerSecurityContext) -> Result<Choice, CriError> {
    let Some(SecurityProfile { profile_type, localhost_ref }) = &security.apparmor else {
        #[expect(deprecated, reason = "older clients send it")]
        return deprecated_choice(&security.apparmor_profile);
    };
    match ProfileType::try_from(*profile_type) {
        Ok(ProfileType::Localhost) => loaded(localhost_ref),
        Ok(_) if !localhost_ref.is_empty() => {
            Err(CriError::invalid(FIELD, "localhost_ref is set and profile_type is not Localhost"))
        }
        Ok(ProfileType::RuntimeDefault) => Ok(Choice::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Choice::Unconfined),
        Err(_) => Err(CriError::invalid(FIELD, format!("{profile_type} is not a profile type"))),
    }
}

fn deprecated_choice(profile: &str) -> Result<Choice, CriError> {
    match profile {
        "" => Ok(Choice::Unset),
        UNCONFINED => Ok(Choice::Unconfined),
        profile if DEFAULTS.contains(&profile) => Ok(Choice::RuntimeDefault),
        profile if profile.starts_with(LOCALHOST) => loaded(profile),
        profile => Err(CriError::invalid("apparmor_profile", format!("{profile:?} is not a profile"))),
    }
}

fn loaded(reference: &str) -> Result<Choice, CriError> {
    let name = reference.strip_prefix(LOCALHOST).unwrap_or(reference);
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(CriError::invalid(FIELD, format!("{reference:?} is not a profile name")));
    }
    Ok(Choice::Loaded(name.to_owned()))
}

#[cfg(test)]
mod tests {

    use super::*;

    /// A host with AppArmor, simulated by files.
    struct Host {
        folder: tempfile::TempDir,
    }

    impl Host {
        fn new(parser: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let host = Self { folder };
            host.write("sys/module/apparmor/parameters/enabled", "Y\n");
            host.write("sys/kernel/security/apparmor/profiles", "nginx (enforce)\ncups (complain)\n");
            host.write("sbin/parser", parser);
            // Another process copies the file: if this process had it open for writing, a child that another test has
            // just forked could keep it open, and execve(2) would fail with ETXTBSY.
            let mut install = std::process::Command::new("install");
            let copied = install.args(["-m755", "parser", "apparmor_parser"]);
            assert!(copied.current_dir(host.folder.path().join("sbin")).status().unwrap().success());
            host
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn profile(&self, security: &LinuxContainerSecurityContext) -> Result<Option<String>, String> {
            let apparmor = AppArmor::detect(self.folder.path());
            apparmor.profile(security).map_err(|error| error.to_string())
        }
    }

    fn requesting(kind: ProfileType, reference: &str) -> LinuxContainerSecurityContext {
        let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() };
        LinuxContainerSecurityContext { apparmor: Some(profile), ..Default::default() }
    }

    #[test]
    fn a_host_without_apparmor_refuses_requests_for_profiles() {
        let folder = tempfile::tempdir().unwrap();
        let none = AppArmor::detect(folder.path());
        assert_eq!(none.profile(&LinuxContainerSecurityContext::default()).unwrap(), None);
        assert_eq!(none.profile(&requesting(ProfileType::Unconfined, "")).unwrap(), None);
        for security in
            [requesting(ProfileType::RuntimeDefault, ""), requesting(ProfileType::Localhost, "nginx")]
        {
            let error = none.profile(&security).unwrap_err().to_string();
            assert!(error.contains("no AppArmor"), "{error}");
        }
    }

    #[test]
    fn profiles_are_loaded_ones_or_berths_own() {
        let host = Host::new("#!/bin/sh\n[ \"$*\" = -Kr ] && grep -q 'profile berth-default'\n");
        let own = Some(DEFAULT.to_owned());
        assert_eq!(host.profile(&LinuxContainerSecurityContext::default()), Ok(own.clone()));
        assert_eq!(host.profile(&requesting(ProfileType::RuntimeDefault, "")), Ok(own));
        assert_eq!(host.profile(&requesting(ProfileType::Unconfined, "")), Ok(None));
        assert_eq!(host.profile(&requesting(ProfileType::Localhost, "nginx")), Ok(Some("nginx".to_owned())));
        assert_eq!(
            host.profile(&requesting(ProfileType::Localhost, "localhost/cups")),
            Ok(Some("cups".to_owned()))
        );
        assert!(
            host.profile(&requesting(ProfileType::Localhost, "ngin")).unwrap_err().contains("not loaded")
        );
        let privileged = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        assert_eq!(host.profile(&privileged), Ok(None));
    }

    #[test]
    fn a_pause_has_the_requested_profile() {
        let host = Host::new("#!/bin/sh\nexit 1\n");
        let apparmor = AppArmor::detect(host.folder.path());
        let of = |kind: ProfileType, name: &str| {
            let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() };
            LinuxSandboxSecurityContext { apparmor: Some(profile), ..Default::default() }
        };
        assert_eq!(apparmor.of_pause(&LinuxSandboxSecurityContext::default()).unwrap(), None);
        let nginx = apparmor.of_pause(&of(ProfileType::Localhost, "nginx")).unwrap();
        assert_eq!(nginx, Some("nginx".to_owned()));
        assert!(apparmor.of_pause(&of(ProfileType::Localhost, "none")).is_err());
        assert_eq!(apparmor.of_pause(&of(ProfileType::Unconfined, "")).unwrap(), None);
    }

    #[test]
    fn the_parsers_error_is_reported() {
        let host = Host::new("#!/bin/sh\necho 'syntax error' >&2; exit 1\n");
        let error = host.profile(&requesting(ProfileType::RuntimeDefault, "")).unwrap_err();
        assert!(error.contains("syntax error"), "{error}");
        host.write("sys/kernel/security/apparmor/profiles", "berth-default (enforce)\n");
        assert!(host.profile(&requesting(ProfileType::RuntimeDefault, "")).is_ok(), "already loaded");
    }
}
