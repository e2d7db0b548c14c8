//! The end of keepers: they are told over their connection; one that cannot be reached is found among the processes of
//! the host and ended with all that runs in its pod.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::client::{FoundKeeper, find_keepers};
use berth_runtime::wire::Call;

use crate::daemon::{Daemon, Shared, blocking};
use crate::error::CriError;
use crate::ids::{ContainerId, PodId};
use crate::keeper::{Link, LinkError};
use crate::systemd;

/// How long a keeper may take to take a call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the keeper of a pod. One that is gone has ended already.
pub(crate) async fn end(daemon: &Shared, id: &PodId, link: Option<&Link>) -> Result<(), String> {
    let told = match link {
        Some(link) => tokio::time::timeout(PATIENCE, link.done(Call::Shutdown)).await,
        None => Ok(Err(LinkError::Gone)),
    };
    match told {
        Ok(Ok(())) => return Ok(()),
        // What has ended is the connection, and perhaps nothing else.
        Ok(Err(LinkError::Gone)) => {}
        Ok(Err(error)) => tracing::warn!(pod = id.as_str(), %error, "tell the keeper to end"),
        Err(_) => tracing::warn!(pod = id.as_str(), "the keeper does not answer"),
    }
    let (daemon, id) = (daemon.clone(), id.clone());
    let ended = blocking(move || end_found(&daemon, |found| *found == id));
    ended.await.map_err(|error| error.to_string())
}

/// Ends the keepers of this daemon that no pod has a connection to: of a pod that has no record any more, or whose folder
/// with the keeper's socket was removed.
pub(crate) async fn end_unreachable(daemon: &Shared) {
    let ending = daemon.clone();
    let ended = blocking(move || {
        let connected: BTreeSet<PodId> =
            ending.store.pods().iter().filter(|pod| pod.link().is_some()).map(|pod| pod.id.clone()).collect();
        end_found(&ending, |id| !connected.contains(id))
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "end keepers that cannot be reached");
    }
}

/// Ends all of them, and goes on after an error.
fn end_found(daemon: &Daemon, wanted: impl Fn(&PodId) -> bool) -> Result<(), CriError> {
    let ours = Ours::of(daemon);
    let mut errors = Vec::new();
    for keeper in find_keepers(|keeper| ours.has(keeper).is_some_and(|id| wanted(&id))) {
        tracing::warn!(
            pod = keeper.pod(),
            "the keeper cannot be reached: it is ended with all that runs in its pod"
        );
        match keeper.end() {
            Ok(cgroups) => remove_cgroups(daemon, &cgroups),
            Err(error) => errors.push(error.to_string()),
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        _ => Err(CriError::internal("end keepers", errors.join("; "))),
    }
}

/// Which keepers are those of this daemon, and not of another one on the host.
struct Ours<'a> {
    daemon: &'a Daemon,
    /// The folder of the pods' volatile folders, as the kernel calls it.
    folder: Option<PathBuf>,
}

impl<'a> Ours<'a> {
    fn of(daemon: &'a Daemon) -> Self {
        Self { daemon, folder: daemon.folders.pods_state().canonicalize().ok() }
    }

    /// The pod of a keeper that this daemon or a former one has started: its folder is here or was, or, where that cannot
    /// be told any more, its record is here. No other daemon has the same folders ([`crate::server::Claim`]), and no two
    /// pods the same id; but somebody may have copied the records of another daemon.
    fn has(&self, keeper: &FoundKeeper) -> Option<PodId> {
        let id = PodId::try_from(keeper.pod().to_owned()).ok()?;
        let elsewhere = keeper.folder().is_some_and(Path::exists);
        let known = !elsewhere
            && (self.daemon.store.pod(id.as_str()).is_ok() || self.daemon.folders.pod(&id).exists());
        let here =
            self.folder.as_ref().is_some_and(|folder| keeper.folder() == Some(&folder.join(id.as_str())));
        (known || here).then_some(id)
    }
}

/// Removes the cgroups of pods and containers whose processes have ended: of some there is no record.
fn remove_cgroups(daemon: &Daemon, paths: &BTreeSet<String>) {
    for path in paths.iter().filter_map(|path| of_object(path)).collect::<BTreeSet<_>>() {
        let removed = CgroupPath::from_recorded(&path).map_err(CriError::from).and_then(|path| {
            let cgroup = Cgroup::open(&daemon.hierarchies, &path);
            // Whoever is still in it is not of this pod.
            if cgroup.processes()?.is_empty() { Ok(cgroup.release()?) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::warn!(path, %error, "remove a cgroup that nothing is left in");
        }
    }
}

/// The path up to the cgroup of a pod or container, which ends with an id.
fn of_object(path: &str) -> Option<String> {
    let mut whole = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        whole = format!("{whole}/{part}");
        let id = part.strip_suffix(".scope").and_then(|scope| scope.rsplit('-').next()).unwrap_or(part);
        if ContainerId::try_from(id.to_owned())
            .is_ok_and(|id| part == id.as_str() || part == systemd::scope_name(id.as_str()))
        {
            return Some(whole);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_an_object_ends_with_its_id() {
        let id = "0f".repeat(32);
        for (path, wanted) in [
            (format!("/kubepods/pod7/{id}"), Some(format!("/kubepods/pod7/{id}"))),
            (format!("/a/{id}/exec-7-1"), Some(format!("/a/{id}"))),
            (format!("/a.slice/berth-{id}.scope/x"), Some(format!("/a.slice/berth-{id}.scope"))),
            (format!("/a.slice/other-{id}.scope"), None),
            ("/kubepods/pod7".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(of_object(&path), wanted, "{path}");
        }
    }
}
