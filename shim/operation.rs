//! Joinable operations (DESIGN rule 7): a retry of the same call joins the one in flight and gets its answer, and a caller
//! that gives up does not stop it. Each shows the step it is at and since when.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tonic::Status;
use tracing::Instrument;

use crate::ids::{ContainerId, PodId};
use crate::store::{ContainerName, PodName};

/// What an operation does, to what. Two calls with equal keys are one operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// RunPodSandbox.
    RunPod(PodName),
    /// StopPodSandbox.
    StopPod(PodId),
    /// RemovePodSandbox.
    RemovePod(PodId),
    /// CreateContainer in a pod.
    Create(PodId, ContainerName),
    /// StartContainer.
    Start(ContainerId),
    /// StopContainer with a grace period in seconds: a more impatient call is another operation.
    Stop(ContainerId, i64),
    /// RemoveContainer.
    Remove(ContainerId),
}

/// The step an operation is at; shown in verbose status.
#[derive(Clone, Debug)]
pub struct Progress {
    step: Arc<Mutex<(&'static str, Instant)>>,
}

impl Progress {
    fn new() -> Self {
        Self { step: Arc::new(Mutex::new(("waiting", Instant::now()))) }
    }

    /// The operation goes on to its next step.
    pub fn step(&self, name: &'static str) {
        let mut step = lock(&self.step);
        tracing::debug!(finished = step.0, micros = step.1.elapsed().as_micros(), next = name, "step");
        *step = (name, Instant::now());
    }

    fn describe(&self) -> String {
        let step = lock(&self.step);
        format!("{} for {:.1} s", step.0, step.1.elapsed().as_secs_f64())
    }
}

type Answer = Option<Result<String, Status>>;

struct Running {
    progress: Progress,
    answer: watch::Receiver<Answer>,
}

/// The operations in flight.
#[derive(Clone, Default)]
pub struct Operations {
    running: Arc<Mutex<HashMap<Key, Running>>>,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(lock(&self.running).iter().map(|(k, r)| (k, r.progress.describe()))).finish()
    }
}

impl Operations {
    /// Runs `work` as a task of its own, or joins the operation of the same key that is in flight, and waits for the
    /// answer. The task runs to its end even when the caller goes away.
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn join<F, W>(&self, key: Key, work: W) -> Result<String, Status>
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
            // The task died without an answer: it panicked.
            _ => Err(Status::internal("the operation ended without an answer")),
        }
    }

    fn spawn<F, W>(&self, running: &mut HashMap<Key, Running>, key: Key, work: W) -> watch::Receiver<Answer>
    where
        W: FnOnce(Progress) -> F,
        F: Future<Output = Result<String, Status>> + Send + 'static,
    {
        let (tell, answer) = watch::channel(None);
        let progress = Progress::new();
        running.insert(key.clone(), Running { progress: progress.clone(), answer: answer.clone() });
        let leave = Leave { operations: self.clone(), key };
        let work = work(progress);
        tokio::spawn(
            async move {
                let result = work.await;
                drop(leave);
                tell.send_replace(Some(result));
            }
            .in_current_span(),
        );
        answer
    }

    /// The operations in flight on an object, in words.
    #[must_use]
    pub fn describe(&self, concerns: impl Fn(&Key) -> bool) -> Vec<String> {
        lock(&self.running)
            .iter()
            .filter(|(key, _)| concerns(key))
            .map(|(key, operation)| format!("{key:?}: {}", operation.progress.describe()))
            .collect()
    }

    /// Waits until nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let waiting: Vec<_> = lock(&self.running).values().map(|o| o.answer.clone()).collect();
            if waiting.is_empty() {
                return;
            }
            for mut answer in waiting {
                // An error means that the task is gone, which is what is waited for.
                drop(answer.wait_for(Option::is_some).await);
            }
        }
    }
}

/// Takes the operation off the list, also when its task panics.
struct Leave {
    operations: Operations,
    key: Key,
}

impl Drop for Leave {
    fn drop(&mut self) {
        lock(&self.operations.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn key() -> Key {
        Key::StopPod("7".repeat(64).try_into().unwrap())
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
    async fn a_panic_leaves_no_operation_behind() {
        let operations = Operations::default();
        let answer = operations.join(key(), |_| async { panic!("on purpose") }).await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::Internal);
        assert!(operations.describe(|_| true).is_empty());
    }
}
