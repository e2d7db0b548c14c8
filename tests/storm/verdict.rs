//! What must hold when the storm is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_proto::v1::*;

use crate::support::{Berth, PATIENCE};
use crate::trouble::keepers;
use crate::truth::{Container, Done, Kind, Pod, World};

/// What a daemon lists.
struct Listed {
    pods: Vec<PodSandbox>,
    containers: BTreeMap<String, ContainerStatus>,
    names: Vec<(String, String, String)>,
}

async fn look(berth: &mut Berth) -> Listed {
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

pub async fn hold(berth: &mut Berth, world: &World) {
    let known = world.pods().clone();
    // What is being released or ends by itself has its time.
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    while Instant::now() < until {
        let listed = look(berth).await;
        wrong = pods(&known, &listed);
        wrong.extend(keepers_of_unlisted(berth, &listed));
        if wrong.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    wrong.into_iter().for_each(|what| world.violation(what));
    // Those that run can be used.
    for pod in known.values().filter(|pod| !pod.broken && pod.stopped == Done::No) {
        for container in pod.containers.iter().filter(|c| must_run(c)) {
            let id = container.id.as_ref().unwrap();
            match berth.exec(id, &["echo", "there"], 60).await {
                Ok(answer) if answer.stdout == b"there\n" => {}
                other => world.violation(format!("exec in {id}: {other:?}")),
            }
        }
    }
}

fn must_run(container: &Container) -> bool {
    let Container { kind, started, stopped, removed, .. } = container;
    *kind == Kind::Sleeps && *started == Done::Yes && *stopped == Done::No && *removed == Done::No
}

fn pods(known: &BTreeMap<String, Pod>, listed: &Listed) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<&str, Vec<&PodSandbox>> = BTreeMap::new();
    for pod in &listed.pods {
        let name = pod.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        seen.entry(name).or_default().push(pod);
    }
    for (name, found) in &seen {
        match known.get(*name) {
            None => wrong.push(format!("pod {name} is nobody's")),
            Some(_) if found.len() > 1 => wrong.push(format!("pod {name} is there {} times", found.len())),
            Some(pod) if pod.removed == Done::Yes => {
                wrong.push(format!("pod {name} is there after its removal"))
            }
            Some(_) => {}
        }
    }
    for (name, pod) in known {
        let found = seen.get(name.as_str()).and_then(|found| found.first());
        match (found, &pod.id) {
            (Some(found), Some(id)) if found.id != *id => {
                wrong.push(format!("pod {name} has another id: {id} has become {}", found.id));
            }
            (None, Some(id)) if pod.removed == Done::No => wrong.push(format!("pod {name} ({id}) is lost")),
            (Some(found), Some(_)) => {
                let ready = found.state() == PodSandboxState::SandboxReady;
                if !ready && !pod.broken && pod.stopped == Done::No {
                    wrong.push(format!("pod {name} ({}) is not ready, and nobody has stopped it", found.id));
                }
                if ready && (pod.stopped == Done::Yes) {
                    wrong.push(format!("pod {name} ({}) is ready, and was stopped", found.id));
                }
                wrong.extend(containers(name, pod, found, listed));
            }
            _ => {}
        }
    }
    wrong
}

fn containers(name: &str, pod: &Pod, found: &PodSandbox, listed: &Listed) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for (_, container, id) in listed.names.iter().filter(|(of, _, _)| *of == found.id) {
        if !names.insert(container) {
            wrong.push(format!("container {container} of {name} is there twice: {id}"));
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
                wrong.push(format!("{what} is there after its removal"))
            }
            Some(status) => wrong.extend(state(pod, container, status).map(|why| format!("{what}: {why}"))),
        }
    }
    wrong
}

/// What is wrong with the state of a container.
fn state(pod: &Pod, container: &Container, status: &ContainerStatus) -> Option<String> {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    let stopped = pod.stopped != Done::No || container.stopped != Done::No || container.removed != Done::No;
    let why =
        |text: &str| Some(format!("{text}: {:?} {} {}", status.state(), status.exit_code, status.reason));
    match (status.state(), container.kind) {
        (ContainerCreated | ContainerRunning, _) if pod.stopped == Done::Yes => why("it is not over"),
        (ContainerRunning, _) if container.stopped == Done::Yes => why("it was stopped"),
        (ContainerRunning, Kind::Ends(_)) => why("it does not end"),
        (ContainerCreated, _) if container.started == Done::Yes => why("it was started"),
        (ContainerExited, _) if pod.broken => None,
        (ContainerExited, Kind::Sleeps) if !stopped => why("it has ended by itself"),
        (ContainerExited, Kind::Sleeps) if ![0, 137, 143].contains(&status.exit_code) => {
            why("it has another code")
        }
        (ContainerExited, Kind::Ends(code)) if status.exit_code != code => match stopped {
            true if [137, 143].contains(&status.exit_code) => None,
            _ => why(&format!("its code is {code}")),
        },
        _ => None,
    }
}

/// Keepers of pods that are not listed.
fn keepers_of_unlisted(berth: &Berth, listed: &Listed) -> Vec<String> {
    let known: BTreeSet<&str> = listed.pods.iter().map(|pod| pod.id.as_str()).collect();
    let keepers = keepers(berth);
    let stray = keepers.iter().filter(|keeper| !known.contains(keeper.pod()));
    stray.map(|keeper| format!("a keeper of pod {} runs, which is not listed", keeper.pod())).collect()
}
