//! User namespaces (CRI `NamespaceOption.userns_options`): one per pod, with one range of ids.

use berth_proto::v1::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace as UserNamespaceOptions};
use berth_runtime::plan::{IdRange, UserNamespace};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::{Result, error};

const FIELD: &str = "namespace_options.userns_options";

/// Returns the requested user namespace; none means the host's.
///
/// # Errors
/// The mode or the mappings are not supported, or the pod also shares namespaces with the host that a pod with a user
/// namespace cannot share.
pub fn requested(options: &NamespaceOption) -> Result<Option<UserNamespace>> {
    let Some(user_namespace) = &options.userns_options else { return Ok(None) };
    match user_namespace.mode() {
        NamespaceMode::Node => return Ok(None),
        NamespaceMode::Pod => {}
        other => return Err(error(FIELD, format!("mode {} is not supported", other.as_str_name()))),
    }
    for (what, mode) in [("network", options.network()), ("pid", options.pid()), ("ipc", options.ipc())] {
        if mode == NamespaceMode::Node {
            return Err(error(
                FIELD,
                format!("a pod with a user namespace cannot share the host's {what} namespace"),
            ));
        }
    }
    ranges(user_namespace).map(Some)
}

fn ranges(user_namespace: &UserNamespaceOptions) -> Result<UserNamespace> {
    Ok(UserNamespace {
        uids: vec![range("uids", &user_namespace.uids)?],
        gids: vec![range("gids", &user_namespace.gids)?],
    })
}

fn range(name: &str, mappings: &[IdMapping]) -> Result<IdRange> {
    let field = format!("{FIELD}.{name}");
    let [mapping] = mappings else {
        return Err(error(field, format!("has {} mappings; exactly one is supported", mappings.len())));
    };
    let &IdMapping { host_id, container_id, length } = mapping;
    // The id with all bits set does not exist in the kernel (credentials(7)).
    let fits = |first: u32| length > 0 && first.checked_add(length).is_some();
    if container_id != 0 || !fits(host_id) {
        let why = format!(
            "{length} ids from {container_id}, on the host from {host_id}, are not a valid range from root"
        );
        return Err(error(field, why));
    }
    Ok(IdRange { inside: container_id, outside: host_id, length })
}

/// Converts ranges to mappings of the OCI spec.
///
/// # Errors
/// Never for checked ranges.
pub(super) fn mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>> {
    let one = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .container_id(range.inside)
            .host_id(range.outside)
            .size(range.length)
            .build()
            .map_err(|oci| error(FIELD, oci.to_string()))
    };
    ranges.iter().map(one).collect()
}

/// Returns the id mappings of a volume, if it has any (CRI `Mount.uidMappings`, `gidMappings`). They are mostly the
/// pod's.
///
/// # Errors
/// A mapping is not a valid range, or only user or only group ids are mapped.
pub(super) fn of_volume(
    field: impl Fn(&str) -> String,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> Result<Option<UserNamespace>> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let ranges = |name: &str, mappings: &[IdMapping]| {
        if mappings.is_empty() {
            return Err(error(field(name), "are missing, and the others are given"));
        }
        let range = |mapping: &IdMapping| {
            let &IdMapping { host_id, container_id, length } = mapping;
            let fits = |first: u32| length > 0 && first.checked_add(length).is_some();
            let why = || {
                format!("{length} ids from {container_id}, on the host from {host_id}, are not a valid range")
            };
            match fits(host_id) && fits(container_id) {
                true => Ok(IdRange { inside: container_id, outside: host_id, length }),
                false => Err(error(field(name), why())),
            }
        };
        mappings.iter().map(range).collect::<Result<Vec<_>>>()
    };
    Ok(Some(UserNamespace { uids: ranges("uidMappings", uids)?, gids: ranges("gidMappings", gids)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: NamespaceMode, uids: Vec<IdMapping>) -> NamespaceOption {
        let gids = uids.clone();
        let pid = NamespaceMode::Container.into();
        NamespaceOption {
            pid,
            userns_options: Some(UserNamespaceOptions { mode: mode.into(), uids, gids }),
            ..Default::default()
        }
    }

    const ONE: IdMapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };

    #[test]
    fn one_range_from_root_on_is_a_namespace() {
        let found = requested(&options(NamespaceMode::Pod, vec![ONE])).unwrap().unwrap();
        assert_eq!((found.host_uid(5), found.host_uid(65_536)), (Some(100_005), None));
        assert_eq!(requested(&options(NamespaceMode::Node, Vec::new())).unwrap(), None);
        assert_eq!(requested(&NamespaceOption::default()).unwrap(), None);
        for (mode, mappings) in [
            (NamespaceMode::Pod, vec![]),
            (NamespaceMode::Pod, vec![ONE, IdMapping { container_id: 65_536, ..ONE }]),
            (NamespaceMode::Pod, vec![IdMapping { container_id: 1, ..ONE }]),
            (NamespaceMode::Pod, vec![IdMapping { length: 0, ..ONE }]),
            (NamespaceMode::Pod, vec![IdMapping { host_id: u32::MAX, ..ONE }]),
            (NamespaceMode::Container, vec![ONE]),
            (NamespaceMode::Target, vec![ONE]),
        ] {
            assert!(requested(&options(mode, mappings.clone())).is_err(), "{mode:?} {mappings:?}");
        }
        let name = |name: &str| format!("v.{name}");
        assert_eq!(of_volume(name, &[], &[]).unwrap(), None);
        let other = IdMapping { container_id: 7, ..ONE };
        assert_eq!(of_volume(name, &[other, ONE], &[ONE]).unwrap().unwrap().uids[0].inside, 7);
        assert!(of_volume(name, &[ONE], &[]).unwrap_err().to_string().contains("v.gidMappings"));
        assert!(of_volume(name, &[ONE], &[IdMapping { length: 0, ..ONE }]).is_err());
        let mut shared = options(NamespaceMode::Pod, vec![ONE]);
        shared.network = NamespaceMode::Node.into();
        assert!(requested(&shared).unwrap_err().to_string().contains("network"));
    }
}
