//! Keepers as pods have them: what they hand out, and their end. A keeper is told to end; one that does not is killed by its
//! pidfd. At the start of the daemon, keepers are found among the processes of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::client::{FoundKeeper, find_keepers};
use berth_runtime::wire::{Call, Outcome};

use crate::daemon::{Daemon, Shared, blocking};
use crate::error::CriError;
use crate::ids::{ContainerId, PodId};
use crate::keeper::{KeeperClient, KeeperError, wait_for_end};
use crate::systemd;

/// How long a keeper may take to end when it is killed: one in an uninterruptible sleep takes as long as its disk.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// The pause as the keeper hands it out.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) pid: i32,
    pub(crate) netns: OwnedFd,
    pub(crate) userns: Option<OwnedFd>,
}

/// The pause's pid and the pod's namespaces out of the keeper's answer: after the pidfd that of the network and, if there
/// is one, that of the users.
pub(crate) fn pause_of(outcome: Outcome, descriptors: Vec<OwnedFd>) -> Result<Pause, CriError> {
    let mut descriptors = descriptors.into_iter().skip(1);
    match (outcome, descriptors.next()) {
        (Outcome::Sandbox { pid }, Some(netns)) => Ok(Pause { pid, netns, userns: descriptors.next() }),
        (other, _) => Err(CriError::internal("start the pause", format!("unexpected answer {other:?}"))),
    }
}

/// Ends a keeper: it is told, and killed where it does not answer.
///
/// # Errors
/// It does not end, with what it is doing.
pub(crate) async fn end(link: &KeeperClient) -> Result<(), String> {
    match link.execute(Call::Shutdown).await {
        Ok(()) | Err(KeeperError::Gone) => return Ok(()),
        Err(error) => tracing::warn!(%error, "the keeper is killed, since it does not end when it is told"),
    }
    let process = link.process();
    process.kill();
    match wait_for_end(&process, AFTER_KILL).await {
        true => Ok(()),
        false => Err(format!("the keeper does not end: {}", process.describe())),
    }
}

/// The keepers of this daemon and of its predecessors that live, by their pods.
///
/// # Errors
/// The processes of the host cannot be looked at.
pub(crate) async fn living(daemon: &Shared) -> Result<BTreeMap<PodId, FoundKeeper>, CriError> {
    let daemon = daemon.clone();
    blocking(move || {
        let ours = Ours::of(&daemon);
        let found = find_keepers(|keeper| ours.has(keeper).is_some())
            .map_err(|error| CriError::internal("look for keepers", error))?;
        Ok::<_, CriError>(found.into_iter().filter_map(|keeper| Some((ours.has(&keeper)?, keeper))).collect())
    })
    .await
}

/// Ends keepers that cannot be reached, since they have no record or no socket any more, with all that runs in their pods.
pub(crate) async fn end_unreachable(daemon: &Shared, keepers: Vec<FoundKeeper>) {
    let ending = daemon.clone();
    let ended = blocking(move || {
        for keeper in keepers {
            tracing::warn!(
                pod = keeper.pod(),
                "the keeper cannot be reached: it is ended with all that runs in its pod"
            );
            match keeper.end() {
                Ok(cgroups) => remove_cgroups(&ending, &cgroups),
                Err(error) => tracing::error!(%error, "failed to end a keeper"),
            }
        }
        Ok::<_, CriError>(())
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "failed to end keepers that cannot be reached");
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
        let known = !elsewhere && self.daemon.folders.pod(&id).exists();
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
