//! The conditions that must hold after the storm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_proto::v1::*;

use crate::storm::trouble::keepers;
use crate::storm::truth::{Container, Done, Kind, Ledger, PodTruth};
use crate::support::{Berth, PATIENCE};

/// The objects that the daemon lists.
struct Listed {
    pods: Vec<PodSandbox>,
    containers: BTreeMap<String, ContainerStatus>,
    names: Vec<(String, String, String)>,
}

async fn list_all(berth: &mut Berth) -> Listed {
    let pods =
        berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    let list = berth.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
    let mut containers = BTreeMap::new();
    let mut names = Vec::new();
    for container in list.containers {
        let name = container.metadata.map(|metadata| metadata.name).unwrap_or_default();
        names.push((container.pod_sandbox_id, name, container.id.clone()));
        containers.insert(container.id.clone(), berth.status(&container.id).await);
    }
    Listed { pods, containers, names }
}

pub async fn check(berth: &mut Berth, ledger: &Ledger) {
    let expected = ledger.pods().clone();
    // Releases and exits can take some time.
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    while Instant::now() < until {
        let listed = list_all(berth).await;
        wrong = pods(&expected, &listed);
        wrong.extend(keepers_of_unlisted(berth, &listed));
        if wrong.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    wrong.into_iter().for_each(|what| ledger.violation(what));
    // Running containers can be used.
    for pod in expected.values().filter(|pod| !pod.broken && pod.stopped == Done::No) {
        for container in pod.containers.iter().filter(|c| must_run(c)) {
            let id = container.id.as_ref().unwrap();
            match berth.exec(id, &["echo", "there"], 60).await {
                Ok(answer) if answer.stdout == b"there\n" => {}
                other => ledger.violation(format!("exec in {id}: {other:?}")),
            }
        }
    }
}

fn must_run(container: &Container) -> bool {
    let Container { kind, started, stopped, removed, .. } = container;
    *kind == Kind::Sleeps && *started == Done::Yes && *stopped == Done::No && *removed == Done::No
}

fn pods(expected: &BTreeMap<String, PodTruth>, listed: &Listed) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<&str, Vec<&PodSandbox>> = BTreeMap::new();
    for pod in &listed.pods {
        let name = pod.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        seen.entry(name).or_default().push(pod);
    }
    for (name, found) in &seen {
        match expected.get(*name) {
            None => wrong.push(format!("pod {name} was not created by a client")),
            Some(_) if found.len() > 1 => wrong.push(format!("pod {name} exists {} times", found.len())),
            Some(pod) if pod.removed == Done::Yes => {
                wrong.push(format!("pod {name} exists after its removal"))
            }
            Some(_) => {}
        }
    }
    for (name, pod) in expected {
        let found = seen.get(name.as_str()).and_then(|found| found.first());
        match (found, &pod.id) {
            (Some(found), Some(id)) if found.id != *id => {
                wrong.push(format!("pod {name} has another id: {id} changed to {}", found.id));
            }
            (None, Some(id)) if pod.removed == Done::No => wrong.push(format!("pod {name} ({id}) is lost")),
            (Some(found), Some(_)) => {
                let ready = found.state() == PodSandboxState::SandboxReady;
                if !ready && !pod.broken && pod.stopped == Done::No {
                    wrong.push(format!("pod {name} ({}) is not ready and was not stopped", found.id));
                }
                if ready && (pod.stopped == Done::Yes) {
                    wrong.push(format!("pod {name} ({}) is ready although it was stopped", found.id));
                }
                wrong.extend(containers(name, pod, found, listed));
            }
            _ => {}
        }
    }
    wrong
}

fn containers(name: &str, pod: &PodTruth, found: &PodSandbox, listed: &Listed) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for (_, container, id) in listed.names.iter().filter(|(of, _, _)| *of == found.id) {
        if !names.insert(container) {
            wrong.push(format!("container {container} of {name} exists twice: {id}"));
        }
    }
    for container in &pod.containers {
        let what = format!("container {} of {name} ({:?})", container.name, container.id);
        let Some(id) = &container.id else { continue };
        match listed.containers.get(id) {
            None if container.removed == Done::No && pod.removed == Done::No => {
                wrong.push(format!("{what} is lost"))
            }
            None => {}
            Some(_) if container.removed == Done::Yes => {
                wrong.push(format!("{what} exists after its removal"))
            }
            Some(status) => wrong.extend(state(pod, container, status).map(|why| format!("{what}: {why}"))),
        }
    }
    wrong
}

/// Returns what is wrong with the state of a container.
fn state(pod: &PodTruth, container: &Container, status: &ContainerStatus) -> Option<String> {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    let stopped = pod.stopped != Done::No || container.stopped != Done::No || container.removed != Done::No;
    let why =
        |text: &str| Some(format!("{text}: {:?} {} {}", status.state(), status.exit_code, status.reason));
    match (status.state(), container.kind) {
        (ContainerCreated | ContainerRunning, _) if pod.stopped == Done::Yes => why("it has not exited"),
        (ContainerRunning, _) if container.stopped == Done::Yes => why("it runs although it was stopped"),
        (ContainerRunning, Kind::Ends(_)) => why("it does not exit"),
        (ContainerCreated, _) if container.started == Done::Yes => {
            why("it is created although it was started")
        }
        (ContainerExited, _) if pod.broken => None,
        (ContainerExited, Kind::Sleeps) if !stopped => why("it has exited by itself"),
        (ContainerExited, Kind::Sleeps) if ![0, 137, 143].contains(&status.exit_code) => {
            why("it has another exit code")
        }
        (ContainerExited, Kind::Ends(code)) if status.exit_code != code => match stopped {
            true if [137, 143].contains(&status.exit_code) => None,
            _ => why(&format!("the expected exit code is {code}")),
        },
        _ => None,
    }
}

/// Returns the keepers of pods that are not listed.
fn keepers_of_unlisted(berth: &Berth, listed: &Listed) -> Vec<String> {
    let listed_ids: BTreeSet<&str> = listed.pods.iter().map(|pod| pod.id.as_str()).collect();
    let keepers = keepers(berth);
    let stray = keepers.iter().filter(|keeper| !listed_ids.contains(keeper.pod()));
    stray.map(|keeper| format!("a keeper runs for pod {}, which is not listed", keeper.pod())).collect()
}
