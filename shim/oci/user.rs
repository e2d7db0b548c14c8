//! The requested user of a container, before it is resolved in the image.

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, SupplementalGroupsPolicy};
use berth_runtime::users::{GroupsPolicy, Principal, UserRequest};

use super::{Result, error, security};

/// Returns the user of the request, or else of the image.
///
/// # Errors
/// A number is not an id, a group is given without a user, or a user is invalid.
pub fn user_request(config: &ContainerConfig, image: &ImageConfig) -> Result<UserRequest> {
    let security = security(config);
    let id = |value: i64, field: &str| {
        u32::try_from(value)
            .ok()
            .filter(|id| *id < u32::MAX)
            .ok_or_else(|| error(field, format!("{value} is not a user or group id")))
    };
    let by_id = security.run_as_user.as_ref().map(|user| id(user.value, "run_as_user")).transpose()?;
    let group = security.run_as_group.as_ref().map(|group| id(group.value, "run_as_group")).transpose()?;
    let name = security.run_as_username.as_str();
    if by_id.is_none() && name.is_empty() && group.is_some() {
        // CRI `run_as_group`: "should only be specified when run_as_user or run_as_username is specified".
        return Err(error("run_as_group", "is given without run_as_user or run_as_username"));
    }
    let parse =
        |text: &str, field: &str| UserRequest::of_image(text).map_err(|user| error(field, user.to_string()));
    let mut request = match by_id {
        Some(uid) => UserRequest { user: Principal::Id(uid), ..UserRequest::default() },
        None if !name.is_empty() => parse(name, "run_as_username")?,
        None => parse(&image.user, "image user")?,
    };
    if let Some(gid) = group {
        request.group = Some(Principal::Id(gid));
    }
    request.supplemental = security
        .supplemental_groups
        .iter()
        .map(|gid| id(*gid, "supplemental_groups"))
        .collect::<Result<_>>()?;
    request.policy = match security.supplemental_groups_policy() {
        SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    };
    Ok(request)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{Int64Value, LinuxContainerConfig, LinuxContainerSecurityContext};

    use super::*;

    fn image(user: &str) -> ImageConfig {
        ImageConfig { user: user.to_owned(), ..ImageConfig::default() }
    }

    fn config(security_context: LinuxContainerSecurityContext) -> ContainerConfig {
        let linux = LinuxContainerConfig { security_context: Some(security_context), resources: None };
        ContainerConfig { linux: Some(linux), ..ContainerConfig::default() }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let none = config(LinuxContainerSecurityContext::default());
        let request = user_request(&none, &image("web:1000")).unwrap();
        assert_eq!(request.user, Principal::Name("web".to_owned()));
        assert_eq!(request.group, Some(Principal::Id(1000)));
        let user = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 7 }),
            run_as_group: Some(Int64Value { value: 8 }),
            ..Default::default()
        };
        let request = user_request(&config(user), &image("web")).unwrap();
        assert_eq!((request.user, request.group), (Principal::Id(7), Some(Principal::Id(8))));
    }

    #[test]
    fn numbers_that_are_not_ids_are_refused() {
        for value in [-1, i64::from(u32::MAX), i64::MAX] {
            let user = LinuxContainerSecurityContext {
                run_as_user: Some(Int64Value { value }),
                ..Default::default()
            };
            assert!(user_request(&config(user), &image("")).is_err(), "{value}");
        }
        let group = LinuxContainerSecurityContext {
            run_as_group: Some(Int64Value { value: 5 }),
            ..Default::default()
        };
        assert_eq!(user_request(&config(group), &image("")).unwrap_err().field, "run_as_group");
    }
}
