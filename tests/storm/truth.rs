//! What the clients know, and what they may not know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Whether something that a client asked for has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Done {
    /// It was not asked for.
    #[default]
    No,
    /// It was asked for, and the answer never came or was an error: it may have happened.
    Perhaps,
    Yes,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs until it is told to end, and ends with 0.
    Sleeps,
    /// It ends by itself with this code.
    Ends(i32),
}

#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    /// As the client was told.
    pub id: Option<String>,
    pub kind: Kind,
    pub started: Done,
    pub stopped: Done,
    pub removed: Done,
}

#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// As the client was told.
    pub id: Option<String>,
    /// Its keeper or its pause was killed.
    pub broken: bool,
    pub stopped: Done,
    pub removed: Done,
    pub containers: Vec<Container>,
}

/// What all share.
pub struct World {
    pub socket: PathBuf,
    pub cgroup_parent: String,
    pub logs: PathBuf,
    over: AtomicBool,
    calls: AtomicUsize,
    given_up: AtomicUsize,
    /// By their names, which no two have.
    pods: Mutex<BTreeMap<String, Pod>>,
    violations: Mutex<Vec<String>>,
}

impl World {
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

    pub fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods.lock().unwrap()
    }

    /// Changes what is known of a pod.
    pub fn pod<T>(&self, name: &str, change: impl FnOnce(&mut Pod) -> T) -> T {
        change(self.pods().entry(name.to_owned()).or_default())
    }

    /// Changes what is known of the newest container of this name.
    pub fn container<T>(&self, pod: &str, name: &str, change: impl FnOnce(&mut Container) -> T) -> T {
        self.pod(pod, |pod| change(pod.containers.iter_mut().rfind(|c| c.name == name).unwrap()))
    }

    /// The pod's keeper or pause is about to be killed.
    pub fn breaks(&self, id: &str) {
        for pod in self.pods().values_mut().filter(|pod| pod.id.as_deref().is_none_or(|known| known == id)) {
            // One whose id no client knows yet may be it.
            pod.broken = true;
        }
    }

    /// Something is not as it must be.
    pub fn violation(&self, what: String) {
        println!("VIOLATION: {what}");
        self.violations.lock().unwrap().push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub fn told(&self) -> String {
        let pods = self.pods();
        let containers: usize = pods.values().map(|pod| pod.containers.len()).sum();
        let (calls, given_up) = (self.calls.load(Ordering::Relaxed), self.given_up.load(Ordering::Relaxed));
        format!("{} pods, {containers} containers, {calls} calls, {given_up} given up", pods.len())
    }
}
