//! The state that the clients expect, including what they do not know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Whether a requested operation has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Done {
    /// The operation was not requested.
    #[default]
    No,
    /// The operation was requested, and the answer was an error or did not arrive: it can have happened.
    Perhaps,
    Yes,
}

/// The behaviour of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs until it is stopped, and exits with 0.
    Sleeps,
    /// It exits by itself with this code.
    Ends(i32),
}

#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    /// The id in the answer to the client.
    pub id: Option<String>,
    pub kind: Kind,
    pub started: Done,
    pub stopped: Done,
    pub removed: Done,
}

#[derive(Clone, Debug, Default)]
pub struct PodTruth {
    /// The id in the answer to the client.
    pub id: Option<String>,
    /// The keeper or the pause of this pod was killed.
    pub broken: bool,
    pub stopped: Done,
    pub removed: Done,
    pub containers: Vec<Container>,
}

/// The shared state of all clients and the faults.
pub struct Ledger {
    pub socket: PathBuf,
    pub cgroup_parent: String,
    pub logs: PathBuf,
    over: AtomicBool,
    calls: AtomicUsize,
    given_up: AtomicUsize,
    /// Pods by their unique names.
    pods: Mutex<BTreeMap<String, PodTruth>>,
    violations: Mutex<Vec<String>>,
}

impl Ledger {
    pub fn new(socket: PathBuf, cgroup_parent: &str, logs: PathBuf) -> Self {
        Self {
            socket,
            cgroup_parent: cgroup_parent.to_owned(),
            logs,
            over: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            pods: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub fn count_call(&self, given_up: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.given_up.fetch_add(usize::from(given_up), Ordering::Relaxed);
    }

    pub fn pods(&self) -> MutexGuard<'_, BTreeMap<String, PodTruth>> {
        self.pods.lock().unwrap()
    }

    /// Changes the expected state of a pod.
    pub fn pod<T>(&self, name: &str, change: impl FnOnce(&mut PodTruth) -> T) -> T {
        change(self.pods().entry(name.to_owned()).or_default())
    }

    /// Changes the expected state of the newest container with this name.
    pub fn container<T>(&self, pod: &str, name: &str, change: impl FnOnce(&mut Container) -> T) -> T {
        self.pod(pod, |pod| change(pod.containers.iter_mut().rfind(|c| c.name == name).unwrap()))
    }

    /// Marks a pod before its keeper or its pause is killed.
    pub fn mark_broken(&self, id: &str) {
        for pod in self.pods().values_mut().filter(|pod| pod.id.as_deref().is_none_or(|known| known == id)) {
            // A pod without a known id can be the one.
            pod.broken = true;
        }
    }

    /// Records and prints a violation.
    pub fn violation(&self, what: String) {
        println!("VIOLATION: {what}");
        self.violations.lock().unwrap().push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub fn summary(&self) -> String {
        let pods = self.pods();
        let containers: usize = pods.values().map(|pod| pod.containers.len()).sum();
        let (calls, given_up) = (self.calls.load(Ordering::Relaxed), self.given_up.load(Ordering::Relaxed));
        format!("{} pods, {containers} containers, {calls} calls, {given_up} given up", pods.len())
    }
}
