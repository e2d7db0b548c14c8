//! The background threads of the store. Each has one kind of work, so that none waits for another's. They
//! sleep while they have no jobs.

use std::fmt::Debug;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Inner;
use crate::error::Error;

/// A handle to a thread. The thread ends when the last store is dropped.
#[derive(Debug)]
pub(super) struct Worker<J> {
    jobs: Sender<J>,
}

/// The jobs of a thread that has not started.
pub(super) struct Inbox<J>(Receiver<J>);

impl<J: Debug + Send + 'static> Worker<J> {
    pub(super) fn new() -> (Self, Inbox<J>) {
        let (jobs, inbox) = channel();
        (Self { jobs }, Inbox(inbox))
    }

    pub(super) fn send(&self, job: J) {
        if let Err(error) = self.jobs.send(job) {
            tracing::error!(job = ?error.0, "a thread of the image store has terminated");
        }
    }
}

impl<J: Send + 'static> Inbox<J> {
    /// Starts the thread. The kernel keeps 15 characters of its name.
    pub(super) fn start(
        self,
        name: &str,
        store: Weak<Inner>,
        run: impl FnOnce(&Weak<Inner>, &Receiver<J>) + Send + 'static,
    ) -> Result<(), Error> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&store, &self.0))
            .map(drop)
            .map_err(|error| Error::internal("start a thread of the image store", error))
    }
}
