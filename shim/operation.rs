//! Joinable operations: a retry of the same call joins the operation in flight and gets its answer. A caller that
//! gives up does not stop it. Each operation shows its current step and how long the step has taken.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::Status;
use tracing::{Instrument, Span};

use crate::ids::{ContainerId, PodId};
use crate::instruments::Instruments;
use crate::store::{ContainerName, PodName};
use crate::traces;

mod step;

use step::WAITING;
pub use step::{
    CheckpointPodStep, CheckpointStep, CreateStep, RemovePodStep, RemoveStep, RestorePodStep, RunPodStep,
    StartStep, Step, StopPodStep, StopStep,
};

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
    /// CheckpointContainer to a location.
    Checkpoint(ContainerId, PathBuf),
    /// CheckpointPod to a folder.
    CheckpointPod(PodId, PathBuf),
    /// A pod and its containers are created from a checkpoint (RestorePod).
    RestorePod(PodName),
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
            Self::Checkpoint(..) => "CheckpointContainer",
            Self::CheckpointPod(..) => "CheckpointPod",
            Self::RestorePod(_) => "RestorePod",
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
            if *step == WAITING && *time < SHORT_WAIT {
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

/// Shorter waits before the first step are not logged.
const SHORT_WAIT: Duration = Duration::from_millis(1);

impl Progress {
    fn new(rpc: &'static str, instruments: Arc<Instruments>) -> Self {
        let steps =
            Steps { finished: Vec::new(), current: WAITING, since: Instant::now(), span: Span::none() };
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
    pub fn step(&self, step: impl Into<Step>) {
        let step: Step = step.into();
        debug_assert_eq!(step.operation, self.rpc, "a step of another operation");
        step.reach();
        let name = step.name;
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
                Step::waiting(progress.rpc).reach();
                let result = work.instrument(span.clone()).await;
                Step::answer(progress.rpc).reach();
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
mod tests;
