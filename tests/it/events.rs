//! GetContainerEvents: every subscriber receives each event once and in order, and learns when it has missed events.
//! Runs as root.

use crate::support::{Berth, PATIENCE, shell, sleeper};
use berth_proto::v1::ContainerEventType as Kind;
use berth_proto::v1::*;
use tonic::Streaming;

type Events = Streaming<ContainerEventResponse>;

const LIFE: [Kind; 4] = [
    Kind::ContainerCreatedEvent,
    Kind::ContainerStartedEvent,
    Kind::ContainerStoppedEvent,
    Kind::ContainerDeletedEvent,
];

async fn subscribe(berth: &mut Berth) -> Events {
    berth.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner()
}

async fn next(events: &mut Events) -> ContainerEventResponse {
    tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap()
}

/// Receives events up to the event of this kind for this object.
async fn up_to(events: &mut Events, id: &str, kind: Kind) -> Vec<ContainerEventResponse> {
    let mut got = Vec::new();
    loop {
        let event = next(events).await;
        let last = event.container_id == id && event.container_event_type() == kind;
        got.push(event);
        if last {
            return got;
        }
    }
}

fn of(events: &[ContainerEventResponse], id: &str) -> Vec<Kind> {
    events
        .iter()
        .filter(|event| event.container_id == id)
        .map(ContainerEventResponse::container_event_type)
        .collect()
}

fn state_in(event: &ContainerEventResponse, id: &str) -> Option<ContainerState> {
    event.containers_statuses.iter().find(|status| status.id == id).map(ContainerStatus::state)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscriber_receives_all_events_of_a_pod_in_order() {
    let mut berth = Berth::start().await;
    let (mut first, mut second) = (subscribe(&mut berth).await, subscribe(&mut berth).await);
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let short = berth.run(&pod, shell("short", "exit 4")).await;
    berth.wait_exited(&short).await;
    let long = berth.run(&pod, sleeper("long")).await;
    let waiting = berth.try_create(&pod, sleeper("waiting")).await.unwrap();
    let broken = berth.try_create(&pod, crate::support::container("broken", &["/nope"])).await.unwrap();
    berth.try_start_container(&broken).await.unwrap_err();
    berth.remove_container(&short).await;
    berth.remove_pod(&pod).await;

    let got = up_to(&mut first, &pod, Kind::ContainerDeletedEvent).await;
    assert_eq!(up_to(&mut second, &pod, Kind::ContainerDeletedEvent).await, got);
    for id in [&pod, &short, &long] {
        assert_eq!(of(&got, id), LIFE, "{id}");
    }
    assert_eq!(
        of(&got, &waiting),
        [LIFE[0], LIFE[2], LIFE[3]].to_vec(),
        "a container that was never started has no started event"
    );
    assert_eq!(
        of(&got, &broken),
        [LIFE[0], LIFE[2], LIFE[3]].to_vec(),
        "a container that failed to start has no started event"
    );
    assert!(got.is_sorted_by_key(|event| event.created_at), "event times do not decrease");
    // The kubelet finds the pod of every event by these fields.
    for event in &got {
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!((status.id.as_str(), status.metadata.as_ref().unwrap().uid.as_str()), (&*pod, "uid-pod"));
    }
    let find = |id: &str, kind: Kind| {
        got.iter().find(|event| event.container_id == id && event.container_event_type() == kind).unwrap()
    };
    let started = find(&pod, Kind::ContainerStartedEvent).pod_sandbox_status.as_ref().unwrap();
    assert_eq!(started.state(), PodSandboxState::SandboxReady);
    assert!(!started.network.as_ref().unwrap().ip.is_empty());
    let stopped = find(&pod, Kind::ContainerStoppedEvent);
    assert_eq!(stopped.pod_sandbox_status.as_ref().unwrap().state(), PodSandboxState::SandboxNotready);
    assert_eq!(
        state_in(stopped, &long),
        Some(ContainerState::ContainerExited),
        "containers end before their pod"
    );
    assert!(find(&long, Kind::ContainerStoppedEvent).created_at < stopped.created_at);
    let end = find(&short, Kind::ContainerStoppedEvent);
    let status = end.containers_statuses.iter().find(|status| status.id == short).unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 4));
    assert_eq!(state_in(find(&short, Kind::ContainerDeletedEvent), &short), None);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_never_older_than_the_event_before_it() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut events = subscribe(&mut berth).await;
    for round in 0..15 {
        let id = berth.run(&pod, shell(&format!("c{round}"), "exit 0")).await;
        for kind in &LIFE[..3] {
            let event = next(&mut events).await;
            assert_eq!((event.container_id.as_str(), event.container_event_type()), (&*id, *kind));
            let (reported, now) = (state_in(&event, &id).unwrap(), berth.status(&id).await.state());
            assert!(i32::from(now) >= i32::from(reported), "{now:?} after {reported:?}");
            let least = match kind {
                Kind::ContainerCreatedEvent => ContainerState::ContainerCreated,
                Kind::ContainerStartedEvent => ContainerState::ContainerRunning,
                _ => ContainerState::ContainerExited,
            };
            assert!(i32::from(reported) >= i32::from(least), "{reported:?} with {kind:?}");
        }
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_while_no_daemon_runs_are_reported_by_the_next_daemon() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let lost = berth.run_pod(berth.pod_config("lost")).await;
    let before = berth.run(&pod, shell("before", "exit 1")).await;
    berth.wait_exited(&before).await;
    let meanwhile =
        berth.run(&pod, shell("meanwhile", "until [ -e /tmp/go ]; do sleep 0.05; done; exit 9")).await;
    let still = berth.run(&pod, sleeper("still")).await;
    berth.exec(&meanwhile, &["sh", "-c", "(sleep 1; touch /tmp/go) >/dev/null 2>&1 &"], 0).await.unwrap();
    berth.kill();
    crate::support::leftovers::kill_keeper_of(&lost);
    let ended = berth.path(&format!("root/containers/{meanwhile}/exit.json"));
    let until = std::time::Instant::now() + PATIENCE;
    while !ended.exists() {
        assert!(std::time::Instant::now() < until);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    berth.restart().await;
    for _subscriber in 0..2 {
        let mut events = subscribe(&mut berth).await;
        let mut got = [next(&mut events).await, next(&mut events).await];
        got.sort_by_key(|event| event.container_id != meanwhile);
        let [end, pod_end] = &got;
        assert_eq!((end.container_id.as_str(), end.container_event_type()), (&*meanwhile, LIFE[2]));
        let status = end.containers_statuses.iter().find(|status| status.id == meanwhile).unwrap();
        assert_eq!(status.exit_code, 9);
        assert_eq!((pod_end.container_id.as_str(), pod_end.container_event_type()), (&*lost, LIFE[2]));
    }
    // From then on events arrive as usual, and removed objects are not reported again.
    let mut events = subscribe(&mut berth).await;
    let _missed = (next(&mut events).await, next(&mut events).await);
    berth.stop_container(&still, 10).await;
    assert_eq!(of(&up_to(&mut events, &still, LIFE[2]).await, &still), [LIFE[2]]);
    berth.remove_container(&meanwhile).await;
    berth.remove_pod(&lost).await;
    let mut later = subscribe(&mut berth).await;
    berth.remove_container(&before).await;
    let event = next(&mut later).await;
    assert_eq!((event.container_id.as_str(), event.container_event_type()), (&*before, LIFE[3]));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
