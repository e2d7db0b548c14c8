//! Mounts of a spec that this runtime carries out by other mounts.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use berth_runtime::cgroup::Cgroup;
use berth_runtime::path::Root;
use berth_runtime::plan::CgroupHierarchy;
use berth_runtime::sys::fs::descriptor_path;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{At, Error, Result};

/// The options of the folder in which the hierarchies of version 1 are mounted.
const PLACE: [&str; 4] = ["nosuid", "nodev", "noexec", "mode=755"];

/// The option of a tmpfs that has a copy of the folder that it covers.
const COPY_UP: &str = "tmpcopyup";

/// Replaces mounts of the spec.
///
/// * Without a cgroup namespace, a cgroup mount of version 1 shows only the container's own cgroups.
/// * A tmpfs that copies an empty folder is a normal one.
pub(crate) fn adapt(spec: &mut Spec, root: &Root, cgroup: &Cgroup, cgroup_namespace: bool) -> Result<()> {
    let Some(mounts) = spec.mounts_mut() else { return Ok(()) };
    let cgroups = if cgroup_namespace { Vec::new() } else { cgroup.folders_in_container() };
    let mut adapted = Vec::with_capacity(mounts.len());
    for mut mount in std::mem::take(mounts) {
        if mount.typ().as_deref() == Some("cgroup") && !cgroups.is_empty() {
            adapted.extend(own_cgroups(&mount, &cgroups));
            continue;
        }
        if has_option(&mount, COPY_UP) {
            refuse_content(root, mount.destination())?;
            let options = mount.options().iter().flatten().filter(|option| *option != COPY_UP);
            let options = options.cloned().collect::<Vec<_>>();
            mount.set_options(Some(options));
        }
        adapted.push(mount);
    }
    *mounts = adapted;
    Ok(())
}

fn has_option(mount: &Mount, name: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == name)
}

/// Returns a folder, and in it the container's cgroup of each hierarchy.
fn own_cgroups(mount: &Mount, cgroups: &[(CgroupHierarchy, &Path)]) -> Vec<Mount> {
    let new = |kind: &str, source: &Path, destination: &Path, options: &[&str]| {
        let mut new = Mount::default();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        new.set_typ(Some(kind.to_owned()))
            .set_source(Some(source.to_owned()))
            .set_destination(destination.to_owned())
            .set_options(Some(options));
        new
    };
    let place = mount.destination();
    let mut options = vec!["bind", "nosuid", "nodev", "noexec"];
    options.extend(has_option(mount, "ro").then_some("ro"));
    let mut all = vec![new("tmpfs", Path::new("tmpfs"), place, &PLACE)];
    for (hierarchy, folder) in cgroups {
        let names = [&hierarchy.folder].into_iter().chain(&hierarchy.links);
        all.extend(names.map(|name| new("bind", folder, &place.join(name), &options)));
    }
    all
}

/// Rejects a folder of the root filesystem that has content.
fn refuse_content(root: &Root, path: &Path) -> Result<()> {
    let text = path.to_str().unwrap_or_default();
    let folder = match root.open(text, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(error) if [Errno::NOENT, Errno::NOTDIR].contains(&error.errno) => return Ok(()),
        opened => opened?,
    };
    match fs::read_dir(descriptor_path(folder.as_fd())).at("read", path)?.next() {
        None => Ok(()),
        Some(_) => Err(Error::Unsupported(format!("{COPY_UP} of {text}, which is not empty,"))),
    }
}
