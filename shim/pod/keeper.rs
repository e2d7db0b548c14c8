//! The keeper of a pod: its pause and namespaces, and its shutdown. A keeper that does not shut down on request is
//! killed by its pidfd. When the daemon starts, it finds the keepers among the processes of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use berth_runtime::client::FoundKeeper;
use berth_runtime::wire::{Call, Outcome};

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::ids::{ContainerId, PodId};
use crate::inventory::processes::OwnKeepers;
use crate::keeper::{KeeperClient, KeeperError, wait_for_end};
use crate::store::Folders;
use crate::systemd;

/// The time limit for the exit of a killed keeper. In an uninterruptible sleep it exits only when its disk answers.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// The pause, with the descriptors from the keeper.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) pid: i32,
    pub(crate) netns: OwnedFd,
    pub(crate) userns: Option<OwnedFd>,
}

/// Returns the pause's pid and the pod's namespaces from the keeper's answer. After the pidfd, the descriptors are the
/// network namespace and, if the pod has one, the user namespace.
pub(crate) fn pause_of(outcome: Outcome, descriptors: Vec<OwnedFd>) -> Result<Pause, CriError> {
    let mut descriptors = descriptors.into_iter().skip(1);
    match (outcome, descriptors.next()) {
        (Outcome::Sandbox { pid }, Some(netns)) => Ok(Pause { pid, netns, userns: descriptors.next() }),
        (other, _) => Err(CriError::internal("start the pause", format!("unexpected answer {other:?}"))),
    }
}

/// Shuts down a keeper. If it does not answer, it is killed.
///
/// # Errors
/// The keeper does not exit; the error describes what it waits for.
pub(crate) async fn shut_down(link: &KeeperClient) -> Result<(), String> {
    match link.execute(Call::Shutdown).await {
        Ok(()) | Err(KeeperError::Gone) => return Ok(()),
        Err(error) => tracing::warn!(%error, "killing the keeper: it does not shut down"),
    }
    let process = link.process();
    process.kill();
    match wait_for_end(&process, AFTER_KILL).await {
        true => Ok(()),
        false => Err(format!("the keeper does not exit: {}", process.describe())),
    }
}

/// Returns the living keepers of this daemon and of its predecessors, by their pods.
///
/// # Errors
/// The processes of the host cannot be read.
pub(crate) async fn living_keepers(folders: &Folders) -> Result<BTreeMap<PodId, FoundKeeper>, CriError> {
    let folders = folders.clone();
    blocking(move || {
        let found = OwnKeepers::of(&folders).find();
        let found = found.map_err(|error| CriError::internal("find keepers", error))?;
        Ok::<_, CriError>(found.into_iter().collect())
    })
    .await
}

/// Ends keepers that cannot be reached, since they have no record or no socket, and all processes of their pods.
pub(crate) async fn end_unreachable(cgroups: &Cgroups, keepers: Vec<FoundKeeper>) {
    let all = cgroups.clone();
    let ended = blocking(move || {
        for keeper in keepers {
            tracing::warn!(pod = keeper.pod(), "ending an unreachable keeper and all processes of its pod");
            match keeper.end() {
                Ok(cgroups) => remove_cgroups(&all, &cgroups),
                Err(error) => tracing::error!(%error, "failed to end a keeper"),
            }
        }
        Ok::<_, CriError>(())
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "failed to end unreachable keepers");
    }
}

/// Removes the cgroups of pods and containers after their processes have ended. Some of them have no record.
fn remove_cgroups(cgroups: &Cgroups, paths: &BTreeSet<String>) {
    for path in paths.iter().filter_map(|path| of_object(path)).collect::<BTreeSet<_>>() {
        let removed = cgroups.recorded(&path).and_then(|cgroup| {
            // Processes that are still in it do not belong to this pod.
            if cgroup.processes()?.is_empty() { Ok(cgroup.release()?) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::warn!(path, %error, "failed to remove an empty cgroup");
        }
    }
}

/// Returns the path up to the cgroup of a pod or container, which ends with an id.
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
        for (path, expected) in [
            (format!("/kubepods/pod7/{id}"), Some(format!("/kubepods/pod7/{id}"))),
            (format!("/a/{id}/exec-7-1"), Some(format!("/a/{id}"))),
            (format!("/a.slice/berth-{id}.scope/x"), Some(format!("/a.slice/berth-{id}.scope"))),
            (format!("/a.slice/other-{id}.scope"), None),
            ("/kubepods/pod7".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(of_object(&path), expected, "{path}");
        }
    }
}
