//! Joinable operations: a retry of the same call joins the operation in flight and gets its answer. A caller that
//! gives up does not stop it. Each operation shows its current step and how long the step has taken.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::Status;
use tracing::{Instrument, Span};

use crate::ids::{ContainerId, PodId};
use crate::instruments::Instruments;
use crate::store::{ContainerName, PodName};
use crate::traces;

/// The kind and the object of an operation. Two calls with equal keys are one operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OperationKey {
    /// A pod is created and started (RunPodSandbox).
    RunPod(PodName),
    /// A pod is stopped (StopPodSandbox).
    StopPod(PodId),
    /// A pod is removed (RemovePodSandbox).
    RemovePod(PodId),
    /// CreateContainer in a pod.
    Create(PodId, ContainerName),
    /// A container is started (StartContainer).
    Start(ContainerId),
    /// StopContainer with a grace period in seconds: a call with another grace period is another operation.
    Stop(ContainerId, i64),
    /// A container is removed (RemoveContainer).
    Remove(ContainerId),
}

/// An operation in flight, as an operator sees it.
#[derive(Clone, Debug)]
pub struct OperationSnapshot {
    /// The kind and the object.
    pub key: OperationKey,
    /// The id of the object that is being created, once it has one.
    pub creates: Option<String>,
    /// The current step.
    pub step: &'static str,
    /// The time since the start of the operation.
    pub elapsed: Duration,
    /// The time since the start of the step.
    pub step_elapsed: Duration,
}

impl OperationKey {
    /// Returns the name of the RPC that starts the operation.
    #[must_use]
    pub fn rpc(&self) -> &'static str {
        match self {
            Self::RunPod(_) => "RunPodSandbox",
            Self::StopPod(_) => "StopPodSandbox",
            Self::RemovePod(_) => "RemovePodSandbox",
            Self::Create(..) => "CreateContainer",
            Self::Start(_) => "StartContainer",
            Self::Stop(..) => "StopContainer",
            Self::Remove(_) => "RemoveContainer",
        }
    }
}

/// The steps of an operation; verbose status shows the current one.
#[derive(Clone, Debug)]
pub struct Progress {
    rpc: &'static str,
    steps: Arc<Mutex<Steps>>,
    started: Instant,
    /// The id of the object that is being created.
    creates: Arc<OnceLock<String>>,
    instruments: Arc<Instruments>,
    /// The operation in its trace.
    span: Span,
}

#[derive(Debug)]
struct Steps {
    finished: Vec<(&'static str, Duration)>,
    current: &'static str,
    since: Instant,
    /// The current step in the trace of the operation.
    span: Span,
}

impl Steps {
    /// Returns the time of the finished steps in milliseconds.
    fn total(&self) -> String {
        milliseconds(self.finished.iter().map(|(_, time)| *time).sum())
    }

    /// Returns the finished steps with their times, without the first one if nothing had to wait.
    fn describe(&self) -> String {
        let mut text = String::new();
        for (step, time) in &self.finished {
            if *step == FIRST_STEP && *time < SHORT_WAIT {
                continue;
            }
            let comma = if text.is_empty() { "" } else { ", " };
            text.push_str(&format!("{comma}{step} {} ms", milliseconds(*time)));
        }
        text
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// A wait before the first step that is not worth a word.
const SHORT_WAIT: Duration = Duration::from_millis(1);

/// The step before the first one that an operation names.
const FIRST_STEP: &str = "waiting";

impl Progress {
    fn new(rpc: &'static str, instruments: Arc<Instruments>) -> Self {
        let steps =
            Steps { finished: Vec::new(), current: FIRST_STEP, since: Instant::now(), span: Span::none() };
        let span = tracing::trace_span!(target: traces::TARGET, "operation", otel.name = %format_args!("operation {rpc}"));
        Self {
            rpc,
            steps: Arc::new(Mutex::new(steps)),
            started: Instant::now(),
            creates: Arc::default(),
            instruments,
            span,
        }
    }

    /// Sets the id of the object that is being created.
    pub fn creates(&self, id: &str) {
        // An operation creates one object.
        let _first = self.creates.get_or_init(|| id.to_owned());
    }

    /// Starts the next step.
    pub fn step(&self, name: &'static str) {
        let mut steps = lock(&self.steps);
        let (finished, time) = (steps.current, steps.since.elapsed());
        tracing::debug!(finished, micros = time.as_micros(), next = name, "step");
        steps.finished.push((finished, time));
        (steps.current, steps.since) = (name, Instant::now());
        steps.span = tracing::trace_span!(
            target: traces::TARGET, parent: &self.span, "step", otel.name = %format_args!("step {name}")
        );
        drop(steps);
        self.instruments.step_ended(self.rpc, finished, time);
    }

    /// Ends the last step and logs the operation, in one line. The pod and the container are in the span.
    fn end(&self, succeeded: bool) {
        let mut steps = lock(&self.steps);
        let (finished, time) = (steps.current, steps.since.elapsed());
        steps.finished.push((finished, time));
        steps.span = Span::none();
        let (rpc, ms, steps) = (self.rpc, steps.total(), steps.describe());
        self.instruments.step_ended(rpc, finished, time);
        match succeeded {
            true => tracing::info!(ms, steps, "{rpc} done"),
            // The RPC's own line has the error.
            false => tracing::info!(ms, steps, "{rpc} failed"),
        }
    }

    fn describe(&self) -> String {
        let steps = lock(&self.steps);
        format!("{} for {:.1} s", steps.current, steps.since.elapsed().as_secs_f64())
    }
}

/// The current step of an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentStep {
    /// The RPC that started the operation.
    pub rpc: &'static str,
    /// The name of the step.
    pub step: &'static str,
    /// How long the step has taken so far.
    pub time: Duration,
}

type Answer = Option<Result<String, Status>>;

struct Running {
    progress: Progress,
    answer: watch::Receiver<Answer>,
}

/// The operations in flight.
#[derive(Clone, Default)]
pub struct Operations {
    running: Arc<Mutex<HashMap<OperationKey, Running>>>,
    instruments: Arc<Instruments>,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(lock(&self.running).iter().map(|(k, r)| (k, r.progress.describe()))).finish()
    }
}

impl Operations {
    /// Creates an empty list, whose operations record the durations of their steps.
    #[must_use]
    pub fn new(instruments: Arc<Instruments>) -> Self {
        Self { running: Arc::default(), instruments }
    }

    /// Runs `work` as a separate task, or joins the operation in flight with the same key, and waits for the answer.
    /// The task runs to its end even if the caller disconnects.
    ///
    /// # Errors
    /// The error of the operation.
    pub async fn join<F, W>(&self, key: OperationKey, work: W) -> Result<String, Status>
    where
        W: FnOnce(Progress) -> F,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let mut answer = {
            let mut running = lock(&self.running);
            match running.get(&key) {
                Some(operation) => operation.answer.clone(),
                None => self.spawn(&mut running, key, work),
            }
        };
        match answer.wait_for(Option::is_some).await.map(|answer| answer.clone()) {
            Ok(Some(result)) => result,
            // The task panicked.
            _ => Err(Status::internal("the operation ended without an answer")),
        }
    }

    fn spawn<F, W>(
        &self,
        running: &mut HashMap<OperationKey, Running>,
        key: OperationKey,
        work: W,
    ) -> watch::Receiver<Answer>
    where
        W: FnOnce(Progress) -> F,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let (sender, answer) = watch::channel(None);
        let progress = Progress::new(key.rpc(), self.instruments.clone());
        running.insert(key.clone(), Running { progress: progress.clone(), answer: answer.clone() });
        let guard = RunningGuard { operations: self.clone(), key };
        let work = work(progress.clone());
        tokio::spawn(
            async move {
                let span = progress.span.clone();
                let result = work.instrument(span.clone()).await;
                if let Err(status) = &result {
                    traces::fail(&span, &status.message());
                }
                progress.end(result.is_ok());
                drop(guard);
                sender.send_replace(Some(result));
            }
            .in_current_span(),
        );
        answer
    }

    /// Describes the operations in flight with a matching key.
    #[must_use]
    pub fn describe(&self, concerns: impl Fn(&OperationKey) -> bool) -> Vec<String> {
        lock(&self.running)
            .iter()
            .filter(|(key, _)| concerns(key))
            .map(|(key, operation)| format!("{key:?}: {}", operation.progress.describe()))
            .collect()
    }

    /// Returns all operations in flight, the longest-running first.
    #[must_use]
    pub fn in_flight(&self) -> Vec<OperationSnapshot> {
        let mut all: Vec<OperationSnapshot> = lock(&self.running)
            .iter()
            .map(|(key, operation)| {
                let progress = &operation.progress;
                let steps = lock(&progress.steps);
                OperationSnapshot {
                    key: key.clone(),
                    creates: progress.creates.get().cloned(),
                    step: steps.current,
                    elapsed: progress.started.elapsed(),
                    step_elapsed: steps.since.elapsed(),
                }
            })
            .collect();
        all.sort_by_key(|operation| std::cmp::Reverse(operation.elapsed));
        all
    }

    /// Returns the current step of each operation in flight.
    #[must_use]
    pub fn current_steps(&self) -> Vec<CurrentStep> {
        let running = lock(&self.running);
        let steps = running.values().map(|operation| {
            let steps = lock(&operation.progress.steps);
            CurrentStep { rpc: operation.progress.rpc, step: steps.current, time: steps.since.elapsed() }
        });
        steps.collect()
    }

    /// Waits until no operation is in flight.
    pub async fn idle(&self) {
        loop {
            let waiting: Vec<_> = lock(&self.running).values().map(|o| o.answer.clone()).collect();
            if waiting.is_empty() {
                return;
            }
            for mut answer in waiting {
                // An error means that the task is gone, so the wait is over.
                drop(answer.wait_for(Option::is_some).await);
            }
        }
    }
}

/// Removes the operation from the list when it is dropped, also when its task panics.
struct RunningGuard {
    operations: Operations,
    key: OperationKey,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        lock(&self.operations.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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
            progress.step("network");
            drop(given_up.await);
            Ok(String::new())
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        let [seen] = &operations.in_flight()[..] else { panic!("one operation") };
        assert_eq!((seen.step, seen.creates.as_deref(), &seen.key), ("network", Some("id"), &key()));
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
}
