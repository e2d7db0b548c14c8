//! The security context of a pod: it applies to the pause, the only process of the sandbox itself.

use berth_proto::v1::{Int64Value, LinuxSandboxSecurityContext, PodSandboxConfig};

use super::seccomp::{SeccompChoice, choice};
use super::{Result, error};

const FIELD: &str = "linux.security_context";

/// The user of the pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PauseUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Returns the security context of a pod, with the CRI's zero values if it is missing.
#[must_use]
pub fn security(config: &PodSandboxConfig) -> LinuxSandboxSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// Returns the user of a pod's pause; root if the request has none.
///
/// # Errors
/// A number is not an id, or a group is given without a user.
pub fn user(config: &PodSandboxConfig) -> Result<PauseUser> {
    let security = security(config);
    let id = |value: i64, field: &str| {
        let id = u32::try_from(value).ok().filter(|id| *id < u32::MAX);
        id.ok_or_else(|| error(format!("{FIELD}.{field}"), format!("{value} is not a user or group id")))
    };
    let of =
        |wrapped: Option<&Int64Value>, field: &str| wrapped.map_or(Ok(0), |wrapped| id(wrapped.value, field));
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        // CRI `LinuxSandboxSecurityContext.run_as_group`: "should only be specified when run_as_user is specified".
        return Err(error(format!("{FIELD}.run_as_group"), "is given without run_as_user"));
    }
    let groups = security.supplemental_groups.iter().map(|gid| id(*gid, "supplemental_groups"));
    Ok(PauseUser {
        uid: of(security.run_as_user.as_ref(), "run_as_user")?,
        gid: of(security.run_as_group.as_ref(), "run_as_group")?,
        groups: groups.collect::<Result<_>>()?,
    })
}

/// Returns the seccomp profile that a pod requests. The request is only checked: the pause always has a separate
/// profile, which allows fewer calls than a program needs to start.
///
/// # Errors
/// The request is invalid.
pub fn seccomp_choice(config: &PodSandboxConfig) -> Result<SeccompChoice> {
    let security = security(config);
    #[expect(deprecated, reason = "older clients send it")]
    let choice = choice(security.seccomp.as_ref(), &security.seccomp_profile_path)?;
    Ok(if security.privileged { SeccompChoice::Unconfined } else { choice })
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::LinuxPodSandboxConfig;

    use super::*;

    fn pod(security_context: LinuxSandboxSecurityContext) -> PodSandboxConfig {
        let linux = LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() };
        PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn the_pause_runs_as_the_user_of_the_pod() {
        assert_eq!(user(&PodSandboxConfig::default()).unwrap(), PauseUser::default());
        let requested = LinuxSandboxSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 2000 }),
            supplemental_groups: vec![3000],
            ..Default::default()
        };
        let found = user(&pod(requested.clone())).unwrap();
        assert_eq!(found, PauseUser { uid: 1000, gid: 2000, groups: vec![3000] });
        let alone = LinuxSandboxSecurityContext { run_as_user: None, ..requested.clone() };
        assert!(user(&pod(alone)).unwrap_err().field.ends_with("run_as_group"));
        for value in [-1, i64::from(u32::MAX), i64::MAX] {
            let wrong = Some(Int64Value { value });
            for security in [
                LinuxSandboxSecurityContext { run_as_user: wrong, ..requested.clone() },
                LinuxSandboxSecurityContext { run_as_group: wrong, ..requested.clone() },
                LinuxSandboxSecurityContext { supplemental_groups: vec![value], ..requested.clone() },
            ] {
                assert!(user(&pod(security)).is_err(), "{value}");
            }
        }
    }
}
