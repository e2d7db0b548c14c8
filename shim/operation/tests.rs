//! Unit tests of operations.

use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn key() -> OperationKey {
    OperationKey::StopPod("7".repeat(64).try_into().unwrap())
}

#[tokio::test]
async fn a_retry_joins_and_gets_the_same_answer() {
    let operations = Operations::default();
    let runs = Arc::new(AtomicUsize::new(0));
    let call = || {
        let runs = runs.clone();
        operations.join(key(), move |_| async move {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(format!("answer {run}"))
        })
    };
    let (a, b) = tokio::join!(call(), call());
    assert_eq!(a.unwrap(), "answer 0");
    assert_eq!(b.unwrap(), "answer 0");
    assert_eq!(call().await.unwrap(), "answer 1", "a later call is a new operation");
}

#[tokio::test]
async fn a_caller_that_gives_up_stops_nothing() {
    let operations = Operations::default();
    let done = Arc::new(AtomicUsize::new(0));
    let seen = done.clone();
    let (go_on, given_up) = tokio::sync::oneshot::channel();
    let call = operations.join(key(), move |_| async move {
        drop(given_up.await);
        seen.store(1, Ordering::SeqCst);
        Ok(String::new())
    });
    assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    go_on.send(()).unwrap();
    operations.idle().await;
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_operation_in_flight_shows_its_step_and_its_new_object() {
    let operations = Operations::default();
    let (go_on, given_up) = tokio::sync::oneshot::channel();
    let call = operations.join(key(), move |progress| async move {
        progress.creates("id");
        progress.step(StopPodStep::Release);
        drop(given_up.await);
        Ok(String::new())
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
    let [seen] = &operations.in_flight()[..] else { panic!("one operation") };
    assert_eq!((seen.step, seen.creates.as_deref(), &seen.key), ("release", Some("id"), &key()));
    assert!(seen.elapsed >= seen.step_elapsed);
    go_on.send(()).unwrap();
    operations.idle().await;
    assert!(operations.in_flight().is_empty());
}

#[tokio::test]
async fn a_panic_leaves_no_operation_behind() {
    let operations = Operations::default();
    let answer = operations.join(key(), |_| async { panic!("on purpose") }).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Internal);
    assert!(operations.describe(|_| true).is_empty());
}

/// The behaviour of a caller, in turns of the scheduler.
#[derive(Clone, Debug)]
struct Caller {
    key: char,
    starts_after: u8,
    duration: u8,
    panics: bool,
    gives_up_after: Option<u8>,
}

fn any_caller() -> impl Strategy<Value = Caller> {
    let turns = || 0..6_u8;
    (prop::char::range('a', 'c'), turns(), turns(), prop::bool::weighted(0.1), prop::option::of(turns()))
        .prop_map(|(key, starts_after, duration, panics, gives_up_after)| Caller {
            key,
            starts_after,
            duration,
            panics,
            gives_up_after,
        })
}

async fn turns(count: u8) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Returns the operation that answered a caller; none if it panicked or the caller gave up.
async fn call(
    operations: Operations,
    caller: Caller,
    number: usize,
    running: Arc<Mutex<Vec<char>>>,
) -> Result<Option<usize>, String> {
    turns(caller.starts_after).await;
    let key = OperationKey::StopPod(caller.key.to_string().repeat(64).try_into().unwrap());
    let (letter, panics, duration) = (caller.key, caller.panics, caller.duration);
    let answer = operations.join(key, move |_| async move {
        if lock(&running).contains(&letter) {
            return Ok("two at once".to_owned());
        }
        lock(&running).push(letter);
        turns(duration).await;
        lock(&running).retain(|known| *known != letter);
        assert!(!panics, "on purpose");
        Ok(number.to_string())
    });
    let answer = match caller.gives_up_after {
        None => answer.await,
        Some(count) => tokio::select! {
            biased;
            answer = answer => answer,
            () = turns(count) => return Ok(None),
        },
    };
    match answer {
        Ok(text) => text.parse().map(Some).map_err(|_| text),
        Err(status) if status.code() == tonic::Code::Internal => Ok(None),
        Err(status) => Err(status.to_string()),
    }
}

proptest! {
    #[test]
    fn every_caller_is_answered_and_no_two_operations_of_a_key_run_at_once(
        callers in prop::collection::vec(any_caller(), 1..12),
    ) {
        let threads = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (operations, running) = (Operations::default(), Arc::new(Mutex::new(Vec::new())));
        let calls: Vec<_> = callers
            .iter()
            .enumerate()
            .map(|(number, caller)| {
                threads.spawn(call(operations.clone(), caller.clone(), number, running.clone()))
            })
            .collect();
        let answers = threads.block_on(async {
            let mut answers = Vec::new();
            for call in calls {
                answers.push(tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap());
            }
            operations.idle().await;
            answers
        });
        for (caller, answer) in callers.iter().zip(answers) {
            // No caller gets the answer of an operation on another key.
            let by = answer.map(|by| by.map_or(caller.key, |by| callers[by].key));
            prop_assert_eq!(by, Ok(caller.key));
        }
        prop_assert!(operations.describe(|_| true).is_empty() && lock(&running).is_empty());
    }
}
