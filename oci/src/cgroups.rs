//! The cgroup that a spec names (OCI runtime specification, "Cgroups Path").

use std::path::{Component, Path};

use berth_runtime::cgroup::{Cgroup, CgroupPath};

use crate::error::{Error, Result};
use crate::store::hierarchies;

/// Returns the path of a container's cgroup. Without a path in the spec, it is `/berth-oci-ID`.
pub(crate) fn path(requested: Option<&Path>, id: &str) -> Result<CgroupPath> {
    let requested = requested.filter(|path| !path.as_os_str().is_empty());
    let Some(requested) = requested else { return Ok(CgroupPath::new("/", &format!("berth-oci-{id}"))?) };
    let text = requested.to_str().unwrap_or_default();
    if !text.contains('/') && text.split(':').count() == 3 {
        return Err(Error::Unsupported(format!("linux.cgroupsPath {text:?} of systemd")));
    }
    let path = CgroupPath::from_recorded(text)?;
    match path.leaf() {
        Some(_) => Ok(path),
        None => Err(invalid(&path, "is the root of the hierarchies")),
    }
}

/// Rejects a cgroup that has processes. The end of a container kills everything in its cgroup, so it must not be shared.
pub(crate) fn check_unused(path: &CgroupPath) -> Result<()> {
    match Cgroup::open(&hierarchies()?, path).processes()?.is_empty() {
        true => Ok(()),
        false => Err(invalid(path, "has processes")),
    }
}

/// Returns the cgroup of an exec: the container's, or one below it for all or some controllers.
pub(crate) fn of_exec(container: Cgroup, requested: &[String]) -> Result<Cgroup> {
    let mut cgroup = container;
    for text in requested {
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').map(Some).collect(), path),
            None => (vec![None], text.as_str()),
        };
        let path = Path::new(path.trim_start_matches('/'));
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            let why = format!("{text:?} is not below the container's cgroup");
            return Err(Error::Invalid { field: "--cgroup", why });
        }
        for controller in controllers {
            cgroup = cgroup.below(controller, path)?;
        }
    }
    Ok(cgroup)
}

fn invalid(path: &CgroupPath, why: &str) -> Error {
    Error::Invalid { field: "linux.cgroupsPath", why: format!("{path} {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_used_as_it_is() {
        let named = |path: &str| path_of(Some(path));
        assert_eq!(named("/a/b").unwrap(), "/a/b");
        assert_eq!(named("a").unwrap(), "/a");
        assert_eq!(path_of(None).unwrap(), "/berth-oci-c1");
        assert_eq!(named("").unwrap(), "/berth-oci-c1");
        for root in ["/", "//"] {
            assert!(named(root).unwrap_err().to_string().contains("is the root"), "{root}");
        }
        assert!(named("system.slice:podman:c1").is_err());
        assert!(named("/a/../b").is_err());
    }

    fn path_of(requested: Option<&str>) -> Result<String> {
        path(requested.map(Path::new), "c1").map(|path| path.to_string())
    }
}
