//! The places in a new container at which its plan mounts something, as the processes of a restore see them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use berth_runtime::path::Root;
use berth_runtime::plan::ContainerPlan;
use berth_runtime::restore::{MASKS, MOUNTS, ROOT};

use super::images;
use super::mount_check::{PlanPoints, is_external};
use super::received::ReceivedCheckpoint;

/// Returns the sources of the mounts that come from outside, by their mount points. A point is named as in the request, and
/// without symbolic links: CRIU uses the latter.
pub(super) fn external_mounts(plan: &ContainerPlan) -> Vec<(String, String)> {
    let points = points_of(plan);
    let mut mounts = Vec::new();
    for (index, op) in plan.mounts.iter().enumerate().filter(|(_, op)| is_external(op)) {
        let source = format!("{MOUNTS}/{index}");
        let names: BTreeSet<&String> = points.mounts.get(index).into_iter().chain([&op.target]).collect();
        mounts.extend(names.into_iter().map(|name| (name.clone(), source.clone())));
    }
    for point in &points.masked {
        let mask = if in_container(point).is_some_and(|path| path.is_dir()) { "folder" } else { "file" };
        mounts.push((point.clone(), format!("{MASKS}/{mask}")));
    }
    mounts
}

/// Returns the paths of a plan in the container without symbolic links.
pub(super) fn points_of(plan: &ContainerPlan) -> PlanPoints {
    let resolved = |path: &String| resolve(path);
    let existing = |paths: &[String]| -> Vec<String> {
        paths.iter().filter(|path| in_container(path).is_some()).map(resolved).collect()
    };
    PlanPoints {
        mounts: plan.mounts.iter().map(|op| resolve(&op.target)).collect(),
        masked: existing(&plan.masked_paths),
        read_only: existing(&plan.readonly_paths),
        folders: plan.directories.iter().map(resolved).collect(),
    }
}

/// Returns a path of the host by which one can see what is at a path in the container. The kernel's filesystems are the same.
fn in_container(path: &str) -> Option<PathBuf> {
    let of_kernel = path.starts_with("/proc/") || path.starts_with("/sys/");
    let seen =
        if of_kernel { path.into() } else { Path::new(ROOT).join(resolve(path).trim_start_matches('/')) };
    seen.symlink_metadata().is_ok().then_some(seen)
}

fn resolve(path: &str) -> String {
    let plain = || match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    let resolved = File::open(ROOT).ok().and_then(|root| Root::new(root.into()).resolve(path).ok());
    let Some(resolved) = resolved else { return plain() };
    let seen = fs::read_link(format!("/proc/self/fd/{}", resolved.as_raw_fd())).unwrap_or_default();
    match seen.to_str().and_then(|seen| seen.strip_prefix(ROOT)) {
        Some(inside) if !inside.is_empty() => inside.to_owned(),
        _ => plain(),
    }
}

/// Explains a mount of the checkpoint that the new container does not have. CRIU's own error names only numbers.
pub(super) fn check_external(work: &ReceivedCheckpoint, mounts: &[(String, String)]) -> Result<(), String> {
    let names = images::external_mounts(&work.images())
        .map_err(|error| format!("failed to read its mounts: {error}"))?;
    let has = |name: &String| mounts.iter().any(|(point, _)| point == name);
    match names.into_iter().find(|name| !has(name)) {
        Some(missing) => Err(format!(
            "the checkpoint has a mount from outside at {missing}, which the container does not have"
        )),
        None => Ok(()),
    }
}
