//! The seccomp profile of a container.

use std::path::PathBuf;

use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::{LinuxContainerSecurityContext, SecurityProfile};
use berth_runtime::seccomp::default;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};

use super::{Host, Result, capabilities, error};

const FIELD: &str = "seccomp";

/// The names of the default profile in the deprecated field (former annotations of the kubelet).
const DEFAULTS: [&str; 2] = ["runtime/default", "docker/default"];
/// The name for no profile in the deprecated field.
const UNCONFINED: &str = "unconfined";
/// The prefix of a path in the deprecated field.
const LOCALHOST: &str = "localhost/";

/// The requested profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeccompChoice {
    /// No profile.
    Unconfined,
    /// The default profile of berth.
    RuntimeDefault,
    /// A file of the host.
    Localhost(PathBuf),
}

/// Returns the profile that a pod or container requests, in the field `seccomp` or else in the deprecated field.
///
/// # Errors
/// The request is invalid.
pub fn choice(profile: Option<&SecurityProfile>, deprecated: &str) -> Result<SeccompChoice> {
    let Some(profile) = profile else { return deprecated_choice(deprecated) };
    let reference = profile.localhost_ref.as_str();
    match profile.profile_type() {
        _ if ProfileType::try_from(profile.profile_type).is_err() => {
            Err(error(FIELD, format!("{} is not a profile type", profile.profile_type)))
        }
        ProfileType::Localhost => localhost(reference),
        _ if !reference.is_empty() => {
            Err(error(FIELD, "localhost_ref is set and profile_type is not Localhost"))
        }
        ProfileType::RuntimeDefault => Ok(SeccompChoice::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompChoice::Unconfined),
    }
}

fn deprecated_choice(profile: &str) -> Result<SeccompChoice> {
    match profile {
        "" | UNCONFINED => Ok(SeccompChoice::Unconfined),
        profile if DEFAULTS.contains(&profile) => Ok(SeccompChoice::RuntimeDefault),
        profile if profile.starts_with(LOCALHOST) => localhost(profile),
        profile => Err(error("seccomp_profile_path", format!("{profile:?} is not a profile"))),
    }
}

/// Returns a profile of the host. The kubelet sends the absolute path of a file in its own folder.
fn localhost(reference: &str) -> Result<SeccompChoice> {
    let path = PathBuf::from(reference.strip_prefix(LOCALHOST).unwrap_or(reference));
    if !path.is_absolute() || reference.contains('\0') {
        return Err(error(FIELD, format!("localhost_ref {reference:?} is not an absolute path")));
    }
    Ok(SeccompChoice::Localhost(path))
}

/// Returns the choice of a container; a privileged one has no profile.
///
/// # Errors
/// As [`choice`].
pub fn container_choice(security: &LinuxContainerSecurityContext) -> Result<SeccompChoice> {
    #[expect(deprecated, reason = "older clients send it")]
    let choice = choice(security.seccomp.as_ref(), &security.seccomp_profile_path)?;
    Ok(if security.privileged { SeccompChoice::Unconfined } else { choice })
}

/// Returns the profile of a container with these capabilities.
pub(super) fn profile(
    security: &LinuxContainerSecurityContext,
    capabilities: Option<&LinuxCapabilities>,
    host: &Host,
) -> Result<Option<LinuxSeccomp>> {
    match container_choice(security)? {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::RuntimeDefault => {
            let bounding = capabilities.and_then(|sets| sets.bounding().as_ref());
            let profile = default::profile(bounding.map(capabilities::mask).unwrap_or_default());
            profile.map(Some).map_err(|oci| error(FIELD, oci.to_string()))
        }
        SeccompChoice::Localhost(path) => match &host.seccomp_profile {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(error(FIELD, format!("profile {} has not been read", path.display()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(kind: ProfileType, reference: &str) -> Result<SeccompChoice> {
        let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() };
        choice(Some(&profile), "unconfined")
    }

    #[test]
    fn the_newer_field_wins() {
        assert_eq!(chosen(ProfileType::RuntimeDefault, "").unwrap(), SeccompChoice::RuntimeDefault);
        assert_eq!(chosen(ProfileType::Unconfined, "").unwrap(), SeccompChoice::Unconfined);
        let path = SeccompChoice::Localhost("/var/lib/kubelet/seccomp/a.json".into());
        assert_eq!(chosen(ProfileType::Localhost, "/var/lib/kubelet/seccomp/a.json").unwrap(), path);
        assert_eq!(
            chosen(ProfileType::Localhost, "localhost//var/lib/kubelet/seccomp/a.json").unwrap(),
            path
        );
        assert!(chosen(ProfileType::Localhost, "a.json").is_err());
        assert!(chosen(ProfileType::RuntimeDefault, "/a.json").is_err());
    }

    #[test]
    fn the_deprecated_field_has_names_for_profiles() {
        assert_eq!(choice(None, "").unwrap(), SeccompChoice::Unconfined);
        assert_eq!(choice(None, "runtime/default").unwrap(), SeccompChoice::RuntimeDefault);
        assert_eq!(choice(None, "localhost//a.json").unwrap(), SeccompChoice::Localhost("/a.json".into()));
        assert!(choice(None, "nonsense").is_err());
    }

    #[test]
    fn a_privileged_container_has_no_profile() {
        let profile =
            SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
        let security = LinuxContainerSecurityContext {
            seccomp: Some(profile),
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        };
        assert_eq!(container_choice(&security).unwrap(), SeccompChoice::Unconfined);
    }
}
