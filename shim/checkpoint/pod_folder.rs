//! The folder with the checkpoint of a pod, which the client creates. Each file in it appears when it is complete, the
//! description last; if the daemon is killed in between, the next one removes the files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::archive::{ArchiveLocation, UnnamedArchive, plain_path};
use super::pod_manifest::{MANIFEST, PodManifest, container_file};
use super::shared_dump::{MEMORY_FILES, segment_file};
use super::work::CheckpointWork;
use crate::error::CriError;
use crate::store::file;

/// The file in the work folder with the intent: the files that are about to appear.
const INTENT: &str = "output.json";

/// The folder that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFolder(PathBuf);

impl OutputFolder {
    /// Checks the path in a request.
    ///
    /// # Errors
    /// `InvalidArgument`: it is not an absolute path.
    pub fn new(path: &str) -> Result<Self, CriError> {
        plain_path("output_path", path).map(Self)
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Checks that the folder exists and is empty.
    ///
    /// # Errors
    /// `FailedPrecondition` if not.
    pub fn check(&self) -> Result<(), CriError> {
        let refuse = |why: &dyn std::fmt::Display| {
            Err(CriError::precondition(format!("output_path {}", self.0.display()), why))
        };
        match fs::symlink_metadata(&self.0) {
            Ok(stat) if stat.is_dir() => {}
            Ok(_) => return refuse(&"it is not a folder"),
            Err(error) => return refuse(&error),
        }
        match fs::read_dir(&self.0).map(|mut entries| entries.next().is_some()) {
            Ok(false) => Ok(()),
            Ok(true) => refuse(&"it is not empty"),
            Err(error) => refuse(&error),
        }
    }

    /// Writes all files, and gives them their names when `in_time` agrees. Leaves none after a failure.
    ///
    /// # Errors
    /// A file cannot be written, or it is too late.
    pub fn write(
        &self,
        manifest: &PodManifest,
        containers: &[CheckpointWork],
        pod: &CheckpointWork,
        in_time: impl FnOnce() -> Result<(), CriError>,
    ) -> Result<(), CriError> {
        let names = names_of(manifest);
        let places: Vec<_> = names.iter().map(|name| ArchiveLocation::in_folder(&self.0, name)).collect();
        let mut files = Vec::new();
        for (index, (name, place)) in names.iter().zip(&places).enumerate() {
            files.push(match containers.get(index) {
                Some(work) => UnnamedArchive::write(work, place)?,
                None if name == MANIFEST => {
                    let text = serde_json::to_vec(manifest).unwrap_or_default();
                    UnnamedArchive::copy(&mut &text[..], place)?
                }
                None => {
                    let source = File::open(pod.file(name));
                    let mut source =
                        source.map_err(|error| CriError::internal(format!("open {name}"), error))?;
                    UnnamedArchive::copy(&mut source, place)?
                }
            });
        }
        in_time()?;
        let intent: Vec<PathBuf> = places.iter().map(|place| place.path().to_owned()).collect();
        file::replace(&pod.file(INTENT), &intent)?;
        for (index, file) in files.into_iter().enumerate() {
            if let Err(error) = file.publish() {
                remove_all(intent.get(..index).unwrap_or_default());
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The files of a checkpoint, in the order in which they appear.
fn names_of(manifest: &PodManifest) -> Vec<String> {
    let containers = (0..manifest.containers.len()).map(container_file);
    let memory = manifest.shared.ipc.then(|| MEMORY_FILES.to_owned());
    let segments = (0..manifest.shared.segments.len()).map(segment_file);
    containers.chain(memory).chain(segments).chain([MANIFEST.to_owned()]).collect()
}

/// Removes the files of a checkpoint that was interrupted while they appeared. If the description is there, so are all.
pub fn remove_interrupted(pod: &CheckpointWork) {
    let Ok(intent) = file::read::<Vec<PathBuf>>(&pod.file(INTENT)) else { return };
    if intent.last().is_some_and(|manifest| !manifest.exists()) {
        remove_all(&intent);
    }
}

fn remove_all(paths: &[PathBuf]) {
    for path in paths {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "failed to remove a file of a checkpoint");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::pod_manifest::{ManifestContainer, VERSION};
    use crate::checkpoint::shared_state::{SharedState, SysvObject};

    fn works(parent: &Path) -> (CheckpointWork, CheckpointWork) {
        let container = CheckpointWork::at(parent.join("container"));
        let pod = CheckpointWork::at(parent.join("pod"));
        container.create().unwrap();
        pod.create().unwrap();
        fs::write(pod.file(MEMORY_FILES), "memory").unwrap();
        fs::write(pod.file("segment-0"), "segment").unwrap();
        (container, pod)
    }

    fn manifest() -> PodManifest {
        let shared =
            SharedState { ipc: true, segments: vec![SysvObject::default()], ..SharedState::default() };
        PodManifest { version: VERSION, containers: vec![ManifestContainer::default()], shared }
    }

    fn names(folder: &Path) -> Vec<String> {
        file::names_in(folder)
            .unwrap()
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    #[test]
    fn the_folder_exists_and_is_empty() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| OutputFolder::new(parent.path().join(name).to_str().unwrap()).unwrap();
        fs::create_dir(parent.path().join("empty")).unwrap();
        fs::write(parent.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("empty", parent.path().join("link")).unwrap();
        assert!(at("empty").check().is_ok());
        for bad in ["missing", "file", "link"] {
            assert!(at(bad).check().is_err(), "{bad}");
        }
        assert!(OutputFolder::new(parent.path().to_str().unwrap()).unwrap().check().is_err());
        assert!(OutputFolder::new("relative").is_err() && OutputFolder::new("/a/../b").is_err());
    }

    #[test]
    fn all_files_appear_or_none() {
        let parent = tempfile::tempdir().unwrap();
        let (container, pod) = works(parent.path());
        let out = parent.path().join("out");
        fs::create_dir(&out).unwrap();
        let folder = OutputFolder::new(out.to_str().unwrap()).unwrap();
        let works = [container];
        let late = folder.write(&manifest(), &works, &pod, || Err(CriError::deadline("late")));
        assert!(late.is_err() && names(&out).is_empty());
        fs::write(out.join("segment-0"), "of another").unwrap();
        assert!(folder.write(&manifest(), &works, &pod, || Ok(())).is_err());
        assert_eq!(names(&out), ["segment-0"]);
        fs::remove_file(out.join("segment-0")).unwrap();
        folder.write(&manifest(), &works, &pod, || Ok(())).unwrap();
        assert_eq!(names(&out), ["container-0.tar", "pod.json", "segment-0", "shm.tar"]);
        assert_eq!(PodManifest::read(&out).unwrap_err().code(), tonic::Code::FailedPrecondition, "no name");

        // Nothing of a complete one is removed; of an incomplete one, everything.
        remove_interrupted(&pod);
        assert_eq!(names(&out).len(), 4);
        fs::remove_file(out.join(MANIFEST)).unwrap();
        remove_interrupted(&pod);
        assert!(names(&out).is_empty());
    }
}
