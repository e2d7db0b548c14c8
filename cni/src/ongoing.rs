//! The plugin programs that run, for an operator who wants to know what a pod waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The standard error of a running plugin.
pub(crate) type Stderr = Arc<Mutex<Vec<u8>>>;

/// A plugin program that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginCall {
    /// The plugin's type.
    pub plugin: String,
    /// `ADD`, `DEL`, `CHECK`, `GC` or `STATUS`.
    pub command: String,
    /// The pod's id; empty for a call that concerns the network as a whole.
    pub pod: String,
    /// The pid of the program.
    pub pid: u32,
    /// The start of the call.
    pub started: SystemTime,
    /// The start of its standard error so far.
    pub stderr: String,
}

#[derive(Debug)]
struct RunningPlugin {
    call: PluginCall,
    stderr: Stderr,
}

/// The running programs, by the order of their starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ongoing {
    entries: Arc<Mutex<BTreeMap<u64, RunningPlugin>>>,
}

impl Ongoing {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, RunningPlugin>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a program until the result is dropped.
    pub(crate) fn begin(&self, plugin: &str, command: &str, pod: &str, pid: Option<u32>) -> Begun {
        let call = PluginCall {
            plugin: plugin.to_owned(),
            command: command.to_owned(),
            pod: pod.to_owned(),
            pid: pid.unwrap_or_default(),
            started: SystemTime::now(),
            stderr: String::new(),
        };
        let stderr = Stderr::default();
        let mut entries = self.lock();
        let number = entries.last_key_value().map_or(0, |(last, _)| last + 1);
        entries.insert(number, RunningPlugin { call, stderr: stderr.clone() });
        Begun { ongoing: self.clone(), number, stderr }
    }

    /// Returns the running programs, oldest first.
    pub(crate) fn calls(&self) -> Vec<PluginCall> {
        let calls = self.lock();
        let calls = calls.values().map(|entry| {
            let stderr = entry.stderr.lock().unwrap_or_else(PoisonError::into_inner);
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            PluginCall { stderr, ..entry.call.clone() }
        });
        calls.collect()
    }
}

/// Lists a program as running until it is dropped.
#[derive(Debug)]
pub(crate) struct Begun {
    ongoing: Ongoing,
    number: u64,
    stderr: Stderr,
}

impl Begun {
    /// The standard error of the program, which `output` appends to.
    pub(crate) fn stderr(&self) -> &Stderr {
        &self.stderr
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.ongoing.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_listed_with_its_errors_while_it_runs() {
        let ongoing = Ongoing::default();
        let first = ongoing.begin("slow", "ADD", "pod", Some(7));
        let second = ongoing.begin("slow", "DEL", "other", None);
        first.stderr().lock().unwrap().extend_from_slice(b"waiting for the datastore\n");
        let calls = ongoing.calls();
        assert_eq!((calls[0].pid, calls[0].stderr.as_str()), (7, "waiting for the datastore"));
        assert_eq!((calls[1].command.as_str(), calls[1].stderr.as_str()), ("DEL", ""));
        drop(first);
        assert_eq!(ongoing.calls().len(), 1);
        drop(second);
        assert_eq!(ongoing.calls(), []);
    }
}
