//! Folders of pods and containers, the daemon's socket, and temporary files. Only names that are ids are listed: berth
//! creates no others, and does not touch what an operator puts beside them.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{InventoryError, Object, ObjectKind, Owner, Scope};
use crate::handlers::runtime_of;
use crate::ids::ContainerId;
use crate::log_folders;
use crate::store::file;

/// The age from which a temporary file is not being written: a write takes milliseconds.
const STALE: Duration = Duration::from_secs(60);

/// Makes an owner of an id.
type OwnerOf = fn(String) -> Owner;

/// Returns the folders of pods and containers, the writable layers, and the state of OCI runtimes.
///
/// # Errors
/// A folder cannot be read.
pub fn folders(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let layers = scope.config.root.join("image/containers");
    let mut kinds: Vec<(ObjectKind, PathBuf, OwnerOf)> = vec![
        (ObjectKind::PodFolder, scope.folders.pods(), Owner::Pod),
        (ObjectKind::StateFolder, scope.folders.pods_state(), Owner::Pod),
        (ObjectKind::ContainerFolder, scope.folders.containers(), Owner::Container),
        (ObjectKind::WritableLayer, layers, Owner::Container),
    ];
    let runtimes = scope.config.handlers.iter().filter_map(|(name, _)| runtime_of(&scope.config, name));
    kinds.extend(runtimes.map(|runtime| -> (ObjectKind, PathBuf, OwnerOf) {
        (ObjectKind::RuntimeState, runtime.root, Owner::Container)
    }));
    let mut objects = Vec::new();
    for (kind, folder, owner) in kinds {
        let ids = file::names_in(&folder)?.into_iter().filter(|name| is_id(name));
        objects.extend(ids.map(|id| Object::at(kind, owner(id.clone()), folder.join(id))));
    }
    Ok(objects)
}

/// Whether a name is that of a pod's or container's folder.
fn is_id(name: &str) -> bool {
    ContainerId::try_from(name.to_owned()).is_ok()
}

/// Returns the log folders that berth has created for pods that were not removed.
///
/// # Errors
/// Their records cannot be listed.
pub fn log_folders(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let all = log_folders::all(&scope.folders)?.into_iter();
    Ok(all.map(|(id, path)| Object::at(ObjectKind::LogFolder, Owner::Pod(id), path)).collect())
}

/// Returns the socket if no process listens on it.
#[must_use]
pub fn dead_socket(scope: &Scope) -> Option<Object> {
    let path = &scope.config.socket;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|stat| stat.file_type().is_socket());
    let refused =
        || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    (is_socket && refused()).then(|| Object::at(ObjectKind::Socket, Owner::Daemon, path.clone()))
}

/// Returns the temporary files of writes that were interrupted. Files that are new may be being written.
///
/// # Errors
/// A folder cannot be read.
pub fn temporary(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let root = &scope.config.root;
    let (network, image) = (root.join("network"), root.join("image"));
    let mut places =
        vec![(network.clone(), "tmp"), (image.clone(), "new"), (scope.folders.log_folders(), "tmp")];
    places.extend(["pods", "dhcp"].map(|name| (network.join(name), "tmp")));
    for (above, extension) in [
        (scope.folders.pods(), "tmp"),
        (scope.folders.containers(), "tmp"),
        (image.join("images"), "new"),
        (image.join("layers"), "new"),
    ] {
        places.extend(file::names_in(&above)?.into_iter().map(|name| (above.join(name), extension)));
    }
    let mut objects = Vec::new();
    for (folder, extension) in places {
        if !folder.is_dir() {
            continue;
        }
        let files = file::names_in(&folder)?.into_iter().map(|name| folder.join(name));
        let temporary = files.filter(|file| file.extension().is_some_and(|of| of == extension));
        let stale = temporary.filter(|file| is_stale(file));
        objects.extend(stale.map(|file| Object::at(ObjectKind::TemporaryFile, Owner::Daemon, file)));
    }
    Ok(objects)
}

fn is_stale(file: &Path) -> bool {
    let Ok(stat) = fs::symlink_metadata(file) else { return false };
    let age = stat.modified().ok().and_then(|changed| SystemTime::now().duration_since(changed).ok());
    stat.is_file() && age.is_some_and(|age| age > STALE)
}

/// Returns the entries of the folders in which each pod, container and attachment has one, with or without a record. After
/// a daemon's last pod is removed, there are none.
///
/// # Errors
/// A folder cannot be read.
pub fn entries(scope: &Scope) -> Result<Vec<PathBuf>, InventoryError> {
    let root = &scope.config.root;
    let mut entries = Vec::new();
    for folder in [
        scope.folders.pods(),
        scope.folders.containers(),
        scope.folders.pods_state(),
        root.join("network/pods"),
        root.join("network/dhcp"),
        root.join("image/containers"),
    ] {
        entries.extend(file::names_in(&folder)?.into_iter().map(|name| folder.join(name)));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::config::{Config, HandlerConfig};

    fn scope(folder: &Path) -> Scope {
        let (root, state) = (folder.join("root"), folder.join("state"));
        let config = Config { socket: state.join("berth.sock"), root, state, ..Config::default() };
        Scope::of(&config)
    }

    #[test]
    fn only_folders_with_ids_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let scope = scope(folder.path());
        assert_eq!(folders(&scope).unwrap(), []);
        let id = "0f".repeat(32);
        for name in [&id, "lost+found", &id[1..]] {
            fs::create_dir_all(scope.folders.pods().join(name)).unwrap();
        }
        let path = scope.folders.pods().join(&id);
        assert_eq!(folders(&scope).unwrap(), [Object::at(ObjectKind::PodFolder, Owner::Pod(id), path)]);
        assert_eq!(entries(&scope).unwrap().len(), 3);
    }

    #[test]
    fn the_state_of_an_oci_runtime_belongs_to_its_container() {
        let folder = tempfile::tempdir().unwrap();
        let mut scope = scope(folder.path());
        let (id, path) = ("0f".repeat(32), Some("/usr/sbin/runc".into()));
        scope.config.handlers.insert("runc", HandlerConfig { path, ..HandlerConfig::default() });
        let root = scope.config.state.join("handlers/runc");
        fs::create_dir_all(root.join(&id)).unwrap();
        fs::create_dir(root.join("other")).unwrap();
        let state = Object::at(ObjectKind::RuntimeState, Owner::Container(id.clone()), root.join(id));
        assert_eq!(folders(&scope).unwrap(), [state]);
    }

    #[test]
    fn a_temporary_file_is_listed_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let scope = scope(folder.path());
        let pod = scope.folders.pods().join("0f".repeat(32));
        fs::create_dir_all(&pod).unwrap();
        let file = pod.join("pod.json.tmp");
        fs::write(&file, "{").unwrap();
        fs::write(pod.join("pod.json"), "{}").unwrap();
        assert_eq!(temporary(&scope).unwrap(), []);
        let old = SystemTime::now() - 2 * STALE;
        File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        assert_eq!(temporary(&scope).unwrap(), [Object::at(ObjectKind::TemporaryFile, Owner::Daemon, file)]);
    }

    #[test]
    fn a_socket_without_a_listener_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let scope = scope(folder.path());
        assert_eq!(dead_socket(&scope), None);
        fs::create_dir_all(&scope.config.state).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&scope.config.socket).unwrap();
        assert_eq!(dead_socket(&scope), None);
        drop(listener);
        assert_eq!(dead_socket(&scope).map(|object| object.kind), Some(ObjectKind::Socket));
    }
}
